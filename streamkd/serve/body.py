"""Request bodies, counted while they stream in and while they are decompressed.

chunks ─► counted (413) ─► gzip | deflate, capped (413) ─► bytes
             └─ all bodies together stay under a budget (429)
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from starlette.requests import ClientDisconnect, Request

from streamkd.errors import LimitExceeded, Overloaded
from streamkd.serve.answers import RequestError

# 16 + MAX_WBITS reads gzip; zlib and raw deflate are told apart by the first bytes
_WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_STEP = 1 << 16


class Budget:
    """Bytes that all bodies in flight may hold together."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._held = 0

    @property
    def held_bytes(self) -> int:
        return self._held

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """One request's part; given back at the end of the block."""
        share = Share(self)
        try:
            yield share
        finally:
            self._held -= share.held

    def take(self, count: int) -> None:
        if self._held + count > self._limit:
            raise Overloaded(
                f"requests in flight hold {self._held} bytes of {self._limit}",
                fix="come again after the time in Retry-After",
            )
        self._held += count


class Share:
    """What one request holds of the budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.held = 0

    def take(self, count: int) -> None:
        """Hold more.

        Raises:
            Overloaded: the budget of all requests is used up.
        """
        self._budget.take(count)
        self.held += count


async def read_body(request: Request, limit_bytes: int, timeout_seconds: float, share: Share) -> bytes:
    """The whole body, decompressed.

    Raises:
        LimitExceeded: more than ``limit_bytes``. Overloaded: other bodies fill the budget.
        RequestError: an encoding that is not known or broken, or a body that comes too slowly.
    """
    _check_length(request, limit_bytes)
    inflate = _inflater(request.headers.get("content-encoding", "identity").strip().lower(), limit_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_seconds):
            async for chunk in counted(request, limit_bytes):
                for piece in inflate.feed(chunk):
                    share.take(len(piece))
                    body += piece
                    if len(body) > limit_bytes:
                        raise _too_large(limit_bytes)
    except TimeoutError:
        raise RequestError(
            408, f"needed the whole body within {timeout_seconds:g} seconds, got {len(body)} bytes"
        ) from None
    inflate.end()
    return bytes(body)


async def counted(request: Request, limit_bytes: int) -> AsyncIterator[bytes]:
    """The chunks of a body as they come.

    Raises:
        LimitExceeded: more than ``limit_bytes``.
    """
    _check_length(request, limit_bytes)
    total = 0
    try:
        async for chunk in request.stream():
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


class _Identity:
    def feed(self, chunk: bytes) -> Iterator[bytes]:
        yield chunk

    def end(self) -> None: ...


class _Inflate:
    """Decompression in steps of 64 KiB, so that a bomb is noticed before it is unpacked."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._raw = zlib.decompressobj(_WINDOW[name])
        self._first = True

    def feed(self, chunk: bytes) -> Iterator[bytes]:
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
        if not self._raw.eof:
            raise RequestError(400, f"needed a whole {self._name} body, got one that breaks off")


def _inflater(name: str, limit_bytes: int) -> _Identity | _Inflate:
    if name in ("", "identity"):
        return _Identity()
    if name not in _WINDOW:
        raise RequestError(415, f"needed the content encoding gzip, deflate or none, got {name[:40]!r}")
    return _Inflate(name)


def _is_zlib(chunk: bytes) -> bool:
    """RFC 1950's header; clients send both forms under the name deflate."""
    return len(chunk) > 1 and chunk[0] & 15 == 8 and (chunk[0] * 256 + chunk[1]) % 31 == 0
