"""The way into the log for everything that is pushed: room, order, bad rows in a row, numbers.

    listener ─► admission ─► Intake.take ─► Committer ─► Receipt
                                 ▲ room: records and bytes that no checkpoint holds yet, labels that wait, the quota;
                                 │ by event time half of it for those that wait for their turn, a share for each sender
    learner's checkpoint ────────┘ committed(offset): makes room, and trims the log

Flight waits for room and leaves its stream unread meanwhile; HTTP does not wait and answers 429.
"""

import contextlib
import logging
import sys
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streamkd.errors import LogDamaged, NotReady, Overloaded, RecordError, StreamkdError
from streamkd.records import RecordSchema
from streamkd.settings import Limits, Retain, Tls
from streamkd.streams.ingest.admission import Sifted
from streamkd.streams.ingest.columns import SentColumns
from streamkd.streams.ingest.committer import Committer
from streamkd.streams.ingest.refusals import BadRun, Refusal, refusal_of
from streamkd.streams.ingest.shares import Shares
from streamkd.streams.ingest.tokens import Tokens
from streamkd.streams.log.batches import no_rows
from streamkd.streams.log.event_order import TREATMENTS, Standing
from streamkd.streams.log.joins import label_schema
from streamkd.streams.log.log import Entry, JoinReceipt, Kind, Log, OrderReceipt, PutStream
from streamkd.streams.log.positions import Move
from streamkd.streams.log.receipts import Receipt, digest

logger = logging.getLogger(__name__)
RUNS = 10_000  # producers whose bad rows in a row are counted
WAIT_SECONDS = 0.1
BROKER = "broker"  # whose share is that of all partitions, as one reader has them
LABELS_ON = "set stream.labels to {} and start it again"


class Meter(Protocol):
    """Where numbers go; ``telemetry.Recorder`` is one."""

    def count(self, family: str, amount: float = 1.0, **labels: str) -> None: ...

    def set(self, family: str, value: float, **labels: str) -> None: ...

    def observe(self, family: str, value: float, **labels: str) -> None: ...


class Listener(Protocol):
    """What ``make`` of a push source builds."""

    def start(self) -> Mapping[str, str]:
        """Take records from now on; the URLs that are listened on, by what they are."""
        ...

    def drain(self, deadline_seconds: float) -> None:
        """Wait for what is under way; the intake refuses new batches already."""
        ...


@dataclass(frozen=True)
class Ingest:
    """What a push listener is given: where records go, who may send them, and where to listen."""

    intake: "Intake"
    tokens: Tokens
    host: str = "127.0.0.1"
    flight_port: int = 0
    tls: Tls | None = None


