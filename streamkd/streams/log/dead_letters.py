"""Rows that could not be learned, kept with the reason and the place they had in the stream.

    intake ─► log.sqlite         one transaction with the batch's good rows
    learner ─► state.sqlite      one transaction with the checkpoint whose offsets pass them

The newest are kept, up to a count and a number of bytes: a flood of bad rows must not fill the disk.
"""

import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from streamkd.records import Reject, RejectReason

LETTERS = 100_000
LETTERS_BYTES = 256 << 20
RECORD_BYTES = 1 << 20
BATCH_BYTES = 64 << 20  # of the records of one batch's letters; those behind keep their reason alone
DETAIL_CHARACTERS = 1_000

_TABLE = """
CREATE TABLE IF NOT EXISTS dead_letters (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    created REAL NOT NULL,
    source TEXT NOT NULL,
    offset INTEGER,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL,
    form TEXT NOT NULL,
    before_bytes INTEGER NOT NULL,
    record BLOB
)
"""
_INDEX = "CREATE INDEX IF NOT EXISTS dead_letters_before ON dead_letters (before_bytes)"

Form = Literal["arrow", "json", "message"]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One refused row. ``record`` is an Arrow IPC stream of one row, or the JSON line or the message as it came.

    ``offset`` is where the row stood in its partition or, as pushed rows that are refused get no offset,
    that of the next accepted record. ``record`` is ``None`` where the row was too large to keep.
    """

    source: str
    reason: RejectReason
    detail: str
    offset: int | None = None
    record: bytes | None = None
    form: Form = "arrow"
    created: float = 0.0
    id: int = 0


def letters(
    rejects: Iterable[Reject], rows: pa.RecordBatch | None, source: str, offsets: Sequence[int] | None = None
) -> list[DeadLetter]:
    """The letters of refused rows; ``offsets`` is one per row of ``rows`` (by ``Reject.row``)."""
    made, held_bytes = [], 0
    for reject in rejects:
        record = _record(rows, reject) if rows is not None and held_bytes < BATCH_BYTES else None
        held_bytes += len(record or b"")
        offset = None if offsets is None else int(offsets[reject.row])
        made.append(DeadLetter(source, reject.reason, reject.detail, offset, record))
    return made


class DeadLetters:
    """The table in a database that is open already; it never begins or commits a transaction."""

    def __init__(self, connection: sqlite3.Connection, keep: int = LETTERS, keep_bytes: int = LETTERS_BYTES) -> None:
        self._connection = connection
        self._keep = keep
        self._keep_bytes = keep_bytes

    def create(self) -> None:
        """Make the table where it is missing."""
        self._connection.execute(_TABLE)
        self._connection.execute(_INDEX)

    def put(self, letters: Sequence[DeadLetter], offset: int | None = None) -> None:
        """Write letters, inside the caller's transaction; ``offset`` stands in where a letter has none."""
        if not letters:
            return
        now, through = time.time(), self._through()
        rows = []
        for letter in letters:
            place = offset if letter.offset is None else letter.offset
            created = letter.created or now
            said = letter.detail[:DETAIL_CHARACTERS]
            rows.append((created, letter.source, place, letter.reason, said, letter.form, through, letter.record))
            through += len(letter.record or b"")
        self._connection.executemany(
            "INSERT INTO dead_letters (created, source, offset, reason, detail, form, before_bytes, record)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )
        self._connection.execute("DELETE FROM dead_letters WHERE id <= ?", (self.total() - self._keep,))
        self._connection.execute("DELETE FROM dead_letters WHERE before_bytes < ?", (through - self._keep_bytes,))

    def list(self, limit: int = 100, after: int = 0) -> list[DeadLetter]:
        """Letters in order of arrival; go on with the ``id`` of the last one as ``after``."""
        found = self._connection.execute(
            "SELECT source, reason, detail, offset, record, form, created, id FROM dead_letters"
            " WHERE id > ? ORDER BY id LIMIT ?",
            (after, limit),
        )
        return [DeadLetter(*row) for row in found.fetchall()]

    def drop(self, ids: Sequence[int]) -> None:
        """Forget these, inside the caller's transaction."""
        self._connection.executemany("DELETE FROM dead_letters WHERE id = ?", [(each,) for each in ids])

    def count(self) -> int:
        """How many are kept."""
        return int(self._connection.execute("SELECT count(*) FROM dead_letters").fetchone()[0])

    def forget_after(self, id: int) -> None:
        """Let go what came after a letter, because its rows will be read again."""
        self._connection.execute("DELETE FROM dead_letters WHERE id > ?", (id,))

    def total(self) -> int:
        """How many were ever written."""
        row = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'dead_letters'").fetchone()
        return int(row[0]) if row else 0

    def _through(self) -> int:
        row = self._connection.execute(
            "SELECT before_bytes + coalesce(length(record), 0) FROM dead_letters ORDER BY id DESC LIMIT 1"
        ).fetchone()
        return int(row[0]) if row else 0


def _record(rows: pa.RecordBatch, reject: Reject) -> bytes | None:
    """The row as an IPC stream; none where it is larger than a letter may be."""
    if reject.reason == "too_large":
        return None
    row = _plain(rows.slice(reject.row, 1))
    if row.nbytes > RECORD_BYTES:
        return None
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, row.schema) as writer:
        writer.write_batch(row)
    return bytes(sink.getvalue().to_pybytes())


def _plain(row: pa.RecordBatch) -> pa.RecordBatch:
    """A row without the dictionaries of its batch, each of which would be written with every row."""
    columns = [each.dictionary_decode() if pa.types.is_dictionary(each.type) else each for each in row.columns]
    return pa.RecordBatch.from_arrays(columns, row.schema.names)
