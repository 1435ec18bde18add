"""One ingress process for many tenants: a log and an intake each, behind one unix socket.

    supervisor ─ Begin ─► unix socket: /t/NAME/v1/streams/... ─► that tenant's intake ─► its log.sqlite
               ─ Of(NAME, Begin | Committed | Drain) ─► one of them opens, makes room, ends
               ◄─ Of(NAME, Listening | Beat | Status | Counted | Stopped | Fatal)

Each is an ``Ingress`` as a server with one stream has it; what they share is the process, its address space and the
loop that reads requests. A tenant whose state does not fit, or whose log breaks, is said to be so and is let go.
"""

import logging
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from streamkd import config as configuration
from streamkd import logs, threads
from streamkd.errors import Overloaded, StreamkdError
from streamkd.plugins import Registry
from streamkd.process import bound_address_space
from streamkd.serve.processes.channel import Channel, Speaker
from streamkd.serve.processes.ingress import TELL_SECONDS, Ingress, http, response
from streamkd.serve.processes.messages import Begin, Drain, Listening, Message, Of, Stopped, fatal, from_json, to_json
from streamkd.serve.processes.reports import STARTING, STOPPING, Reporter
from streamkd.state import coherence
from streamkd.state.directory import StateDirectory
from streamkd.streams.ingest.http import Answer
from streamkd.streams.log.dead_letters import DeadLetters
from streamkd.telemetry import Recorder

TENANT_BYTES = 32 << 20  # of address space for each: a thread's stack, two connections, what is being read
logger = logging.getLogger("streamkd.ingress")


@dataclass(frozen=True)
class TenantVoice:
    """A channel on which everything is said of one tenant."""

    channel: Channel
    tenant: str

    def say(self, message: Message) -> None:
        self.channel.say(Of(self.tenant, to_json(message)))

    def try_to_say(self, message: Message) -> bool:
        return self.channel.try_to_say(Of(self.tenant, to_json(message)))


@dataclass(frozen=True)
class TenantIngress:
    """One tenant's ingress, and how it reports."""

    ingress: Ingress
    application: Starlette
    voice: Speaker
    reporter: Reporter
    state: Path


class Ingresses:
    """The tenants of one ingress process, by name; requests are led to them by their path."""

    def __init__(self, channel: Channel, registry: Registry, address_bytes: int) -> None:
        self._channel, self._registry, self._address_bytes = channel, registry, address_bytes
        self._hosted: dict[str, TenantIngress] = {}
        self._looked = 0.0

    def run(self, socket: Path) -> None:
        """Take records for whoever is told to be here, until the supervisor says drain."""
        reporter = Reporter(self._channel, Recorder())
        reporter.beat(STARTING)
        with http(Starlette(routes=[Mount("/t/{tenant}", app=self._lead)]), socket) as goes_on:
            self._channel.say(Listening())
            message: Message | None = None
            while not isinstance(message, Drain):
                if isinstance(message, Of):
                    self._hear(message.tenant, from_json(message.said), goes_on())
                self._look(goes_on())
                if goes_on():
                    reporter.beat("taking records")
                message = self._channel.hear(TELL_SECONDS)
            reporter.beat(STOPPING)
            for name in list(self._hosted):
                self._close(name)
        self._channel.say(Stopped())

    def _hear(self, name: str, message: Message, goes_on: bool) -> None:
        if isinstance(message, Begin):
            self._open(name, message)
        elif isinstance(message, Drain):
            self._close(name)
        else:
            self._round(name, message, goes_on)

    def _open(self, name: str, start: Begin) -> None:
        voice = TenantVoice(self._channel, name)
        bound_address_space(self._address_bytes + TENANT_BYTES * (1 + len(self._hosted)))
        try:
            ingress = _prepare(start, self._registry)
        except StreamkdError as fault:
            voice.say(fatal(fault))
            return
        reporter = Reporter(voice, ingress.recorder)
        self._hosted[name] = TenantIngress(ingress, ingress.application, voice, reporter, Path(start.state))
        voice.say(ingress.committed())
        self._round(name, None, True)

    def _look(self, goes_on: bool) -> None:
        """A round for every tenant, when it is time to."""
        if time.monotonic() - self._looked >= TELL_SECONDS:
            self._looked = time.monotonic()
            for name in list(self._hosted):
                self._round(name, None, goes_on)

    def _round(self, name: str, message: Message | None, goes_on: bool) -> None:
        if (one := self._hosted.get(name)) is None:
            return
        try:
            one.ingress.look(message, one.voice, one.reporter, goes_on)
        except Overloaded as fault:  # the disk is full, say: the next round tries again
            logger.warning("the tenant %s: %s", name, fault)
        except StreamkdError as fault:  # its log is broken: nothing is written to it any more
            del self._hosted[name]
            logger.error("the tenant %s is let go: %s", name, fault)
            one.voice.say(fatal(fault))

    def _close(self, name: str) -> None:
        """Let a tenant go in order; it is said to have stopped where it was not here at all, too."""
        one = self._hosted.pop(name, None)
        if one is None:
            TenantVoice(self._channel, name).say(Stopped())
            return
        try:
            one.ingress.drain(one.reporter)
            one.ingress.close(one.voice, one.reporter)
        except StreamkdError as fault:
            one.voice.say(fatal(fault))

    async def _lead(self, scope: Scope, receive: Receive, send: Send) -> None:
        one = self._hosted.get(scope["path_params"]["tenant"])
        if one is None:
            wait = Answer(503, {"error": "this tenant's records are not taken now"}, {"Retry-After": "2"})
            await response(wait)(scope, receive, send)
            return
        await one.application(scope, receive, send)

    def say_whose(self, fault: StreamkdError) -> None:
        """The last words of a thread: those of the tenant whose log they name, else of the process."""
        with suppress(EOFError):
            for name, one in list(self._hosted.items()):
                if fault.where.startswith(f"{one.state}/"):
                    TenantVoice(self._channel, name).say(fatal(fault))
                    return
            self._channel.send_fatal(fault)


def _prepare(start: Begin, registry: Registry) -> Ingress:
    """A tenant's ingress over its state directory, which is made where no learner has been there yet."""
    config, directory = configuration.from_tree(start.config), StateDirectory(Path(start.state))
    is_new = not directory.exists()
    if is_new:
        check = partial(coherence.refuse_misfits, directory, pushed=True)
        with directory.lock(check), closing(directory.connect()) as connection:
            DeadLetters(connection).create()  # as a learner does at its start
    ingress = Ingress(config, registry, directory.path, None)
    if is_new:
        ingress.claim(directory)
    return ingress


def main() -> int:
    """The process: wait for the start message, and run."""
    channel = Channel.inherited()
    logs.to_stderr("%(asctime)s %(levelname)s ingress: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        message = channel.hear()
        assert isinstance(message, Begin), "the supervisor speaks first"
        limit_bytes = configuration.from_tree(message.config).stream.limits.ingress_bytes
        ingresses = Ingresses(channel, Registry.load(only=message.entry_points), limit_bytes)
        bound_address_space(limit_bytes)
        threads.end_process_when_one_dies(ingresses.say_whose)
        ingresses.run(Path(message.http_socket))
    except EOFError:
        return 1
    except StreamkdError as fault:
        channel.send_fatal(fault)
        return fault.exit_code
    return 0


if __name__ == "__main__":
    threads.run_process(main)
