"""Going back: to the newest state that has not seen a bad stretch, and on from there, over it or past it.

    --before 400 ─► the newest whole checkpoint up to offset 400, or the beginning where the source still has it
         ─► ONE transaction: newer checkpoints, their dead letters and the versions that had seen it go, a skip is noted
         ─► the next start learns on, by the log and its journal; of a skip nothing

A kill leaves what was or what will be. The log is not touched: what is skipped stays in it, as far as it is retained.
"""

import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from streamkd.errors import StateError
from streamkd.state import coherence
from streamkd.state.checkpoint import CheckpointInfo, CheckpointStore
from streamkd.state.directory import StateDirectory, fence
from streamkd.state.leftovers import Leftovers
from streamkd.state.versions import VersionInfo, VersionStore
from streamkd.streams.log.database import transaction
from streamkd.streams.log.dead_letters import DeadLetters
from streamkd.streams.log.log import Log
from streamkd.streams.skips import Skip

_ANEW = "to learn the whole stream anew, name an empty directory with --state"


@dataclass(frozen=True, slots=True)
class RolledBack:
    """``checkpoint`` is gone on from (``None``: the beginning); ``dropped`` and ``withdrawn`` are gone."""

    checkpoint: CheckpointInfo | None
    dropped: Sequence[int]
    withdrawn: Sequence[int]
    skip: Skip | None


def roll_back(directory: StateDirectory, before: int, skip_to: int | None = None) -> RolledBack:
    """Let a state be one that has not seen the record at the offset ``before``, nor any after it.

    With ``skip_to`` the records from ``before`` up to there are never learned.

    Raises:
        StateInUse: a server is running. StateConflict: the parts of the directory do not fit each other.
        StateError: no such state is kept any more; the nearest is named.
    """
    if not directory.exists():
        fix = "name the directory that `streamkd serve --state` was given"
        raise StateError("needed a state directory, got none", where=str(directory.path), fix=fix)
    with directory.lock(lambda: coherence.refuse_misfits(directory, directory.log.exists())):
        with closing(CheckpointStore(directory)) as store:
            partition = _partition(store, directory.path)
            begin, end = _log(directory)
            skip = None if skip_to is None else Skip(partition, before, skip_to)
            _refuse_skip(skip, end, directory.path)
            snapshot = store.latest({partition: before})
            target = None if snapshot is None else snapshot.info
            if begin > (0 if target is None else target.offsets[partition]):
                raise _gone(directory.path, partition, before, store.list(), begin)
        return _commit(directory, target, {partition: before}, skip)


def skips(connection: sqlite3.Connection) -> Sequence[Skip]:
    """What is never learned of the stream, by its first offset."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'skips'").fetchone():
        return []
    return [Skip(*row) for row in connection.execute("SELECT partition, start, stop FROM skips ORDER BY start, stop")]


def _partition(store: CheckpointStore, where: Path) -> str:
    partitions = {partition for info in store.list() for partition in info.offsets}
    if len(partitions) == 1:
        return partitions.pop()
    if not partitions:
        raise StateError("holds no checkpoint yet", where=str(where), fix="let `streamkd serve` run a little longer")
    said = f"needed a stream of one partition, got {', '.join(sorted(partitions))}: an offset would not say where"
    raise StateError(said, where=str(where), fix=f"restore a backup; or, {_ANEW}")


def _log(directory: StateDirectory) -> tuple[int, int | None]:
    """The first offset that can be read again, and where there is a log the one after the last."""
    if not directory.log.exists():
        return 0, None
    with closing(Log(directory.log, read_only=True)) as log:
        return log.begin(), log.end()


def _refuse_skip(skip: Skip | None, end: int | None, where: Path) -> None:
    if skip is None or skip.start < skip.stop <= (skip.stop if end is None else end):
        return
    most = "" if end is None else f", at most {end}, where the log ends"
    said = f"needed an offset after {skip.start}{most}, got {skip.stop}"
    raise StateError(said, where=f"{where}, --skip-to", fix="name the first record behind the bad ones")


def _gone(where: Path, partition: str, before: int, kept: Sequence[CheckpointInfo], begin: int) -> StateError:
    """That nothing is left which has not seen it, and what is nearest."""
    near = [info for info in kept if info.offsets[partition] >= max(begin, before)]
    nearest = min(near, key=lambda info: info.offsets[partition], default=None)
    said = (
        f"needed a checkpoint that has not seen record {before}, and the log from there on; the log begins at {begin}"
    )
    if nearest is None:
        return StateError(f"{said}, and no checkpoint behind that is kept", where=str(where), fix=_ANEW)
    at = nearest.offsets[partition]
    said = f"{said}, and the nearest checkpoint that is kept, {nearest.id}, has seen all before {at}"
    return StateError(said, where=str(where), fix=f"go back to that with --before {at}; or, {_ANEW}")


def _commit(
    directory: StateDirectory, target: CheckpointInfo | None, before: Mapping[str, int], skip: Skip | None
) -> RolledBack:
    with closing(VersionStore(directory)) as versions:
        withdrawn = [info.version for info in versions.list() if _has_seen(info, before, target)]
    with closing(directory.connect()) as connection:
        folders = (
            Leftovers(directory.checkpoints, connection, partial(_numbers, connection, "id", "checkpoints")),
            Leftovers(directory.published, connection, partial(_numbers, connection, "version", "versions")),
        )
        with transaction(connection) as writer:
            fence(writer, directory.epoch, directory.path)
            dropped = _drop(writer, 0 if target is None else target.id)
            for leftovers, gone in zip(folders, (dropped, withdrawn), strict=True):
                leftovers.clean_up()
                leftovers.let_go(gone)
            writer.executemany("DELETE FROM versions WHERE version = ?", [(version,) for version in withdrawn])
            writer.execute("DELETE FROM pin WHERE version NOT IN (SELECT version FROM versions)")
            if skip is not None:
                values = (skip.partition, skip.start, skip.stop, time.time())
                writer.execute("INSERT INTO skips VALUES (?, ?, ?, ?)", values)
        with suppress(sqlite3.Error, OSError), transaction(connection):
            for leftovers in folders:
                leftovers.clean_up()
    return RolledBack(target, dropped, withdrawn, skip)


def _numbers(connection: sqlite3.Connection, column: str, table: str) -> set[int]:
    return {row[0] for row in connection.execute(f"SELECT {column} FROM {table}")}


def _has_seen(info: VersionInfo, before: Mapping[str, int], target: CheckpointInfo | None) -> bool:
    """By its offsets; where an older streamkd has published it, by how many records it has learned."""
    if not info.offsets:
        return info.records > (0 if target is None else target.records)
    return any(info.offsets.get(partition, 0) > offset for partition, offset in before.items())


def _drop(writer: sqlite3.Connection, target: int) -> list[int]:
    """Forget the checkpoints behind one, and the dead letters that came with them; which they were."""
    row = writer.execute("SELECT letters FROM checkpoints WHERE id = ?", (target,)).fetchone()
    gone = [row[0] for row in writer.execute("SELECT id FROM checkpoints WHERE id > ? ORDER BY id", (target,))]
    if gone:
        DeadLetters(writer).forget_after(int(row[0]) if row else 0)
    writer.execute("DELETE FROM checkpoints WHERE id > ?", (target,))
    return gone
