"""Whether the parts of a state directory fit each other: looked at before anything of it is opened for writing.

    state.sqlite ── rows ──► checkpoints/<id>/   a folder for what the database knows, none that is newer than it
         │      └── rows ──► published/<n>/      the same
         └── identity, offsets, marks ──► log.sqlite   of this directory, whole, as long as what was learned of it

A half restore is refused with a line for each part, and nothing is changed. The learner calls
``refuse_misfits`` under the lock and before it says ready; the ingress, which may be started again at any time,
calls ``refuse_other_log`` before it takes records. So no record is ever acknowledged under an offset that the
learner has behind it.
"""

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamkd.errors import StateConflict, StateError
from streamkd.state.directory import StateDirectory, make
from streamkd.state.leftovers import Leftovers
from streamkd.streams.log.database import about, note, schema_fault, transaction
from streamkd.streams.log.log import Log

_SHOWN = 6  # numbers of folders in a line


@dataclass(frozen=True, slots=True)
class PartReport:
    """One part of a state directory, in words, and whether it fits the others."""

    name: str
    said: str
    fits: bool = True


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """What a checkpoint's row says of the log: the next offset of each partition, and what marks the record before."""

    offsets: Mapping[str, int]
    marks: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DatabaseContents:
    """What the database knows. ``given`` is the highest number ever given, to a checkpoint and to a version."""

    rows: Mapping[int, CheckpointRow] = field(default_factory=dict)
    versions: Sequence[int] = ()
    given: tuple[int, int] = (0, 0)
    unfinished: tuple[Sequence[int], Sequence[int]] = ((), ())
    identity: str | None = None
    had_log: bool = False

    @property
    def is_new(self) -> bool:
        """Whether nothing was ever committed under it."""
        return not any(self.given) and not self.had_log


def refuse_misfits(directory: StateDirectory, pushed: bool) -> None:
    """Refuse to start over parts of which one is missing, damaged or of another time; ``pushed``: there is a log.

    Raises:
        StateConflict: a line for each part, and the ways out.
    """
    # the folders first: a rollback that comes in between (any process may) is then known, or marked as begun
    checkpoints, published = _numbers(directory.checkpoints), _numbers(directory.published)
    database, known = _database(directory)
    parts = [
        database,
        _folders("checkpoints", checkpoints, known, tuple(known.rows), 0),
        _folders("published", published, known, known.versions, 1),
        _log(directory, known, pushed),
    ]
    if not database.fits or not all(part.fits for part in parts):
        raise _conflict(directory, parts)


def refuse_other_log(directory: StateDirectory) -> None:
    """Refuse to take records into a log that is not the one that the learner reads.

    Raises:
        StateConflict: what is there and what is missing.
    """
    database, known = _database(directory)
    if not directory.exists():
        database = PartReport(database.name, database.said, fits=False)
    parts = [database, _log(directory, known, pushed=True)]
    if not all(part.fits for part in parts):
        raise _conflict(directory, parts)


def claim(directory: StateDirectory, log: Log) -> None:
    """Let log and database know each other, before a first record is taken."""
    with closing(directory.connect()) as connection:
        identity = about(connection)["identity"]
        if log.file.noted("owner") != identity:
            log.file.note("owner", identity)
        with transaction(connection):
            note(connection, "log", log.partition)


def _conflict(directory: StateDirectory, parts: Sequence[PartReport]) -> StateConflict:
    lines = [f"\n  {part.name:13}{'' if part.fits else 'DOES NOT FIT: '}{part.said}" for part in parts]
    return StateConflict(
        "the parts of this state directory do not fit each other; nothing was changed" + "".join(lines),
        where=str(directory.path),
        fix="restore all parts from one backup; or move away what does not fit (to keep log.sqlite alone, where it"
        " is whole, learns it again from its first record); or begin with an empty directory: --state elsewhere",
    )


def _database(directory: StateDirectory) -> tuple[PartReport, DatabaseContents]:
    """The database in words, and what it knows; nothing where it is missing or cannot be read."""
    name = directory.database.name
    if not directory.exists():
        return _no_database(directory), DatabaseContents()
    try:
        with closing(directory.connect(read_only=True)) as connection:
            damage = str(connection.execute("PRAGMA integrity_check(1)").fetchone()[0])
            strange = schema_fault(connection, make)
            known = _known(connection, directory)
    except StateConflict:
        raise
    except (sqlite3.Error, StateError, ValueError) as fault:
        said = fault.message if isinstance(fault, StateError) else str(fault)
        return PartReport(name, f"cannot be read: {said}", fits=False), DatabaseContents()
    if damage != "ok":
        return PartReport(name, f"is damaged: {damage.splitlines()[-1]}", fits=False), DatabaseContents()
    if strange is not None:
        return PartReport(name, f"is damaged: it {strange}", fits=False), DatabaseContents()
    return PartReport(name, f"knows checkpoints {_some(known.rows)} and versions {_some(known.versions)}"), known


def _no_database(directory: StateDirectory) -> PartReport:
    """No database fits only where nothing else is there that one has known: a log alone can be learned anew."""
    said, is_torn = _absent(directory.database)
    others = _numbers(directory.checkpoints) or _numbers(directory.published)
    return PartReport(directory.database.name, said, fits=not (is_torn or others))


