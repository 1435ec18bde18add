"""The file of a log: made or checked when it is opened, read and written each by one thread at a time.

    Log ─► reading() ─┐
    Log ─► writing() ─┴─► log.sqlite: about, batches, held, receipts, positions, letters, cuts, paces, predictions

The file is in WAL mode with ``synchronous=FULL``. What breaks it is a ``LogDamaged``, wherever it is met.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streamkd.errors import LogDamaged, Overloaded, StateConflict, StateError
from streamkd.records import RecordSchema
from streamkd.streams.encoding import contract
from streamkd.streams.encoding.canonical import arrow_schema
from streamkd.streams.log.answers import PastAnswers
from streamkd.streams.log.batches import DAMAGED, Batches
from streamkd.streams.log.database import (
    ABOUT,
    about,
    add_columns,
    connect,
    is_damage,
    is_passing,
    note,
    schema_fault,
    transaction,
)
from streamkd.streams.log.dead_letters import DeadLetters
from streamkd.streams.log.event_order import EventOrder
from streamkd.streams.log.joins import Joins
from streamkd.streams.log.paces import Paces
from streamkd.streams.log.positions import Positions
from streamkd.streams.log.receipts import Receipts
from streamkd.streams.log.wal import left_out

CHECKED_BYTES = 64 << 20  # a file up to this size is checked page by page at a start: a fifth of a second

_CUTS = "CREATE TABLE IF NOT EXISTS cuts (start INTEGER PRIMARY KEY, stop INTEGER NOT NULL, checksum INTEGER)"
_NONE, _START = "there is no log", "start `streamkd serve` with a push source once"
_ELSEWHERE = "name another state directory with --state, or go back to the configuration that made this one"


class LogFile:
    """One file with two connections; any thread may use them, and only one process writes."""

    def __init__(self, path: Path, schema: RecordSchema | None, stream: str | None, read_only: bool) -> None:
        """``schema=None`` opens one that is there already. Raises as ``Log``."""
        self.path = path
        self.read_only = read_only
        self._reading, self._writing = threading.Lock(), threading.Lock()
        if schema is None and not self.path.exists():
            raise StateError(_NONE, where=str(path), fix=_START)
        if (lost := left_out(self.path)) is not None:  # before a connection would forget it
            raise LogDamaged(lost, where=str(path), fix=DAMAGED)
        try:
            self.reader, self.writer = (connect(path, read_only) for _ in range(2))
            self.schema, self.stream = self._introduce(schema, stream)
        except sqlite3.DatabaseError as fault:
            said = f"cannot be opened as a log: {fault}"
            if is_damage(fault):
                raise LogDamaged(said, where=str(path), fix=DAMAGED) from None
            raise (Overloaded if is_passing(fault) else StateError)(said, where=str(path)) from None

    def _introduce(self, schema: RecordSchema | None, stream: str | None) -> tuple[RecordSchema, str]:
        """Write who the log belongs to, or check it."""
        if schema is not None and not self.read_only:
            with transaction(self.writer):
                _make(self.writer)
                for item in {"schema": schema.model_dump_json(), "stream": stream or "main"}.items():
                    self.writer.execute("INSERT OR IGNORE INTO about VALUES (?, ?)", item)
        is_new = not self.writer.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()  # somebody is making it
        if "schema" not in (said := about(self.writer)):
            told = (_NONE, _START) if is_new else ("is no log of streamkd", _ELSEWHERE)
            raise StateError(told[0], where=str(self.path), fix=told[1])
        found = RecordSchema.model_validate_json(said["schema"])
        if schema is not None and arrow_schema(found) != arrow_schema(schema):
            others = "; ".join(contract.differences(arrow_schema(found), arrow_schema(schema)))
            raise StateConflict(
                f"the log was made with other columns than stream.records has: {others}",
                where=str(self.path),
                fix=contract.KEEP,
            )
        if stream is not None and said["stream"] != stream:
            needed = f"needed the stream {stream!r}, the log has {said['stream']!r}"
            raise StateConflict(needed, where=str(self.path), fix=_ELSEWHERE)
        return schema or found, said["stream"]

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """The writing connection in one transaction of this process, all or nothing.

        Raises:
            Overloaded: the disk is full, or another process has kept the log for long. LogDamaged: the file is broken.
        """
        with self._whole(), self._writing:
            try:
                with transaction(self.writer):
                    yield self.writer
            except sqlite3.OperationalError as fault:
                if is_damage(fault):
                    raise
                said = f"the log cannot be written: {fault}"
                raise Overloaded(said, where=str(self.path), fix="free space") from None

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The reading connection, for one thread.

        Raises:
            LogDamaged: the file is broken.
        """
        with self._whole(), self._reading:
            yield self.reader

    @contextmanager
    def _whole(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as fault:
            if not is_damage(fault):
                raise
            raise LogDamaged(f"the log's file is damaged: {fault}", where=str(self.path), fix=DAMAGED) from None

    def note(self, key: str, value: str) -> None:
        """Let the file say something more of itself: its ``owner`` is the identity of a state directory.

        Raises:
            Overloaded, LogDamaged: as ``writing``.
        """
        with self.writing() as writer:
            note(writer, key, value)

    def noted(self, key: str) -> str | None:
        """What was noted last; ``None`` before anything was."""
        with self.reading() as reader:
            return about(reader).get(key)

    def fault(self) -> str | None:
        """What is wrong with the file as a whole, in a line: other tables, a gap between batches, or damaged pages."""
        with self.reading():
            if (strange := schema_fault(self.reader, _make)) is not None:
                return strange
            if (gap := Batches(self.reader, self.path).gap()) is not None:
                return f"the records from {gap[0]} to {gap[1]} are not in it"
            if self.path.stat().st_size > CHECKED_BYTES:
                return None
            said = str(self.reader.execute("PRAGMA integrity_check(1)").fetchone()[0])
        return None if said == "ok" else said.splitlines()[-1]

    def size_bytes(self) -> int:
        """Bytes in use; pages of trimmed records are used again and do not count."""
        pragmas = "pragma_page_count, pragma_freelist_count, pragma_page_size"
        with self.reading() as reader:
            used = reader.execute(f"SELECT (page_count - freelist_count) * page_size FROM {pragmas}")
            return int(used.fetchone()[0])

    def close(self) -> None:
        with self._reading, self._writing:
            self.reader.close()
            self.writer.close()


def _make(connection: sqlite3.Connection) -> None:
    """Every table of a log, where it is missing, and the columns that an older one has not."""
    for statement in (ABOUT, _CUTS):
        connection.execute(statement)
    add_columns(connection, "cuts", {"checksum": "INTEGER"})
    Batches(connection, Path()).create()
    for part in (
        DeadLetters(connection),
        Receipts(connection),
        Positions(connection),
        PastAnswers(connection),
        Paces(connection),
    ):
        part.create()
    Joins.create(connection)
    EventOrder.create(connection)
