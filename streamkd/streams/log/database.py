"""SQLite files that two processes share: WAL, full sync, and transactions that are begun in so many words."""

import contextlib
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

BUSY_SECONDS = 30.0
ABOUT = "CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"
PAGE_BYTES = 16_384  # rows of some 10 KB to some MB: fewer overflow pages than with the default 4,096


def connect(path: Path, read_only: bool = False) -> sqlite3.Connection:
    """A connection whose committed transactions are on disk; any thread may use it, one at a time.

    One that is ``read_only`` leaves the files as they lie.
    """
    uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    if read_only:
        return connection
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as fault:  # the switch to WAL does not wait for another process's
            if "locked" not in str(fault) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    connection.execute("PRAGMA synchronous = FULL")
    return connection


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All or nothing; the write lock is taken at once, so that what is read inside still holds at the end."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk may have ended it already
            connection.execute("ROLLBACK")
        raise


def about(connection: sqlite3.Connection) -> dict[str, str]:
    """What a database says of itself; nothing where it is an old one."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'about'").fetchone():
        return {}
    return dict(connection.execute("SELECT key, value FROM about").fetchall())


def note(connection: sqlite3.Connection, key: str, value: str) -> None:
    """Let the database say something more of itself."""
    connection.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (key, value))


class Uptime:
    """Seconds in which this could have been heard, from the newest moment that the database knows.

    A clock that is set makes nobody silent and lets nothing expire, nor does a night without a server.
    """

    def __init__(self, connection: sqlite3.Connection, newest: str) -> None:
        """``newest``: the query for that moment."""
        self._connection, self._newest = connection, newest
        self._begun: float | None = None

    def __call__(self) -> float:
        if self._begun is None:
            newest = self._connection.execute(self._newest).fetchone()[0]
            self._begun = (time.time() if newest is None else newest) - time.monotonic()
        return self._begun + time.monotonic()

    def stand_still(self, seconds: float) -> None:
        """So many seconds that have passed do not count: nobody could be heard."""
        if self._begun is not None:
            self._begun -= seconds


def insert(connection: sqlite3.Connection, table: str, row: Mapping[str, object]) -> int:
    """Add a row; its number."""
    marks = ", ".join("?" * len(row))
    cursor = connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))
    return int(cursor.lastrowid or 0)


def add_columns(connection: sqlite3.Connection, table: str, columns: dict[str, str]) -> None:
    """Give a table of an older version the columns that it lacks."""
    there = {row[1] for row in connection.execute(f"PRAGMA table_info({table})").fetchall()}
    for name, kind in columns.items():
        if name not in there:
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {name} {kind}")


def is_damage(fault: sqlite3.Error) -> bool:
    """Whether the file itself is broken, so that no second try will help."""
    # of a text that is none SQLite knows nothing: the fault is Python's, and has no code
    undecodable = isinstance(fault, sqlite3.OperationalError) and not _code(fault)
    return undecodable or _code(fault).startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))


def is_passing(fault: sqlite3.Error) -> bool:
    """Whether a later try may help: the disk is full or does not answer, or another process has the file."""
    return _code(fault).startswith(("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_BUSY"))


def _code(fault: sqlite3.Error) -> str:
    return getattr(fault, "sqlite_errorname", None) or ""


def schema_fault(connection: sqlite3.Connection, make: Callable[[sqlite3.Connection], None]) -> str | None:
    """What in the definitions of tables and indices ``make`` never wrote, in a line; ``None`` where there is nothing.

    They are text to SQLite: a damaged column is another column to it, a damaged condition another condition. Those of
    older versions are made of the same words.
    """
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as blank:
        make(blank)
        known = {name: _words(sql) for name, sql in _definitions(blank)}
    for name, sql in _definitions(connection):
        if name not in known:
            return f"has {name!r:.60}, which was never made"
        if strange := _words(sql) - known[name]:
            return f"the definition of {name} holds {min(strange)!r:.60}, which was never written"
    return None


def _definitions(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    return [(name, sql) for name, sql in rows if not name.startswith("sqlite_")]


def _words(sql: str) -> set[str]:
    return set(re.findall(r"\w+|[^\w\s]", sql))
