"""``streamkd serve``: the process that answers, and that keeps the others alive.

    supervisor (HTTP, predictions, metrics; no training)
      ├── learner   trains; its death stalls nothing here
      └── ingress   for push sources: decodes what strangers send; its death loses nothing acknowledged

On SIGTERM, SIGINT or SIGHUP: not ready ─► drain time ─► ingress drained ─► learner stops after its step, with a
checkpoint ─► requests in flight ─► exit 0. A second SIGTERM or SIGINT skips the checkpoint. Until the last step
predictions go on. A learner that does not even say that it stops is killed; its last checkpoint stands.
"""

import asyncio
import contextlib
import logging
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamkd import logs
from streamkd.config import Config, dump
from streamkd.hookspecs import SourceKind
from streamkd.plugins import Registry
from streamkd.serve.http.api import Services, application
from streamkd.serve.http.body import BodyTimeouts
from streamkd.serve.http.handover import Handover
from streamkd.serve.http.ingest_proxy import IngestProxy
from streamkd.serve.http.listen import announce, bind, check_exposure, runtime_folder, tls_arguments, url_of
from streamkd.serve.http.server import Server, Signals, http_server
from streamkd.serve.predictions.follower import VersionFollower
from streamkd.serve.predictions.predictor import Predictor
from streamkd.serve.predictions.reader import Reader
from streamkd.serve.processes import exporter, messages
from streamkd.serve.processes.child import LEARNER, ChildProcess, Started
from streamkd.serve.processes.exporter import Exporter
from streamkd.serve.processes.messages import Message
from streamkd.serve.processes.reports import STOPPING
from streamkd.serve.processes.server_status import ServerStatus
from streamkd.state.directory import StateDirectory
from streamkd.streams.ingest.tokens import Tokens
from streamkd.telemetry import Exposition, Recorder

INGRESS = "streamkd.serve.processes.ingress"
# from a signal to the end with everything hung: drain, ingress, hung, hurried, graceful; within 45 s
HANDOVER_SECONDS = 1.0
INGRESS_SECONDS = 10.0
INGRESS_HANGS = 0.25  # of the limit: it has no steps that take long
INGRESS_HANGS_SECONDS = 5.0  # at least: it beats once a second, on a machine that may be busy
HUNG_SECONDS = 15.0  # for a learner to say that it stops; a step ends within
CHECKPOINT_SECONDS = 120.0  # for its last checkpoint, once it has said so
HURRIED_SECONDS = 5.0
logger = logging.getLogger(__name__)


def serve(config: Config, state: Path, registry: Registry | None = None, learner: Started | None = None) -> int:
    """Learn and answer until a signal, with a learner that is ``started`` already, or another; returns the exit code.

    Raises:
        ConfigError: the address, the port, the certificates or the tokens cannot be used.
    """
    for chatty in ("httpx", "uvicorn"):  # a line for every batch that goes to the ingress, and the like
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # a warning for every stranger's broken request
    check_exposure(config.serve)
    tls = tls_arguments(config.serve.tls)
    tokens = Tokens(config.serve.tokens)
    registry = registry or Registry.load()
    bound = bind(config.serve.host, config.serve.port)
    with bound, runtime_folder() as runtime:
        return Supervisor(config, state, registry, tokens, runtime, learner).run(bound, tls)


