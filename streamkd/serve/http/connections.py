"""uvicorn's HTTP/1.1 protocol, with the bounds that it does not have itself.

    connection ─► (too many: the longest idle of the peer that has most ends) ─► head ─► body ─► answer ─► head ...
                                                     64 KB, ``head_seconds` ┘               └ read in time, or cut off

A client that is slow, silent or endless holds neither memory nor a place for long, and keeps nobody out: whoever
waits longest gives way to whoever comes. Bodies are bounded where they are read (``streamkd.serve.http.body``).
"""

import asyncio
from dataclasses import dataclass

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 << 10
# for the last bytes of an answer to a connection that is closed; a client that reads nothing would hold it for ever
CLOSE_SECONDS = 5.0
PIPELINED = 32  # requests of one connection that may wait for the one before them


@dataclass(frozen=True)
class ConnectionLimits:
    """How many connections there may be, and how long one may take for what."""

    connections: int = 1_000
    head_seconds: float = 20.0
    answer_seconds: float = 60.0


class IdleConnections:
    """The connections for which nothing is done now, by peer, the longest idle first."""

    def __init__(self) -> None:
        self._idle: dict[str, dict[BoundedProtocol, None]] = {}

    def join(self, connection: "BoundedProtocol") -> None:
        """It waits from now on, unless it did before."""
        self._idle.setdefault(connection.peer, {}).setdefault(connection)

    def leave(self, connection: "BoundedProtocol") -> None:
        """It is busy, or gone."""
        peers = self._idle.get(connection.peer, {})
        peers.pop(connection, None)
        if not peers:
            self._idle.pop(connection.peer, None)

    def first_to_go(self) -> "BoundedProtocol | None":
        """The longest idle connection of the peer that has most of them."""
        most = max(self._idle.values(), key=len, default={})
        return next(iter(most), None)


def bounded(patience: ConnectionLimits) -> type["BoundedProtocol"]:
    """The protocol of one server, for ``uvicorn.Config(http=...)``."""
    return type("BoundedProtocol", (BoundedProtocol,), {"patience": patience, "crowd": IdleConnections()})


class BoundedProtocol(HttpToolsProtocol):
    """One connection; ``crowd`` holds those of the same server."""

    patience = ConnectionLimits()
    crowd = IdleConnections()
    peer = ""
    _in_head = False
    _head_bytes = 0
    _slow: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.peer = str(self.client[0]) if self.client else ""
        self._expect_head()
        self.crowd.join(self)
        if len(self.connections) > self.patience.connections and (idle := self.crowd.first_to_go()):
            idle.cut_off()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self.resume_writing()
        self.crowd.leave(self)
        super().connection_lost(exc)

    def cut_off(self) -> None:
        """End at once, unanswered."""
        self.crowd.leave(self)
        self.connections.discard(self)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._in_head:  # of a header that is not complete, nothing else says how long it is
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._end(b"431 Request Header Fields Too Large")
                return
        super().data_received(data)
        is_free = self.cycle is None or self.cycle.response_complete
        if is_free and self._slow is None and self.timeout_keep_alive_task is None:
            self._expect_head()  # empty lines, or the rest of a body that was refused: no head may take for ever

    def send_400_response(self, msg: str) -> None:
        """What the parser could not take: the head's length has a status of its own."""
        if self._head_bytes > HEAD_BYTES:
            self._end(b"431 Request Header Fields Too Large")
        elif not self.transport.is_closing():
            super().send_400_response(msg)
            self._abort_later()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self._expect_head()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        if self._in_head:  # a trailer says nothing that a head did not: whoever checked the head is not told otherwise
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_waiting()
        if len(self.pipeline) >= PIPELINED:
            raise ValueError("too many requests wait")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self._at_work():
            self.crowd.leave(self)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._abort_later()
        elif not self._at_work():
            self.crowd.join(self)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._abort_later()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self._unread or self.loop.call_later(self.patience.answer_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def _at_work(self) -> bool:
        """Whether a request is here whole and has not been answered."""
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES:
            raise ValueError("the head is too large")  # httptools stops, and uvicorn asks for a 400

    def _expect_head(self) -> None:
        self._stop_waiting()
        self._slow = self.loop.call_later(self.patience.head_seconds, self._end, b"408 Request Timeout")

    def _stop_waiting(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def _end(self, status: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self.transport.close()
            self._abort_later()

    def _abort_later(self) -> None:
        self.loop.call_later(CLOSE_SECONDS, self.transport.abort)
