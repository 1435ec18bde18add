"""The attacks of ``attacks.py`` on one running server: the answer that is meant, and nobody else notices."""

import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.flight as fl
import pytest

from .attacks import CLOSED, HTTP, LINE, PUTS, Http, Put, batch, push
from .conftest import PUSHED, Serve, Server, merged, records, until
from .test_push import arrow_stream

HASTY = {"head_seconds": 0.4, "body_seconds": 1.0, "idle_seconds": 0.4}
LIMITS = {"row_bytes": 1 << 16}


@pytest.fixture(scope="module")
def server(serve_in: Callable[[Path], Serve], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all of them; at the end no process of it has ended, and no traceback is in its log."""
    tree = merged(PUSHED, {"stream": {"limits": LIMITS}, "serve": HASTY})
    server = serve_in(tmp_path_factory.mktemp("attacked"))(tree)
    good = {"Content-Type": "application/vnd.apache.arrow.stream"}
    until(lambda: server.post("/v1/streams/main", content=arrow_stream(records(200)), headers=good).status_code == 200)
    until(server.ready, 60, "readiness")
    processes = server.pid("learner"), server.pid("ingress")
    yield server
    assert (server.pid("learner"), server.pid("ingress")) == processes
    assert "Traceback" not in server.err


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    """One that behaves, over one connection."""
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


@pytest.fixture(autouse=True)
def _unmoved(client: httpx.Client) -> Iterator[None]:
    yield
    image = {"name": "x", "shape": [1, 8], "datatype": "FP32", "data": [0.0] * 8}
    assert client.get("/v2/health/live").status_code == 200
    assert client.post("/v2/models/student/infer", json={"inputs": [image]}).status_code == 200


def answer_of(server: Server, sent: bytes) -> tuple[int | str, str]:
    """The first status that comes back, and all that was said."""
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        said = b""
        with contextlib.suppress(ConnectionError):
            while (more := connection.recv(1 << 16)) and (said := said + more):
                if _is_whole(said):
                    break
    found = re.match(rb"HTTP/1.1 (\d+)", said)
    return (int(found[1]) if found else CLOSED), said.decode("latin-1")


def _is_whole(said: bytes) -> bool:
    head, end, body = said.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    return bool(end and length and len(body) >= int(length[1]))


@pytest.mark.parametrize("attack", HTTP, ids=lambda attack: attack.title)
def test_over_http(server: Server, attack: Http) -> None:
    """The status that is meant, in words, with no traceback."""
    status, said = answer_of(server, attack.sent)
    assert status in attack.answers, said[:500]
    assert attack.words in said
    assert "Traceback" not in said


@pytest.mark.parametrize("attack", PUTS, ids=lambda attack: attack.title)
def test_over_flight(server: Server, attack: Put) -> None:
    """The gRPC status that is meant, in words, with no path of ours."""
    status, said = 0, ""
    try:
        put(server, attack)
    except (fl.FlightError, pa.ArrowException) as fault:
        said = str(fault)
        found = re.search(r"grpc_status:(\d+)", said)
        assert found, said
        status = int(found[1])
    assert status == attack.status, said[:1_000]
    assert attack.words in said
    assert 'File "/' not in said


def put(server: Server, attack: Put) -> None:
    rows = attack.rows()
    path = attack.path
    target = fl.FlightDescriptor.for_command(b"main") if path is None else fl.FlightDescriptor.for_path(*path)
    options = fl.FlightCallOptions(headers=list(attack.headers), timeout=30)
    with fl.connect(server.flight) as client:
        writer, acks = client.do_put(target, rows.schema, options)
        with writer:
            writer.write_with_metadata(rows, attack.note) if attack.note else writer.write_batch(rows)
            writer.done_writing()
            while acks.read() is not None:
                pass


def test_slow_bodies_keep_nobody_out(server: Server) -> None:
    """Sixteen posts that stop: records are taken meanwhile, by both doors."""
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    begun = b"POST /v1/streams/main HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    with contextlib.ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(socket.create_connection((host, int(port)))).sendall(begun)
        assert answer_of(server, push(LINE))[0] == 200
        put(server, Put("good records", batch, 0))


def test_there_are_enough() -> None:
    """At least sixty, each with a name of its own."""
    titles = [("http", row.title) for row in HTTP] + [("flight", row.title) for row in PUTS]
    assert len(set(titles)) == len(titles) >= 60
