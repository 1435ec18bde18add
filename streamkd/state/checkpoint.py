"""Checkpoints: the whole state of a learner and the offsets that belong to it, committed together.

    tree ─► tensors.safetensors, state.json, tables/*.arrow, rows/*, config.json   in a folder beside, hashed, fsynced
         ─► ONE transaction: fence, row (id, offsets, hashes, records, epoch), rename, dead letters, retention

Until that transaction is committed the checkpoint before is the newest, whatever happens. The learner calls
``save`` and ``latest``; ``streamkd inspect`` reads without the lock. A checkpoint whose files are not what was
committed is passed over for the one before it, and said.
"""

import json
import logging
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from streamkd.errors import CheckpointDamaged
from streamkd.records import Reject
from streamkd.state import files, history
from streamkd.state.directory import StateDirectory, fence
from streamkd.state.leftovers import Leftovers
from streamkd.state.segments import Segments
from streamkd.state.tree import Parts, Tree, pack, unpack
from streamkd.streams.log.database import insert
from streamkd.streams.log.dead_letters import DeadLetters, letters

logger = logging.getLogger(__name__)
_SELECT = "SELECT id, records, epoch, created, bytes, offsets, sha256 FROM checkpoints"


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A committed checkpoint; ``offsets`` is the next record of each partition, ``sha256`` a hash per file."""

    id: int
    records: int
    epoch: int
    created: float
    bytes: int
    offsets: Mapping[str, int]
    sha256: Mapping[str, str]

    def has_seen(self, before: Mapping[str, int]) -> bool:
        """Whether it has learned a record at one of these offsets, or after it."""
        return any(self.offsets.get(partition, 0) > offset for partition, offset in before.items())


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A checkpoint read back: ``tree`` is what was saved, on the CPU; ``skipped`` damaged ones with what is wrong."""

    info: CheckpointInfo
    tree: Tree
    config: dict[str, Tree]
    environment: dict[str, Tree]
    skipped: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class DeadBatch:
    """Refused rows of one chunk, to be kept with the offsets that pass over them; one offset per row of ``rows``."""

    rejects: Sequence[Reject]
    rows: pa.RecordBatch
    source: str
    offsets: Sequence[int]


