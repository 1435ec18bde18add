"""The records of the log: one Arrow IPC batch a row, by its first offset, each with what it is checked by.

    Log ─► Batches.put ─► (first, count, payload, CRC-32 of place and payload) ─► Batches.fetch ─► Log.read

A batch that does not fit its checksum, and a gap between two, are a ``LogDamaged`` that names the offsets; nothing of
it is read, and what lies before it is. Batches of older logs have no checksum.
"""

import sqlite3
import struct
import time
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa

from streamkd.errors import LogDamaged, SourceError
from streamkd.streams.log.database import add_columns

READ_ROWS = 512
READ_BYTES = 8 << 20
TRIM_BATCHES, TRIM_BYTES = 2_000, 64 << 20  # of one transaction, for which appends wait

_TABLES = (
    "CREATE TABLE IF NOT EXISTS batches (first INTEGER PRIMARY KEY, count INTEGER NOT NULL, bytes INTEGER NOT NULL,"
    " created REAL NOT NULL, producer TEXT, sequence INTEGER, payload BLOB NOT NULL, checksum INTEGER)",
    "CREATE INDEX IF NOT EXISTS batches_sizes ON batches (first, count, bytes, created)",
)
Sender = tuple[str | None, int | None]
DAMAGED = (
    "stop the server, copy the state directory aside, look at the disk; then put back a copy of the whole directory, or"
    " name an empty one with --state and have the producers send their records again"
)


