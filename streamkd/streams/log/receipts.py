"""What became of each batch, by (producer, sequence), so that one sent again is answered and not stored.

    same number, same content (``digest``) ─► the first receipt again, marked as a duplicate
    same number, other content                     ─► ``SequenceConflict``: neither stored nor acknowledged
    a number under which no row was accepted       ─► is still free: the corrected batch may have it
    a number so far back that it is forgotten      ─► ``SequenceConflict``: nobody can say whether it is the same

Remembered are the last ``RECEIPTS`` sequences of each producer, and the producers that were heard last: those
silent for ``PRODUCER_SECONDS`` go when there are more than ``PRODUCERS``, and the longest silent where there would be
more than ``MOST_PRODUCERS`` or ``MOST_RECEIPTS``. So the tables stay bounded however many producers come and go.
"""

import hashlib
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streamkd.errors import RecordError
from streamkd.streams.log.database import Uptime, add_columns
from streamkd.streams.log.dead_letters import DeadLetter

RECEIPTS = 16_384  # some 80 bytes each; 8 million records in batches of 500
FORGET = 1_024  # go at once, so that a receipt costs the same whether or not there are too many
PRODUCERS, MOST_PRODUCERS = 10_000, 100_000
MOST_RECEIPTS = 4_000_000  # some 300 MB
PRODUCER_CHARACTERS = 256
DIGEST_BYTES = 16
PRODUCER_SECONDS = 30 * 86_400.0

_TABLES = (
    "CREATE TABLE IF NOT EXISTS receipts (producer TEXT, sequence INTEGER, accepted INTEGER NOT NULL,"
    " rejected INTEGER NOT NULL, offset INTEGER NOT NULL, digest BLOB, created REAL, PRIMARY KEY (producer, sequence))"
    " WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS producers (producer TEXT PRIMARY KEY, floor INTEGER NOT NULL,"
    " receipts INTEGER NOT NULL, updated REAL NOT NULL) WITHOUT ROWID",
)
_OWN_NUMBER = (
    "a batch that is sent again holds the same rows in the same order; other records need a number of their own:"
)


