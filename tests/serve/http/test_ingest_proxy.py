"""The way of pushed records to the ingress: what goes through, what is counted, what happens when it is down."""

import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from ..conftest import Running, until


async def receive(request: Request) -> JSONResponse:
    """Says what came, as the ingress would say what it took."""
    body = await request.body()
    if request.headers.get("streamkd-producer") == "refused":
        return JSONResponse({"error": "full"}, 429, {"Retry-After": "7", "Server-Secret": "x"})
    kept = ("content-type", "content-encoding", "streamkd-sequence", "authorization", "cookie")
    said = {name: request.headers.get(name) for name in kept}
    return JSONResponse({**said, "path": request.url.path, "sha256": hashlib.sha256(body).hexdigest()})


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[Path]:
    """A server on a unix socket in the ingress' place."""
    path = tmp_path / "s"
    routes = [Route("/v1/streams/{stream}", receive, methods=["POST"])]
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), uds=str(path), log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    yield path
    server.should_exit = True
    thread.join(10)


def test_body_and_headers_go_through_unchanged(behind: Path, start: Callable[..., Running]) -> None:
    """Stream, body, content headers, producer and sequence arrive as they were sent; cookies do not."""
    client = start(socket=behind).client
    body = bytes(range(256)) * 3000
    headers = {
        "Content-Type": "application/x-ndjson",
        "Streamkd-Sequence": "5",
        "Authorization": "Bearer t",
        "Cookie": "c",
    }
    for content in (body, (body[i : i + 10_000] for i in range(0, len(body), 10_000))):
        said = client.post("/v1/streams/main 2", content=content, headers=headers).json()
        assert said["sha256"] == hashlib.sha256(body).hexdigest()
        assert (said["content-type"], said["streamkd-sequence"]) == ("application/x-ndjson", "5")
        assert said["authorization"] == "Bearer t"
        assert (said["cookie"], said["path"]) == (None, "/v1/streams/main 2")


def test_the_answer_comes_back_unchanged(behind: Path, start: Callable[..., Running]) -> None:
    """Status, body and Retry-After of the ingress are the client's answer; other headers stay inside."""
    reply = start(socket=behind).client.post("/v1/streams/main", content=b"x", headers={"Streamkd-Producer": "refused"})
    assert (reply.status_code, reply.json(), reply.headers["Retry-After"]) == (429, {"error": "full"}, "7")
    assert "Server-Secret" not in reply.headers


def test_a_body_beyond_the_limit_ends_on_the_way(behind: Path, start: Callable[..., Running]) -> None:
    """The bytes are counted as they pass; beyond the limit the client gets 413, and the next batch goes through."""
    client = start(socket=behind, body_bytes=1 << 20).client
    assert client.post("/v1/streams/main", content=b"x" * (2 << 20)).status_code == 413
    assert client.post("/v1/streams/main", content=(b"x" * 65536 for _ in range(40))).status_code == 413
    assert client.post("/v1/streams/main", content=b"x").status_code == 200


def test_an_ingress_that_is_not_there_is_503(tmp_path: Path, start: Callable[..., Running]) -> None:
    """With nobody behind the socket the client is told when to come again."""
    reply = start(socket=tmp_path / "nobody").client.post("/v1/streams/main", content=b"x")
    assert (reply.status_code, reply.headers["Retry-After"]) == (503, "1")


def test_an_ingress_that_dies_with_the_batch_is_503(tmp_path: Path, start: Callable[..., Running]) -> None:
    """When the ingress ends before it answers, the client is told to send the batch again; the server goes on."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()

        def take_and_die() -> None:
            connection, _ = listening.accept()
            connection.recv(1000)
            connection.close()

        thread = threading.Thread(target=take_and_die)
        thread.start()
        running = start(socket=tmp_path / "s")
        reply = running.client.post("/v1/streams/main", content=b"x" * 100)
        thread.join()
    assert reply.status_code == 503
    assert "was not acknowledged" in reply.json()["error"]
    assert running.client.get("/v2/health/live").status_code == 200
