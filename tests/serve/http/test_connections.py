"""Clients that are slow, silent or many: each is cut off in time, and none of them keeps another out."""

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from streamkd.serve.http import connections as protocol
from streamkd.serve.http.body import BodyTimeouts
from streamkd.serve.http.connections import ConnectionLimits, IdleConnections

from ..conftest import Publisher, Running, until

INFER = "/v2/models/student/infer"
HASTY = ConnectionLimits(connections=20, head_seconds=0.3, answer_seconds=0.3)
BRISK = BodyTimeouts(total_seconds=1.0, idle_seconds=0.3)


@pytest.fixture
def hasty(start: Callable[..., Running], publisher: Publisher) -> Running:
    """A server that waits for nobody, and has room for twenty connections."""
    publisher.publish()
    server = start(connections=HASTY, bodies=BRISK, body_bytes=100_000)
    server.wait_for(1)
    return server


@contextlib.contextmanager
def connected(server: Running, begun: bytes = b"") -> Iterator[socket.socket]:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(begun)
        yield connection


def head(length: object, more: str = "") -> bytes:
    return f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\n{more}Content-Length: {length}\r\n\r\n".encode()


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has ended it; reads what it said before."""
    with contextlib.suppress(ConnectionError):
        while connection.recv(1 << 16):
            pass
    return True


@pytest.mark.parametrize("begun", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: y\r\n"])
def test_a_head_that_does_not_come_is_408(hasty: Running, begun: bytes) -> None:
    """After `head_seconds`, whatever of it has come."""
    with connected(hasty, begun) as slow:
        assert slow.recv(100).startswith(b"HTTP/1.1 408")


def test_empty_lines_do_not_keep_a_connection_open(hasty: Running) -> None:
    """What the parser skips between requests is no sign of life."""
    with connected(hasty, b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n") as slow:
        slow.settimeout(0.05)
        begin = time.monotonic()
        said = b""
        while b" 408 " not in said and time.monotonic() - begin < 5:
            slow.sendall(b"\r\n")
            with contextlib.suppress(TimeoutError):
                said += slow.recv(1000)
        assert said.startswith(b"HTTP/1.1 200")
        assert b"HTTP/1.1 408" in said


@pytest.mark.parametrize("pause", [0.1, 10.0], ids=["slow", "silent"])
def test_a_body_that_does_not_come_is_408(hasty: Running, pause: float) -> None:
    """One that trickles after `body_seconds`, one that stops after `idle_seconds`; the connection ends with it."""
    with connected(hasty, head(50_000)) as slow:
        slow.settimeout(pause)
        said = b""
        for _ in range(40):
            slow.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                said = slow.recv(1000)
            if said:
                break
        assert said.startswith(b"HTTP/1.1 408")
        assert is_closed(slow)


def ask_for_ever(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 10)


def test_a_body_may_take_longer_than_a_head(start: Callable[..., Running], publisher: Publisher) -> None:
    """Each has its own time: one that comes steadily is answered after `head_seconds`."""
    publisher.publish()
    server = start(connections=ConnectionLimits(head_seconds=0.3), bodies=BodyTimeouts(20.0, 10.0))
    server.wait_for(1)
    with connected(server, head(10)) as steady:
        for _ in range(10):
            time.sleep(0.1)
            steady.sendall(b"x")
        assert steady.recv(100).startswith(b"HTTP/1.1 400")


def test_a_client_that_reads_no_answer_is_cut_off(hasty: Running) -> None:
    """It would hold the answer, and its place, for ever."""
    with connected(hasty) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            ask_for_ever(deaf)
    until(lambda: hasty.client.get("/v2/health/live").status_code == 200)


def test_a_head_of_any_form_is_bounded(hasty: Running) -> None:
    """64 KB of target, of one header, or of many are 431, also where they come in one piece."""
    for begun in (
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 12_000 + b"\r\n",
    ):
        with connected(hasty, begun) as large:
            assert large.recv(100).startswith(b"HTTP/1.1 431")


def test_pipelined_requests_are_few(hasty: Running) -> None:
    """Thousands of requests in one piece would all be held; the connection ends instead."""
    with connected(hasty, b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2_000) as many:
        said = b""
        with contextlib.suppress(ConnectionError):
            while more := many.recv(1 << 16):
                said += more
    assert said.count(b"HTTP/1.1 200") <= protocol.PIPELINED + 1


def test_the_longest_idle_connection_gives_way(hasty: Running) -> None:
    """Past `connections` the oldest that does nothing ends; one that is used stays, and health is answered."""
    with contextlib.ExitStack() as stack:
        assert hasty.client.get("/v2/health/live").status_code == 200
        silent = [stack.enter_context(connected(hasty)) for _ in range(18)]
        assert hasty.client.get("/v2/health/live").status_code == 200
        for _ in range(10):
            stack.enter_context(connected(hasty))
        assert is_closed(silent[0])
        assert httpx.get(hasty.url + "/v2/health/live").status_code == 200


class One:
    """A connection, as far as a crowd knows it."""

    def __init__(self, peer: str) -> None:
        self.peer = peer


def test_who_has_most_connections_gives_way_first() -> None:
    """A stranger with many connections closes its own, the oldest first, and not the one of somebody else."""
    crowd, mine, first, second = IdleConnections(), One("me"), One("stranger"), One("stranger")
    for one in (mine, first, second):
        crowd.join(one)  # type: ignore[arg-type]
    crowd.join(first)  # type: ignore[arg-type]  (it waits since before)
    assert crowd.first_to_go() is first
    crowd.leave(first)  # type: ignore[arg-type]
    crowd.leave(second)  # type: ignore[arg-type]
    assert crowd.first_to_go() is mine
    crowd.leave(mine)  # type: ignore[arg-type]
    assert crowd.first_to_go() is None


def test_bodies_that_never_end_make_room(start: Callable[..., Running], publisher: Publisher) -> None:
    """Four that hold all the memory there is for bodies: the oldest is 429, and a whole body is answered."""
    publisher.publish()
    server = start(body_bytes=100_000, queue_rows=4_000)
    server.wait_for(1)
    rows = 2_000
    tensor = {"name": "image", "datatype": "UINT8", "shape": [rows, 2, 3], "parameters": {"binary_data_size": 6 * rows}}
    said = json.dumps({"inputs": [tensor]}).encode()
    body = said + np.zeros(6 * rows, np.uint8).tobytes()
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connected(server, head(99_999) + b"x" * 99_000)) for _ in range(4)]
        time.sleep(0.2)
        reply = server.client.post(INFER, content=body, headers={"Inference-Header-Content-Length": str(len(said))})
        assert reply.status_code == 200, reply.text
        assert held[0].recv(1000).startswith(b"HTTP/1.1 429")


def test_slow_bodies_do_not_hold_up_others_records(tmp_path: Path, start: Callable[..., Running]) -> None:
    """Sixteen of them on their way to the ingress: it is asked for the seventeenth, the one that is whole."""
    server = start(socket=tmp_path / "nobody")
    begun = b"POST /v1/streams/main HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc"
    with contextlib.ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(connected(server, begun))
        reply = server.client.post("/v1/streams/main", content=b"x", timeout=4)
    assert "is not there yet" in reply.json()["error"]
