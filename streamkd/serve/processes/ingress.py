"""The ingress process: everything that strangers send is decoded here, and here only.

    supervisor ─ start message ─► Flight port, unix socket for HTTP ─► intake ─► log.sqlite
               ◄─ listening, beat, status, metrics ─┘   committed (makes room), drain ─► stopped

``python -m streamkd.serve.processes.ingress --fd N`` is started by the supervisor with one end of a channel. It has no
torch and a bound address space, so a batch past all limits ends this process alone. It is started again at
once, and nothing acknowledged is lost: an ack is sent when the log has the rows on disk. A port that is taken at
the first start ends the server; at a later one it is said and tried again, while the other ways in go on.
"""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from streamkd import config as configuration
from streamkd import logs, threads
from streamkd.config import Config
from streamkd.errors import ConfigError, Overloaded, StreamkdError
from streamkd.plugins import Registry
from streamkd.process import bound_address_space
from streamkd.serve.processes.channel import Channel, Speaker
from streamkd.serve.processes.child import Backoff
from streamkd.serve.processes.messages import Begin, Committed, Drain, Listening, Message, Stopped, Waiting
from streamkd.serve.processes.reports import STARTING, STOPPING, Reporter
from streamkd.settings import LateLabels
from streamkd.state import coherence
from streamkd.state.directory import StateDirectory
from streamkd.streams.ingest.http import Answer, HttpListener, HttpOptions
from streamkd.streams.ingest.intake import Ingest, Intake, Listener
from streamkd.streams.ingest.tokens import Tokens
from streamkd.streams.log.event_order import Room
from streamkd.streams.log.joins import told
from streamkd.streams.log.log import Kind, Log
from streamkd.telemetry import Recorder

TELL_SECONDS = 0.5
DRAIN_SECONDS = 2.0
HTTP_SECONDS = 5.0  # that the HTTP loop may stand before the process stops saying that it goes on
BODIES = 4  # that are held and decoded at once
QUOTA_PART = 4  # of the log's quota, that predictions may take which wait for their label
EARLY_PART = 10  # of the records that may wait to be learned, that labels may be which wait for their prediction
logger = logging.getLogger("streamkd.ingress")


