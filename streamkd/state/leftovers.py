"""What a commit that did not end has left: told by a mark beside it, so that nothing else is ever removed.

    mark .begun-7-IDENTITY ─► rename to 7, or drop the row of 7 ─► COMMIT ─► remove old folders ─► remove the mark

A process that dies between leaves the mark. Whoever holds the write lock next ends it: folder 7 goes where no row
speaks of it. A folder without a mark may be known to another database, of which this one is an older copy say, and is
left alone.
"""

import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from streamkd.errors import StateError
from streamkd.state.directory import sync
from streamkd.streams.log.database import about, transaction

_MARK = ".begun-"


class Leftovers:
    """One folder of numbered folders, and the marks of the commits that this database has begun and not ended.

    ``known`` says which numbers the database has rows of.
    """

    def __init__(
        self, folder: Path, connection: sqlite3.Connection, known: Callable[[], Collection[int]] = lambda: ()
    ) -> None:
        self._folder, self._connection, self._known = folder, connection, known
        self._identity = about(connection).get("identity", "")

    @contextmanager
    def beside(self, failed: str) -> Iterator[Path]:
        """An empty folder to write in, which is gone at the end; ``failed``: what a fault of the disk is told as.

        Raises:
            StateError: the disk is full, or may not be written.
        """
        folder = self._folder / f".new-{os.getpid()}-{time.monotonic_ns()}"
        try:
            folder.mkdir(mode=0o700)
            yield folder
        except (OSError, sqlite3.Error) as fault:
            fix = "free space, and see that this user may write there"
            raise StateError(f"{failed}: {fault}", where=str(self._folder), fix=fix) from fault
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def commit(self) -> Iterator[sqlite3.Connection]:
        """One write transaction; before it and after it, whatever becomes of it, what no row speaks of is removed."""
        try:
            with transaction(self._connection) as writer:
                self.clean_up()
                yield writer
        finally:
            with suppress(sqlite3.Error), transaction(self._connection):  # on a disk that is full now, the next one
                self.clean_up()

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
        self.let_go((new, *gone))

    def let_go(self, numbers: Iterable[int]) -> None:
        """Before a commit that drops them, or gives them their names."""
        for number in numbers:
            self._mark(number).touch()

    def name(self, written: Path, new: int) -> None:
        """Give a folder, written and synced, its number, durably."""
        written.rename(self._folder / str(new))
        sync(self._folder)

    def clean_up(self) -> None:
        """End what was begun: folders of marked numbers go unless they are known; inside a write transaction."""
        known = self._known()
        for number in self.marked():
            if number not in known:
                shutil.rmtree(self._folder / str(number), ignore_errors=True)
            self._mark(number).unlink(missing_ok=True)

    def clear(self) -> None:
        """At a start of the owner: remove also what killed writers, one of whom may have had our number, half wrote."""
        for folder in self._folder.glob(".new-*"):
            pid = int(folder.name.split("-")[1])
            if pid == os.getpid() or not _alive(pid):
                shutil.rmtree(folder, ignore_errors=True)
        with transaction(self._connection):
            self.clean_up()

    def marked(self) -> list[int]:
        """The numbers whose commit this database has begun and not ended."""
        found = (mark.name.split("-")[1] for mark in self._folder.glob(f"{_MARK}*-{self._identity}"))
        return sorted(int(number) for number in found if number.isdigit())

    def _mark(self, number: int) -> Path:
        return self._folder / f"{_MARK}{number}-{self._identity}"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
