"""From which offsets on batches are learned in which gear: written down before it is used (``streams.pace``)."""

import sqlite3
from typing import NamedTuple

from streamkd.streams.log.batches import checksum
from streamkd.streams.log.database import add_columns

_TABLE = (
    "CREATE TABLE IF NOT EXISTS paces (start INTEGER PRIMARY KEY, rows INTEGER NOT NULL, checksum INTEGER NOT NULL)"
)
_ALL = "SELECT start, rows, rehearsals, checksum FROM paces ORDER BY start"


class Gear(NamedTuple):
    """Rows of a batch, and steps after it to which nothing arrives."""

    rows: int
    rehearsals: int = 0

    def __str__(self) -> str:
        """As the log says it."""
        return f"{self.rows} records" + (f" and {self.rehearsals} rehearsals" if self.rehearsals else "")


class Paces:
    """The table in a database that is open already; never begins or commits a transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def create(self) -> None:
        """Make the table where it is missing."""
        self._connection.execute(_TABLE)
        add_columns(self._connection, "paces", {"rehearsals": "INTEGER NOT NULL DEFAULT 0"})

    def put(self, start: int, gear: Gear) -> None:
        """From ``start`` on batches are learned so; of two at one start the later stands."""
        columns = "INSERT OR REPLACE INTO paces (start, rows, rehearsals, checksum) VALUES (?, ?, ?, ?)"
        self._connection.execute(columns, (start, *gear, _checksum(start, gear)))

    def all(self) -> list[tuple[int, Gear]]:
        """By offset; none before it first changed."""
        return [(start, Gear(*gear)) for start, *gear, _ in self._connection.execute(_ALL).fetchall()]

    def odd(self) -> int | None:
        """The first offset whose numbers are not those that were written."""
        for start, *gear, held in self._connection.execute(_ALL).fetchall():
            if gear[0] < 1 or held != _checksum(start, Gear(*gear)):
                return int(start)
        return None

    def forget(self, before: int) -> None:
        """What is not needed of a log that begins there."""
        those = "start < (SELECT max(start) FROM paces WHERE start <= ?)"
        self._connection.execute(f"DELETE FROM paces WHERE {those}", (before,))


def _checksum(start: int, gear: Gear) -> int:
    return checksum(start, gear.rows, str(gear.rehearsals or "").encode())
