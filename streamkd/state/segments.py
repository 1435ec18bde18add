"""Segments: the rows of large tables in files that are only added, so that a checkpoint writes what has changed.

    StoredRows ─► those that changed since the checkpoint before ─► a new segment, beside links to the older ones
            └ the segments with the fewest rows still true go, and what was true in them is written again
    segments, the oldest first ─► each puts its rows into their places ─► StoredRows

A segment is never written to again. A checkpoint's folder has all that it needs, as hard links where a checkpoint
before has written it: so it is whole, is removed like any other, and a kill at any time leaves the others as they are.
Where the disk has no links, or the checkpoint before is gone, all rows are written anew. Called by ``checkpoint``.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from streamkd.errors import CheckpointDamaged
from streamkd.replay.table import Changes, StoredRows
from streamkd.state import files
from streamkd.state.directory import sync

FOLDER = "rows"
SEGMENT_BYTES = 8 << 20  # of a file at most
SPARE = 64  # files beyond twice those that the rows would fill
logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Stored:
    """What a checkpoint has of a table: ``files`` by number, each with its hash and rows; ``held`` [rows] says in which
    of them each row is; ``taken`` is the look at ``changes`` that it shows.
    """

    changes: Changes
    taken: int
    held: Tensor
    files: dict[int, tuple[str, int]] = field(default_factory=dict)


class Segments:
    """The segments of the newest checkpoint, from which the next one goes on."""

    def __init__(self) -> None:
        self._folder = Path()
        self._stored: dict[str, Stored] = {}

    def write(self, folder: Path, tables: Mapping[str, StoredRows]) -> tuple[dict[str, Any], dict[str, Stored]]:
        """Write tables into an empty folder, synced: what to read them by, and what to ``keep`` once that counts.

        Raises:
            OSError: the disk is full.
        """
        if not tables:
            return {}, {}
        (folder / FOLDER).mkdir(mode=0o700)
        stored = {key: self._write(folder / FOLDER, key, rows) for key, rows in tables.items()}
        sync(folder / FOLDER)
        about = {
            key: {
                "rows": len(rows),
                "columns": {name: [_name(column.dtype), *column.shape[1:]] for name, column in rows.columns.items()},
                "segments": [[number, sha256] for number, (sha256, _) in sorted(stored[key].files.items())],
            }
            for key, rows in tables.items()
        }
        return about, stored

    def keep(self, stored: Mapping[str, Stored], folder: Path) -> None:
        """These are in a checkpoint's folder, and it is the newest."""
        self._stored, self._folder = dict(stored), folder

    def read(self, folder: Path, about: Mapping[str, Any]) -> tuple[dict[str, StoredRows], dict[str, Stored]]:
        """The tables of a checkpoint's folder, and what to ``keep`` if it is gone on from.

        Raises:
            CheckpointDamaged: a segment has other bytes, or rows are in none.
        """
        found = {key: _read(folder / FOLDER, key, one) for key, one in about.items()}
        return {key: rows for key, (rows, _) in found.items()}, {key: stored for key, (_, stored) in found.items()}

    def _write(self, folder: Path, key: str, rows: StoredRows) -> Stored:
        before = self._stored.get(key)
        if before is not None and before.changes is rows.changes:
            following = _followed(before, rows)
            try:
                for number in following.files:
                    os.link(self._folder / FOLDER / _file(key, number), folder / _file(key, number))
            except OSError as fault:
                logger.warning("all rows of %s are written anew, as older ones cannot be linked: %s", key, fault)
                for number in following.files:
                    (folder / _file(key, number)).unlink(missing_ok=True)
            else:
                return _added(folder, key, rows, following)
        return _added(folder, key, rows, Stored(rows.changes, rows.taken, _nowhere(len(rows))))


def _followed(before: Stored, rows: StoredRows) -> Stored:
    """What of the older files is still good: rows that are to be written are in none."""
    held = _nowhere(len(rows))
    both = min(len(held), len(before.held))
    held[:both] = before.held[:both]
    held[rows.changes.since(before.taken, len(rows))] = -1
    true = torch.bincount(held + 1, minlength=2)[1:].tolist()
    left = {number: file for number, file in before.files.items() if number < len(true) and true[number]}
    most = SPARE + 2 * -(-len(rows) * _row_bytes(rows) // SEGMENT_BYTES)
    for number in sorted(left, key=lambda number: true[number]):
        if len(left) < most and sum(count for _, count in left.values()) <= 2 * len(rows):
            break
        del left[number]
    gone = torch.ones(max(before.files, default=0) + 2, dtype=torch.bool)
    gone[[number + 1 for number in left]] = False
    held[gone[held + 1]] = -1
    return Stored(rows.changes, rows.taken, held, left)


def _added(folder: Path, key: str, rows: StoredRows, stored: Stored) -> Stored:
    """With the rows that are in no file yet in new ones."""
    missing, following = torch.nonzero(stored.held < 0).flatten(), max(stored.files, default=-1) + 1
    pieces = missing.split(max(1, SEGMENT_BYTES // _row_bytes(rows))) if len(missing) else ()
    for number, places in enumerate(pieces, following):
        parts = {name: column[places.to(column.device)].cpu() for name, column in rows.columns.items()}
        content = safetensors.torch.save({**parts, "place": places})
        stored.files[number] = files.put(folder / _file(key, number), content), len(places)
        stored.held[places] = number
    return stored


def _read(folder: Path, key: str, about: Mapping[str, Any]) -> tuple[StoredRows, Stored]:
    count = about["rows"]
    kinds = {name: (getattr(torch, kind), (count, *shape)) for name, (kind, *shape) in about["columns"].items()}
    columns = {name: torch.zeros(shape, dtype=dtype) for name, (dtype, shape) in kinds.items()}
    changes = Changes(count)
    stored = Stored(changes, 0, _nowhere(count))
    for number, sha256 in about["segments"]:
        path = folder / _file(key, number)
        parts = safetensors.torch.load(files.get(path, sha256))
        places = parts.pop("place")
        here = places < count
        for name, part in parts.items():
            columns[name][places[here]] = _wide(part[here], columns[name])
        stored.held[places[here]] = number
        stored.files[number] = sha256, len(places)
    if (stored.held < 0).any():
        lost = int((stored.held < 0).sum())
        raise CheckpointDamaged(f"needed {count} rows, {lost} are in no segment", where=str(folder))
    return StoredRows(columns, changes), stored


def _file(key: str, number: int) -> str:
    return f"{key.strip('/').replace('/', '+')}-{number:08d}.safetensors"


def _wide(rows: Tensor, like: Tensor) -> Tensor:
    """With zeros where the table has grown since: in classes, or in teachers."""
    pairs = zip(reversed(like.shape[1:]), reversed(rows.shape[1:]), strict=True)
    return torch.nn.functional.pad(rows, [n for now, then in pairs for n in (0, now - then)])


def _nowhere(rows: int) -> Tensor:
    return torch.full((rows,), -1, dtype=torch.int64)


def _row_bytes(rows: StoredRows) -> int:
    return max(1, sum(column[:1].nbytes for column in rows.columns.values()))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
