"""When isolated teachers were away: written down before it is used, in the state's own database.

A call is numbered by how many the learner has made before it; an absence begins with a call, and ends with the teacher
as it was after ``kept`` calls. So a learner that goes back to a checkpoint goes without the same answers again.
"""

import sqlite3
from contextlib import closing
from typing import Protocol

from streamkd.errors import Overloaded
from streamkd.state.directory import StateDirectory, fence
from streamkd.streams.log.database import transaction

KEPT = 10_000  # newest absences, of all teachers; back-off keeps them rare


class AbsenceJournal(Protocol):
    """Who remembers which calls a teacher was away for."""

    def put(self, teacher: str, call: int, kept: int) -> None:
        """Write down that it is away from this call on, and comes back as it was after ``kept`` calls."""
        ...

    def of(self, teacher: str) -> dict[int, int]:
        """By the call with which it began, as what it came back from each absence."""
        ...


class Absences:
    """The journal of a state directory that this process owns."""

    def __init__(self, directory: StateDirectory) -> None:
        self._directory = directory

    def put(self, teacher: str, call: int, kept: int) -> None:
        """As the protocol says.

        Raises:
            StateError: another learner has taken over. Overloaded: the disk does not take it now.
        """
        try:
            with closing(self._directory.connect()) as connection, transaction(connection):
                fence(connection, self._directory.epoch, self._directory.path)
                connection.execute("INSERT OR REPLACE INTO absences VALUES (?, ?, ?)", (teacher, call, kept))
                connection.execute("DELETE FROM absences WHERE rowid <= (SELECT max(rowid) FROM absences) - ?", (KEPT,))
        except sqlite3.Error as fault:
            raise Overloaded(f"the absence of a teacher cannot be written down: {fault}") from fault

    def of(self, teacher: str) -> dict[int, int]:
        with closing(self._directory.connect()) as connection:
            rows = connection.execute("SELECT call, kept FROM absences WHERE teacher = ?", (teacher,))
            return dict(rows.fetchall())
