"""What became of each batch, by (producer, sequence), so that one sent again is answered and not stored.

Remembered per producer: the last ``RECEIPTS`` sequences. A sequence below all of these counts as seen,
since sequences increase. A producer that was silent for ``PRODUCER_SECONDS`` is forgotten when there
are more than ``PRODUCERS`` of them, so the tables stay bounded however many producers come and go.
"""

import sqlite3
import time
from dataclasses import dataclass
from typing import Any

RECEIPTS = 1_024
PRODUCERS = 10_000
PRODUCER_CHARACTERS = 256
PRODUCER_SECONDS = 30 * 86_400.0

_TABLES = (
    "CREATE TABLE IF NOT EXISTS receipts (producer TEXT, sequence INTEGER, accepted INTEGER NOT NULL,"
    " rejected INTEGER NOT NULL, offset INTEGER NOT NULL, PRIMARY KEY (producer, sequence)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS producers (producer TEXT PRIMARY KEY, floor INTEGER NOT NULL,"
    " receipts INTEGER NOT NULL, updated REAL NOT NULL) WITHOUT ROWID",
)


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

    def create(self) -> None:
        """Make the tables where they are missing."""
        for table in _TABLES:
            self._connection.execute(table)

    def find(self, producer: str, sequence: int, end: int) -> Receipt | None:
        """The receipt of a batch that was taken before; ``end`` is its offset where that was forgotten."""
        row = self._connection.execute(
            "SELECT accepted, rejected, offset FROM receipts WHERE producer = ? AND sequence = ?", (producer, sequence)
        ).fetchone()
        if row is not None:
            accepted, rejected, offset = row
            return Receipt(sequence, accepted, rejected, offset, duplicate=True)
        floor = self._connection.execute("SELECT floor FROM producers WHERE producer = ?", (producer,)).fetchone()
        if floor is not None and sequence <= floor[0]:
            return Receipt(sequence, 0, 0, end, duplicate=True)
        return None

    def add(self, producer: str, receipt: Receipt) -> None:
        """Remember a receipt that has a sequence."""
        self._connection.execute(
            "INSERT INTO receipts VALUES (?, ?, ?, ?, ?)",
            (producer, receipt.sequence, receipt.accepted, receipt.rejected, receipt.offset),
        )
        held = self._connection.execute(
            "INSERT INTO producers VALUES (?, -1, 1, ?) ON CONFLICT (producer)"
            " DO UPDATE SET receipts = receipts + 1, updated = excluded.updated RETURNING receipts",
            (producer, time.time()),
        ).fetchall()[0][0]
        if held >= 2 * self._keep:
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

    def forget_idle(self, producers: int = PRODUCERS, idle_seconds: float = PRODUCER_SECONDS) -> None:
        """Drop producers that were silent for long, when there are too many."""
        if self._connection.execute("SELECT count(*) FROM producers").fetchone()[0] <= producers:
            return
        idle = (time.time() - idle_seconds,)
        silent = "SELECT producer FROM producers WHERE updated < ?"
        self._connection.execute(f"DELETE FROM receipts WHERE producer IN ({silent})", idle)
        self._connection.execute("DELETE FROM producers WHERE updated < ?", idle)
