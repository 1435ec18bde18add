"""What a commit that did not end has left: told by a mark beside it, so that nothing else is ever removed.

    mark .begun-7-IDENTITY ─► rename to 7, or drop the row of 7 ─► COMMIT ─► remove old folders ─► remove the mark

A process that dies between leaves the mark. Whoever holds the write lock next settles it: folder 7 goes
where no row speaks of it. A folder without a mark may be known to another database, of which this one is an
older copy say, and is left alone.
"""

import shutil
import sqlite3
from collections.abc import Collection, Iterable
from pathlib import Path

from streamkd.errors import StateError
from streamkd.state.directory import about, sync

_MARK = ".begun-"


class Leftovers:
    """The marks in one folder of numbered folders; their names say the identity of the database that made them."""

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self._folder = folder
        self._identity = about(connection).get("identity", "")

    def begin(self, new: int, gone: Iterable[int]) -> None:
        """Before a commit that gives ``new`` its name and drops ``gone``.

        Raises:
            StateError: a folder of that name is there, and it is not ours to replace.
        """
        target = self._folder / str(new)
        if target.exists():
            raise StateError(
                "is there already, and this database does not know it",
                where=str(target),
                fix="move it out of the state directory, or restore the database that it belongs to",
            )
        for number in (new, *gone):
            self._mark(number).touch()

    def name(self, written: Path, new: int) -> None:
        """Give a folder, written and synced, its number, durably."""
        written.rename(self._folder / str(new))
        sync(self._folder)

    def clean_up(self, known: Collection[int]) -> None:
        """End what was begun: folders of marked numbers go unless they are ``known``; inside a write transaction."""
        for number in self.marked():
            if number not in known:
                shutil.rmtree(self._folder / str(number), ignore_errors=True)
            self._mark(number).unlink(missing_ok=True)

    def marked(self) -> list[int]:
        """The numbers whose commit this database has begun and not ended."""
        found = (mark.name.split("-")[1] for mark in self._folder.glob(f"{_MARK}*-{self._identity}"))
        return sorted(int(number) for number in found if number.isdigit())

    def _mark(self, number: int) -> Path:
        return self._folder / f"{_MARK}{number}-{self._identity}"
