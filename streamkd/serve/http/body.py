"""Request bodies, counted while they stream in and while they are decompressed.

chunks, each in time (408) ─► counted (413) ─► gzip | deflate, capped (413) ─► bytes, whole in time (408)
                                 └─ all bodies together stay under a budget: the slowest gives way (429)
"""

import asyncio
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

from streamkd.errors import LimitExceeded, Overloaded
from streamkd.serve.http.answers import RequestError

# 16 + MAX_WBITS reads gzip; zlib and raw deflate are told apart by the first bytes
_WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_STEP = 1 << 16


@dataclass(frozen=True)
class BodyTimeouts:
    """How long a whole body may take, and how long nothing of it may come."""

    total_seconds: float = 60.0
    idle_seconds: float = 10.0


BODY_TIMEOUTS = BodyTimeouts()


class BodyBudget:
    """Bytes that all bodies in flight may hold together.

    When they are all held, a body that is still coming gives way to the newer one: the longest under way, of the
    peer that holds most. So bodies that never end keep nobody out.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._reservations: list[Reservation] = []  # the oldest first

    @property
    def held_bytes(self) -> int:
        return sum(reservation.held for reservation in self._reservations)

    @contextmanager
    def reserve(self, peer: str = "") -> Iterator["Reservation"]:
        """One request's part; given back at the end of the block."""
        reservation = Reservation(self, peer)
        self._reservations.append(reservation)
        try:
            yield reservation
        finally:
            self._reservations.remove(reservation)

    def make_room(self, count: int, taker: "Reservation") -> None:
        """See that ``count`` more bytes may be held.

        Raises:
            Overloaded: everything is held by bodies that came whole, or ``taker`` is the one that has to give way.
        """
        while self.held_bytes + count > self._limit:
            slowest = self._slowest()
            if slowest is None or slowest is taker:
                raise Overloaded(
                    f"requests in flight hold {self.held_bytes} bytes of {self._limit}",
                    fix="come again after the time in Retry-After",
                )
            slowest.give_way()

    def _slowest(self) -> "Reservation | None":
        held: Counter[str] = Counter()
        for reservation in self._reservations:
            held[reservation.peer] += reservation.held
        coming = [reservation for reservation in self._reservations if reservation.deadline is not None]
        return max(coming, key=lambda reservation: held[reservation.peer], default=None)


class Reservation:
    """What one request holds of the budget; ``deadline`` while its body is coming."""

    def __init__(self, budget: BodyBudget, peer: str) -> None:
        self._budget = budget
        self.peer = peer
        self.held = 0
        self.deadline: asyncio.Timeout | None = None
        self.gave_way = False

    def take(self, count: int) -> None:
        """Hold more.

        Raises:
            Overloaded: the budget of all requests is used up.
        """
        self._budget.make_room(count, self)
        self.held += count

    def give_way(self) -> None:
        """Stop reading; the bytes are free from now on."""
        assert self.deadline is not None
        self.deadline.reschedule(0.0)
        self.deadline, self.held, self.gave_way = None, 0, True


async def read_body(
    request: Request, limit_bytes: int, patience: BodyTimeouts, reservation: Reservation, unpack: bool = True
) -> bytes:
    """The whole body, decompressed if ``unpack``.

    Raises:
        LimitExceeded: more than ``limit_bytes``. Overloaded: other bodies fill the budget.
        RequestError: an encoding that is not known or broken, or a body that comes too slowly.
    """
    _check_length(request, limit_bytes)
    encoding = request.headers.get("content-encoding", "identity").strip().lower() if unpack else ""
    inflate, body = _Inflate(encoding), bytearray()
    try:
        async with asyncio.timeout(patience.total_seconds) as reservation.deadline:
            async for chunk in _chunks(request, limit_bytes, patience.idle_seconds):
                for piece in inflate.feed(chunk):
                    reservation.take(len(piece))
                    body += piece
                    if len(body) > limit_bytes:
                        raise _too_large(limit_bytes)
                    if len(body) > _STEP:
                        await asyncio.sleep(0)  # unpacking is work: others are answered in between
    except TimeoutError:
        if reservation.gave_way:
            raise Overloaded("this body came slowly, and others needed its room", fix="send it again") from None
        needed = f"{patience.total_seconds:g} seconds, and {patience.idle_seconds:g} for the next bytes"
        raise RequestError(
            408, f"needed the whole body within {needed}, got {len(body)} bytes", headers={"Connection": "close"}
        ) from None
    finally:
        reservation.deadline = None
    inflate.end()
    return bytes(body)


async def _chunks(request: Request, limit_bytes: int, idle_seconds: float) -> AsyncIterator[bytes]:
    """The chunks of a body as they come, each in time."""
    total = 0
    chunks = aiter(request.stream())
    try:
        while True:
            async with asyncio.timeout(idle_seconds):
                chunk = await anext(chunks, None)
            if chunk is None:
                return
            total += len(chunk)
            if total > limit_bytes:
                raise _too_large(limit_bytes)
            if chunk:
                yield chunk
    except ClientDisconnect:
        raise RequestError(400, "the client went away before the body was complete") from None


def _check_length(request: Request, limit_bytes: int) -> None:
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit_bytes:
        raise _too_large(limit_bytes)


def _too_large(limit_bytes: int) -> LimitExceeded:
    return LimitExceeded(f"needed a body of at most {limit_bytes} bytes, got more", fix="send smaller batches")


class _Inflate:
    """Decompression in steps of 64 KiB, so that a bomb is noticed before it is unpacked; or none."""

    def __init__(self, name: str) -> None:
        if name not in ("", "identity", *_WINDOW):
            raise RequestError(415, f"needed the content encoding gzip, deflate or none, got {name[:40]!r}")
        self._name = name
        self._raw = zlib.decompressobj(_WINDOW[name]) if name in _WINDOW else None
        self._first = True

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        if self._raw is None:
            yield chunk
            return
        if self._first and chunk:
            self._first = False
            if self._name == "deflate" and not _is_zlib(chunk):
                self._raw = zlib.decompressobj(-zlib.MAX_WBITS)
        while chunk and not self._raw.eof:
            try:
                piece = self._raw.decompress(chunk, _STEP)
            except zlib.error as fault:
                raise RequestError(400, f"needed a {self._name} body, got one that does not unpack: {fault}") from None
            chunk = self._raw.unconsumed_tail
            yield piece

    def end(self) -> None:
        if self._raw is not None and not self._raw.eof:
            raise RequestError(400, f"needed a whole {self._name} body, got one that breaks off")


def _is_zlib(chunk: bytes) -> bool:
    """RFC 1950's header; clients send both forms under the name deflate."""
    return len(chunk) > 1 and chunk[0] & 15 == 8 and (chunk[0] * 256 + chunk[1]) % 31 == 0
