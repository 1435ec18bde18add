"""Published versions: immutable copies of the served model, numbered for ever upwards.

    write beside ─► sha256, fsync ─► one transaction: number, rename, row ─► readers swap one reference

The learner calls ``publish``, the predictions ``served`` and ``read``, the commands ``rollback`` and ``unpin``
(also while a learner runs). A publish that fails at any point changes nothing. Whether a candidate may be
published at all is said by the learner's publisher.
"""

import hashlib
import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from streamkd.errors import CheckpointDamaged, StateError
from streamkd.state.directory import StateDirectory, complete, fence, sync
from streamkd.state.leftovers import Leftovers
from streamkd.streams.log.database import insert, transaction

Kind = Literal["learned", "rollback"]
_ABOUT = "version.json"
_SELECT = "SELECT *, version IS (SELECT pin.version FROM pin) AS pinned FROM versions"
# a rollback has a new number and old weights: without its pin it is not the newest
_NEWEST = "kind = 'learned' DESC, version DESC"
_FAILED = "the version was not published, nothing has changed"
_INSTEAD = "roll back to another version, or let the learner publish a new one"


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One published version; ``sha256`` covers the files of the model, so a rollback has that of its source.

    It has seen the records before ``offsets`` of each partition, nothing from there on; ``positions``: where the
    partitions of a broker stood then. Both are empty of versions that an older streamkd published.
    """

    version: int
    records: int
    created: float
    kind: Kind
    source_version: int | None
    sha256: str
    pinned: bool
    offsets: Mapping[str, int] = field(default_factory=dict)
    positions: Mapping[str, int] = field(default_factory=dict)


class VersionStore:
    """The versions of one state directory: the files ``published/<version>/`` and a row each."""

    def __init__(self, directory: StateDirectory, keep: int = 10, read_only: bool = False) -> None:
        self._directory = directory
        self._keep = keep
        self._mutex = threading.RLock()
        self._connection = directory.connect(read_only)
        if not read_only:
            complete(self._connection)
        self._leftovers = Leftovers(
            directory.published, self._connection, lambda: {info.version for info in self.list()}
        )
        if directory.epoch is not None and not read_only:
            self._leftovers.clear()

    def publish(
        self,
        write: Callable[[Path], Mapping[str, object] | None],
        *,
        records: int,
        offsets: Mapping[str, int] | None = None,
        positions: Mapping[str, int] | None = None,
    ) -> int:
        """Let ``write`` fill an empty folder with a model, and give it the next number.

        What ``write`` returns is kept as ``meta`` in the folder's ``version.json``, beside what it has seen.

        Raises:
            StateError: the disk is full, or another learner has taken over; nothing has changed.
        """
        with self._leftovers.beside(_FAILED) as folder:
            fence(self._connection, self._directory.epoch, self._directory.path)
            meta = dict(write(folder) or {})
            return self._commit(folder, _Origin(records, "learned", None, offsets or {}, positions or {}), meta)

    def rollback(self, version: int) -> int:
        """Serve an old version again: the same files under a new number, pinned until ``unpin``.

        Raises:
            StateError: that version is not kept any more. CheckpointDamaged: its files have changed.
        """
        source, info = self.read(version), self.info(version)
        with self._leftovers.beside(_FAILED) as folder:
            shutil.copytree(source, folder, ignore=shutil.ignore_patterns(_ABOUT), dirs_exist_ok=True)
            meta = json.loads((source / _ABOUT).read_text())["meta"]
            origin = _Origin(info.records, "rollback", version, info.offsets, info.positions)
            return self._commit(folder, origin, meta)

    def unpin(self) -> None:
        """Serve the newest learned version again; its number may be below that of the rollback."""
        with self._mutex, transaction(self._connection):
            self._connection.execute("DELETE FROM pin")

    def served(self) -> VersionInfo | None:
        """The pinned version, or the newest that was learned; ``None`` before the first."""
        found = self._rows(f"ORDER BY pinned DESC, {_NEWEST} LIMIT 1")
        return found[0] if found else None

    def newest(self) -> VersionInfo | None:
        """The version that is served when none is pinned."""
        found = self._rows(f"ORDER BY {_NEWEST} LIMIT 1")
        return found[0] if found else None

    def list(self) -> Sequence[VersionInfo]:
        """What is kept, oldest first."""
        return self._rows("ORDER BY version")

    def info(self, version: int) -> VersionInfo:
        """One version.

        Raises:
            StateError: it is not kept (any more); the kept ones are named.
        """
        found = self._rows("WHERE version = ?", version)
        if not found:
            kept = ", ".join(str(info.version) for info in self.list()) or "none"
            raise StateError(
                f"needed a version that is kept, got {version}",
                where=str(self._directory.path),
                fix=f"kept versions: {kept}",
            )
        return found[0]

    def read(self, version: int) -> Path:
        """The folder of a version, after its files were found to be those that were published.

        Raises:
            StateError: not kept any more. CheckpointDamaged: a file is missing or has changed.
        """
        info = self.info(version)
        folder = self._directory.published / str(version)
        try:
            got = digest(folder)
        except OSError as fault:
            self.info(version)  # gone by retention just now: that is no damage
            raise CheckpointDamaged(f"cannot be read: {fault}", where=str(folder), fix=_INSTEAD) from fault
        if got != info.sha256:
            raise CheckpointDamaged(
                f"needed sha256 {info.sha256[:12]}, got {got[:12]}", where=str(folder), fix=_INSTEAD
            )
        return folder

    def changes(self) -> int:
        """A number that differs after any other connection has committed; cheap enough to poll."""
        with self._mutex:
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        with self._mutex:
            self._connection.close()

    def _rows(self, clause: str, *values: Any) -> Sequence[VersionInfo]:
        with self._mutex:
            cursor = self._connection.execute(f"{_SELECT} {clause}", values)
            rows = [dict(zip((column[0] for column in cursor.description), row, strict=True)) for row in cursor]
        return [_info(row) for row in rows]

    def _commit(self, folder: Path, origin: "_Origin", meta: dict[str, object]) -> int:
        about = {**asdict(origin), "created": time.time(), "sha256": digest(folder)}
        row = {**about, "offsets": json.dumps(origin.offsets), "positions": json.dumps(origin.positions)}
        with self._mutex, self._leftovers.commit() as writer:
            if origin.kind == "learned":
                fence(writer, self._directory.epoch, self._directory.path)
            version = insert(writer, "versions", row)
            (folder / _ABOUT).write_text(json.dumps({"version": version, **about, "meta": meta}, allow_nan=False))
            _sync_all(folder)
            if origin.kind == "rollback":
                writer.execute("INSERT OR REPLACE INTO pin VALUES (1, ?)", (version,))
            self._leftovers.begin(version, self._retire(writer))
            self._leftovers.name(folder, version)
        return version

    def _retire(self, writer: sqlite3.Connection) -> Sequence[int]:
        """Drop the rows beyond the newest ``keep``, never those of the pinned version and of what ``unpin`` serves."""
        rows = writer.execute(
            "DELETE FROM versions WHERE version NOT IN (SELECT version FROM versions ORDER BY version DESC LIMIT ?)"
            " AND version NOT IN (SELECT version FROM pin)"
            f" AND version NOT IN (SELECT version FROM versions ORDER BY {_NEWEST} LIMIT 1) RETURNING version",
            (self._keep,),
        ).fetchall()
        return [row[0] for row in rows]


@dataclass(frozen=True, slots=True)
class _Origin:
    """What a version is made of."""

    records: int
    kind: Kind
    source_version: int | None
    offsets: Mapping[str, int]
    positions: Mapping[str, int]


def _info(row: Mapping[str, Any]) -> VersionInfo:
    """A row, which has no word of offsets in a database that no learner of this version has opened."""
    told = {key: row[key] for key in ("version", "records", "created", "kind", "source_version", "sha256")}
    seen = {key: json.loads(row.get(key) or "{}") for key in ("offsets", "positions")}
    return VersionInfo(**told, pinned=bool(row["pinned"]), **seen)


def digest(folder: Path) -> str:
    """One sha256 over the names and contents of a model's files, independent of its version's number.

    Raises:
        OSError: a file cannot be read, or there is none.
    """
    total = hashlib.sha256()
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    for name in [name for name in names if name != _ABOUT] or [_ABOUT + " alone"]:
        content = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        total.update(f"{content}  {name}\n".encode())
    return total.hexdigest()


def _sync_all(folder: Path) -> None:
    for file in sorted(folder.rglob("*")):
        sync(file)
    sync(folder)
