"""The ingress process: everything that strangers send is decoded here, and here only.

    supervisor ─ start message ─► Flight port, unix socket for HTTP ─► intake ─► log.sqlite
               ◄─ listening, metrics ─┘      committed (makes room), drain ─► stopped

``python -m streamkd.serve.ingress --fd N`` is started by the supervisor with one end of a channel. It has no
torch and a bound address space, so a batch past all limits ends this process alone. It is started again at
once, and nothing acknowledged is lost: an ack is sent when the log has the rows on disk.
"""

import argparse
import contextlib
import logging
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from streamkd import config as configuration
from streamkd import logs
from streamkd.config import Config
from streamkd.errors import ConfigError, StreamkdError
from streamkd.plugins import Registry
from streamkd.serve.channel import Channel
from streamkd.streams.http import Answer, HttpListener, HttpOptions
from streamkd.streams.intake import Ingest, Intake, Listener
from streamkd.streams.log import Log
from streamkd.streams.tokens import Tokens
from streamkd.telemetry import Recorder

TELL_SECONDS = 0.5
DRAIN_SECONDS = 2.0
BODIES = 4  # that are held and decoded at once
logger = logging.getLogger("streamkd.ingress")


class Ingress:
    """The parts of one ingress process, wired."""

    def __init__(self, config: Config, registry: Registry, state: Path, http_socket: Path | None) -> None:
        records = config.stream.schema_of()
        if records is None:
            needed = "a push source cannot say what its records look like"
            raise ConfigError(needed, where="stream.records", fix="write the columns that producers send")
        retain, serve = config.stream.retain, config.serve
        self._recorder = Recorder()
        self._log = Log(state / "log.sqlite", records, stream=config.stream.name, quota_bytes=retain.quota_bytes)
        choice = config.stream.source
        self._intake = Intake(self._log, config.stream.limits, self._recorder, retain, choice.name)
        ingest = Ingest(self._intake, Tokens.load(serve.tokens), serve.host, serve.flight_port, serve.tls)
        options = configuration.options(registry, "stream.source", "sources", choice)
        listener: Listener = registry.kind("sources", choice.name, "stream.source").make(options, ingest)
        self._posts = listener if isinstance(listener, HttpListener) else HttpListener(HttpOptions(), ingest)
        self._listeners: list[Listener] = [listener, self._posts] if listener is not self._posts else [listener]
        self._http_socket = http_socket

    def run(self, channel: Channel) -> None:
        """Take records until the supervisor says drain.

        Raises:
            EOFError: the supervisor is gone.
        """
        urls = {name: url for listener in self._listeners for name, url in listener.start().items()}
        with _http(application(self._posts), self._http_socket):
            channel.send({"kind": "listening", **urls} if urls else {"kind": "ready"})
            self._until_drain(channel)
            self._intake.drain()
            deadline = time.monotonic() + DRAIN_SECONDS
            for listener in self._listeners:
                listener.drain(max(0.0, deadline - time.monotonic()))
        self._intake.close()
        self._log.close()
        channel.send({"kind": "metrics", "deltas": self._recorder.drain()})
        channel.send({"kind": "stopped"})

    def _until_drain(self, channel: Channel) -> None:
        told = time.monotonic()
        while (message := channel.receive(TELL_SECONDS)) is None or message.get("kind") != "drain":
            if message is not None and message.get("kind") == "committed":
                offset = message.get("offsets", {}).get(self._log.partition)
                if isinstance(offset, int):
                    self._intake.committed(offset, message.get("oldest", {}).get(self._log.partition))
            if time.monotonic() - told >= TELL_SECONDS and (deltas := self._recorder.drain()):
                told = time.monotonic()
                channel.send({"kind": "metrics", "deltas": deltas})


def application(posts: HttpListener) -> Starlette:
    """``POST /v1/streams/{stream}`` by the rules of the listener; bodies are counted while they come in."""
    places = threading.BoundedSemaphore(BODIES)

    async def post(request: Request) -> JSONResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        refusal = posts.refusal(request.path_params["stream"], headers)
        if refusal is not None:
            return _response(refusal)
        if not places.acquire(blocking=False):
            return _response(Answer(429, {"error": f"{BODIES} batches are being taken"}, {"Retry-After": "1"}))
        try:
            body = await _body(request, posts.body_bytes)
            return _response(
                posts.too_large() if body is None else await run_in_threadpool(posts.receive, headers, body)
            )
        except ClientDisconnect:
            return _response(Answer(400, {"error": "the body broke off"}))
        finally:
            places.release()

    return Starlette(routes=[Route("/v1/streams/{stream}", post, methods=["POST"])])


async def _body(request: Request, limit_bytes: int) -> bytes | None:
    """The whole body, or ``None`` as soon as it is past the limit."""
    parts, taken_bytes = [], 0
    async for part in request.stream():
        parts.append(part)
        taken_bytes += len(part)
        if taken_bytes > limit_bytes:
            return None
    return b"".join(parts)


def _response(answer: Answer) -> JSONResponse:
    return JSONResponse(dict(answer.body), answer.status, dict(answer.headers))


@contextlib.contextmanager
def _http(app: Starlette, path: Path | None) -> Iterator[None]:
    """The application on a unix socket that only we can open; on the way out it finishes what it has begun."""
    if path is None:
        yield
        return
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        path.chmod(0o600)
        bound.listen(128)
        settings = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=2)
        server = uvicorn.Server(settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name="http", daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.should_exit = True
            thread.join(DRAIN_SECONDS)


def main(arguments: list[str] | None = None) -> int:
    """The process: wait for the start message, run, and say why not where it cannot."""
    parser = argparse.ArgumentParser(prog="streamkd.serve.ingress", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="this end of the supervisor's channel")
    channel = Channel.inherited(parser.parse_args(arguments).fd)
    logs.to_stderr("%(asctime)s %(levelname)s ingress: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        message = channel.receive()
        assert message is not None
        _prepare(message).run(channel)
    except EOFError:
        return 1
    except StreamkdError as fault:
        with contextlib.suppress(EOFError):
            channel.send({"kind": "fatal", "message": str(fault), "exit_code": fault.exit_code})
        return fault.exit_code
    return 0


def _prepare(message: dict[str, Any]) -> Ingress:
    registry = Registry.load(only=message["entry_points"])
    config = configuration.from_tree(message["config"])
    http_socket = message.get("http_socket")
    ingress = Ingress(config, registry, Path(message["state"]), Path(http_socket) if http_socket else None)
    _bound_memory(config.stream.limits.ingress_bytes)
    return ingress


def _bound_memory(limit_bytes: int) -> None:
    """An allocation past the limit fails here instead of starving the learner beside us."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = limit_bytes if hard == resource.RLIM_INFINITY else min(limit_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # an open put stream would keep the Flight server, and so the interpreter, waiting
