"""How far each partition of a broker, or each watched file, is in the log: the offset of what comes next.

    Entry(rows, moves=[Move("orders/0", 40, 52)]) ─► Log ─► rows | positions, moved   one transaction

A move begins where the one before it ended, or nothing of its batch is written. So however often messages are read
again, by two readers even, each counts once. A note beside a position is the reader's own. ``moved`` says where the
partitions stood at an offset of the log, as far back as the log goes: so a state that has learned up to there knows
which messages it has seen.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from streamkd.errors import RecordError
from streamkd.streams.log.database import add_columns

_TABLES = (
    "CREATE TABLE IF NOT EXISTS positions (partition TEXT PRIMARY KEY, offset INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS moved (partition TEXT NOT NULL, after INTEGER NOT NULL, next INTEGER NOT NULL,"
    " PRIMARY KEY (partition, after)) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS moved_after ON moved (after)",
)


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
        """Make the tables where they are missing."""
        for statement in _TABLES:
            self._connection.execute(statement)
        add_columns(self._connection, "positions", {"note": "TEXT"})

    def all(self) -> Mapping[str, int]:
        """The next offset of every partition that was ever read."""
        if not self._has("positions"):
            return {}
        return dict(self._connection.execute("SELECT partition, offset FROM positions").fetchall())

    def notes(self) -> Mapping[str, str]:
        """What stands beside the positions, where something does."""
        if not self._connection.execute("SELECT 1 FROM pragma_table_info('positions') WHERE name = 'note'").fetchone():
            return {}  # a log of an older streamkd that is only read
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

    def remember(self, moves: Sequence[Move], after: int) -> None:
        """That the rows of these moves are before the offset ``after`` of the log."""
        told = [each for each in moves if each.note is None or len(moves) == 1]  # several with notes are no rows' move
        rows = [(each.partition, after, each.next) for each in told if each.next is not None]
        self._connection.executemany("INSERT OR REPLACE INTO moved VALUES (?, ?, ?)", rows)

    def at(self, offset: int) -> Mapping[str, int]:
        """The offset in each partition up to which all records are before ``offset`` of the log, where it is known.

        Of those with a note, which are files one after the other and may be very many, the last one alone.
        """
        if not self._has("moved"):
            return {}
        query = "SELECT next FROM moved WHERE partition = ? AND after <= ? ORDER BY after DESC LIMIT 1"
        names = self._connection.execute("SELECT partition FROM positions WHERE note IS NULL").fetchall()
        found = {name: self._connection.execute(query, (name, offset)).fetchone() for (name,) in names}
        return {name: int(row[0]) for name, row in found.items() if row is not None} | self._newest(offset)

    def _newest(self, offset: int) -> dict[str, int]:
        """Of the partitions with a note the one that moved last before ``offset``, where there are any."""
        query = (
            "SELECT moved.partition, moved.next FROM moved JOIN positions USING (partition)"
            " WHERE moved.after <= ? AND note IS NOT NULL AND EXISTS (SELECT 1 FROM positions WHERE note IS NOT NULL)"
            " ORDER BY moved.after DESC, moved.next DESC LIMIT 1"
        )
        return dict(self._connection.execute(query, (offset,)).fetchall())

    def _has(self, table: str) -> bool:
        """Whether it is there: a log of an older streamkd that is only read has none."""
        found = self._connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,))
        return found.fetchone() is not None

    def forget(self, before: int) -> None:
        """Where the partitions stood before an offset of the log that goes."""
        self._connection.execute(
            "DELETE FROM moved WHERE after < ?1 AND after < coalesce((SELECT max(newest.after) FROM moved AS newest"
            " JOIN positions ON positions.partition = newest.partition"
            " WHERE newest.partition = moved.partition AND newest.after <= ?1), ?1)",
            (before,),
        )