class Ingress:
    """The parts of one ingress process, wired."""

    def __init__(
        self, config: Config, registry: Registry, state: Path, http_socket: Path | None, again: bool = False
    ) -> None:
        """``again``: there was one before, so that a taken port is no reason to end the server."""
        records = config.stream.schema_of()
        if records is None:
            needed = "a push source cannot say what its records look like"
            raise ConfigError(needed, where="stream.records", fix="write the columns that producers send")
        retain, serve = config.stream.retain, config.serve
        self._recorder = Recorder()
        directory = StateDirectory(state)
        coherence.refuse_other_log(directory)
        self._log = Log(
            directory.log,
            records,
            stream=config.stream.name,
            quota_bytes=retain.quota_bytes,
            labels=_within(config.stream.labels, retain.quota_bytes // QUOTA_PART),
            early_rows=max(1, config.stream.limits.queue_records // EARLY_PART),
            order=config.stream.order,
            order_room=Room.within(config.stream.limits, retain.quota_bytes),
        )
        self._intake = Intake(self._log, config.stream.limits, self._recorder, retain, config.stream.source.name)
        ingest = Ingest(self._intake, Tokens(serve.tokens), serve.host, serve.flight_port, serve.tls)
        self._listeners: list[Listener] = []
        for path, group, choice in config.sources():
            options = configuration.options(registry, path, group, choice)
            self._listeners.append(registry.kind(group, choice.name, path).make(options, ingest))
        posts = [listener for listener in self._listeners if isinstance(listener, HttpListener)]
        self._posts = posts[0] if posts else HttpListener(HttpOptions(), ingest)
        self._listeners += [] if posts else [self._posts]
        self._listening = Listeners(self._listeners, again)
        self._http_socket = http_socket
        self._stop_said = False
        self._told = time.monotonic()

    @property
    def recorder(self) -> Recorder:
        """What is counted here."""
        return self._recorder

    @property
    def application(self) -> Starlette:
        """The routes of this stream."""
        return application(self._posts)

    def run(self, channel: Channel) -> None:
        """Take records until the supervisor says drain.

        Raises:
            EOFError: the supervisor is gone. ConfigError: a port is taken, at the first start.
        """
        reporter = Reporter(channel, self._recorder)
        self.tell(reporter)  # before anything is taken: a status without labels says that none may come later
        with http(self.application, self._http_socket) as goes_on:
            message: Message | None = None
            while not isinstance(message, Drain):
                self.look(message, channel, reporter, goes_on())
                message = channel.hear(TELL_SECONDS)
            self.drain(reporter)
        self.close(channel, reporter)

    def look(self, message: Message | None, channel: Speaker, reporter: Reporter, goes_on: bool) -> None:
        """One round, with what was heard: listen where it is time to, make room, tell; ``goes_on``: so does HTTP.

        Raises:
            EOFError, ConfigError: as ``run``. StateError: the log is broken.
        """
        if (said := self._listening.look() or self._stopped()) is not None:
            channel.say(said)
        if isinstance(message, Committed) and (partition := self._log.partition) in message.offsets:
            self._intake.committed(message.offsets[partition], message.oldest.get(partition))
        self._intake.tidy()
        if goes_on:
            reporter.beat("taking records", lambda: {"ends": {self._log.partition: self._log.end()}})
        if time.monotonic() - self._told >= TELL_SECONDS:
            self._told = time.monotonic()
            self.tell(reporter)

    def drain(self, reporter: Reporter) -> None:
        """Take nothing more, and let what is under way come to its end."""
        reporter.beat(STOPPING)
        self._intake.drain()
        deadline = time.monotonic() + DRAIN_SECONDS
        for listener in self._listening.open:
            listener.drain(max(0.0, deadline - time.monotonic()))

    def close(self, channel: Speaker, reporter: Reporter) -> None:
        """Write what was taken, and say so."""
        self._intake.close()
        self._log.close()
        reporter.metrics()
        channel.say(Stopped())

    def committed(self) -> Committed:
        """How far the log knows that it is learned, and held by a checkpoint."""
        return Committed({self._log.partition: self._log.committed()})

    def claim(self, directory: StateDirectory) -> None:
        """Let log and database know each other, where no learner has been there before."""
        coherence.claim(directory, self._log)

    def _stopped(self) -> Waiting | None:
        """That the source gives no more records, once."""
        if not self._intake.stopped or self._stop_said:
            return None
        self._stop_said = True
        return Waiting(self._intake.stopped)

    def tell(self, reporter: Reporter) -> None:
        """Say what was counted, and how source, late labels and order stand, which outlive this process."""
        said: dict[str, Any] = dict(self._intake.told)
        if self._log.labels is not None:
            said["labels"] = labels = told(self._log.label_counts())
            self._recorder.set("labels_pending", labels["pending"])
        if (standing := self._intake.standing()) is not None:
            said["order"] = standing.told()
        if said:
            reporter.status(said)
        reporter.metrics()


def _within(labels: LateLabels | None, quota_bytes: int) -> LateLabels | None:
    """What is kept of predictions, so that the log has room for records."""
    return labels and labels.model_copy(update={"keep_bytes": min(labels.keep_bytes, quota_bytes)})


class Listeners:
    """The listeners of one ingress: which of them listen, and when to try the others again."""

    def __init__(self, listeners: Sequence[Listener], again: bool) -> None:
        self.open: list[Listener] = []
        self._shut = list(listeners)
        self._again = again
        self._backoff = Backoff(TELL_SECONDS)
        self._next = 0.0
        self._urls: dict[str, str] = {}

    def look(self) -> Listening | Waiting | None:
        """Open what is shut, if it is time; what there is to say of it.

        Raises:
            ConfigError: a port is taken, at the first start.
        """
        if not self._shut or time.monotonic() < self._next:
            return None
        try:
            while self._shut:
                for name, url in self._shut[0].start().items():  # of two of a kind each is told
                    self._urls[name if name not in self._urls else f"{name}-{len(self._urls) + 1}"] = url
                self.open.append(self._shut.pop(0))
        except ConfigError as fault:
            if not self._again:
                raise
            self._next = time.monotonic() + self._backoff.after(0.0)
            return Waiting(str(fault))
        return Listening(self._urls)


def application(posts: HttpListener) -> Starlette:
    """Records, labels, and the predictions that the supervisor hands over; who sends the first two is checked here."""
    places = threading.BoundedSemaphore(BODIES)

    def taking(kind: Kind) -> Callable[[Request], Awaitable[JSONResponse]]:
        async def take(request: Request) -> JSONResponse:
            headers = {name.lower(): value for name, value in request.headers.items()}
            refusal = posts.refusal(request.path_params.get("stream"), headers)
            if refusal is not None:
                return response(refusal)
            if not places.acquire(blocking=False):
                return response(Answer(429, {"error": f"{BODIES} batches are being taken"}, {"Retry-After": "1"}))
            try:
                return response(await run_in_threadpool(posts.receive, headers, await request.body(), kind))
            except ClientDisconnect:
                return response(Answer(400, {"error": "the body broke off"}))
            finally:
                places.release()

        return take

    async def keep(request: Request) -> JSONResponse:
        return response(await run_in_threadpool(posts.keep, await request.body()))

    routes = [
        Route("/v1/streams/{stream}", taking("records"), methods=["POST"]),
        Route("/v1/labels", taking("labels"), methods=["POST"]),
        Route("/v1/predictions", keep, methods=["POST"]),  # the supervisor lets nobody else through to it
    ]
    return Starlette(routes=routes)


def response(answer: Answer) -> JSONResponse:
    """What the rules answer, as HTTP has it."""
    return JSONResponse(dict(answer.body), answer.status, dict(answer.headers))


class _Http(uvicorn.Server):
    """uvicorn, with the time at which its loop was last seen to go on."""

    ticked = 0.0

    async def on_tick(self, counter: int) -> bool:
        self.ticked = time.monotonic()
        return await super().on_tick(counter)


@contextlib.contextmanager
def http(app: Starlette, path: Path | None) -> Iterator[Callable[[], bool]]:
    """The application on a unix socket that only we can open; on the way out it finishes what it has begun.

    Yields a question: whether its loop goes on.
    """
    if path is None:
        yield lambda: True
        return
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        path.chmod(0o600)
        bound.listen(128)
        settings = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=2)
        server = _Http(settings)
        server.ticked = time.monotonic()
        thread = threading.Thread(target=_serve, args=[server, bound], name="http", daemon=True)
        thread.start()
        try:
            yield lambda: time.monotonic() - server.ticked < HTTP_SECONDS
        finally:
            server.should_exit = True
            thread.join(DRAIN_SECONDS)


def _serve(server: uvicorn.Server, bound: socket.socket) -> None:
    """Answer until told to end; a server that ends of itself, without an error even, is a thread that has died."""
    server.run(sockets=[bound])
    if not server.should_exit:
        raise RuntimeError("the HTTP server has ended unasked")


def main() -> int:
    """The process: wait for the start message, run, and say why not where it cannot."""
    channel = Channel.inherited()
    threads.end_process_when_one_dies(channel.send_fatal)
    logs.to_stderr("%(asctime)s %(levelname)s ingress: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        message = channel.hear()
        assert isinstance(message, Begin), "the supervisor speaks first"
        Reporter(channel, Recorder()).beat(STARTING)
        _prepare(message).run(channel)
    except EOFError:
        return 1
    except Overloaded as fault:  # the disk is full, say: the supervisor starts us again
        logger.error("%s", fault)
        return 1
    except StreamkdError as fault:
        channel.send_fatal(fault)
        return fault.exit_code
    return 0


def _prepare(start: Begin) -> Ingress:
    registry = Registry.load(only=start.entry_points)
    config = configuration.from_tree(start.config)
    socket_path = Path(start.http_socket) if start.http_socket else None
    ingress = Ingress(config, registry, Path(start.state), socket_path, start.again)
    bound_address_space(config.stream.limits.ingress_bytes)
    return ingress


if __name__ == "__main__":
    threads.run_process(main)  # an open put stream would keep the Flight server, and so the interpreter, waiting
