"""What the analytic teacher looks at: random features of a record, or what a frozen network makes of it.

    raw x [batch, *shape] ─┬─► Normalise ─► (a student's body ─►) RandomFeatures ─┐
                           └─► its own columns ─► network without its head ───────┴─► h [batch, width]

A network comes from a file that the teacher ``checkpoint`` takes (``streamkd.teachers.checkpoint``): of a student, what
its head would read; of an ONNX model, what it gives. It is never trained and belongs to no state: checkpoints keep its
hash, a published version the files themselves, so that whoever answers requests needs nothing else.

A body is that of a student's kind as it is at its beginning, never trained: of a student on a frozen encoder, the
encoder's vectors. It follows from its options and the seed, as random features do.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import ValidationError
from torch import Tensor, nn

from streamkd.analytic.random_features import RandomFeatures
from streamkd.errors import PluginError, StateError
from streamkd.plugins import Registry
from streamkd.records import RecordSchema
from streamkd.students.images import is_image
from streamkd.students.networks import Normalise, Student
from streamkd.teachers import checkpoint
from streamkd.teachers.checkpoint import CheckpointOptions, FrozenModel
from streamkd.teachers.frozen import digest

FOLDER = "features"  # of a version: the network's files


class NetworkFeatures(nn.Module):
    """Features of raw records [batch, *shape] of the stream: a model's, which sees the columns that it needs.

    Shape: [batch, *shape] to [batch, width] float32. ``identity`` is what they follow from.

    Raises:
        PluginError: columns that are missing or do not fit, or an output that is no vector.
    """

    def __init__(self, model: FrozenModel, options: CheckpointOptions, schema: RecordSchema) -> None:
        super().__init__()
        where = str(options.path)
        self._columns = checkpoint.columns_of(model, options.columns, schema, where)
        self._shape = (model.schema or self._columns.schema).shape
        self._files, self._output = model.files, options.output
        if isinstance(model.network, Student):
            model.network.body.head = nn.Identity()
        self.network = model.network
        self.identity = checkpoint.identity(model, self._columns.schema) | {"output": options.output}
        self.width = self._width(schema, where)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Float[Tensor, "batch features"]:
        return self.network(self._columns(x).reshape(len(x), *self._shape)).float()

    def train(self, mode: bool = True) -> "NetworkFeatures":
        """Frozen is at rest, whatever is around it."""
        return super().train(False)

    @property
    def columns(self) -> tuple[str, ...]:
        """The stream's columns that it reads."""
        return tuple(column.name for column in self._columns.schema.inputs)

    def write(self, directory: Path) -> dict[str, Any]:
        """Copy its files into a version's directory; what ``load`` needs to know beside them.

        Raises:
            StateError: they are gone, or others now.
        """
        folder = directory / FOLDER
        folder.mkdir()
        try:
            copies = [Path(shutil.copyfile(file, folder / f"model{file.suffix}")) for file in self._files]
        except OSError as fault:
            raise StateError(f"the features' network cannot be copied: {fault}", where=str(self._files[0])) from fault
        if checkpoint.sha256(*copies) != self.identity["sha256"]:
            raise StateError(
                "needed the features' network as it was at the start, got other files",
                where=str(self._files[0]),
                fix="put the first back; new ones go to another path, for a teacher of another id",
            )
        return {"columns": list(self.columns), "output": self._output}

    def _width(self, schema: RecordSchema, where: str) -> int:
        """The length of its output, found by asking it about a record of zeros."""
        found = self(torch.zeros(1, *schema.shape))
        if found.dim() != 2:
            raise PluginError(
                f"needed features [batch, width], got {list(found.shape)}",
                where=where,
                fix="name a network whose last layer reads one vector for each record",
            )
        return int(found.shape[1])


class BodyFeatures(nn.Module):
    """What a student of a kind shows its head at its beginning, and ``dense`` random features of it, side by side.

    Shape: [batch, *shape] normalised to [batch, width] float32. ``about`` is what it follows from, ``identity`` tells
    it from others.

    Raises:
        PluginError: there is no such student, or its options are not right.
    """

    def __init__(self, about: Mapping[str, Any], shape: tuple[int, ...], registry: Registry) -> None:
        super().__init__()
        self.about = dict(about)
        name = about["name"]
        try:
            options = registry.options("students", name, about["options"], "teacher analytic, body")
        except ValidationError as fault:
            said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in fault.errors())
            raise PluginError(f"body {name}: {said}", where="teacher analytic") from None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(about["seed"])
            self.body = registry.kind("students", name).make(options, shape, 1)
        reads = self.body.head.in_features
        self.body.head = nn.Identity()
        self.random = RandomFeatures((reads,), 0, about["dense"], about["seed"])
        self.width = reads + about["dense"]
        self.requires_grad_(False)
        chosen = {**about["options"], "dense": about["dense"], "seed": about["seed"]}
        self.identity = {"body": name, **{f"body.{key}": json.dumps(value) for key, value in chosen.items()}}
        self.identity["sha256"] = digest(self.body)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Float[Tensor, "batch features"]:
        h = self.body(x)
        return torch.cat([h, self.random(h)], 1) if len(self.random.weight) else h

    def train(self, mode: bool = True) -> "BodyFeatures":
        """Frozen is at rest, whatever is around it."""
        return super().train(False)


Extractor = RandomFeatures | NetworkFeatures | BodyFeatures


def network(options: CheckpointOptions, schema: RecordSchema, registry: Registry) -> NetworkFeatures:
    """Features of a model's file for records of a stream.

    Raises:
        StateError: files are missing or do not fit each other. PluginError: the model does not fit the records.
    """
    return NetworkFeatures(checkpoint.read(options, schema, registry), options, schema)


def random(normalise: Normalise, channels: int, dense: int | None, seed: int) -> RandomFeatures:
    """Random features of what a normalisation gives; ``dense`` None: 512 beside filters, else 1,000."""
    shape = normalise.columns.schema.shape
    channels = channels if is_image(shape) else 0
    return RandomFeatures(shape, channels, dense if dense is not None else 512 if channels else 1_000, seed)


def served(extractor: Extractor, columns: Sequence[str]) -> bool:
    """Whether requests that bring these columns bring all that it reads."""
    return not isinstance(extractor, NetworkFeatures) or set(extractor.columns) <= set(columns)


def write(directory: Path, extractor: Extractor) -> dict[str, Any]:
    """Put into a version's directory what ``load`` needs there, and say the rest."""
    if isinstance(extractor, NetworkFeatures):
        return {"network": extractor.write(directory)}
    if isinstance(extractor, BodyFeatures):
        return {"body": extractor.about}
    return {"channels": extractor.channels, "dense": len(extractor.weight), "seed": extractor.seed}


def load(
    directory: Path, about: Mapping[str, Any], schema: RecordSchema, registry: Registry
) -> tuple[Normalise | None, Extractor]:
    """The extractor of a version, and the normalisation before it where it has none of its own."""
    if "network" in about:
        onnx = directory / FOLDER / "model.onnx"
        path = onnx if onnx.exists() else directory / FOLDER
        return None, network(CheckpointOptions(path=path, **about["network"]), schema, registry)
    normalise = Normalise(schema)
    if "body" in about:
        return normalise, BodyFeatures(about["body"], normalise.columns.schema.shape, registry)
    return normalise, RandomFeatures(normalise.columns.schema.shape, **about)
