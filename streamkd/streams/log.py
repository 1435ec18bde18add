"""The durable log of a push stream: one SQLite file, one writer, many readers.

    intake ─► Committer (group commit) ─► Log.append_many ─► batches | receipts | dead letters   one transaction
                                              Log.read ◄─ Cutter (learner) ─► cuts

Each row of ``batches`` is one Arrow IPC batch with its first offset; ``read`` cuts across them. The file
is in WAL mode with ``synchronous=FULL``: when ``append_many`` returns, the rows are on disk. A receipt is
remembered for each (producer, sequence), so a batch that is sent again is answered, not stored.

A batch carries a CRC-32 of its place and its payload. One that does not fit it, a gap between batches and a broken page
of the file are a ``LogDamaged`` that names the offsets; nothing of it is read. Batches of older logs have none.
"""

import json
import sqlite3
import struct
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from streamkd.errors import LogDamaged, Overloaded, RecordError, SourceError, StateConflict, StateError
from streamkd.records import Chunk, RecordSchema, Reject
from streamkd.streams.codec import arrow_schema
from streamkd.streams.content import digest
from streamkd.streams.database import add_columns, connect, is_damage, is_passing, transaction
from streamkd.streams.dead_letters import DeadLetter, DeadLetters, letters
from streamkd.streams.receipts import Receipt, Receipts, SequenceConflict

READ_ROWS = 512
READ_BYTES = 8 << 20
TRIM_BATCHES, TRIM_BYTES = 2_000, 64 << 20  # of one transaction, for which appends wait
TRIM_SECONDS = 0.5  # of one call; the next goes on
CHECKED_BYTES = 64 << 20  # a file up to this size is checked page by page at a start: a fifth of a second

_TABLES = (
    "CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS batches (first INTEGER PRIMARY KEY, count INTEGER NOT NULL, bytes INTEGER NOT NULL,"
    " created REAL NOT NULL, producer TEXT, sequence INTEGER, payload BLOB NOT NULL, checksum INTEGER)",
    "CREATE INDEX IF NOT EXISTS batches_sizes ON batches (first, count, bytes, created)",
    "CREATE TABLE IF NOT EXISTS cuts (start INTEGER PRIMARY KEY, stop INTEGER NOT NULL, checksum INTEGER)",
)
Sender = tuple[str | None, int | None]
_DAMAGED = (
    "stop the server, copy the state directory aside, look at the disk; then put back a copy of the whole directory, or"
    " name an empty one with --state and have the producers send their records again"
)
_ELSEWHERE = "name another state directory with --state, or go back to the configuration that made this one"


