"""How far each partition of a broker is in the log: the offset of the message that comes next.

    Entry(rows, moves=[Move("orders/0", 40, 52)]) ─► Log ─► rows | positions   one transaction

A move begins where the one before it ended, or nothing of its batch is written. So however often messages are read
again, by two readers even, each counts once.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from streamkd.errors import RecordError

_TABLE = "CREATE TABLE IF NOT EXISTS positions (partition TEXT PRIMARY KEY, offset INTEGER NOT NULL) WITHOUT ROWID"


class OffsetConflict(RecordError):
    """A batch does not begin where its partition is."""


@dataclass(frozen=True, slots=True)
class Move:
    """From the offset ``first`` (``None``: the partition is new) to the one that comes ``next``."""

    partition: str
    first: int | None
    next: int


class Positions:
    """The table in a database that is open already; never begins or commits a transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def create(self) -> None:
        """Make the table where it is missing."""
        self._connection.execute(_TABLE)

    def all(self) -> Mapping[str, int]:
        """The next offset of every partition that was ever read."""
        return dict(self._connection.execute("SELECT partition, offset FROM positions").fetchall())

    def move(self, moves: Sequence[Move]) -> None:
        """Go on, all or none.

        Raises:
            OffsetConflict: a partition is elsewhere.
        """
        known = self.all() if moves else {}
        for each in moves:
            if (at := known.get(each.partition)) != each.first:
                said = f"needed a batch from offset {at} on, got one from {each.first}"
                raise OffsetConflict(said, where=each.partition)
        rows = [(each.partition, each.next) for each in moves]
        self._connection.executemany("INSERT OR REPLACE INTO positions VALUES (?, ?)", rows)
