"""``streamkd serve --tenants DIR``: one server, many small learners; the process that answers and gives out the turns.

    front (HTTP, predictions of all, the queue; no training)
      ├── learner-1 .. learner-N   workers: one tenant after another, whose state directory is theirs meanwhile
      └── ingress                  a log for each tenant

A tenant whose records wait stands in the queue (``turns``); a worker that is free takes it, learns, and leaves it
with a checkpoint and a version. Memory is N learners, however many tenants there are. The folder is looked at every
second: who is new is taken in, who is gone or changed leaves in order first.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from streamkd import logs
from streamkd.config import Config, dump
from streamkd.errors import ConfigError, StreamkdError
from streamkd.plugins import Registry
from streamkd.serve.http.body import BodyTimeouts
from streamkd.serve.http.hosts import Hosts
from streamkd.serve.http.ingest_proxy import IngestProxy
from streamkd.serve.http.listen import announce, bind, check_exposure, runtime_folder, tls_arguments, url_of
from streamkd.serve.http.server import Server, Signals, http_server
from streamkd.serve.predictions.reader import Reader
from streamkd.serve.processes import messages
from streamkd.serve.processes.child import ChildProcess
from streamkd.serve.processes.messages import Message, from_json, to_json
from streamkd.serve.processes.reports import IDLE, STOPPING
from streamkd.serve.processes.server_status import ServerStatus
from streamkd.serve.tenants import folder
from streamkd.serve.tenants.desks import Desks
from streamkd.serve.tenants.routes import FrontServices, front
from streamkd.serve.tenants.tenant import Tenant
from streamkd.serve.tenants.turns import Turns
from streamkd.state.directory import take
from streamkd.streams.ingest.tokens import Tokens
from streamkd.telemetry import SERIES, Exposition, Recorder

INGRESSES, WORKER = "streamkd.serve.processes.ingresses", "streamkd.serve.processes.worker"
TURN_SECONDS = 5.0  # of learning, while others wait
TICK_SECONDS = 0.05
FOLDER_SECONDS = 1.0
ASKED = 4  # tenants that the ingress is opening at once
TENANT_SERIES = 5
INGRESS_SECONDS, LEAVE_SECONDS, CHECKPOINT_SECONDS, HURRIED_SECONDS = 15.0, 15.0, 120.0, 5.0
LOCK = "tenants.lock"
logger = logging.getLogger(__name__)


def serve_tenants(config: Config, tenants: Path, state: Path, learners: int | None = None) -> int:
    """Learn and answer for every tenant of a folder until a signal; returns the exit code.

    ``config``: its ``serve`` says where to listen. ``state``: each tenant's state directory is ``state/NAME``.
    ``learners``: how many learn at once; ``None``: one for each core.

    Raises:
        ConfigError: the address, the port, the certificates, the tokens or the folder cannot be used.
        StateInUse: another such server has these states.
    """
    for chatty in ("httpx", "uvicorn"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    check_exposure(config.serve)
    tls, tokens = tls_arguments(config.serve.tls), Tokens(config.serve.tokens)
    folder.look(tenants)
    count = learners or len(os.sched_getaffinity(0))
    with _owned(state), bind(config.serve.host, config.serve.port) as bound, runtime_folder() as runtime:
        return Front(config, tenants, state, Registry.load(), tokens, runtime, count).run(bound, tls)


@contextlib.contextmanager
def _owned(state: Path) -> Iterator[None]:
    """Be the only server of these tenants' states."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(state / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as fault:
        raise ConfigError(
            f"cannot be written: {fault.strerror}", where=str(state), fix="name another place with --state"
        ) from None
    try:
        take(handle, state, "serves the tenants of this directory", "--state")
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