class CheckpointStore:
    """The checkpoints of one state directory: ``checkpoints/<id>/`` and a row each.

    The newest ``keep``, and older ones to go back to in ``history_bytes`` (``streamkd.state.history``).
    """

    def __init__(
        self, directory: StateDirectory, keep: int = 3, read_only: bool = False, *, history_bytes: int = 0
    ) -> None:
        self._directory = directory
        self._keep, self._history_bytes = keep, history_bytes
        self._damaged: set[int] = set()
        self._segments = Segments()
        self._connection = directory.connect(read_only)
        self._letters = DeadLetters(self._connection)
        self._leftovers = Leftovers(directory.checkpoints, self._connection, lambda: {info.id for info in self.list()})
        if directory.epoch is not None and not read_only:
            self._letters.create()
            self._leftovers.clear()

    def save(
        self,
        tree: Tree,
        *,
        offsets: Mapping[str, int],
        records: int,
        config: Mapping[str, Tree],
        environment: Mapping[str, Tree],
        dead_letters: Sequence[DeadBatch] = (),
        marks: Mapping[str, str] | None = None,
        begins: Mapping[str, int] | None = None,
    ) -> CheckpointInfo:
        """Commit the state after ``records`` records together with the next offset of every partition.

        ``marks`` says of a partition that is a log what tells its last learned record (``Log.mark``), ``begins`` its
        first record: from an older checkpoint before that nothing can be learned any more, so that it goes.

        Raises:
            StateError: the disk is full, the tree holds something that cannot be stored, or another learner
                has taken over. The checkpoint before is intact and nothing else is left.
        """
        parts = pack(tree)
        state = {
            "format": files.FORMAT,
            "records": records,
            "offsets": dict(offsets),
            "environment": _plain(environment),
        }
        with self._leftovers.beside("the checkpoint was not saved, the one before is intact") as folder:
            fence(self._connection, self._directory.epoch, self._directory.path)
            state["segments"], stored = self._segments.write(folder, parts.rows)
            hashes = files.write(folder, parts, state, _plain(config))
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            row = {
                "records": records,
                "epoch": self._directory.epoch,
                "created": time.time(),
                "bytes": size,
                "offsets": json.dumps(dict(offsets)),
                "sha256": json.dumps(hashes),
                "marks": json.dumps(dict(marks or {})),
            }
            info = self._commit(folder, row, dead_letters, begins or {})
            self._segments.keep(stored, self._directory.checkpoints / str(info.id))
            return info

    def latest(self, before: Mapping[str, int] | None = None) -> Snapshot | None:
        """The newest whole checkpoint, that has seen no record at or after ``before``; ``None`` where there is none.

        Raises:
            CheckpointDamaged: there are checkpoints, and none is whole.
            StateConflict: it was written by a newer streamkd.
        """
        skipped: dict[int, str] = {}
        while (info := self._newest(skipped, before or {})) is not None:
            try:
                folder = self._directory.checkpoints / str(info.id)
                parts, state, config = files.read(folder, info.sha256)
                _refuse_other_place(info, state)
                parts.rows, stored = self._segments.read(folder, state.get("segments", {}))
            except (OSError, CheckpointDamaged) as fault:
                if info.id in {kept.id for kept in self.list()}:  # else retention was faster than the reader
                    logger.warning("checkpoint %d is passed over: %s", info.id, fault)
                    skipped[info.id] = str(fault)
                continue
            self._damaged.update(skipped)
            self._segments.keep(stored, folder)
            return Snapshot(info, unpack(parts), unpack(Parts(config)), unpack(Parts(state["environment"])), skipped)
        if skipped and not before:
            raise CheckpointDamaged(
                "no checkpoint is whole: " + "; ".join(f"{number}: {why}" for number, why in skipped.items()),
                where=str(self._directory.checkpoints),
                fix="restore the directory from a copy, or begin anew with --state elsewhere",
            )
        return None

    def list(self) -> Sequence[CheckpointInfo]:
        """What is kept, oldest first; the files are not read."""
        rows = self._connection.execute(f"{_SELECT} ORDER BY id").fetchall()
        return [CheckpointInfo(*(*row[:5], json.loads(row[5]), json.loads(row[6]))) for row in rows]

    def oldest_offsets(self) -> dict[str, int]:
        """The smallest offset per partition of the newest ``keep``: by need nothing before it is read again."""
        oldest: dict[str, int] = {}
        for info in self.list()[-self._keep :]:
            for partition, offset in info.offsets.items():
                oldest[partition] = min(offset, oldest.get(partition, offset))
        return oldest

    def close(self) -> None:
        self._connection.close()

    def _newest(self, skipped: Mapping[int, str], before: Mapping[str, int]) -> CheckpointInfo | None:
        left = [info for info in self.list() if info.id not in skipped and not info.has_seen(before)]
        return left[-1] if left else None

    def _commit(
        self,
        folder: Path,
        row: Mapping[str, Tree],
        dead_letters: Sequence[DeadBatch],
        begins: Mapping[str, int],
    ) -> CheckpointInfo:
        with self._leftovers.commit() as writer:
            fence(writer, self._directory.epoch, self._directory.path)
            if self._damaged:
                self._forget()
            for batch in dead_letters:
                self._letters.put(letters(batch.rejects, batch.rows, batch.source, batch.offsets))
            serial = 1 + max(self._serials(writer).values(), default=0)
            number = insert(writer, "checkpoints", {**row, "letters": self._letters.total(), "serial": serial})
            gone = self._retire(writer, begins)
            self._leftovers.begin(number, gone)
            self._leftovers.name(folder, number)
        self._damaged.difference_update(gone)
        return self.list()[-1]

    def _forget(self) -> None:
        """After a fall-back: drop the letters of the damaged checkpoints, whose rows have been read again."""
        marks = ", ".join("?" * len(self._damaged))
        query = (
            f"SELECT max(letters) FROM checkpoints WHERE id < (SELECT min(id) FROM checkpoints WHERE id IN ({marks}))"
        )
        kept = self._connection.execute(query, tuple(self._damaged)).fetchone()[0]
        self._letters.forget_after(kept or 0)

    def _serials(self, writer: sqlite3.Connection) -> dict[int, int]:
        """By number, how many led to it; in a row of an older streamkd its number says so."""
        return dict(writer.execute("SELECT id, coalesce(serial, id) FROM checkpoints").fetchall())

    def _retire(self, writer: sqlite3.Connection, begins: Mapping[str, int]) -> Sequence[int]:
        """Drop the rows beyond the newest ``keep`` whole ones and their history, and those found damaged."""
        serials = self._serials(writer)
        newest = sorted(set(serials) - self._damaged, reverse=True)[: self._keep]
        kept = {*newest, *(self._history(serials, newest, begins) if self._history_bytes else ())}
        gone = sorted(set(serials) - kept)
        writer.executemany("DELETE FROM checkpoints WHERE id = ?", [(number,) for number in gone])
        return gone

    def _history(self, serials: Mapping[int, int], newest: Sequence[int], begins: Mapping[str, int]) -> Sequence[int]:
        """Those beside the ``newest`` from which the stream can still be learned."""
        useful = {info.id for info in self.list() if all(info.offsets.get(p, at) >= at for p, at in begins.items())}
        older = [each for each in history.sparse(serials) if each in useful - {*newest} - self._damaged]
        return history.within(self._history_bytes, older, newest, self._directory.checkpoints)


def _refuse_other_place(info: CheckpointInfo, state: Mapping[str, Tree]) -> None:
    """The row's offsets are hashed nowhere; the file's are.

    Raises:
        CheckpointDamaged: the row says another place of the stream than the file.
    """
    written = (state["records"], state["offsets"])
    if written != (info.records, info.offsets):
        said = f"its row says record {info.records}, offsets {info.offsets}; its state.json {written[0]}, {written[1]}"
        raise CheckpointDamaged(said, where=f"checkpoints/{info.id}")


def _plain(values: Mapping[str, Tree]) -> Tree:
    """A document that is JSON also where a value is infinite."""
    return pack(values).document
