"""``streamkd.load``: a published version as a plain module, outside of any server.

    model = streamkd.load("state")                                    # what it serves; or a version's own directory
    logits = model(model.encode([{"image": pixels}]))                 # [1, classes]
    model.labels[int(logits[0].argmax())]

It is a ``torch.nn.Module`` like any other: it moves to a device, goes into a loop, is exported (``streamkd.export``).
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor, nn

from streamkd.errors import CheckpointDamaged, RecordError, StateError
from streamkd.plugins import Registry
from streamkd.records import Label, Records, RecordSchema
from streamkd.state.directory import StateDirectory
from streamkd.state.versions import VersionStore, digest
from streamkd.streams.encoding import codec
from streamkd.teachers import served
from streamkd.teachers.served import Model

ABOUT = "version.json"


class Published(nn.Module):
    """Encoded records [batch, *shape] to logits [batch, classes], a column for each of ``labels``.

    ``schema`` says what a record holds, ``version`` is its number (0: it has none), ``records`` how many it has learned
    of. ``model`` is the network itself: a student, or several parts (``streamkd.teachers.served``).
    """

    def __init__(
        self, model: Model, labels: Sequence[Label], schema: RecordSchema, version: int = 0, records: int = 0
    ) -> None:
        super().__init__()
        self.model, self.labels, self.schema = model, list(labels), schema
        self.version, self.records = version, records

    def forward(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        return self.model(x)

    def encode(self, rows: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]] | pa.RecordBatch) -> Tensor:
        """Raw rows as the module takes them [n, *shape]: a mapping for each, a sequence for each column, or Arrow.

        Raises:
            RecordError: a row that cannot be read, or a column that is missing.
        """
        records = encoded(_in_arrow(rows), self.schema)
        return torch.from_numpy(np.require(records.inputs, requirements=("C", "W")))


def load(directory: Path | str, registry: Registry | None = None) -> Published:
    """The version that a state directory serves, newest or pinned, or the one in a version's own directory.

    Raises:
        StateError: there is none, or its files do not fit each other. CheckpointDamaged: they are not what was written.
        PluginError: a plugin that it is made with is not installed.
    """
    folder = version_in(Path(directory))
    number = json.loads((folder / ABOUT).read_text("utf-8"))["version"] if (folder / ABOUT).is_file() else 0
    found = served.load(folder, registry or Registry.load(), number)
    return Published(found.student, found.classes, found.schema, found.version, found.records)  # type: ignore[arg-type]


def version_in(directory: Path) -> Path:
    """The folder of that version, its files as they were published."""
    if (directory / "model.json").is_file():
        return _whole(directory)
    state = StateDirectory(directory)
    if not state.exists():
        raise StateError(
            "is no state directory and no published version",
            where=str(directory),
            fix="name what `streamkd serve --state` made, or a folder in its published/",
        )
    with closing(VersionStore(state, read_only=True)) as versions:
        info = versions.served()
        if info is None:
            raise StateError(
                "has no published version yet", where=str(directory), fix="let `streamkd serve` run a little longer"
            )
        return versions.read(info.version)


def encoded(rows: pa.RecordBatch, schema: RecordSchema) -> Records:
    """Rows as records, their labels where they have some.

    Raises:
        RecordError: one of them cannot be read; the first is told.
    """
    alone = {"unlabelled": True, **dict.fromkeys(("task", "producer", "id", "event_time"))}
    records, rejects = codec.encode(rows, schema.model_copy(update=alone), 0)
    if rejects:
        first = rejects[0]
        raise RecordError(f"{len(rejects)} rows cannot be read, the first: {first.detail}", where=f"row {first.row}")
    return records


def _whole(folder: Path) -> Path:
    """The folder, unless it says of itself that its files were others."""
    if (folder / ABOUT).is_file():
        wanted, got = json.loads((folder / ABOUT).read_text("utf-8"))["sha256"], digest(folder)
        if wanted != got:
            raise CheckpointDamaged(
                f"needed sha256 {wanted[:12]}, got {got[:12]}", where=str(folder), fix="take another version"
            )
    return folder


def _in_arrow(rows: Any) -> pa.RecordBatch:
    if isinstance(rows, pa.RecordBatch):
        return rows
    if not isinstance(rows, Mapping):
        names = list(dict.fromkeys(name for row in rows for name in row))
        rows = {name: [row.get(name) for row in rows] for name in names}
    try:
        return pa.RecordBatch.from_pydict({name: [*map(_plain, values)] for name, values in rows.items()})
    except (pa.ArrowException, TypeError) as fault:
        raise RecordError(f"needed columns of one type and length each, got others: {fault}") from None


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic | Tensor) else value
