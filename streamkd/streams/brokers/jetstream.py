"""A stream of NATS JetStream, read from any sequence on, by a thread that is no event loop's.

    bounds() ─► which stream it is, its first sequence, the one after its last
    read(at) ─► messages from ``at`` on, by a consumer of ours; one that has skipped any is made anew

Nothing is acknowledged. Where reading goes on the log knows, so a consumer is a cursor that the server may forget; what
the server has delivered and we have not got shows as a hole in the consumer's own count.
"""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Mapping
from concurrent import futures
from typing import Any, NamedTuple, TypeVar

from streamkd.errors import first_line
from streamkd.streams.brokers.messages import Message

ASK_SECONDS = 3.0  # an answer that takes longer is asked for again
FORGET_SECONDS = 60.0  # without a question, after which the server drops the cursor
SUBJECT = "Nats-Subject"
"""The header under which a message's subject stands among its own."""
Found = TypeVar("Found")


class Unanswered(Exception):
    """The server gave no answer, or said that it cannot: what passes by itself."""


class StreamBounds(NamedTuple):
    """Of a stream: what tells it from another of its name, its first sequence, and the one after its last."""

    made: str
    first: int
    next: int


class JetStream:
    """One stream; connects when it is asked first, and again whenever that is lost."""

    def __init__(self, nats: Any, settings: Mapping[str, Any], stream: str, filter: str | None) -> None:
        """``nats`` is the client's module, ``settings`` what it connects with."""
        self._nats, self._settings = nats, {**settings, "error_cb": self._quiet, "max_reconnect_attempts": -1}
        self._stream, self._filter = stream, filter
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="nats", daemon=True)
        self._thread.start()
        self._connection: Any = None
        self._cursor: Any = None
        self._at, self._delivered = -1, 0
        self.pending = 0
        """Messages that the server has beyond the last one that was read."""

    def bounds(self) -> StreamBounds:
        """What the server holds now.

        Raises:
            Unanswered: no server, or no such stream.
        """
        return self._asked(self._bounds(), ASK_SECONDS)

    def read(self, at: int, most: int, seconds: float) -> list[Message]:
        """Up to ``most`` messages from the sequence ``at`` on, in order; waits ``seconds`` for the first.

        Raises:
            Unanswered: as ``bounds``.
        """
        return self._asked(self._read(at, most, seconds), seconds + ASK_SECONDS)

    def close(self) -> None:
        """End the connection and its thread."""
        if self._connection is not None:
            with contextlib.suppress(Unanswered):  # the server is gone, and with it what there was to close
                self._asked(self._connection.close(), ASK_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(ASK_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()

    def _asked(self, asking: Coroutine[Any, Any, Found], seconds: float) -> Found:
        answer = asyncio.run_coroutine_threadsafe(asking, self._loop)
        try:
            return answer.result(seconds)
        except futures.TimeoutError:
            answer.cancel()
            self._cursor = None
            raise Unanswered(f"no answer within {seconds:g} s") from None
        except (self._nats.errors.Error, OSError) as fault:
            self._cursor = None
            raise Unanswered(first_line(fault)) from None

    async def _bounds(self) -> StreamBounds:
        told = await (await self._manager()).stream_info(self._stream)
        made = f"nats {self._stream} of {told.created.isoformat()}"
        return StreamBounds(made, max(told.state.first_seq, 1), told.state.last_seq + 1)

    async def _read(self, at: int, most: int, seconds: float) -> list[Message]:
        if self._cursor is None or at != self._at:
            await self._begin(at)
        try:
            got = await self._cursor.fetch(most, timeout=seconds)
        except (self._nats.errors.TimeoutError, TimeoutError):
            self.pending = 0
            return []
        found = []
        for each in got:
            told = each.metadata
            if told.sequence.consumer != self._delivered + 1:  # one before it was sent and has not come
                self._cursor = None
                break
            self._delivered, self._at, self.pending = told.sequence.consumer, told.sequence.stream + 1, told.num_pending
            headers = {**(each.headers or {}), SUBJECT: each.subject}  # a message does not say its subject itself
            told_beside = [(name, value.encode()) for name, value in headers.items()]
            stored = round(told.timestamp.timestamp() * 1e3)
            found.append(Message(told.sequence.stream, each.data, None, told_beside, stored))
        return found

    async def _begin(self, at: int) -> None:
        """A new cursor; the old one is forgotten by the server."""
        api = self._nats.js.api
        cursor = api.ConsumerConfig(
            deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=at,
            ack_policy=api.AckPolicy.NONE,
            inactive_threshold=FORGET_SECONDS,
            mem_storage=True,
        )
        context = await self._manager()
        self._cursor = await context.pull_subscribe(self._filter or ">", stream=self._stream, config=cursor)
        self._at, self._delivered = at, 0

    async def _manager(self) -> Any:
        if self._connection is None or self._connection.is_closed:
            self._connection = await self._nats.connect(**self._settings)
        return self._connection.jetstream(timeout=ASK_SECONDS)

    async def _quiet(self, _fault: Exception) -> None:
        """The client tells its faults here; each is met again by whoever asks."""
