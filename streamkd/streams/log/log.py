"""The durable log of a push stream: one SQLite file, one writer, many readers.

    intake ─► Committer (group commit) ─► Log.append_many ─► batches | receipts | positions | letters
                                              │ labels ─► joins ─► batches | answers    (one transaction)
                                              │ rows by event time ─► held ─► batches
                                              Log.read ◄─ Batcher (learner) ─► cuts

``read`` cuts across the batches as they were put. When ``append_many`` returns, the rows are on disk. A receipt is
remembered for each (producer, sequence), so a batch that is sent again is answered, not stored; what is read from a
broker moves the positions of its partitions instead. Whatever touches the file raises ``LogDamaged`` where a page of it
is broken, or a batch is not what was written.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pyarrow as pa

from streamkd.errors import LogDamaged, Overloaded, RecordError, StateError
from streamkd.records import Chunk, RecordSchema, Reject
from streamkd.settings import LateLabels, OrderSettings
from streamkd.streams.encoding.canonical import arrow_schema
from streamkd.streams.log.answers import PastAnswer, PastAnswers
from streamkd.streams.log.batches import DAMAGED, Batches, checksum, no_rows
from streamkd.streams.log.database import Uptime
from streamkd.streams.log.dead_letters import DeadLetter, DeadLetters, letters
from streamkd.streams.log.event_order import HEARD, Clock, EventOrder, Room, Standing
from streamkd.streams.log.file import LogFile
from streamkd.streams.log.joins import Joins, Unmatched
from streamkd.streams.log.paces import Gear, Paces
from streamkd.streams.log.positions import Move, OffsetConflict, Positions
from streamkd.streams.log.predictions import NEWEST as PREDICTED
from streamkd.streams.log.receipts import Receipt, Receipts, SequenceConflict, digest

EARLY_ROWS = 26_214  # a tenth of the records that may wait to be learned
NOBODY = "unnamed"  # the sender of records that say none
TRIM_SECONDS = 0.5  # of one call; the next goes on
Kind = Literal["records", "labels", "predictions", "settle", "release"]
Conflict = SequenceConflict | OffsetConflict


class PutStream:
    """The batches of one put stream: when one is in conflict, none of those behind it is written."""

    conflict: Conflict | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One batch for the log: canonical rows, who sent it, the refused rows' letters, what tells it from others.

    ``kind``: records; labels of predictions (``label_schema``); predictions to keep (``with_requests``); or nothing,
    to ``settle`` labels that have waited enough, or to ``release`` records whose turn it is. ``moves``: of what is read
    from a broker, in place of producer and sequence. ``heard``: whose event times these are, where it is none of both.
    """

    rows: pa.RecordBatch
    producer: str | None = None
    sequence: int | None = None
    letters: Sequence[DeadLetter] = ()
    digest: bytes = b""
    put_stream: PutStream = field(default_factory=PutStream)
    kind: Kind = "records"
    moves: Sequence[Move] = ()
    heard: str = ""

    @property
    def senders(self) -> Sequence[str]:
        """Who is heard by it: the partitions that move, or one sender."""
        partitions = [move.partition for move in self.moves]
        return partitions if self.heard in ("", *partitions) and partitions else [self.heard or self.producer or NOBODY]

    @property
    def sender(self) -> tuple[str | None, int | None]:
        """Whom the log names for the batch: producer and sequence, or a partition and its offset."""
        return (self.moves[0].partition, self.moves[0].first) if self.moves else (self.producer, self.sequence)


@dataclass(frozen=True, slots=True)
class JoinReceipt(Receipt):
    """What became of labels: ``rejected`` are ``unmatched``, or bad rows. Or of predictions: ``accepted`` are kept.

    ``waiting``: how many more wait now; ``early`` of them for their prediction, ``early_seconds`` each. ``asked``: when
    each of those that were joined was (µs since 1970), in order; ``stored_bytes``: what they took in the log.
    """

    waiting: int = 0
    early: int = 0
    early_seconds: float = 0.0
    unmatched: Sequence[Unmatched] = ()
    asked: Sequence[int] = ()
    stored_bytes: int = 0


@dataclass(frozen=True, slots=True)
class OrderReceipt(Receipt):
    """What became of records by event time: the bytes that the log has of it now, the rows that were refused as late.

    ``changed``: by how much each of ``EventOrder.counts`` has.
    """

    stored_bytes: int = 0
    late: Sequence[Reject] = ()
    changed: Mapping[str, int] = field(default_factory=dict)