class Intake:
    """One stream's way into its log. Thread safe."""

    def __init__(
        self,
        log: Log,
        limits: Limits,
        meter: Meter,
        retain: Retain | None = None,
        source: str | None = None,
    ) -> None:
        """``source`` names the numbers; ``None``: the stream does."""
        self.schema, self.stream, self.limits = log.schema, log.stream, limits
        self.label_schema = label_schema(log.schema) if log.labels else None  # of labels that come later
        self.draining = False  # whether no more batches are taken
        self.folder = log.path.parent  # the state directory
        self.told: Mapping[str, Any] = {}  # how the source stands, for the page
        self.stopped = ""  # why the source gives no more records, until the next start
        self._log = log
        self._meter = meter
        self._source = source or log.stream
        self._retain = retain or Retain()
        self._runs: OrderedDict[str, int] = OrderedDict()
        self._changed = threading.Condition()
        self._end, self._committed = log.end(), log.committed()
        self._backlog_bytes = log.bytes_between(self._committed, self._end)
        self._pending_records, self._pending_bytes = 0, 0
        self._waiting = log.label_counts()["waiting"]
        self._held = log.standing().counts["held"]  # for their turn
        self._pending: Counter[str] = Counter()  # records by sender
        self._shares = Shares(limits.queue_records, weights=limits.shares)
        self._no_room, self._looked = True, time.monotonic()  # nor was anybody heard before the first look
        self._settling: Future[Receipt] | None = None
        self._trim_before: int | None = None
        self._columns = SentColumns(log)
        self._committer = Committer(log, self._written)
        self._meter.set("queue_capacity_records", limits.queue_records, queue="log")
        self._tell()

    def take(
        self,
        sifted: Sifted,
        producer: str | None,
        sequence: int | None,
        sender: str,
        patient: Callable[[], bool] | None = None,
        put_stream: PutStream | None = None,
        kind: Kind = "records",
        moves: Sequence[Move] = (),
        heard: str | None = None,
    ) -> "Future[Receipt]":
        """Write a batch of records or of labels; the receipt is there when it is on disk.

        ``sender`` is whom bad rows in a row are counted for, and whose event times these are, if not ``heard``'s.
        ``patient``: while it is true, full means wait.
        ``put_stream``: of batches that are sent without waiting for their receipts. ``moves``: of what is read from a
        broker, in place of producer and sequence; the receipt may be an ``OffsetConflict``.

        Raises:
            NotReady: draining. Overloaded: full, and not to be waited for. BadRun: too many bad rows in a row.
            SequenceConflict: the number was used for other data.
        """
        self._count_run(sifted, sender)
        if kind == "records" and sifted.sent is not None:
            self._columns.see(sifted.sent, sender)
        held = b"" if sequence is None else digest(sifted.rows, [each.row for each in sifted.rejects], sifted.letters)
        if producer is not None and sequence is not None:  # a client that waits for this receipt sends nothing more
            with contextlib.suppress(LogDamaged):  # the committer meets it too, which ends the process
                self._log.refuse_conflict(producer, sequence, held)
        stream = put_stream or PutStream()
        entry = Entry(sifted.rows, producer, sequence, sifted.letters, held, stream, kind, moves, heard or sender)
        self._reserve(entry, patient)
        return self._committer.submit(entry)

    def schema_of(self, kind: Kind) -> RecordSchema:
        """What batches of records, or of labels, look like.

        Raises:
            RecordError: labels are not taken here.
        """
        if kind == "records":
            return self.schema
        if self.label_schema is None:
            raise RecordError("this server keeps no predictions, so it takes no labels for them", fix=LABELS_ON)
        return self.label_schema

    def keep(self, rows: pa.RecordBatch) -> "Future[Receipt]":
        """Keep predictions (``with_requests``) for their labels; those that are on disk when the receipt is there.

        Raises:
            NotReady: draining. Overloaded: the log is full.
        """
        if self.draining:
            raise _ending()
        self._log.refuse_over_quota(self._pending_bytes + rows.nbytes)
        return self._committer.submit(Entry(rows, kind="predictions"))

    def refused(self, fault: Exception) -> Refusal:
        """Count a batch that was refused whole; what its producer is told."""
        refusal = refusal_of(fault)
        self.count_refusal(refusal.reason)
        return refusal

    def count_refusal(self, reason: str) -> None:
        self._meter.count("source_errors_total", source=self._source, reason=reason)

    def positions(self) -> Mapping[str, int]:
        """The next offset of each partition of a broker, as it is in the log."""
        return self._log.positions()

    def notes(self) -> Mapping[str, str]:
        """What stands beside them, by partition."""
        return self._log.notes()

    def origin(self, name: str) -> str:
        """Where the records of the log were read from: what it was told first, this now where nothing was.

        Raises:
            Overloaded, LogDamaged: as ``Log.append_many``.
        """
        if (known := self._log.file.noted("origin")) is None:
            self._log.file.note("origin", name)
        return known or name

    def stop_source(self, reason: str) -> None:
        """The source gives no more records, until somebody has looked at why; the server says it."""
        self.stopped = reason
        self._tell()

    def tell_broker(self, waiting: Mapping[str, int], lost: int = 0) -> None:
        """Messages by partition that the broker has and the log not yet, and how many it had no more."""
        for partition, messages in waiting.items():
            self._meter.set("source_lag_messages", messages, source=self._source, partition=partition)
        if lost:
            self._meter.count("source_lost_messages_total", lost, source=self._source)

    def tell_files(self, states: Mapping[str, int], refusals: Sequence[Mapping[str, Any]]) -> None:
        """How many files of a watched place are in which state, and why the newest of some were not read."""
        for state, files in states.items():
            self._meter.set("source_files", files, source=self._source, state=state)
        self.told = {"files": {**states, "refusals": list(refusals)}}

    def refuse_token(self, protocol: str) -> None:
        """Count a request without the right token."""
        self._meter.count("auth_failures_total", protocol=protocol)

    def committed(self, offset: int, oldest: int | None = None) -> None:
        """The newest checkpoint holds everything before ``offset``, which makes room.

        The log is trimmed behind ``oldest``, from where on a checkpoint that is kept may have to read again;
        the batch before stays, as it tells that this is the log that was learned (``Log.mark``).
        """
        backlog_bytes = self._log.bytes_between(offset, self._log.end())
        with self._changed:
            self._committed, self._backlog_bytes = offset, backlog_bytes
            self._shares.learn(offset)
            self._changed.notify_all()
        self._tell()
        try:
            self._log.note_committed(offset)
        except Overloaded as fault:  # the next checkpoint's message tries again
            logger.warning("the log does not know of the checkpoint: %s", fault)
        self._trim_before = offset if oldest is None else oldest
        self.tidy()

    def tidy(self) -> None:
        """Join what has waited enough, go on with what ``committed`` has left of the trim; called every so often."""
        self._release()
        if self.label_schema and (self._settling is None or self._settling.done()) and self._log.is_due():
            self._settling = self._committer.submit(Entry(no_rows(pa.schema([])), kind="settle"))
        if self._trim_before is None:
            return
        # what is retained beyond need must leave room in the quota for what is needed
        retain_bytes = min(self._retain.bytes, self._retain.quota_bytes // 2)
        try:
            if not self._log.trim(max(0, self._trim_before - 1), retain_bytes, self._retain.age_seconds):
                self._trim_before = None
        except Overloaded as fault:  # the next checkpoint's message tries again
            self._trim_before = None
            logger.warning("the log is not trimmed: %s", fault)

    def _release(self) -> None:
        """Write records that are held for senders that are silent; while there is no room nobody is."""
        looked, self._looked = self._looked, time.monotonic()
        if self._no_room:
            self._no_room = False
            self._log.stand_still(self._looked - looked)
        elif (
            (self._log.order or self._held)
            and (self._settling is None or self._settling.done())
            and self._log.order_is_due()
        ):
            self._settling = self._committer.submit(Entry(no_rows(pa.schema([])), kind="release"))

    def drain(self) -> None:
        """Take no more batches; those taken are still written."""
        with self._changed:
            self.draining = True
            self._changed.notify_all()

    def close(self) -> None:
        """Write what was taken, and end."""
        self.drain()
        self._committer.close()

    def _count_run(self, sifted: Sifted, sender: str) -> None:
        with self._changed:
            longest, last = _runs(self._runs.get(sender, 0), sifted)
            if longest < self.limits.bad_in_a_row:
                self._runs[sender] = last
                self._runs.move_to_end(sender)
                while len(self._runs) > RUNS:
                    self._runs.popitem(last=False)
                return
        first = sifted.rejects[0]
        raise BadRun(
            f"{longest} refused rows in a row, the last batch's first: row {first.row}: {first.reason}: {first.detail}",
            where=f"stream {self.stream!r}",
            fix="nothing of this batch was taken; send rows that fit stream.records",
        )

    def is_full(self, rows: pa.RecordBatch) -> bool:
        """Whether a batch would have to wait, for those who have something else to do meanwhile."""
        with self._changed:
            while (full := self._full(Entry(rows, heard=BROKER))) is not None and self._look_again():
                pass
        if full is not None:
            self._meter.set("source_paused", 1, source=self._source)
        return full is not None

    def _reserve(self, entry: Entry, patient: Callable[[], bool] | None) -> None:
        """Wait for room, or refuse; the room is taken when this returns."""
        with self._changed:
            while (full := self._full(entry) or self._ahead(entry)) is not None:
                self._meter.set("source_paused", 1, source=self._source)
                if self._look_again():
                    continue
                if self.draining or patient is None or not patient():
                    raise full
                self._changed.wait(WAIT_SECONDS)
            self._pending_records += entry.rows.num_rows
            self._pending_bytes += entry.rows.nbytes
            self._pending[entry.heard] += entry.rows.num_rows
            self._shares.take(_owner(entry), entry.rows.num_rows)

    def _look_again(self) -> bool:
        """Whether the log knows of a newer checkpoint than we were told of: a message can be lost with its process."""
        if (offset := self._log.committed()) <= self._committed:
            return False
        self._committed, self._backlog_bytes = offset, self._log.bytes_between(offset, self._log.end())
        self._shares.learn(offset)
        return True

    def _full(self, entry: Entry) -> StreamkdError | None:
        if self.draining:
            return _ending()
        try:
            self._refuse_beyond_room(entry)
            self._log.refuse_over_quota(self._pending_bytes + entry.rows.nbytes)
        except Overloaded as full:
            self._no_room = True
            self._shares.refuse(_owner(entry))
            return full
        return None

    def _ahead(self, entry: Entry) -> Overloaded | None:
        """Of a broker one reader has all partitions, so that none may wait here: it asks before it reads on."""
        if self._log.order is None or entry.moves or entry.kind != "records":
            return None
        more = (self._pending[entry.heard], entry.rows.num_rows, entry.rows.nbytes)
        if not self._log.standing().is_ahead(entry.heard, *more):
            return None
        self._log.knock(entry.heard)
        said = f"{entry.heard!r:.80} is ahead of others by event time, and has its share of what may be held for them"
        return Overloaded(said, retry_after_seconds=1.0, where=f"stream {self.stream!r}")

    def _refuse_beyond_room(self, entry: Entry) -> None:
        """With an order the other half is for what is held, so that whoever is waited for finds room."""
        parts = 2 if self._log.order else 1
        records = self._end - self._committed + self._pending_records + self._waiting
        held_bytes = self._backlog_bytes + self._pending_bytes
        most, most_bytes = self.limits.queue_records // parts, self.limits.queue_bytes // parts
        if records and records + entry.rows.num_rows > most:
            raise Overloaded(f"{records} records wait to be learned, at most {most}", where=f"stream {self.stream!r}")
        if parts == 1 and self._shares.is_beyond(_owner(entry), entry.rows.num_rows):
            said = "others were sent away for want of room, and of this sender more than its share waits to be learned"
            raise Overloaded(said, where=f"stream {self.stream!r}")
        if records and held_bytes + entry.rows.nbytes > most_bytes:
            said = f"{held_bytes} bytes wait to be learned, at most {most_bytes}"
            raise Overloaded(said, where=f"stream {self.stream!r}")

    def may_bring(self, sender: str, part: float = 1.0) -> int:
        """How many records a sender may bring before this is asked again, by whoever reads several of them.

        None while it has to wait for those behind it by event time, which need the room; ``part``: of its share.
        """
        if self._log.order is None:
            return sys.maxsize
        standing = self._log.standing()
        if standing.is_ahead(sender, self._pending[sender], part=part):
            self._log.knock(sender)
            return 0
        return standing.step()

    def _written(self, entry: Entry, receipt: Receipt | None) -> None:
        with self._changed:
            if entry.kind in ("records", "labels"):
                self._pending_records -= entry.rows.num_rows
                self._pending_bytes -= entry.rows.nbytes
                self._pending[entry.heard] -= entry.rows.num_rows
                self._pending = +self._pending
                kept = receipt if receipt is not None and not receipt.duplicate else None
                self._shares.end(_owner(entry), entry.rows.num_rows, kept.offset if kept else None)
            if receipt is not None and not receipt.duplicate:
                self._end = max(self._end, receipt.offset)
                told = receipt if isinstance(receipt, JoinReceipt | OrderReceipt) else None
                self._backlog_bytes += told.stored_bytes if told else entry.rows.nbytes
                self._waiting += told.waiting if isinstance(told, JoinReceipt) else 0
                self._held += told.changed["held"] if isinstance(told, OrderReceipt) else 0
            self._changed.notify_all()
        if receipt is not None:
            self._count(entry, receipt)
        self._tell()

    def _count(self, entry: Entry, receipt: Receipt) -> None:
        source = self._source
        if receipt.duplicate:
            self._meter.count("records_duplicate_total", entry.rows.num_rows, source=source)
            return
        if isinstance(receipt, JoinReceipt):
            self._count_joins(receipt)
        else:
            self._meter.count("source_records_total", receipt.accepted, source=source)
            self._meter.count("source_bytes_total", entry.rows.nbytes, source=source)
        for letter in entry.letters:
            self._meter.count("records_rejected_total", source=source, reason=letter.reason)
            self._meter.count("dead_letter_records_total", source=source, reason=letter.reason)
        if isinstance(receipt, OrderReceipt):
            self._count_order(receipt)
        elif self.schema.event_time and receipt.accepted and entry.kind == "records":
            newest = pc.max(entry.rows.column(self.schema.event_time)).value  # microseconds: no ``datetime`` can fail
            if newest is not None:
                self._meter.set("source_watermark_timestamp_seconds", newest / 1e6, source=source)

    def _count_order(self, receipt: OrderReceipt) -> None:
        for kind in (*TREATMENTS, "untimed", "full"):
            if count := receipt.changed.get(kind, 0):
                self._meter.count("order_exceptions_total", count, kind=kind)
        if refused := receipt.changed.get("dead-letter", 0):
            self._meter.count("dead_letter_records_total", refused, source=self._source, reason="late")
        if receipt.late:
            self._meter.count("records_rejected_total", len(receipt.late), source=self._source, reason="late")

    def standing(self) -> Standing | None:
        """How the order by event time stands, where there is one; the gauges say it too."""
        if self._log.order is None and not self._held:
            return None
        standing = self._log.standing()
        told = standing.told()
        if (watermark := told["watermark_timestamp_seconds"]) is not None:
            self._meter.set("source_watermark_timestamp_seconds", watermark, source=self._source)
        self._meter.set("order_held_records", told["held"])
        self._meter.set("order_held_bytes", told["held_bytes"])
        for state, count in told["senders"].items():
            self._meter.set("order_senders", count, state=state)
        return standing

    def _count_joins(self, receipt: JoinReceipt) -> None:
        """Labels that were joined are records of the source; how late they were is by the time of day."""
        self._meter.count("source_records_total", len(receipt.asked), source=self._source)
        self._meter.count("source_bytes_total", receipt.stored_bytes, source=self._source)
        self._meter.count("labels_joined_total", len(receipt.asked))
        for each in receipt.unmatched:
            self._meter.count("labels_unmatched_total", reason=each.reason)
        now = time.time()
        for asked in receipt.asked:
            self._meter.observe("label_delay_seconds", max(0.0, now - asked / 1e6))

    def _tell(self) -> None:
        with self._changed:
            records = self._end - self._committed + self._pending_records + self._waiting + self._held
        self._meter.set("queue_records", max(records, 0), queue="log")
        paused = bool(self.stopped) or records >= self.limits.queue_records
        self._meter.set("source_paused", float(paused), source=self._source)


def _owner(entry: Entry) -> str:
    return BROKER if entry.moves else entry.heard


def _ending() -> NotReady:
    return NotReady("the server is shutting down", fix="send the batch again after the restart")


def _runs(before: int, sifted: Sifted) -> tuple[int, int]:
    """The longest run of bad rows, ``before`` of them just ahead of the batch, and the run at its end."""
    if not sifted.rejects:
        return (0, 0) if sifted.total else (before, before)
    good = np.setdiff1d(np.arange(sifted.total), [reject.row for reject in sifted.rejects])
    runs = np.diff(np.concatenate([[-1 - before], good, [sifted.total]])) - 1
    return int(runs.max()), int(runs[-1])
