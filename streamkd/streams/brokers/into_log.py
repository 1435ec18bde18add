"""From messages to the log, whatever broker they come from: each with its partition's position, several under way.

    put(partition, messages) ─► batches ─► intake ─► under way ─► settled: records and position are on disk
    move(positions) ──────────────────────────┘                  again: ask the log where everything is

For one thread. Room is waited for here, so that a broker is not read while the learner is behind.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import NamedTuple

from streamkd.streams.brokers.messages import Beside, Decode, Form, Message
from streamkd.streams.encoding.canonical import arrow_schema
from streamkd.streams.ingest.admission import Sifted
from streamkd.streams.ingest.intake import Intake
from streamkd.streams.log.batches import no_rows
from streamkd.streams.log.log import Kind
from streamkd.streams.log.positions import Move
from streamkd.streams.log.receipts import Receipt

UNDER_WAY, UNDER_WAY_BYTES = 256, 16 << 20  # batches, and what is in them


class _UnderWay(NamedTuple):
    receipt: "Future[Receipt]"
    partition: str
    next: int
    held_bytes: int


class IntoLog:
    """The way of one reader's partitions into the log."""

    def __init__(self, intake: Intake, decode: Decode, beside: Beside, patient: Callable[[], bool]) -> None:
        """``patient`` is asked again and again where there is no room, and may wait; once it is false nothing is."""
        self._intake, self._decode, self._beside = intake, decode, beside
        self._patient = patient
        self._under_way: deque[_UnderWay] = deque()
        self._held_bytes = 0
        self._next = dict(intake.positions())
        self.written = dict(self._next)  # the next offset of each partition, of what is on disk

    def at(self, partition: str) -> int | None:
        """The offset of the message that is to come next; ``None`` where the partition is new."""
        return self._next.get(partition)

    def put(self, partition: str, messages: Sequence[Message], kind: Kind = "records") -> None:
        """Send messages on their way; those before the position are there already.

        Raises:
            NotReady: draining. BadRun: too many bad rows in a row, none of which was taken.
            Overloaded, OffsetConflict: an earlier batch was not written: go on with ``again``.
        """
        fresh = [message for message in messages if message.offset >= self._next[partition]]
        form = Form(self._intake.schema_of(kind), self._intake.limits, partition, self._beside)
        for sifted, then in self._decode(fresh, form) if fresh else ():
            self._send(sifted, [Move(partition, self._next[partition], then)], kind)
            self.settle(UNDER_WAY, UNDER_WAY_BYTES)

    def move(self, positions: Mapping[str, int]) -> None:
        """Let partitions go on elsewhere, all or none; on disk when this returns.

        Raises:
            NotReady, Overloaded, OffsetConflict: as ``put``.
        """
        nothing = Sifted(no_rows(arrow_schema(self._intake.schema)), 0)
        self._send(nothing, [Move(name, self.at(name), offset) for name, offset in positions.items()])
        self.settle()

    def settle(self, most: int = 0, most_bytes: int = 0) -> None:
        """See what is on disk, and wait until at most so many batches and bytes are under way.

        Raises:
            Overloaded, OffsetConflict: as ``put``.
        """
        while self._under_way and (self._is_beyond(most, most_bytes) or self._under_way[0].receipt.done()):
            self._under_way[0].receipt.result()
            done = self._under_way.popleft()
            self._held_bytes -= done.held_bytes
            self.written[done.partition] = done.next

    def _is_beyond(self, most: int, most_bytes: int) -> bool:
        return len(self._under_way) > most or self._held_bytes > most_bytes

    def again(self) -> None:
        """Forget what is under way; the log says where everything is."""
        wait([each.receipt for each in self._under_way])
        self._under_way.clear()
        self._held_bytes = 0
        self._next = dict(self._intake.positions())
        self.written = dict(self._next)

    def _send(self, sifted: Sifted, moves: Sequence[Move], kind: Kind = "records") -> None:
        while self._intake.is_full(sifted.rows) and self._patient():
            self.settle(UNDER_WAY, UNDER_WAY_BYTES)  # so that ``written`` is true meanwhile
        sender = moves[0].partition
        receipt = self._intake.take(sifted, None, None, sender, self._patient, kind=kind, moves=moves)
        for each in moves:
            self._next[each.partition] = each.next
            self._under_way.append(_UnderWay(receipt, each.partition, each.next, sifted.rows.nbytes))
            self._held_bytes += sifted.rows.nbytes
