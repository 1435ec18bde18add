"""By what an export is compared with its version: records of the memory beside it, or of a file.

newest checkpoint's memory ─► held-out records ─► int8 ranges, accuracy ─┐
                           └► replayed records, which were learned ──────┴─► agreement
a file ─► all records ─► agreement, accuracy      (without a memory its first ones give the ranges, and only these)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from streamkd import config as configuration
from streamkd.config import Config
from streamkd.errors import RecordError, StateError
from streamkd.export.published import Published, encoded
from streamkd.plugins import Registry
from streamkd.records import Records
from streamkd.state.checkpoint import CheckpointStore
from streamkd.state.directory import StateDirectory
from streamkd.streams.files import formats
from streamkd.students.columns import Columns
from streamkd.wiring import schema_of

SAMPLE = 200  # records of a file that give the ranges of int8 where there is no memory
MOST = 20_000  # records of a file that are looked at
BATCH = 1_000  # of them, encoded together
NO_LABEL = -1


@dataclass(frozen=True, slots=True)
class Evidence:
    """Encoded records ``x`` [n, *shape] and the columns of their labels ``y`` [n]: -1 where accuracy is not told by it.

    ``sample`` [m, *shape] are those by which int8 ranges are set; ``told`` says in words what all of them are.
    """

    x: np.ndarray
    y: np.ndarray
    sample: np.ndarray
    told: str


def gather(directory: Path, published: Published, file: Path | None) -> Evidence:
    """Records for a version of a state directory, or of one of its own.

    Raises:
        StateError: there is no memory and no file. RecordError: the file's records do not fit.
    """
    remembered = memory_of(directory, published)
    memory = None if remembered is None else _evidence(remembered)
    if file is not None:
        return _of_file(file, published, memory)
    if memory is None:
        raise StateError(
            "there are no held-out records to compare the export by",
            where=str(directory),
            fix="name some: --records FILE, with the columns of the stream",
        )
    return memory


def _of_file(file: Path, published: Published, memory: Evidence | None) -> Evidence:
    rows = list[Records]()
    for batch in islice(formats.batches(file, BATCH), MOST // BATCH):
        rows.append(encoded(batch, published.schema, sum(map(len, rows))))
    if not rows:
        raise RecordError("the file has no rows", where=str(file))
    x = np.concatenate([records.inputs for records in rows])
    y = _columns([label for records in rows for label in records.labels], published.labels)
    sample, kept = (x[:SAMPLE], slice(SAMPLE, None)) if memory is None else (memory.sample, slice(None))
    if not len(x[kept]):
        raise RecordError(f"needed more than {SAMPLE} records, got {len(x)}", where=str(file))
    return Evidence(x[kept], y[kept], sample, f"{len(x[kept])} records of {file.name}")


def _columns(labels: Sequence[Any], known: Sequence[Any]) -> np.ndarray:
    """Of each label its column; one that the version does not know has a column that nobody answers."""
    places = {label: column for column, label in enumerate(known)}
    return np.array([NO_LABEL if label is None else places.get(label, len(known)) for label in labels])


def _evidence(memory: "MemoryRows") -> Evidence:
    told = f"{len(memory.held)} held-out and {len(memory.replayed)} replayed records of the memory"
    none = np.full(len(memory.replayed), NO_LABEL)
    x, y = np.concatenate([memory.held, memory.replayed]), np.concatenate([memory.held_y, none])
    return Evidence(x, y, memory.held, f"{told}, accuracy on the held-out ones")


@dataclass(frozen=True, slots=True)
class MemoryRows:
    """What the newest checkpoint of a version's state directory remembers, as the version sees it.

    Held-out and replayed records [n, *shape], and the columns of their labels: one more than there are for a label that
    the version does not know. ``config`` is the checkpoint's.
    """

    held: np.ndarray
    held_y: np.ndarray
    replayed: np.ndarray
    replayed_y: np.ndarray
    config: Config


def memory_of(directory: Path, published: Published) -> MemoryRows | None:
    """The memory beside a version; ``None`` where there is none, or nothing is held out."""
    state = StateDirectory(directory.parent.parent if directory.parent.name == "published" else directory)
    snapshot = CheckpointStore(state, read_only=True).latest() if state.exists() else None
    learned: Mapping[str, Any] = (snapshot.tree["learned"] if snapshot is not None else None) or {}
    if snapshot is None or not learned.get("memory"):
        return None
    config = configuration.from_tree(snapshot.config)
    columns = Columns(schema_of(config, Registry.load()), [column.name for column in published.schema.inputs])
    labels = snapshot.tree["labels"]["labels"]

    def part(ring: str) -> tuple[np.ndarray, np.ndarray]:
        x, y = _rows(learned["memory"][ring], columns)
        return x, _columns([labels[column] for column in y.tolist()], published.labels)

    held, replayed = part("holdout"), part("replayed")
    return MemoryRows(*held, *replayed, config) if len(held[0]) else None


def _rows(state: Mapping[str, Any], columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """The records of a ring as the version sees them, and their columns."""
    kept = state["taken"].columns if "taken" in state else state  # older checkpoints have a tensor for each
    if "x" not in kept:
        return np.zeros((0, *columns.schema.shape)), np.zeros(0, np.int64)
    x, y = (kept[name][: state["filled"]] for name in ("x", "y"))
    return columns(x).contiguous().numpy(), y.numpy()
