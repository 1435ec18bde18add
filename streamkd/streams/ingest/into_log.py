"""From a reader to the log, wherever it reads: each batch with its partition's position, several under way.

    put(partition, batches) ─► intake ─► under way ─► settled: records and position are on disk
    move(positions) ─────────────┘                    again: ask the log where everything is

For one thread. Room is waited for here, so that nothing is read while the learner is behind.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import NamedTuple

from streamkd.streams.encoding.canonical import arrow_schema
from streamkd.streams.ingest.admission import Sifted
from streamkd.streams.ingest.intake import Intake
from streamkd.streams.log.batches import no_rows
from streamkd.streams.log.log import Kind
from streamkd.streams.log.positions import Move
from streamkd.streams.log.receipts import Receipt

UNDER_WAY, UNDER_WAY_BYTES = 256, 16 << 20  # batches, and what is in them
Batches = Iterable[tuple[Sifted, int]]
"""Batches of one partition in order, each with the offset after what it holds."""


class _UnderWay(NamedTuple):
    receipt: "Future[Receipt]"
    moves: Sequence[Move]
    held_bytes: int


class IntoLog:
    """The way of one reader's partitions into the log."""

    def __init__(self, intake: Intake, patient: Callable[[], bool], heard: str | None = None) -> None:
        """``patient`` is asked again and again where there is no room, and may wait; once it is false nothing is.

        ``heard``: who speaks by event time, where it is not each partition for itself.
        """
        self._intake, self._patient, self._heard = intake, patient, heard
        self._under_way: deque[_UnderWay] = deque()
        self._held_bytes = 0
        self._next = dict(intake.positions())
        self.written = dict(self._next)  # the next offset of each partition, of what is on disk

    def at(self, partition: str) -> int | None:
        """The offset of what is to come next; ``None`` where the partition is new."""
        return self._next.get(partition)

    def put(self, partition: str, batches: Batches, kind: Kind = "records", note: str | None = None) -> None:
        """Send batches on their way, which begin at the partition's position; ``note`` stands beside it then.

        Raises:
            NotReady: draining. BadRun: too many bad rows in a row, none of which was taken.
            Overloaded, OffsetConflict: an earlier batch was not written: go on with ``again``.
        """
        for sifted, then in batches:
            self._send(sifted, [Move(partition, self.at(partition), then, note)], kind)
            self.settle(UNDER_WAY, UNDER_WAY_BYTES)

    def move(self, positions: Mapping[str, int | None], notes: Mapping[str, str] | None = None) -> None:
        """Let partitions go on elsewhere, or be forgotten (``None``), all or none; on disk when this returns.

        Raises:
            NotReady, Overloaded, OffsetConflict: as ``put``.
        """
        nothing, notes = Sifted(no_rows(arrow_schema(self._intake.schema)), 0), notes or {}
        self._send(nothing, [Move(name, self.at(name), then, notes.get(name)) for name, then in positions.items()])
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
            _follow(self.written, done.moves)

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
        receipt = self._intake.take(
            sifted, None, None, sender, self._patient, kind=kind, moves=moves, heard=self._heard
        )
        _follow(self._next, moves)
        self._under_way.append(_UnderWay(receipt, moves, sifted.rows.nbytes))
        self._held_bytes += sifted.rows.nbytes


def _follow(positions: dict[str, int], moves: Sequence[Move]) -> None:
    for each in moves:
        if each.next is None:
            positions.pop(each.partition, None)
        else:
            positions[each.partition] = each.next
