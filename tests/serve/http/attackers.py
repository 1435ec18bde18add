"""What a server is attacked with, and a client that behaves: each a process of its own, so that neither is measured.

python attackers.py attack HOST PORT SECONDS CONNECTIONS     # everything at once; prints what was done
python attackers.py behave HOST PORT SECONDS                 # prints the seconds that each answer took
"""

import asyncio
import contextlib
import http.client
import json
import os
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable

INFER = "/v2/models/student/infer"
SIDE = 28  # records are SIDE x SIDE numbers
MORE_SECONDS = 20.0
SEEN: Counter[str] = Counter()


def request(rows: int) -> bytes:
    numbers = [random.random() for _ in range(SIDE * SIDE)]
    tensor = {"name": "x", "datatype": "FP32", "shape": [rows, SIDE, SIDE], "data": numbers * rows}
    return json.dumps({"inputs": [tensor]}).encode()


def head(length: int) -> bytes:
    return f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()


class Attack:
    """All of it, for a while, on one server."""

    def __init__(self, host: str, port: int, seconds: float) -> None:
        self.host, self.port, self.end = host, port, time.monotonic() + seconds
        self.small, self.large = request(1), request(1_000)
        assert len(self.large) > 15_000_000

    def left(self) -> float:
        """Seconds; more on a machine so busy that hardly anything of the attack has come through."""
        through = SEEN["large 200"] >= 1 and SEEN["flood 200"] >= 20
        return self.end + (0.0 if through else MORE_SECONDS) - time.monotonic()

    async def run(self, idle: int) -> None:
        kinds: list[tuple[Callable[[], Awaitable[None]], int]] = [
            (self.idle, idle),
            (self.slow_head, 50),
            (self.slow_body, 50),
            (self.large_body, 4),
            (self.flood, 8),
        ]
        tasks = [asyncio.create_task(self.again(kind)) for kind, count in kinds for _ in range(count)]
        await asyncio.gather(*tasks)

    async def again(self, kind: Callable[[], Awaitable[None]]) -> None:
        await asyncio.sleep(random.random())
        while (left := self.left()) > 0:
            with contextlib.suppress(OSError, EOFError, TimeoutError):
                async with asyncio.timeout(max(0.1, left)):
                    await kind()
            await asyncio.sleep(1.0 + 2.0 * random.random())  # cut off: come again

    @contextlib.asynccontextmanager
    async def connected(self):  # type: ignore[no-untyped-def]
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    async def idle(self) -> None:
        async with self.connected() as (reader, _):
            SEEN["idle"] += 1
            await reader.read()

    async def slow_head(self) -> None:
        await self.trickle(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")

    async def slow_body(self) -> None:
        await self.trickle(head(60_000))

    async def trickle(self, begun: bytes) -> None:
        async with self.connected() as (reader, writer):
            SEEN["slow"] += 1
            writer.write(begun)
            while not reader.at_eof():
                writer.write(b"x")
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(100), 0.5)

    async def large_body(self) -> None:
        async with self.connected() as (reader, writer):
            writer.write(head(len(self.large)) + self.large)
            await writer.drain()
            SEEN["large " + (await reader.readline()).split()[1].decode()] += 1

    async def flood(self) -> None:
        async with self.connected() as (reader, writer):
            while self.left() > 0:
                writer.write(head(len(self.small)) + self.small)
                answered = await reader.readuntil(b"\r\n\r\n")
                length = int(answered.lower().partition(b"content-length:")[2].split()[0])
                await reader.readexactly(length)
                SEEN["flood " + answered.split()[1].decode()] += 1


def attack(host: str, port: int, seconds: float, idle: int) -> dict[str, int]:
    """The attack, at the lowest priority: attackers have processors of their own."""
    os.nice(19)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(Attack(host, port, seconds).run(min(idle, hard - 300)))
    return dict(SEEN)


def behave(host: str, port: int, seconds: float) -> dict[str, list[float]]:
    """Small predictions over one connection, and health over a new one each time."""
    body, end = request(1), time.monotonic() + seconds
    took: dict[str, list[float]] = {"predict": [], "live": []}
    kept = http.client.HTTPConnection(host, port, timeout=30)
    while time.monotonic() < end:
        took["predict"].append(_timed(kept, "POST", INFER, body))
        fresh = http.client.HTTPConnection(host, port, timeout=30)
        took["live"].append(_timed(fresh, "GET", "/v2/health/live", None))
        fresh.close()
        time.sleep(0.02)
    return took


def _timed(connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None) -> float:
    begin = time.monotonic()
    connection.request(method, path, body, {"Host": "localhost"})
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 200, answer.status
    return time.monotonic() - begin


if __name__ == "__main__":
    what, host, port, seconds, *more = sys.argv[1:]
    arguments = (host, int(port), float(seconds))
    print(json.dumps(attack(*arguments, int(more[0])) if what == "attack" else behave(*arguments)))