class Front:
    """The parts of a running server with tenants, wired."""

    def __init__(
        self,
        config: Config,
        tenants: Path,
        state: Path,
        registry: Registry,
        tokens: Tokens,
        runtime: Path,
        learners: int,
    ) -> None:
        self._config, self._folder, self._state, self._registry = config, tenants, state, registry
        self._socket = runtime / "ingress.sock"
        self._status = ServerStatus("tenants", "http", pushed=True)
        self._recorder = Recorder()
        self._exposition = Exposition(SERIES + TENANT_SERIES * folder.TENANTS)
        settings = config.serve
        patience = BodyTimeouts(settings.body_seconds, settings.idle_seconds)
        self._proxy = IngestProxy(self._socket, "http", settings.body_bytes, patience)
        self._reader = Reader()
        self._desks = Desks(settings, registry, self._proxy, self._reader)
        self._tenants: dict[str, Tenant] = {}
        self._turns, self._lock = Turns(TURN_SECONDS), threading.RLock()
        self._looked = False  # into the folder, at least once
        self._idle: set[str] = set()  # workers that have loaded and have no tenant
        self._ingress_up = False
        told = (self._status, self._recorder, settings.hang_seconds)
        settings_of_ingress = {"MALLOC_ARENA_MAX": "2", "ARROW_DEFAULT_MEMORY_POOL": "system"}
        self._ingress = ChildProcess(
            "ingress", INGRESSES, self._start_ingress, self._hear_ingress, *told, settings_of_ingress
        )
        self._workers = {name: self._worker(name, told) for name in (f"learner-{n + 1}" for n in range(learners))}
        hosts = Hosts(settings.hosts, guarded=not tokens.open)
        self._application = front(
            FrontServices(
                self._tenants,
                self._desks,
                self._status,
                tokens,
                hosts,
                self._exposition,
                self._list,
                self._count,
                lambda: self._looked,
            )
        )
        self._signals, self._exit_code, self._folder_said = Signals(), 0, ""

    def _worker(self, name: str, told: tuple[ServerStatus, Recorder, float]) -> ChildProcess:
        return ChildProcess(
            name, WORKER, lambda: self._worker_starts(name), lambda message: self._hear_worker(name, message), *told
        )

    def run(self, bound: socket.socket, tls: dict[str, Any]) -> int:
        """Serve on a bound socket until the end."""
        server = http_server(self._config.serve, self._application, tls, self._signals)
        threading.excepthook = self._thread_died
        try:
            with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
                runner.run(self._serve(server, bound, "https" if tls else "http"))
        finally:
            for child in (self._ingress, *self._workers.values()):
                child.kill()
                child.join(HURRIED_SECONDS)
            for name in list(self._tenants):
                self._desks.close(name)
        return self._exit_code

    async def _serve(self, server: Server, bound: socket.socket, scheme: str) -> None:
        self._signals.bind(asyncio.get_running_loop())
        for child in (self._ingress, *self._workers.values()):
            child.start()
        threading.Thread(target=self._give_turns, name="turns", daemon=True).start()
        ending = asyncio.create_task(server.end_after(self._stop_in_order))
        try:
            url = url_of(scheme, bound)
            self._status.urls["http"] = url
            announce(f"streamkd listens on {url}  (tenants at /t/NAME/, all of them at /v1/tenants)", sys.stdout)
            await server.serve(sockets=[bound])
        finally:
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)
            self._reader.close()
            await self._proxy.close()

    def _give_turns(self) -> None:
        """The thread that looks who is there and whose turn it is; it may wait for a child to listen."""
        looked = 0.0
        while not self._status.draining:
            if time.monotonic() - looked >= FOLDER_SECONDS:
                looked = time.monotonic()
                self._look_at_folder()
            self._tick()
            time.sleep(TICK_SECONDS)

    # who is there

    def _look_at_folder(self) -> None:
        try:
            found = folder.look(self._folder)
        except ConfigError as fault:  # whoever is there stays
            if str(fault) != self._folder_said:
                logger.error("the tenants stay as they are: %s", fault)
            self._folder_said = str(fault)
            return
        self._folder_said = ""
        for name, file in found.items():
            if name not in self._tenants:
                self._add(name, file)
            elif self._tenants[name].file.stamp != file.stamp:
                self._renew(self._tenants[name], file)
        for name in set(self._tenants) - set(found):
            self._retire(self._tenants[name])
        self._looked = True

    def _add(self, name: str, file: folder.TenantFile) -> None:
        config, reason = self._read(name, file)
        with self._lock:
            self._tenants[name] = Tenant(name, file, self._state / name, config, reason)

    def _renew(self, tenant: Tenant, file: folder.TenantFile) -> None:
        """Another configuration takes the place of a tenant's; one that cannot be used does not."""
        config, reason = self._read(tenant.name, file)
        if config is None and tenant.config is not None:
            tenant.file, tenant.refused = file, f"its configuration is used as it was before: {reason}"
        elif not tenant.leaving:
            self._retire(tenant)

    def _read(self, name: str, file: folder.TenantFile) -> tuple[Config | None, str]:
        try:
            return folder.read(file, self._registry, self._config.serve), ""
        except StreamkdError as fault:
            logger.error("the tenant %s is not taken in: %s", name, fault)
            return None, str(fault)

    def _retire(self, tenant: Tenant) -> None:
        """Let a tenant go in order: its records are written, its learner stops with a checkpoint."""
        if tenant.leaving:
            return
        logger.info("the tenant %s leaves", tenant.name)
        with self._lock:
            tenant.leaving = True
            self._turns.withdraw(tenant.name)
            tenant.gone = not (tenant.asked_in and self._ingress.send(_of(tenant, messages.Drain())))

    def _forget_gone(self) -> None:
        for tenant in [each for each in self._tenants.values() if each.leaving]:
            if tenant.gone and self._turns.of(tenant.name) is None:
                del self._tenants[tenant.name]
                self._desks.close(tenant.name)

    # whose turn it is

    def _tick(self) -> None:
        with self._lock:
            self._ask_in()
            for tenant in self._tenants.values():
                if tenant.wants():
                    self._turns.ask(tenant.name)
            for worker in sorted(self._idle):
                self._begin(worker)
            self._end_turns()
            self._forget_gone()

    def _ask_in(self) -> None:
        """Let the ingress open the logs of those who are new, a few at a time."""
        if not self._ingress_up:
            return
        opening = sum(each.asked_in and not each.taken_in for each in self._tenants.values())
        for tenant in [each for each in self._tenants.values() if each.may_ask_in()][: max(0, ASKED - opening)]:
            tenant.asked_in = self._ingress.send(_of(tenant, tenant.begin()))

    def _begin(self, worker: str) -> None:
        if (found := self._turns.begin(worker)) is None:
            return
        name, waited_seconds = found
        tenant = self._tenants[name]
        if not self._workers[worker].send(tenant.begin()):  # it is dying: its next life says that it is there
            self._turns.end(worker)
        else:
            tenant.turn_begun(waited_seconds)
            self._recorder.count("tenant_turns_total", tenant=name)
            self._recorder.observe("tenant_wait_seconds", waited_seconds)
        self._idle.discard(worker)

    def _end_turns(self) -> None:
        idle = {name for name, tenant in self._tenants.items() if not tenant.lag}
        freed = self._turns.over(idle, lambda name: self._tenants[name].least_seconds)
        for worker, turn in self._turns.under_way.items():
            if self._tenants[turn.tenant].leaving and not turn.leaving:
                turn.leaving = True
                freed.append(worker)
        for worker in freed:
            self._workers[worker].send(messages.Stop())

    # what the children say

    def _worker_starts(self, worker: str) -> None:
        """A life of a worker begins; a turn that is still under way died with the one before."""
        with self._lock:
            self._idle.discard(worker)
            if (turn := self._turns.end(worker)) is not None:
                self._over(turn.tenant, "its learner died, or was silent for too long")

    def _hear_worker(self, worker: str, message: Message) -> None:
        with self._lock:
            turn = self._turns.under_way.get(worker)
            if turn is None:
                if isinstance(message, messages.Beat) and message.doing == IDLE:
                    self._idle.add(worker)
                return
            self._hear_turn(worker, self._tenants[turn.tenant], message)

    def _hear_turn(self, worker: str, tenant: Tenant, message: Message) -> None:
        match message:
            case messages.Ready():
                tenant.failed = ""
                tenant.exposition.forget("teacher")
                tenant.status.process("learner", "running")
                self._turns.ready(worker)
            case messages.NewVersion():
                self._desks.poke(tenant.name)
            case messages.Done(exit_code):
                self._turns.end(worker)
                self._over(tenant.name, (tenant.failed or "its learner could not go on") if exit_code else "")
                self._idle.add(worker)
            case messages.Beat() if message.doing == IDLE:
                return
            case messages.Fatal():
                tenant.failed = message.message
                logger.error("the tenant %s is not learned: %s", tenant.name, logs.lines(message.message))
            case _:
                tenant.tell(message)
                if isinstance(message, messages.Committed):
                    self._ingress.send(_of(tenant, message))

    def _over(self, name: str, failure: str) -> None:
        self._tenants[name].turn_over(failure)
        if failure:
            self._recorder.count("tenant_failures_total", tenant=name)

    def _start_ingress(self) -> messages.Begin:
        self._socket.unlink(missing_ok=True)
        with self._lock:
            self._ingress_up = False
            for tenant in self._tenants.values():
                tenant.gone = tenant.leaving
                tenant.asked_in = tenant.taken_in = False
                tenant.status.shut("records are not taken: the ingress is being started")
        origin = self._registry.origin("sources", "http")
        return messages.Begin(dump(self._config), "", (origin,), str(self._socket))

    def _hear_ingress(self, message: Message) -> None:
        match message:
            case messages.Of(name, said):
                with self._lock:
                    if (tenant := self._tenants.get(name)) is not None:
                        self._hear_hosted(tenant, from_json(said))
            case messages.Listening():
                self._status.open()
                self._ingress_up = True
            case messages.Stopped():
                self._ingress.finish()
            case messages.Fatal():
                self._exit_code = message.exit_code
                announce(logs.lines(f"error: {message.message}"), sys.stderr)
                self._signals.end()

    def _hear_hosted(self, tenant: Tenant, message: Message) -> None:
        match message:
            case messages.Listening():
                tenant.let_in()
                if tenant.committed is not None:  # it may have been told while there was no ingress to hear it
                    self._ingress.send(_of(tenant, tenant.committed))
            case messages.Committed():
                tenant.committed = tenant.committed or message
                tenant.status.lag.hear(tenant.committed.offsets)
            case messages.Status(status):
                tenant.status.tell_ingress(status)
            case messages.Stopped():
                tenant.gone, tenant.taken_in = True, False
            case messages.Fatal():
                tenant.let_out(message.message)
                logger.error("the tenant %s takes no records: %s", tenant.name, logs.lines(message.message))
            case _:
                tenant.tell(message)

    # what is told

    def _list(self) -> dict[str, Any]:
        with self._lock:
            return {"tenants": {name: tenant.summary(self._stands(tenant)) for name, tenant in self._tenants.items()}}

    def _stands(self, tenant: Tenant) -> str:
        if tenant.leaving:
            return "leaving"
        if self._turns.of(tenant.name) is not None:
            return "learning"
        if not tenant.taken_in:
            return "starting"
        return "waiting" if tenant.lag else "resting"

    def _count(self) -> None:
        with self._lock:
            states = [summary["state"] for summary in self._list()["tenants"].values()]
            for state in ("failed", "leaving", "learning", "starting", "waiting", "resting"):
                self._recorder.set("tenants", states.count(state), state=state)
            for name, tenant in self._tenants.items():
                self._recorder.set("tenant_ready", not tenant.reason, tenant=name)
                self._recorder.set("tenant_lag_records", tenant.lag, tenant=name)
                self._recorder.set("tenant_records_trained", tenant.status.records_trained(), tenant=name)
        self._recorder.set("tenant_desks", len(self._desks))
        self._recorder.set("ready", not self._status.closed())
        self._exposition.apply(self._recorder.drain())

    # the end

    async def _stop_in_order(self) -> None:
        self._status.draining = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._signals.second.wait(), self._config.serve.drain_seconds)
        self._ingress.ask_to_end(messages.Drain())
        await self._gone([self._ingress], INGRESS_SECONDS)
        checkpoint = not self._signals.second.is_set()
        for worker in self._workers.values():
            worker.send(messages.Stop(checkpoint))
            worker.ask_to_end(messages.Drain())
        workers = list(self._workers.values())
        await self._gone(workers, LEAVE_SECONDS)
        await self._gone([each for each in workers if each.doing == STOPPING], CHECKPOINT_SECONDS)
        if any(each.alive for each in workers):
            logger.warning("a learner did not stop in time and is killed; its last checkpoint stands")

    async def _gone(self, children: list[ChildProcess], seconds: float) -> None:
        """Wait for the end of children, not beyond a second signal."""
        deadline = time.monotonic() + seconds
        while any(child.alive for child in children) and time.monotonic() < deadline:
            if self._signals.second.is_set():
                return
            await asyncio.sleep(0.02)

    def _thread_died(self, died: threading.ExceptHookArgs) -> None:
        logger.critical("a thread ended, and so does the server", exc_info=died.exc_value)
        self._exit_code = self._exit_code or 1
        self._signals.end()


def _of(tenant: Tenant, message: Message) -> messages.Of:
    return messages.Of(tenant.name, to_json(message))