def _absent(database: Path) -> tuple[str, bool]:
    """How a database is not there, and whether it has left its write-ahead log."""
    said, rest = "is empty" if database.is_file() else "is missing", database.with_name(f"{database.name}-wal")
    return (f"{said}, {rest.name} is there", True) if _size(rest) else (said, False)


def _known(connection: sqlite3.Connection, directory: StateDirectory) -> DatabaseContents:
    said = about(connection)
    columns = {row[1] for row in connection.execute("PRAGMA table_info(checkpoints)")}
    marks = "marks" if "marks" in columns else "NULL"  # a database of an older version
    rows = connection.execute(f"SELECT id, offsets, {marks}, sha256 FROM checkpoints ORDER BY id").fetchall()
    versions = connection.execute("SELECT version, kind, sha256 FROM versions ORDER BY version").fetchall()
    for row in rows:
        _mapping(row[3])
    given = dict(connection.execute("SELECT name, seq FROM sqlite_sequence").fetchall())
    return DatabaseContents(
        {row[0]: CheckpointRow(_mapping(row[1]), _mapping(row[2] or "{}")) for row in rows},
        [row[0] for row in versions],
        (int(given.get("checkpoints", 0)), int(given.get("versions", 0))),
        (
            Leftovers(directory.checkpoints, connection).marked(),
            Leftovers(directory.published, connection).marked(),
        ),
        said.get("identity"),
        "log" in said,
    )


def _mapping(text: Any) -> dict[str, Any]:
    """A text of the database, whose own check does not look into texts.

    Raises:
        ValueError: it is no mapping.
    """
    found = json.loads(text) if isinstance(text, str) else None  # of a page of zeros each value is none
    if not isinstance(found, dict):
        raise ValueError(f"needed a mapping, got {text!r:.80}")
    return found


def _folders(name: str, there: Sequence[int], known: DatabaseContents, needed: Sequence[int], which: int) -> PartReport:
    """Folders of one kind: at least one of those that are known, and none that the database has yet to number."""
    newer = [n for n in there if n > known.given[which] and n not in known.unfinished[which]]
    if newer:
        upto = f"up to {known.given[which]}" if known.given[which] else "none"
        return PartReport(
            f"{name}/", f"has {_some(newer)}, which the database does not know (it knows {upto})", fits=False
        )
    if needed and not {*there} & {*needed}:
        return PartReport(f"{name}/", f"needed {_some(needed)}, has {_some(there)}", fits=False)
    return PartReport(f"{name}/", f"has {_some(there)}")


def _log(directory: StateDirectory, known: DatabaseContents, pushed: bool) -> PartReport:
    name = directory.log.name
    if not pushed:
        return PartReport(name, "is not used: the stream is not pushed")
    if not _size(directory.log):
        said, is_torn = _absent(directory.log)
        if known.had_log and not is_torn:
            learned = max((offset for row in known.rows.values() for offset in row.offsets.values()), default=0)
            said = f"{said}; {learned} of its records are learned"
        return PartReport(name, said, fits=not (is_torn or known.had_log))
    try:
        with closing(Log(directory.log, read_only=True)) as log:
            fault = _against_log(log, known)
            return PartReport(name, fault or f"holds the records from {log.begin()} to {log.end()}", fits=fault is None)
    except StateError as fault:
        return PartReport(name, fault.message, fits=False)
    except (sqlite3.Error, OSError, ValueError) as fault:
        return PartReport(name, f"cannot be read: {fault}", fits=False)


def _against_log(log: Log, known: DatabaseContents) -> str | None:
    """The first reason why this log is not the one that was learned."""
    if (damage := log.file.fault()) is not None:
        return f"is damaged: {damage}"
    begin, end, _ = log.begin(), log.end(), log.committed()  # each is looked at, so that it can be read
    if log.file.noted("owner") not in (None, known.identity):
        if known.is_new and begin == 0:
            return None  # the whole log alone: it is learned from its first record
        return "belongs to the database of another state directory, or to one that is gone"
    if known.is_new and begin > 0:
        return f"begins at record {begin}; those before are learned by a checkpoint that is not here"
    against = (_against_row(log, row, end) for row in known.rows.values())
    return next(filter(None, against), None) or _against_begin(begin, log.partition, known)


def _against_row(log: Log, row: CheckpointRow, end: int) -> str | None:
    if log.partition not in row.offsets:
        return f"is of the stream {log.stream!r}, the checkpoint of {', '.join(row.offsets)}"
    offset = row.offsets[log.partition]
    if end < offset:
        return f"ends at record {end}, and those up to {offset} are learned: it is older than the checkpoint"
    mark = row.marks.get(log.partition)
    found = log.mark(offset)
    if mark is not None and found is not None and found != mark:
        return f"has another record before {offset} ({found}) than the one that was learned ({mark})"
    return None


def _against_begin(begin: int, partition: str, known: DatabaseContents) -> str | None:
    newest = known.rows[max(known.rows)].offsets[partition] if known.rows else 0
    if begin <= newest:
        return None
    return f"begins at record {begin}, and the newest checkpoint goes on from {newest}: the database is older"


def _numbers(folder: Path) -> list[int]:
    """The numbered folders in it."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _some(numbers: Iterable[int]) -> str:
    shown = [str(number) for number in numbers]
    if len(shown) > _SHOWN:
        shown = [*shown[:2], "…", *shown[-2:]]
    return ", ".join(shown) or "none"