class Log:
    """One log file. Any thread may read, append and journal cuts; only one process appends."""

    def __init__(
        self,
        path: Path,
        schema: RecordSchema | None = None,
        read_only: bool = False,
        *,
        stream: str | None = None,
        quota_bytes: int | None = None,
        labels: LateLabels | None = None,
        early_rows: int = EARLY_ROWS,
        order: OrderSettings | None = None,
        order_room: Room = Room(),  # noqa: B008 - it is frozen
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Open or make the log of a stream; ``schema=None`` opens one that is there already.

        ``labels``: predictions are kept in it, and at most ``early_rows`` labels wait for theirs. ``order``: records
        are written in the order of their event times, and at most ``order_room`` are held for that.

        Raises:
            StateError: there is none, or the file is no log. LogDamaged: it was one. Overloaded: the disk is full.
            StateConflict: its records have another schema, or belong to another stream.
        """
        self.path = Path(path)
        self.file = LogFile(self.path, schema, stream, read_only)
        self.schema, self.stream = self.file.schema, self.file.stream
        self.labels, self._quota_bytes = labels, quota_bytes
        self._batches, self._putting = (Batches(each, self.path) for each in (self.file.reader, self.file.writer))
        self.letters, self._receipts = DeadLetters(self.file.writer), Receipts(self.file.writer)
        self._answers, self._positions = PastAnswers(self.file.writer), Positions(self.file.writer)
        self._hearing = Uptime(self.file.reader, HEARD)
        self._times = Clock(clock or self._hearing)
        clock = clock or Uptime(self.file.reader, PREDICTED)
        joins = (self.path, self.schema, labels or LateLabels(), early_rows, clock)
        self._joins, self._looking = (Joins(each, *joins) for each in (self.file.writer, self.file.reader))
        self.order = order
        ordering = (self.path, self.schema, order, order_room, self._times)
        self._order, self._ordering = (EventOrder(each, *ordering) for each in (self.file.writer, self.file.reader))
        for needed, now in ((labels, clock), (order, self._times.now)):
            if needed is not None:
                now()  # it goes on from now
        self.partition = f"{self.stream}/0"
        self.arrow_schema = arrow_schema(self.schema)
        self._window: tuple[int, pa.RecordBatch] = (0, no_rows(self.arrow_schema))

    def append(
        self,
        rows: pa.RecordBatch,
        producer: str | None = None,
        sequence: int | None = None,
        rejects: Sequence[Reject] = (),
        original: pa.RecordBatch | None = None,
    ) -> Receipt:
        """Write one batch; ``original`` has the refused rows, for the dead letters."""
        refused = letters(rejects, original, producer or self.stream)
        held = digest(rows, [reject.row for reject in rejects], refused)
        outcome = self.append_many([Entry(rows, producer, sequence, refused, held)])[0]
        if isinstance(outcome, RecordError):
            raise outcome
        return outcome

    def append_many(self, entries: Sequence[Entry]) -> list[Receipt | Conflict]:
        """Write batches in one transaction, in order; on return they are on disk, but for those in conflict.

        Raises:
            Overloaded: the quota or the disk is full; nothing was written. LogDamaged: the file is broken.
        """
        if self.file.read_only:
            raise StateError("is open for reading only", where=str(self.path))
        self.refuse_over_quota(sum(entry.rows.nbytes for entry in entries))
        with self.file.writing():
            end = self._putting.end()
            outcomes: list[Receipt | Conflict] = []
            for entry in entries:
                try:
                    outcomes.append(receipt := self._put(entry, end))
                    end = max(end, receipt.offset)
                except (SequenceConflict, OffsetConflict) as conflict:  # of this batch and its put stream alone
                    entry.put_stream.conflict = conflict
                    outcomes.append(conflict)
            return outcomes

    def refuse_over_quota(self, more_bytes: int) -> None:
        """Whether so many bytes may be written.

        Raises:
            Overloaded: they may not; come again when the learner has gone on.
        """
        if self._quota_bytes is not None and (used := self.file.size_bytes()) + more_bytes > self._quota_bytes:
            said = f"the log holds {used} of {self._quota_bytes} bytes"
            raise Overloaded(said, retry_after_seconds=5.0, where=str(self.path), fix="raise stream.retain.quota_bytes")

    def refuse_conflict(self, producer: str, sequence: int, digest: bytes) -> None:
        """Whether a number can be used for this content, as far as is known before it is written.

        Raises:
            SequenceConflict: it cannot. LogDamaged: the file is broken.
        """
        with self.file.reading() as reader:
            Receipts(reader).find(producer, sequence, digest, look_only=True)

    def _put(self, entry: Entry, end: int) -> Receipt:
        if entry.put_stream.conflict is not None:
            raise entry.put_stream.conflict
        name = None if entry.producer is None or entry.sequence is None else (entry.producer, entry.sequence)
        if name and (seen := self._receipts.find(*name, entry.digest)) is not None:
            return seen
        self._positions.move(entry.moves)
        receipt = self._store(entry, end)
        self._positions.remember(entry.moves, receipt.offset)
        self.letters.put(entry.letters, receipt.offset)
        if name:
            self._receipts.add(name[0], receipt, entry.digest)
        return receipt

    def _store(self, entry: Entry, end: int) -> Receipt:
        """Write what an entry brings behind the offset ``end``."""
        rows, refused = entry.rows, len(entry.letters)
        if entry.kind == "release" or (entry.kind == "records" and self.order):
            return self._store_in_order(entry, end)
        if entry.kind == "records":
            self._putting.put(rows, end, entry.sender)
            return Receipt(entry.sequence, rows.num_rows, refused, end + rows.num_rows)
        kept = 0
        if entry.kind == "predictions":
            kept, matched = self._joins.keep(rows)
        else:
            matched = self._joins.take(rows) if entry.kind == "labels" else self._joins.settle()
        asked: list[int] = []
        stored, at = 0, end
        for joined in self._joins.records(matched.matches):
            self._putting.put(joined.rows, at, entry.sender)
            self._answers.put(at, joined.answers)
            at, stored = at + joined.rows.num_rows, stored + joined.rows.nbytes
            asked += joined.asked
        self._joins.forget(matched)
        unmatched = tuple(matched.unmatched)
        accepted = rows.num_rows - len(unmatched) if entry.kind == "labels" else kept
        rejected = refused + len(unmatched) if entry.kind == "labels" else rows.num_rows - kept
        early = (matched.early, self.labels.early_seconds if self.labels else 0.0)
        return JoinReceipt(
            entry.sequence, accepted, rejected, at, False, matched.waiting, *early, unmatched, asked, stored
        )

    def _store_in_order(self, entry: Entry, end: int) -> OrderReceipt:
        """Hold what an entry brings, but for what has no turn to come; write that, and what has its turn now."""
        before, at, stored = self._order.counts(), end, 0
        late: Sequence[Reject] = ()
        if entry.kind == "records":
            taken = self._order.take(entry.rows, entry.senders)
            self._putting.put(taken.at_once, at, entry.sender)
            at, stored, late = at + taken.at_once.num_rows, taken.at_once.nbytes, taken.refused
        if self.order and self.order.late == "dead-letter":
            self.letters.put(letters(late, entry.rows, entry.senders[0]), at)
        for rows in self._order.released():
            self._putting.put(rows, at, (None, None))
            at, stored = at + rows.num_rows, stored + rows.nbytes
        changed = self._order.counts()
        changed.subtract(before)
        accepted, rejected = entry.rows.num_rows - len(late), len(entry.letters) + len(late)
        return OrderReceipt(entry.sequence, accepted, rejected, at, False, stored, late, changed)

    def order_is_due(self) -> bool:
        """Whether records that are held have their turn, as a sender is not waited for any more."""
        with self.file.reading():
            return self._ordering.is_due()

    def standing(self) -> Standing:
        """As ``EventOrder.standing``."""
        with self.file.reading():
            return self._ordering.standing()

    def knock(self, sender: str) -> None:
        """A sender speaks, and is not taken for now: it is not silent."""
        self._times.knock(sender)

    def stand_still(self, seconds: float) -> None:
        """So long nobody could be heard, so that nobody was silent."""
        self._hearing.stand_still(seconds)

    def is_due(self) -> bool:
        """Whether labels have waited enough, or predictions are kept for longer than they should be."""
        with self.file.reading():
            return self._looking.is_due()

    def label_counts(self) -> Counter[str]:
        """As ``Joins.counts``."""
        with self.file.reading():
            return self._looking.counts()

    def notes(self) -> Mapping[str, str]:
        """What readers have noted beside the positions of their partitions."""
        with self.file.reading() as reader:
            return Positions(reader).notes()

    def positions(self, offset: int | None = None) -> Mapping[str, int]:
        """As ``Positions.all``; at an ``offset`` as ``Positions.at``."""
        with self.file.reading() as reader:
            return Positions(reader).all() if offset is None else Positions(reader).at(offset)

    def answers(self, start: int, stop: int) -> Mapping[int, PastAnswer]:
        """By offset, what was answered about the records from ``start`` to before ``stop``; of most nothing."""
        with self.file.reading() as reader:
            return PastAnswers(reader).between(start, stop)

    def read(self, offset: int, limit: int) -> Chunk:
        """Up to ``limit`` rows from ``offset`` on.

        Raises:
            SourceError: records before the first one kept are asked for. LogDamaged: a batch is not what was written.
        """
        with self.file.reading():
            first, window = self._window
            if not first <= offset <= offset + limit <= first + window.num_rows:
                self._window = first, window = offset, self._batches.fetch(offset, limit, self.arrow_schema)
        rows = window.slice(offset - first, limit)
        return Chunk(rows, self.partition, offset, offset + rows.num_rows)

    def begin(self) -> int:
        """The first offset that is kept."""
        with self.file.reading():
            return self._batches.begin()

    def end(self) -> int:
        """The offset after the last record."""
        with self.file.reading():
            return self._batches.end()

    def mark(self, offset: int) -> str | None:
        """What tells the record before ``offset`` from any other that could stand there: its batch's place and time.

        ``None`` where it is not kept.
        """
        with self.file.reading():
            return self._batches.mark(offset)

    def bytes_between(self, start: int, stop: int) -> int:
        """Bytes of the batches that hold the offsets from ``start`` to ``stop``."""
        with self.file.reading():
            return self._batches.bytes_between(start, stop)

    def trim(self, before_offset: int, retain_bytes: int = 0, retain_age_seconds: float = 0.0) -> int:
        """Forget batches before an offset that are older than both bounds allow; returns how many records.

        The newest batch always stays, so that offsets go on after it. Appends come in between, and after
        ``TRIM_SECONDS`` the rest is left to the next call: one that forgets nothing has nothing left to forget.

        Raises:
            Overloaded: as ``append_many``; what was forgotten stays so.
        """
        until = time.monotonic() + TRIM_SECONDS
        with self.file.reading():
            wanted = self._batches.first_retained(before_offset, retain_bytes, time.time() - retain_age_seconds)
        records = 0
        while (gone := self._trim_some(wanted)) and (records := records + gone) and time.monotonic() < until:
            time.sleep(0.001)  # who waits for the lock has it now
        return records

    def _trim_some(self, wanted: int) -> int:
        """One transaction of a trim."""
        with self.file.writing() as writer:
            cut, records = self._putting.forget_some(wanted)
            writer.execute("DELETE FROM cuts WHERE start < ?", (cut,))
            Paces(writer).forget(cut)
            self._answers.forget(cut)
            self._positions.forget(cut)
            self._receipts.forget_idle()
        return records

    def put_cut(self, start: int, stop: int) -> None:
        """Journal that a training batch ends at ``stop``; the first cut at a start stands.

        Raises:
            Overloaded: as ``append_many``; there is no cut.
        """
        with self.file.writing() as writer:
            values = (start, stop, checksum(start, stop, b""))
            writer.execute("INSERT OR IGNORE INTO cuts (start, stop, checksum) VALUES (?, ?, ?)", values)

    def cut_at(self, start: int) -> int | None:
        """Where the journaled batch that begins at ``start`` ends.

        Raises:
            LogDamaged: it ends where no batch can, or elsewhere than it was written.
        """
        with self.file.reading() as reader:
            row = reader.execute("SELECT stop, checksum FROM cuts WHERE start = ?", (start,)).fetchone()
            end = self._batches.end()
            other = row is not None and row[1] is not None and row[1] != checksum(start, row[0], b"")
            if row is not None and (other or not start < row[0] <= end):
                said = f"the log is damaged: the journaled batch at offset {start} ends at {row[0]}, the log at {end}"
                raise LogDamaged(said, where=str(self.path), fix=DAMAGED)
        return None if row is None else int(row[0])

    def put_pace(self, start: int, gear: Gear) -> None:
        """Journal that batches from ``start`` on are learned in a gear; of two at one start the later stands.

        Raises:
            Overloaded: as ``append_many``; nothing has changed.
        """
        with self.file.writing() as writer:
            Paces(writer).put(start, gear)

    def paces(self) -> list[tuple[int, Gear]]:
        """From which offsets on batches are learned in which gear, by offset; none before it first changed.

        Raises:
            LogDamaged: a number is not the one that was written.
        """
        with self.file.reading() as reader:
            if (odd := Paces(reader).odd()) is not None:
                said = f"the log is damaged: the pace of batches from offset {odd} on is not the one that was journaled"
                raise LogDamaged(said, where=str(self.path), fix=DAMAGED)
            return Paces(reader).all()

    def note_committed(self, offset: int) -> None:
        """Remember the offset that the learner's checkpoint holds, for the time before it says so again."""
        self.file.note("committed", str(offset))

    def committed(self) -> int:
        """The offset that ``note_committed`` was last told; 0 before the first checkpoint."""
        return int(self.file.noted("committed") or 0)

    def close(self) -> None:
        self.file.close()


class LogSource:
    """The log as a ``records.Source``: one partition, never at its end."""

    finite = False

    def __init__(self, log: Log) -> None:
        self._log = log
        self.partitions: tuple[str, ...] = (log.partition,)

    def read(self, partition: str, offset: int, limit: int) -> Chunk:
        return self._log.read(offset, limit)

    def end(self, partition: str) -> int | None:
        return self._log.end()

    def tests(self) -> Mapping[str, pa.RecordBatch]:
        return {}

    def close(self) -> None:
        self._log.close()
