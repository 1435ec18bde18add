"""What was answered when a record of the log was asked about: label, probability, version, by its offset.

Written with the record whose label came later (``joins``), read by the learner, which counts how often it was right.
Records that nobody was asked about have none.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from streamkd.records import Label

_TABLE = (
    "CREATE TABLE IF NOT EXISTS answers (offset INTEGER PRIMARY KEY, label NOT NULL, probability REAL NOT NULL,"
    " version INTEGER NOT NULL)"
)


@dataclass(frozen=True, slots=True)
class PastAnswer:
    """The label that was given, how probable it was said to be, and the version that gave it."""

    label: Label
    probability: float
    version: int


class PastAnswers:
    """The table in a database that is open already; never begins or commits a transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def create(self) -> None:
        """Make the table where it is missing."""
        self._connection.execute(_TABLE)

    def put(self, first: int, answers: Sequence[PastAnswer]) -> None:
        """Write those of the records from ``first`` on."""
        self._connection.executemany(
            "INSERT INTO answers VALUES (?, ?, ?, ?)",
            [(first + at, each.label, each.probability, each.version) for at, each in enumerate(answers)],
        )

    def between(self, start: int, stop: int) -> Mapping[int, PastAnswer]:
        """By offset, those of the records from ``start`` to before ``stop``."""
        found = self._connection.execute(
            "SELECT offset, label, probability, version FROM answers WHERE offset >= ? AND offset < ?", (start, stop)
        )
        return {offset: PastAnswer(*rest) for offset, *rest in found.fetchall()}

    def forget(self, before: int) -> None:
        """Drop those before an offset."""
        self._connection.execute("DELETE FROM answers WHERE offset < ?", (before,))