class SequenceConflict(RecordError):
    """A number that was used for other data, or so long ago that nobody knows for what.

    ``forgotten``: in the second case, up to where; whoever sends a long stream again goes on after it.
    """

    def __init__(self, message: str, *, forgotten: int | None = None, fix: str = "") -> None:
        super().__init__(message, where="batch", fix=fix)
        self.forgotten = forgotten


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a batch; ``offset`` is the one after its last accepted record."""

    sequence: int | None
    accepted: int
    rejected: int
    offset: int
    duplicate: bool = False


def identity(producer: Any, sequence: Any) -> tuple[str | None, int | None]:
    """Producer and sequence, checked.

    Raises:
        ValueError: one without the other, another type, or out of bounds.
    """
    if producer is None and sequence is None:
        return None, None
    if not isinstance(producer, str) or not 0 < len(producer) <= PRODUCER_CHARACTERS:
        raise ValueError(f"needed a producer of 1 to {PRODUCER_CHARACTERS} characters")
    if not isinstance(sequence, int) or isinstance(sequence, bool) or not 0 <= sequence < 2**63:
        raise ValueError("needed a sequence from 0 to 2^63 - 1")
    producer.encode()  # half of a surrogate pair is a ValueError too
    return producer, sequence


class Receipts:
    """The tables in a database that is open already; never begins or commits a transaction."""

    def __init__(self, connection: sqlite3.Connection, keep: int = RECEIPTS) -> None:
        self._connection = connection
        self._keep = keep
        self._now = Uptime(connection, "SELECT max(updated) FROM producers")

    def create(self) -> None:
        """Make the tables where they are missing; receipts of older logs have neither digest nor time."""
        for table in _TABLES:
            self._connection.execute(table)
        add_columns(self._connection, "receipts", {"digest": "BLOB", "created": "REAL"})

    def find(self, producer: str, sequence: int, digest: bytes, *, look_only: bool = False) -> Receipt | None:
        """The receipt of a batch that was taken before; ``None`` where the number is free.

        A receipt without a digest, of an older log, is taken for that of the same batch. That of a batch of which no
        row was accepted goes, unless ``look_only``.

        Raises:
            SequenceConflict: the number was used for other data, or is forgotten.
        """
        row = self._connection.execute(
            "SELECT accepted, rejected, offset, digest, created FROM receipts WHERE producer = ? AND sequence = ?",
            (producer, sequence),
        ).fetchone()
        if row is None:
            self._refuse_forgotten(producer, sequence)
            return None
        accepted, rejected, offset, known, created = row
        if known == digest or (known is None and accepted):
            return Receipt(sequence, accepted, rejected, offset, duplicate=True)
        if not accepted:
            if not look_only:
                self._forget(producer, sequence)
            return None
        when = f" at {datetime.fromtimestamp(created, UTC):%Y-%m-%d %H:%M:%S} UTC" if created else ""
        said = (
            f"sequence {sequence} of producer {producer!r} was used{when} for other data:"
            f" {accepted} records accepted and {rejected} refused, which are kept; this batch is not"
        )
        raise SequenceConflict(said, fix=f"{_OWN_NUMBER} {self._way_out(producer)}")

    def _refuse_forgotten(self, producer: str, sequence: int) -> None:
        floor = self._connection.execute("SELECT floor FROM producers WHERE producer = ?", (producer,)).fetchone()
        if floor is not None and sequence <= floor[0]:
            said = (
                f"sequence {sequence} of producer {producer!r} is too old to be compared: those up to {floor[0]} are"
                " forgotten; this batch is not stored"
            )
            fix = f"{_OWN_NUMBER} {self._way_out(producer)}"
            raise SequenceConflict(said, forgotten=floor[0], fix=fix)

    def _way_out(self, producer: str) -> str:
        last = self._connection.execute("SELECT max(sequence) FROM receipts WHERE producer = ?", (producer,))
        return f"go on with {int(last.fetchone()[0] or 0) + 1}, or name another producer"

    def _forget(self, producer: str, sequence: int) -> None:
        self._connection.execute("DELETE FROM receipts WHERE producer = ? AND sequence = ?", (producer, sequence))
        self._connection.execute("UPDATE producers SET receipts = receipts - 1 WHERE producer = ?", (producer,))

    def add(self, producer: str, receipt: Receipt, digest: bytes) -> None:
        """Remember a receipt that has a sequence."""
        self._connection.execute(
            "INSERT INTO receipts (producer, sequence, accepted, rejected, offset, digest, created)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (producer, receipt.sequence, receipt.accepted, receipt.rejected, receipt.offset, digest, time.time()),
        )
        held = self._connection.execute(
            "INSERT INTO producers VALUES (?, -1, 1, ?) ON CONFLICT (producer)"
            " DO UPDATE SET receipts = receipts + 1, updated = excluded.updated RETURNING receipts",
            (producer, self._now()),
        ).fetchall()[0][0]
        if held >= self._keep + FORGET:
            self._raise_floor(producer)

    def _raise_floor(self, producer: str) -> None:
        floor = self._connection.execute(
            "SELECT sequence FROM receipts WHERE producer = ? ORDER BY sequence DESC LIMIT 1 OFFSET ?",
            (producer, self._keep),
        ).fetchone()[0]
        self._connection.execute("DELETE FROM receipts WHERE producer = ? AND sequence <= ?", (producer, floor))
        self._connection.execute(
            "UPDATE producers SET floor = max(floor, ?), receipts = ? WHERE producer = ?", (floor, self._keep, producer)
        )

    def forget_idle(
        self,
        producers: int = PRODUCERS,
        idle_seconds: float = PRODUCER_SECONDS,
        most: tuple[int, int] = (MOST_PRODUCERS, MOST_RECEIPTS),
    ) -> None:
        """Drop producers where there are too many: those silent for long, and the longest silent past ``most``."""
        count, receipts = self._connection.execute("SELECT count(*), total(receipts) FROM producers").fetchone()
        if count > producers:
            self._drop("SELECT producer FROM producers WHERE updated < ?", self._now() - idle_seconds)
        if count > most[0] or receipts > most[1]:
            newest = "row_number() OVER later AS place, sum(receipts) OVER later AS held"
            ranked = f"SELECT producer, {newest} FROM producers WINDOW later AS (ORDER BY updated DESC, producer)"
            self._drop(f"SELECT producer FROM ({ranked}) WHERE place > ? OR held > ?", *most)

    def _drop(self, which: str, *values: float) -> None:
        self._connection.execute(f"DELETE FROM receipts WHERE producer IN ({which})", values)
        self._connection.execute(f"DELETE FROM producers WHERE producer IN ({which})", values)


def digest(rows: pa.RecordBatch, refused: Sequence[int] = (), letters: Sequence[DeadLetter] = ()) -> bytes:
    """What a batch holds, in sixteen bytes: canonical ``rows``, the places of refused rows.

    The values are those that the log holds, so neither the protocol counts nor how the rows were packed (compressed, as
    a dictionary, sliced), nor what lies under a null. Of a batch with no good row the refused rows themselves are what
    it holds, as they came: their ``letters``.
    """
    seen = hashlib.blake2b(digest_size=DIGEST_BYTES)
    seen.update(np.asarray([rows.num_rows, *refused], "<i8").tobytes())
    for array in rows.columns:
        for part in _parts(array):
            seen.update(part)
    for letter in letters if not rows.num_rows else ():
        seen.update(letter.record or letter.detail.encode())
    return seen.digest()


def _parts(array: pa.Array) -> list[memoryview]:
    """The bytes of one canonical column; equal columns have equal bytes."""
    parts = []
    if array.null_count:
        parts.append(_bytes(np.packbits(array.is_valid().to_numpy(zero_copy_only=False))))
        array = pc.fill_null(array, _nothing(array.type))
    if pa.types.is_string(array.type) or pa.types.is_binary(array.type):
        return [*parts, _bytes(pc.binary_length(array).to_numpy(zero_copy_only=False)), _text(array)]
    values = array.flatten() if pa.types.is_fixed_size_list(array.type) else array.view(pa.int64())
    return [*parts, _bytes(values.to_numpy(zero_copy_only=False))]


def _bytes(values: np.ndarray) -> memoryview:
    return np.ascontiguousarray(values).data


def _text(array: pa.Array) -> memoryview:
    """All strings of a column without a null, end to end."""
    _, offsets, data = array.buffers()
    if data is None or not len(array):
        return memoryview(b"")
    bounds = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
    return memoryview(data)[int(bounds[0]) : int(bounds[-1])]


def _nothing(kind: pa.DataType) -> pa.Scalar:
    empty = "" if pa.types.is_string(kind) else b"" if pa.types.is_binary(kind) else 0
    return pa.scalar(empty, kind)