class Line:
    """The batches of one put stream: when one is in conflict, none of those behind it is written."""

    conflict: SequenceConflict | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One batch for the log: canonical rows, who sent it, the refused rows' letters, what tells it from others."""

    rows: pa.RecordBatch
    producer: str | None = None
    sequence: int | None = None
    letters: Sequence[DeadLetter] = ()
    digest: bytes = b""
    line: Line = field(default_factory=Line)


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
    ) -> None:
        """Open or make the log of a stream; ``schema=None`` opens one that is there already.

        Raises:
            StateError: there is none, or the file is no log. LogDamaged: it was one. Overloaded: the disk is full.
            StateConflict: its records have another schema, or belong to another stream.
        """
        self.path = Path(path)
        self._read_only = read_only
        self._quota_bytes = quota_bytes
        if schema is None and not self.path.exists():
            raise StateError("there is no log", where=str(path), fix="start `streamkd serve` with a push source once")
        try:
            self._reader, self._writer = connect(self.path, read_only), connect(self.path, read_only)
            self.letters, self._receipts = DeadLetters(self._writer), Receipts(self._writer)
            self.schema, self.stream = self._introduce(schema, stream)
        except KeyError as fault:
            raise StateError(f"cannot be opened as a log: {fault}", where=str(path)) from None
        except sqlite3.DatabaseError as fault:
            said = f"cannot be opened as a log: {fault}"
            if is_damage(fault):
                raise LogDamaged(said, where=str(path), fix=_DAMAGED) from None
            raise (Overloaded if is_passing(fault) else StateError)(said, where=str(path)) from None
        self.partition = f"{self.stream}/0"
        self.arrow_schema = arrow_schema(self.schema)
        self._reading, self._writing = threading.Lock(), threading.Lock()
        self._window: tuple[int, pa.RecordBatch] = (0, _no_rows(self.arrow_schema))

    def _introduce(self, schema: RecordSchema | None, stream: str | None) -> tuple[RecordSchema, str]:
        """Write who the log belongs to, or check it."""
        if schema is not None and not self._read_only:
            with transaction(self._writer):
                for statement in _TABLES:
                    self._writer.execute(statement)
                for table in ("batches", "cuts"):
                    add_columns(self._writer, table, {"checksum": "INTEGER"})
                self.letters.create()
                self._receipts.create()
                for item in {"schema": schema.model_dump_json(), "stream": stream or "main"}.items():
                    self._writer.execute("INSERT OR IGNORE INTO about VALUES (?, ?)", item)
        about = dict(self._writer.execute("SELECT key, value FROM about").fetchall())
        found = RecordSchema.model_validate_json(about["schema"])
        if schema is not None and arrow_schema(found) != arrow_schema(schema):
            got, needed = (_in_words(arrow_schema(each)) for each in (found, schema))
            raise StateConflict(f"needed records of {needed}, the log has {got}", where=str(self.path), fix=_ELSEWHERE)
        if stream is not None and about["stream"] != stream:
            said = f"needed the stream {stream!r}, the log has {about['stream']!r}"
            raise StateConflict(said, where=str(self.path), fix=_ELSEWHERE)
        return schema or found, about["stream"]

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

    def append_many(self, entries: Sequence[Entry]) -> list[Receipt | SequenceConflict]:
        """Write batches in one transaction, in order; on return they are on disk, but for those whose number is used.

        Raises:
            Overloaded: the quota or the disk is full; nothing was written. LogDamaged: the file is broken.
        """
        if self._read_only:
            raise StateError("is open for reading only", where=str(self.path))
        self.refuse_over_quota(sum(entry.rows.nbytes for entry in entries))
        with self._write():
            end = _end(self._writer)
            outcomes: list[Receipt | SequenceConflict] = []
            for entry in entries:
                try:
                    outcomes.append(receipt := self._put(entry, end))
                    end = end if receipt.duplicate else receipt.offset
                except SequenceConflict as conflict:  # of this batch and its line alone
                    entry.line.conflict = conflict
                    outcomes.append(conflict)
            return outcomes

    @contextmanager
    def _write(self) -> Iterator[None]:
        """One transaction of this process, all or nothing.

        Raises:
            Overloaded: the disk is full, or another process has kept the log for long. LogDamaged: the file is broken.
        """
        with self._whole(), self._writing:
            try:
                with transaction(self._writer):
                    yield
            except sqlite3.OperationalError as fault:
                if is_damage(fault):
                    raise
                said = f"the log cannot be written: {fault}"
                raise Overloaded(said, where=str(self.path), fix="free space") from None

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        """The reading connection, for one thread.

        Raises:
            LogDamaged: the file is broken.
        """
        with self._whole(), self._reading:
            yield self._reader

    @contextmanager
    def _whole(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as fault:
            if not is_damage(fault):
                raise
            raise LogDamaged(f"the log's file is damaged: {fault}", where=str(self.path), fix=_DAMAGED) from None

    def refuse_over_quota(self, more_bytes: int = 0) -> None:
        """Whether so many bytes may be written.

        Raises:
            Overloaded: they may not; come again when the learner has gone on.
        """
        if self._quota_bytes is not None and (used := self.size_bytes()) + more_bytes > self._quota_bytes:
            said = f"the log holds {used} of {self._quota_bytes} bytes"
            raise Overloaded(said, retry_after_seconds=5.0, where=str(self.path), fix="raise stream.retain.quota_bytes")

    def _put(self, entry: Entry, end: int) -> Receipt:
        if entry.line.conflict is not None:
            raise entry.line.conflict
        name = None if entry.producer is None or entry.sequence is None else (entry.producer, entry.sequence)
        if name and (seen := self._receipts.find(*name, entry.digest)) is not None:
            return seen
        count = entry.rows.num_rows
        if count:
            payload = entry.rows.serialize()
            held = (end, count, payload.size, time.time(), entry.producer, entry.sequence, memoryview(payload))
            self._writer.execute(
                "INSERT INTO batches (first, count, bytes, created, producer, sequence, payload, checksum)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (*held, _checksum(end, count, payload)),
            )
        self.letters.put(entry.letters, end + count)
        receipt = Receipt(entry.sequence, count, len(entry.letters), end + count)
        if name:
            self._receipts.add(name[0], receipt, entry.digest)
        return receipt

    def read(self, offset: int, limit: int) -> Chunk:
        """Up to ``limit`` rows from ``offset`` on.

        Raises:
            SourceError: records before the first one kept are asked for. LogDamaged: a batch is not what was written.
        """
        with self._read():
            rows = self._slice(offset, limit)
            if rows.num_rows < limit:
                first, window = self._window
                if rows.num_rows == 0 or _end(self._reader) > first + window.num_rows:
                    self._window = (offset, self._fetch(offset, limit))
                    rows = self._slice(offset, limit)
        return Chunk(rows, self.partition, offset, offset + rows.num_rows)

    def _slice(self, offset: int, limit: int) -> pa.RecordBatch:
        first, window = self._window
        if not first <= offset < first + window.num_rows:
            return window.slice(0, 0)
        return window.slice(offset - first, limit)

    def _fetch(self, offset: int, limit: int) -> pa.RecordBatch:
        """The rows from ``offset`` on: as many as asked for, and some to come, so that small reads are slices."""
        found = self._reader.execute(
            "SELECT first, count, payload, checksum, producer, sequence FROM batches"
            " WHERE first >= (SELECT coalesce(max(first), 0) FROM batches WHERE first <= ?) ORDER BY first",
            (offset,),
        )
        parts: list[pa.RecordBatch] = []
        rows, taken_bytes, after = 0, 0, None
        with closing(found):
            for first, count, payload, checksum, producer, sequence in found:
                try:
                    if after is not None and first != after:
                        raise self._damaged(after, first - after, "is not there")
                    part = self._opened(first, count, payload, checksum, (producer, sequence))
                except LogDamaged:
                    if rows:
                        break  # what is before it is whole; the next read begins with it
                    raise
                after = first + count
                if not parts:
                    if first > offset:
                        raise SourceError(f"offset {offset} is gone, the log begins at {first}", where=str(self.path))
                    part = part.slice(offset - first)
                parts.append(part)
                rows, taken_bytes = rows + part.num_rows, taken_bytes + len(payload)
                if rows >= limit and (rows >= READ_ROWS or taken_bytes >= READ_BYTES):
                    break
        if len(parts) == 1:
            return parts[0]
        return pa.concat_batches(parts) if parts else _no_rows(self.arrow_schema)

    def _opened(self, first: int, count: int, payload: bytes, checksum: int | None, sender: Sender) -> pa.RecordBatch:
        """A batch as it was written."""
        if checksum is not None and checksum != _checksum(first, count, payload):
            raise self._damaged(first, count, "has another checksum than when it was written", sender)
        try:
            part = pa.ipc.read_record_batch(pa.py_buffer(payload), self.arrow_schema)
            part.validate()
        except (pa.ArrowException, OSError) as fault:
            raise self._damaged(first, count, f"cannot be read: {fault}", sender) from None
        if part.num_rows != count:
            raise self._damaged(first, count, f"holds {part.num_rows} rows", sender)
        return part

    def _damaged(self, first: int, count: int, what: str, sender: Sender = (None, None)) -> LogDamaged:
        by = "" if sender[0] is None else f" of producer {sender[0]!r}, sequence {sender[1]},"
        said = f"the log is damaged: the batch of the offsets {first} to {first + count - 1}{by} {what}"
        return LogDamaged(said, where=str(self.path), fix=_DAMAGED)

    def begin(self) -> int:
        """The first offset that is kept."""
        with self._read():
            return int(self._reader.execute("SELECT coalesce(min(first), 0) FROM batches").fetchone()[0])

    def end(self) -> int:
        """The offset after the last record."""
        with self._read():
            return _end(self._reader)

    @property
    def owner(self) -> str | None:
        """The identity of the state directory that the log belongs to; ``None`` before it was told."""
        with self._read():
            row = self._reader.execute("SELECT value FROM about WHERE key = 'owner'").fetchone()
        return str(row[0]) if row else None

    def belong_to(self, owner: str) -> None:
        """Say which state directory the log belongs to."""
        with self._write():
            self._writer.execute("INSERT OR REPLACE INTO about VALUES ('owner', ?)", (owner,))

    def mark(self, offset: int) -> str | None:
        """What tells the record before ``offset`` from any other that could stand there: its batch's place and time.

        ``None`` where it is not kept.
        """
        with self._read():
            row = self._reader.execute(
                "SELECT first, count, bytes, created FROM batches WHERE first < ? ORDER BY first DESC LIMIT 1",
                (offset,),
            ).fetchone()
        return None if row is None or row[0] + row[1] < offset else "{}+{}, {} bytes, {!r}".format(*row)

    def fault(self) -> str | None:
        """What is wrong with the file as a whole, in a line: a gap between batches, or damaged pages."""
        with self._read():
            gap = self._reader.execute(
                "SELECT before, first FROM (SELECT first, lag(first + count) OVER (ORDER BY first) AS before"
                " FROM batches) WHERE before <> first LIMIT 1"
            ).fetchone()
            if gap is not None:
                return f"the records from {gap[0]} to {gap[1]} are not in it"
            if self.path.stat().st_size > CHECKED_BYTES:
                return None
            said = str(self._reader.execute("PRAGMA integrity_check(1)").fetchone()[0])
        return None if said == "ok" else said.splitlines()[-1]

    def size_bytes(self) -> int:
        """Bytes in use; pages of trimmed records are used again and do not count."""
        with self._read():
            pages, free, page_bytes = (
                self._reader.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
        return int((pages - free) * page_bytes)

    def bytes_between(self, start: int, stop: int) -> int:
        """Bytes of the batches that hold the offsets from ``start`` to ``stop``."""
        with self._read():
            query = "SELECT coalesce(sum(bytes), 0) FROM batches WHERE first + count > ? AND first >= ? AND first < ?"
            near = self._reader.execute("SELECT coalesce(max(first), 0) FROM batches WHERE first <= ?", (start,))
            return int(self._reader.execute(query, (start, near.fetchone()[0], stop)).fetchone()[0])

    def trim(self, before_offset: int, retain_bytes: int = 0, retain_age_seconds: float = 0.0) -> int:
        """Forget batches before an offset that are older than both bounds allow; returns how many records.

        The newest batch always stays, so that offsets go on after it. Appends come in between, and after
        ``TRIM_SECONDS`` the rest is left to the next call: one that forgets nothing has nothing left to forget.

        Raises:
            Overloaded: as ``append_many``; what was forgotten stays so.
        """
        until = time.monotonic() + TRIM_SECONDS
        with self._read():
            wanted = _first_wanted(self._reader, before_offset, retain_bytes, time.time() - retain_age_seconds)
        records = 0
        while (gone := self._trim_some(wanted)) and (records := records + gone) and time.monotonic() < until:
            time.sleep(0.001)  # who waits for the lock has it now
        return records

    def _trim_some(self, wanted: int) -> int:
        """One transaction of a trim."""
        with self._write():
            cut, records = _step(self._writer, wanted)
            self._writer.execute("DELETE FROM batches WHERE first < ?", (cut,))
            self._writer.execute("DELETE FROM cuts WHERE start < ?", (cut,))
            self._receipts.forget_idle()
        return records

    def put_cut(self, start: int, stop: int) -> None:
        """Journal that a training batch ends at ``stop``; the first cut at a start stands.

        Raises:
            Overloaded: as ``append_many``; there is no cut.
        """
        with self._write():
            values = (start, stop, _checksum(start, stop, b""))
            self._writer.execute("INSERT OR IGNORE INTO cuts (start, stop, checksum) VALUES (?, ?, ?)", values)

    def cut_at(self, start: int) -> int | None:
        """Where the journaled batch that begins at ``start`` ends.

        Raises:
            LogDamaged: it ends where no batch can, or elsewhere than it was written.
        """
        with self._read():
            row = self._reader.execute("SELECT stop, checksum FROM cuts WHERE start = ?", (start,)).fetchone()
            end = _end(self._reader)
            other = row is not None and row[1] is not None and row[1] != _checksum(start, row[0], b"")
            if row is not None and (other or not start < row[0] <= end):
                said = f"the log is damaged: the journaled batch at offset {start} ends at {row[0]}, the log at {end}"
                raise LogDamaged(said, where=str(self.path), fix=_DAMAGED)
        return None if row is None else int(row[0])

    def note_committed(self, offset: int) -> None:
        """Remember the offset that the learner's checkpoint holds, for the time before it says so again."""
        with self._write():
            self._writer.execute("INSERT OR REPLACE INTO about VALUES ('committed', ?)", (json.dumps(offset),))

    def committed(self) -> int:
        """The offset that ``note_committed`` was last told; 0 before the first checkpoint."""
        with self._read():
            row = self._reader.execute("SELECT value FROM about WHERE key = 'committed'").fetchone()
        return int(json.loads(row[0])) if row else 0

    def close(self) -> None:
        with self._reading, self._writing:
            self._reader.close()
            self._writer.close()


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


def _end(connection: sqlite3.Connection) -> int:
    row = connection.execute("SELECT first + count FROM batches ORDER BY first DESC LIMIT 1").fetchone()
    return int(row[0]) if row else 0


def _checksum(first: int, count: int, payload: Any) -> int:
    """CRC-32 of a batch and of its place, which a copied or moved row would not have."""
    return zlib.crc32(payload, zlib.crc32(struct.pack("<qq", first, count)))


def _first_wanted(connection: sqlite3.Connection, before_offset: int, retain_bytes: int, oldest: float) -> int:
    """The first offset that is retained."""
    retained = connection.execute(
        "SELECT min(first) FROM (SELECT first, created, sum(bytes) OVER (ORDER BY first DESC) AS above_bytes"
        " FROM batches WHERE first + count <= ?) WHERE above_bytes <= ? AND created >= ?",
        (before_offset, retain_bytes, oldest),
    ).fetchone()[0]
    return int(before_offset if retained is None else retained)


def _step(connection: sqlite3.Connection, wanted: int) -> tuple[int, int]:
    """The first offset that one transaction of a trim leaves, and the records before it; the newest batch stays."""
    bounds = "SELECT first, count, bytes FROM batches ORDER BY first LIMIT ?"
    batches = connection.execute(bounds, (TRIM_BATCHES + 1,)).fetchall()
    records, held_bytes = 0, 0
    for place, (first, count, size) in enumerate(batches):
        held_bytes += size
        if first + count > wanted or first == batches[-1][0] or (place and held_bytes > TRIM_BYTES):
            return first, records
        records += count
    return 0, 0


def _no_rows(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


def _in_words(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)
