"""A state directory: its paths, its one database, and the lock that makes one learner its owner.

::

    DIR/
      state.sqlite        the commit point: epoch, checkpoints, versions, dead letters of the learner
      log.sqlite          the durable log of a push source (written by the ingress)
      checkpoints/<id>/   streamkd.state.checkpoint
      published/<n>/      streamkd.state.versions
      artefact/           what `serve --export-every` exports, for devices to fetch
      lock                held by the learner; names its process id

The learner enters ``lock()``; others (predictions, inspection) read without it. Each lock takes a new
*epoch*, and every commit checks in its own transaction that its epoch is still the newest, so a
learner that was believed dead cannot write over its successor (fencing). The database has an *identity*,
made once, which the log carries too: parts of two directories are told apart (``streamkd.state.coherence``).
"""

import fcntl
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from streamkd.errors import StateConflict, StateError, StateInUse
from streamkd.streams.log.database import ABOUT, add_columns, transaction
from streamkd.streams.log.dead_letters import DeadLetters
from streamkd.streams.log.wal import left_out

FORMAT = 1
_PLACE = "name another place with --state, or free this one"
_APPLICATION_ID = 0x736B6431  # "skd1": tells our database from any other file of that name
_SCHEMA = (
    "CREATE TABLE owner (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL, pid INTEGER, since REAL)",
    "INSERT INTO owner VALUES (1, 0, NULL, NULL)",
    "CREATE TABLE checkpoints (id INTEGER PRIMARY KEY AUTOINCREMENT, records INTEGER NOT NULL, epoch INTEGER NOT NULL,"
    " created REAL NOT NULL, bytes INTEGER NOT NULL, offsets TEXT NOT NULL, sha256 TEXT NOT NULL,"
    " letters INTEGER NOT NULL)",  # the last dead letter that it knows of
    # AUTOINCREMENT: a number is never given twice, also after the newest version is gone
    "CREATE TABLE versions (version INTEGER PRIMARY KEY AUTOINCREMENT, records INTEGER NOT NULL, created REAL NOT NULL,"
    " kind TEXT NOT NULL CHECK (kind IN ('learned', 'rollback')), source_version INTEGER, sha256 TEXT NOT NULL)",
    "CREATE TABLE pin (one INTEGER PRIMARY KEY CHECK (one = 1), version INTEGER NOT NULL)",
)
_SKIPS = (
    "CREATE TABLE IF NOT EXISTS skips (partition TEXT NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL,"
    " created REAL NOT NULL)"
)
_ABSENCES = (  # of isolated teachers (``streamkd.isolation``)
    "CREATE TABLE IF NOT EXISTS absences (teacher TEXT NOT NULL, call INTEGER NOT NULL, kept INTEGER NOT NULL,"
    " PRIMARY KEY (teacher, call))"
)