class Batches:
    """The table in a database that is open already; never begins or commits a transaction."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection, self._path = connection, path

    def create(self) -> None:
        """Make the table where it is missing."""
        for statement in _TABLES:
            self._connection.execute(statement)
        add_columns(self._connection, "batches", {"checksum": "INTEGER"})

    def put(self, rows: pa.RecordBatch, first: int, sender: Sender) -> None:
        """Write a batch whose first record has the offset ``first``; one without rows leaves nothing."""
        if not (count := rows.num_rows):
            return
        payload = rows.serialize()
        self._connection.execute(
            "INSERT INTO batches (first, count, bytes, created, producer, sequence, payload, checksum)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (first, count, payload.size, time.time(), *sender, memoryview(payload), checksum(first, count, payload)),
        )

    def fetch(self, offset: int, limit: int, schema: pa.Schema) -> pa.RecordBatch:
        """The rows from ``offset`` on: as many as asked for, and some to come, so that small reads are slices.

        Raises:
            SourceError: records before the first one kept are asked for. LogDamaged: a batch is not what was written.
        """
        found = self._connection.execute(
            "SELECT first, count, payload, checksum, producer, sequence FROM batches"
            " WHERE first >= (SELECT coalesce(max(first), 0) FROM batches WHERE first <= ?) ORDER BY first",
            (offset,),
        )
        parts: list[pa.RecordBatch] = []
        rows, taken_bytes, after = 0, 0, None
        with closing(found):
            for first, count, payload, held, *sender in found:
                try:
                    if after is not None and first != after:
                        raise self._damaged(after, first - after, "is not there")
                    part = self._opened(first, count, payload, held, (sender[0], sender[1]), schema)
                except LogDamaged:
                    if rows:
                        break  # what is before it is whole; the next read begins with it
                    raise
                after = first + count
                if not parts:
                    if first > offset:
                        said = f"offset {offset} is gone, the log begins at {first}"
                        raise SourceError(said, where=str(self._path))
                    part = part.slice(offset - first)
                parts.append(part)
                rows, taken_bytes = rows + part.num_rows, taken_bytes + len(payload)
                if rows >= limit and (rows >= READ_ROWS or taken_bytes >= READ_BYTES):
                    break
        if len(parts) == 1:
            return parts[0]
        return pa.concat_batches(parts) if parts else no_rows(schema)

    def _opened(
        self, first: int, count: int, payload: bytes, held: int | None, sender: Sender, schema: pa.Schema
    ) -> pa.RecordBatch:
        """A batch as it was written."""
        if held is not None and held != checksum(first, count, payload):
            raise self._damaged(first, count, "has another checksum than when it was written", sender)
        try:
            part = pa.ipc.read_record_batch(pa.py_buffer(payload), schema)
            part.validate()
        except (pa.ArrowException, OSError) as fault:
            raise self._damaged(first, count, f"cannot be read: {fault}", sender) from None
        if part.num_rows != count:
            raise self._damaged(first, count, f"holds {part.num_rows} rows", sender)
        return part

    def _damaged(self, first: int, count: int, what: str, sender: Sender = (None, None)) -> LogDamaged:
        by = "" if sender[0] is None else f" of producer {sender[0]!r}, sequence {sender[1]},"
        said = f"the log is damaged: the batch of the offsets {first} to {first + count - 1}{by} {what}"
        return LogDamaged(said, where=str(self._path), fix=DAMAGED)

    def begin(self) -> int:
        """The first offset that is kept."""
        return int(self._connection.execute("SELECT coalesce(min(first), 0) FROM batches").fetchone()[0])

    def end(self) -> int:
        """The offset after the last record."""
        row = self._connection.execute("SELECT first + count FROM batches ORDER BY first DESC LIMIT 1").fetchone()
        return int(row[0]) if row else 0

    def mark(self, offset: int) -> str | None:
        """Place, size and time of the batch that holds the record before ``offset``; ``None`` where it is not kept."""
        row = self._connection.execute(
            "SELECT first, count, bytes, created FROM batches WHERE first < ? ORDER BY first DESC LIMIT 1", (offset,)
        ).fetchone()
        return None if row is None or row[0] + row[1] < offset else "{}+{}, {} bytes, {!r}".format(*row)

    def gap(self) -> tuple[int, int] | None:
        """The first offsets that are missing between two batches, from and to."""
        row = self._connection.execute(
            "SELECT before, first FROM (SELECT first, lag(first + count) OVER (ORDER BY first) AS before"
            " FROM batches) WHERE before <> first LIMIT 1"
        ).fetchone()
        return None if row is None else (int(row[0]), int(row[1]))

    def bytes_between(self, start: int, stop: int) -> int:
        """Bytes of the batches that hold the offsets from ``start`` to ``stop``."""
        query = "SELECT coalesce(sum(bytes), 0) FROM batches WHERE first + count > ? AND first >= ? AND first < ?"
        near = self._connection.execute("SELECT coalesce(max(first), 0) FROM batches WHERE first <= ?", (start,))
        return int(self._connection.execute(query, (start, near.fetchone()[0], stop)).fetchone()[0])

    def first_retained(self, before_offset: int, retain_bytes: int, oldest: float) -> int:
        """The first offset of what a trim before an offset keeps by size and age."""
        retained = self._connection.execute(
            "SELECT min(first) FROM (SELECT first, created, sum(bytes) OVER (ORDER BY first DESC) AS above_bytes"
            " FROM batches WHERE first + count <= ?) WHERE above_bytes <= ? AND created >= ?",
            (before_offset, retain_bytes, oldest),
        ).fetchone()[0]
        return int(before_offset if retained is None else retained)

    def forget_some(self, wanted: int) -> tuple[int, int]:
        """Forget as many batches before ``wanted`` as one transaction may; the newest stays.

        The first offset that is left, and how many records went.
        """
        bounds = "SELECT first, count, bytes FROM batches ORDER BY first LIMIT ?"
        batches = self._connection.execute(bounds, (TRIM_BATCHES + 1,)).fetchall()
        cut, records, held_bytes = 0, 0, 0
        for place, (first, count, size) in enumerate(batches):
            cut, held_bytes = first, held_bytes + size
            if first + count > wanted or first == batches[-1][0] or (place and held_bytes > TRIM_BYTES):
                break
            records += count
        self._connection.execute("DELETE FROM batches WHERE first < ?", (cut,))
        return cut, records


def no_rows(schema: pa.Schema) -> pa.RecordBatch:
    """A batch of the schema without rows."""
    return pa.RecordBatch.from_pylist([], schema=schema)


def checksum(first: int, count: int, payload: Any) -> int:
    """CRC-32 of a batch and of its place, which a copied or moved row would not have."""
    return zlib.crc32(payload, zlib.crc32(struct.pack("<qq", first, count)))