class Supervisor:
    """The parts of a running server, wired."""

    def __init__(
        self, config: Config, state: Path, registry: Registry, tokens: Tokens, runtime: Path, learner: Started | None
    ) -> None:
        self._config = config
        self._state = state
        source = config.stream.source.name
        sources = ", ".join(dict.fromkeys(choice.name for _, _, choice in config.sources()))
        kind = registry.kind("sources", source, "stream.source")
        self._origins = sorted({registry.origin(group, choice.name) for _, group, choice in config.sources()})
        self._socket = runtime / "ingress.sock" if isinstance(kind, SourceKind) and kind.push else None
        self._flight_port = config.serve.flight_port
        self._listened = False  # the ingress, at least once
        self._status = ServerStatus(config.name, sources, pushed=self._socket is not None)
        self._services = _services(config, state, registry, tokens, self._status, self._socket)
        every, predictor = config.serve.export_every, self._services.predictor
        self._exporter = Exporter(state.absolute(), every, lambda: predictor.version) if every else None
        hang_seconds = config.serve.hang_seconds
        told = (self._status, self._services.recorder)
        self._learner = ChildProcess(
            "learner",
            LEARNER,
            self._start_learner,
            self._hear_learner,
            *told,
            hang_seconds,
            started=learner,
        )
        self._ingress = ChildProcess(
            "ingress",
            INGRESS,
            self._start_ingress,
            self._hear_ingress,
            *told,
            max(hang_seconds * INGRESS_HANGS, INGRESS_HANGS_SECONDS),
            # the ingress bounds its address space: neither glibc nor mimalloc may reserve a gigabyte of it
            {"MALLOC_ARENA_MAX": "2", "ARROW_DEFAULT_MEMORY_POOL": "system"},
        )
        self._exit_code = 0
        self._committed: messages.Committed | None = None
        self._signals = Signals()

    def run(self, bound: socket.socket, tls: dict[str, Any]) -> int:
        """Serve on a bound socket until the end."""
        server = http_server(self._config.serve, application(self._services), tls, self._signals)
        threading.excepthook = self._thread_died
        try:
            with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
                runner.run(self._serve(server, bound, "https" if tls else "http"))
        finally:
            for child in (self._ingress, self._learner):
                child.kill()
                child.join(HURRIED_SECONDS)
            self._services.follower.close()
            self._services.predictor.close()
        return self._exit_code

    async def _serve(self, server: Server, bound: socket.socket, scheme: str) -> None:
        self._signals.bind(asyncio.get_running_loop())
        self._learner.start()
        ending = asyncio.create_task(server.end_after(self._stop_in_order))
        handover = self._services.handover
        beside = [asyncio.create_task(part.run()) for part in (handover, self._exporter) if part is not None]
        try:
            self._say("http", url_of(scheme, bound), "predictions, records, metrics, and a page to look at")
            await server.serve(sockets=[bound])
        finally:
            ending.cancel()
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            self._services.reader.close()
            await self._services.proxy.close()

    def _say(self, name: str, url: str, what: str) -> None:
        if self._status.urls.get(name) != url:
            self._status.urls[name] = url
            announce(f"streamkd listens on {url}  ({what})", sys.stdout)

    async def _stop_in_order(self) -> None:
        """Once a signal or a fatal message has come."""
        self._status.draining = True
        if self._exit_code == 0:
            logger.info("stopping: no longer ready, answering for %g s more", self._config.serve.drain_seconds)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._signals.second.wait(), self._config.serve.drain_seconds)
        if self._services.handover is not None:
            await self._services.handover.flush(HANDOVER_SECONDS)
        self._ingress.ask_to_end(messages.Drain())
        await self._gone(self._ingress, INGRESS_SECONDS)
        self._ingress.kill()
        await self._stop_learner()

    async def _stop_learner(self) -> None:
        """Let it take its last checkpoint, as long as it says that it does, and until a second signal."""
        checkpoint = not self._signals.second.is_set()
        self._learner.ask_to_end(messages.Stop(checkpoint))
        if checkpoint:
            gone = await self._gone(self._learner, HUNG_SECONDS)
            if not gone and self._learner.doing == STOPPING:
                gone = await self._gone(self._learner, CHECKPOINT_SECONDS)
            if not gone:
                self._learner.ask_to_end(messages.Stop(checkpoint=False))
        if not await self._gone(self._learner, HURRIED_SECONDS, hurry=False):
            logger.warning("the learner did not stop in time and is killed; its last checkpoint stands")
        self._learner.kill()

    async def _gone(self, child: ChildProcess, seconds: float, hurry: bool = True) -> bool:
        """Wait for a child's end, not beyond a second signal where ``hurry``."""
        deadline = time.monotonic() + seconds
        while child.alive and time.monotonic() < deadline and not (hurry and self._signals.second.is_set()):
            await asyncio.sleep(0.02)
        return not child.alive

    def _start_learner(self) -> messages.Begin:
        return messages.Begin(dump(self._config), str(self._state.absolute()))

    def _start_ingress(self) -> messages.Begin:
        assert self._socket is not None
        self._socket.unlink(missing_ok=True)
        tree = dump(self._config)
        tree["serve"]["flight_port"] = self._flight_port  # a port that was picked stays over restarts
        return messages.Begin(
            tree, str(self._state.absolute()), tuple(self._origins), str(self._socket), self._listened
        )

    def _hear_learner(self, message: Message) -> None:
        match message:
            case messages.Status(status):
                self._status.tell(status)
            case messages.NewVersion():
                self._services.follower.poke()
            case messages.Committed():
                self._status.lag.hear(message.offsets)
                if self._socket:
                    self._committed = message
                    self._ingress.send(message)
            case messages.Ready():
                self._services.exposition.forget("teacher")  # those of a learner that died; this one may have others
                if self._socket:
                    self._ingress.start()  # only now: the learner has the lock of the state directory
            case messages.Fatal():
                self._fatal(self._learner, message)
            case _:
                self._hear_any(self._learner, message)

    def _hear_ingress(self, message: Message) -> None:
        if isinstance(message, messages.Listening | messages.Waiting) and self._committed:
            self._ingress.send(self._committed)  # it may have been told while there was no ingress to hear it
        match message:
            case messages.Waiting(reason):  # one way in is shut; it tries again, and the others take records meanwhile
                self._status.shut(reason)
                logger.error("%s", reason)
            case messages.Listening(urls):
                self._open(urls)
            case messages.Status(status):
                self._status.tell_ingress(status)
            case messages.Fatal():
                # later, predictions and learning go on, and the next start may find it mended; but not a damaged log
                if not self._listened or message.damage:
                    self._fatal(self._ingress, message)
            case _:
                self._hear_any(self._ingress, message)

    def _open(self, urls: Mapping[str, str]) -> None:
        """Everything of the ingress listens."""
        self._listened = True
        for name, url in urls.items():
            if name == "flight":
                self._flight_port = int(url.rpartition(":")[2])
            self._say(name, url, "records of new files" if name == "files" else f"records over {name.capitalize()}")
        self._status.open()

    def _hear_any(self, child: ChildProcess, message: Message) -> None:
        match message:
            case messages.Beat():
                self._status.lag.hear(message.offsets, message.ends)
            case messages.Counted(deltas):
                self._services.exposition.apply(deltas)
            case messages.Stopped():
                child.finish()
            case _:
                logger.warning("the %s said %r, which is not its to say", child.name, message)

    def _fatal(self, child: ChildProcess, message: messages.Fatal) -> None:
        """A child can never work: say why, and end with its code."""
        child.finish()
        self._exit_code = message.exit_code
        announce(logs.lines(f"error: {message.message}"), sys.stderr)
        self._signals.end()

    def _thread_died(self, died: threading.ExceptHookArgs) -> None:
        """A thread of ours has ended by a fault of ours: nothing here may go on with a part missing."""
        name = died.thread.name if died.thread else "a thread"
        logger.critical("%s ended, and so does the server", name, exc_info=died.exc_value)
        self._exit_code = self._exit_code or 1
        self._signals.end()


def _services(
    config: Config, state: Path, registry: Registry, tokens: Tokens, status: ServerStatus, ingress: Path | None
) -> Services:
    """What the routes speak to, behind a server's settings."""
    settings, recorder = config.serve, Recorder()
    predictor = Predictor(settings.batch_rows, settings.queue_rows, recorder)
    timeouts = BodyTimeouts(settings.body_seconds, settings.idle_seconds)
    schema = config.stream.schema_of() if config.stream.labels else None
    handover = Handover(ingress, schema, recorder) if ingress and schema else None
    return Services(
        status=status,
        predictor=predictor,
        follower=VersionFollower(StateDirectory(state), registry, predictor, recorder, config.publish.keep),
        proxy=IngestProxy(ingress, config.stream.source.name, settings.body_bytes, timeouts),
        tokens=tokens,
        recorder=recorder,
        exposition=Exposition(),
        body_bytes=settings.body_bytes,
        queue_rows=settings.queue_rows,
        reader=Reader(columns=handover is not None),
        patience=timeouts,
        hosts=settings.hosts,
        artefact=state / exporter.FOLDER / exporter.NAME if settings.export_every else None,
        handover=handover,
    )