class StateDirectory:
    """The paths and the database of one state directory; ``epoch`` is set while this process owns it."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.database, self.log = self.path / "state.sqlite", self.path / "log.sqlite"
        self.checkpoints, self.published = self.path / "checkpoints", self.path / "published"
        self.epoch: int | None = None

    def exists(self) -> bool:
        """Whether there is a database: an empty file is none."""
        return self.database.is_file() and self.database.stat().st_size > 0

    def create(self) -> None:
        """Make the folders and the database where they are not there yet.

        Raises:
            StateError: the place cannot be written, or holds another kind of file.
        """
        self._make_folders()
        if self.exists():
            with closing(self._open("rw")) as connection:
                complete(connection)
        else:
            self._begin()

    def _begin(self) -> None:
        """Make the database beside its place: others find it whole or not at all."""
        new, wal = self.path / f".{self.database.name}.new", self.database.with_name(f"{self.database.name}-wal")
        if wal.is_file() and wal.stat().st_size:
            said = f"needed {self.database.name}, to which {wal.name} belongs, got none"
            raise StateError(said, where=str(self.path), fix="restore all parts of the directory from one backup")
        try:
            for ending in ("", "-wal", "-shm"):  # of a beginning that was killed
                new.with_name(f"{new.name}{ending}").unlink(missing_ok=True)
            with closing(sqlite3.connect(new, isolation_level=None)) as connection:
                connection.execute("PRAGMA synchronous = FULL")
                _fill(connection)
                complete(connection)
            new.rename(self.database)
            sync(self.path)
        except (sqlite3.Error, OSError) as fault:
            raise StateError(f"cannot be made: {fault}", where=str(self.database), fix=_PLACE) from fault

    def _make_folders(self) -> None:
        try:
            for folder in (self.path, self.checkpoints, self.published):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as fault:
            raise StateError(
                f"needed a directory that can be written, got: {fault.strerror or fault}",
                where=str(self.path),
                fix=_PLACE,
            ) from fault

    def connect(self, read_only: bool = False) -> sqlite3.Connection:
        """A connection to ``state.sqlite`` (write-ahead log, full sync); transactions are begun by hand.

        Raises:
            StateError: no such directory, not a database, or a damaged one. StateConflict: written by a newer streamkd.
        """
        if not self.exists():
            raise StateError(
                "needed a state directory, got none",
                where=str(self.path),
                fix="name the directory that `streamkd serve --state` was given",
            )
        return self._open("ro" if read_only else "rw")

    def _open(self, mode: str) -> sqlite3.Connection:
        if (lost := left_out(self.database)) is not None:  # before a connection would forget it
            raise StateError(lost, where=str(self.path), fix="restore all parts of the directory from one backup")
        uri = f"{self.database.absolute().as_uri()}?mode={mode}"
        try:
            with ExitStack() as on_error:
                connection = sqlite3.connect(uri, uri=True, timeout=10.0, isolation_level=None, check_same_thread=False)
                on_error.callback(connection.close)
                _check_format(connection, self.database)
                connection.execute("PRAGMA synchronous = FULL")
                on_error.pop_all()
        except sqlite3.Error as fault:
            raise StateError(
                f"needed streamkd's database, got: {fault}",
                where=str(self.database),
                fix="name another place with --state, or restore the directory from a copy",
            ) from fault
        return connection

    @contextmanager
    def lock(self, check: Callable[[], None] = lambda: None) -> Iterator[int]:
        """Own the directory until the end of the block; yields the new epoch.

        ``check`` is called when the lock is held and no database has been opened or made: what it raises
        leaves everything as it lies.

        Raises:
            StateInUse: another process owns it; its process id is named.
        """
        self._make_folders()
        handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            take(handle, self.path, "owns this state directory", "--state")
            check()
            self.create()
            self.epoch = self._begin_epoch()
            yield self.epoch
        finally:
            self.epoch = None
            os.close(handle)

    def _begin_epoch(self) -> int:
        with closing(self.connect()) as connection, transaction(connection):
            connection.execute("UPDATE owner SET epoch = epoch + 1, pid = ?, since = ?", (os.getpid(), time.time()))
            return int(connection.execute("SELECT epoch FROM owner").fetchone()[0])


def fence(connection: sqlite3.Connection, epoch: int | None, where: Path) -> None:
    """Refuse to go on unless ``epoch`` is the newest; call it inside the transaction that it protects.

    Raises:
        StateError: not locked by this process, or another learner has taken over.
    """
    if epoch is None:
        raise StateError(
            "needed the lock of the state directory, got none", where=str(where), fix="write inside directory.lock()"
        )
    newest, pid = connection.execute("SELECT epoch, pid FROM owner").fetchone()
    if newest != epoch:
        raise StateError(
            f"needed the newest epoch {newest} (process {pid}), got {epoch}: another learner has taken over",
            where=str(where),
            fix="stop this process; nothing of it was written",
        )


def take(handle: int, place: Path, does: str, option: str) -> None:
    """Be the only process that holds an open lock file, until it is closed; the file says which process does.

    Raises:
        StateInUse: another process holds it; it is named, with what it ``does``.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pid = os.pread(handle, 32, 0).decode(errors="replace").strip()
        fix = f"stop that process, or name another directory with {option}"
        raise StateInUse(f"process {pid or '(starting)'} {does}", where=str(place), fix=fix) from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)


def sync(path: Path) -> None:
    """Flush a file, or the names in a directory, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make(connection: sqlite3.Connection) -> None:
    """Every table that a state's database may have."""
    _fill(connection)
    complete(connection)
    DeadLetters(connection).create()


def complete(connection: sqlite3.Connection) -> None:
    """Add what databases of older versions have not: an identity, what rows say of the log, and what is skipped."""
    with transaction(connection):
        connection.execute(ABOUT)
        connection.execute("INSERT OR IGNORE INTO about VALUES ('identity', ?)", (uuid.uuid4().hex,))
        connection.execute(_SKIPS)
        connection.execute(_ABSENCES)
        add_columns(connection, "checkpoints", {"marks": "TEXT", "serial": "INTEGER"})
        add_columns(connection, "versions", {"offsets": "TEXT", "positions": "TEXT"})


def _fill(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    with transaction(connection):
        for statement in _SCHEMA:
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {FORMAT}")


def _check_format(connection: sqlite3.Connection, path: Path) -> None:
    if connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
        raise StateError(
            "needed streamkd's database, got another program's", where=str(path), fix="name another --state"
        )
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found > FORMAT:
        raise StateConflict(
            f"needed state format {FORMAT} or older, got {found}", where=str(path), fix="upgrade streamkd"
        )
