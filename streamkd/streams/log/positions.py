"""How far each partition of a broker, or each watched file, is in the log: the offset of what comes next.

    Entry(rows, moves=[Move("orders/0", 40, 52)]) ─► Log ─► rows | positions   one transaction

A move begins where the one before it ended, or nothing of its batch is written. So however often messages are read
again, by two readers even, each counts once. A note beside a position is the reader's own.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from streamkd.errors import RecordError
from streamkd.streams.log.database import add_columns

_TABLE = "CREATE TABLE IF NOT EXISTS positions (partition TEXT PRIMARY KEY, offset INTEGER NOT NULL) WITHOUT ROWID"


class OffsetConflict(RecordError):
    """A batch does not begin where its partition is."""


@dataclass(frozen=True, slots=True)
class Move:
    """From the offset ``first`` (``None``: the partition is new) to the one that comes ``next`` (``None``: it is
    forgotten), with a ``note`` that stands beside it.
    """

    partition: str
    first: int | None
    next: int | None
    note: str | None = None


class Positions:
    """The table in a database that is open already; never begins or commits a transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def create(self) -> None:
        """Make the table where it is missing."""
        self._connection.execute(_TABLE)
        add_columns(self._connection, "positions", {"note": "TEXT"})

    def all(self) -> Mapping[str, int]:
        """The next offset of every partition that was ever read."""
        return dict(self._connection.execute("SELECT partition, offset FROM positions").fetchall())

    def notes(self) -> Mapping[str, str]:
        """What stands beside the positions, where something does."""
        found = self._connection.execute("SELECT partition, note FROM positions WHERE note IS NOT NULL")
        return dict(found.fetchall())

    def move(self, moves: Sequence[Move]) -> None:
        """Go on, all or none.

        Raises:
            OffsetConflict: a partition is elsewhere.
        """
        for each in moves:
            if (at := self._at(each.partition)) != each.first:
                said = f"needed a batch from offset {at} on, got one from {each.first}"
                raise OffsetConflict(said, where=each.partition)
        kept = [(each.partition, each.next, each.note) for each in moves if each.next is not None]
        self._connection.executemany(
            "INSERT OR REPLACE INTO positions (partition, offset, note) VALUES (?, ?, ?)", kept
        )
        gone = [(each.partition,) for each in moves if each.next is None]
        self._connection.executemany("DELETE FROM positions WHERE partition = ?", gone)

    def _at(self, partition: str) -> int | None:
        found = self._connection.execute("SELECT offset FROM positions WHERE partition = ?", (partition,)).fetchone()
        return int(found[0]) if found else None
