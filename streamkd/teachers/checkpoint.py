"""The teacher ``checkpoint``: a model from outside, read from a file, frozen, asked about fresh rows too.

    path ─► FrozenModel (network, classes, how it sees a record) ─► its own columns of each record ─► its outputs,
    put into the columns of the stream's label space by label

A path is a directory with ``model.safetensors`` and ``model.json`` (what is published, and what `streamkd teachers
train` writes), a safetensors file with such a JSON of its own name beside it, or an ONNX model beside which a JSON may
give ``classes`` and ``schema``. The model may be of another architecture than the student, know other classes, and read
other columns, normalised in its own way. Labels that it does not have are masked; one that the stream brings later is
heard from then on.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from streamkd.errors import PluginError, StateConflict, StateError
from streamkd.hookspecs import Kind, Options, hookimpl
from streamkd.plugins import Registry
from streamkd.records import InputColumn, Label, RecordSchema
from streamkd.students.columns import Columns
from streamkd.students.networks import Normalise, read_model
from streamkd.teachers.onnx import OnnxNetwork
from streamkd.teachers.teacher import Role, TeacherContext, layer_outputs, module_bytes


class CheckpointOptions(Options):
    """Which file, which columns it reads, and what its outputs stand for."""

    path: Path = Field(
        description="a model's directory, a .safetensors file with its .json beside it, or an .onnx file"
    )
    columns: tuple[str, ...] = Field(
        default=(), description="the stream's columns in the order of the model's inputs; empty: those of its own names"
    )
    classes: tuple[Label, ...] | None = Field(
        default=None, min_length=1, description="the stream's labels in the order of its outputs; None: its own"
    )
    output: str = Field(default="", description="ONNX: the output that is read; empty: the first")
    probabilities: bool = Field(default=False, description="ONNX: the output holds probabilities, not logits")


@dataclass(frozen=True)
class FrozenModel:
    """A frozen network with what its outputs and inputs mean.

    ``outputs`` is how many it has. ``schema`` is how the network itself sees a record (``None``: it does not say),
    ``sha256`` that of its files.
    """

    network: nn.Module
    outputs: int
    classes: Sequence[Label]
    schema: RecordSchema | None
    files: tuple[Path, ...]
    sha256: str
    size_bytes: int


class CheckpointTeacher:
    """A frozen model whose columns and classes are matched to the stream's by name.

    Versioned, not frozen: its answers in the label space's columns change when a label that it knows is new there.
    """

    role: Role = "versioned"
    fresh = True

    def __init__(self, options: CheckpointOptions, context: TeacherContext) -> None:
        self.key = context.key
        where = f"teacher {context.key}: {options.path}"
        model = read(options, context.schema, context.registry or Registry.load())
        self._columns = columns_of(model, options.columns, context.schema, where)
        self._shape = (model.schema or self._columns.schema).shape
        self.network = model.network.to(context.device)
        self.classes: tuple[Label, ...] = tuple(_classes_of(model, options, context.schema, where))
        self._size = model.size_bytes
        self._identity = identity(model, self._columns.schema) | {"classes": json.dumps(list(self.classes))}
        self._device = context.device
        self.grow(context.labels)

    @property
    def version(self) -> int:
        """How many labels of the stream it knows."""
        return len(self._places)

    @torch.no_grad()
    def logits(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        """The model's outputs in the label space's columns; 0 in those that it does not know."""
        outputs = self.network(self._seen(x))
        placed = outputs.new_zeros(len(x), self._width)
        placed[:, self._places] = outputs[:, self._outputs]
        return placed

    def known(self) -> Bool[Tensor, "classes"]:
        mask = torch.zeros(self._width, dtype=torch.bool)
        mask[self._places] = True
        return mask

    @torch.no_grad()
    def features(self, x: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        """Outputs of the model's named layers.

        Raises:
            PluginError: a layer that the model does not have; an ONNX model has none.
        """
        return layer_outputs(self.network, self._seen(x), layers) if layers else {}

    def grow(self, labels: Sequence[Label]) -> None:
        """The label space is now this; which outputs go where follows from the labels alone."""
        outputs = {label: output for output, label in enumerate(self.classes)}
        pairs = [(column, outputs[label]) for column, label in enumerate(labels) if label in outputs]
        self._width = len(labels)
        self._places, self._outputs = [column for column, _ in pairs], [output for _, output in pairs]

    def size_bytes(self) -> int:
        return self._size

    def state_dict(self) -> dict[str, Any]:
        return dict(self._identity)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check that this is the teacher that the remembered answers came from.

        Raises:
            StateConflict: the file, its columns or its classes are others now.
        """
        same(self._identity, state, f"teacher {self.key}")

    def _seen(self, x: Tensor) -> Tensor:
        return self._columns(x).reshape(len(x), *self._shape)


def read(options: CheckpointOptions, schema: RecordSchema, registry: Registry) -> FrozenModel:
    """The model of a path; ``schema`` is the stream's.

    Raises:
        StateError: files are missing or do not fit each other. PluginError: no such student.
        MissingExtra: onnxruntime is not installed.
    """
    path = options.path
    if path.suffix == ".onnx":
        return _read_onnx(options, schema)
    if not path.exists():
        raise StateError("there is no such model", where=str(path), fix="name a directory or file that is there")
    if not path.is_dir() and path.suffix not in (".safetensors", ".json"):
        raise StateError(
            "needed a version's folder, a .safetensors or an .onnx file",
            where=str(path),
            fix="`streamkd teachers train` and publishing write such folders",
        )
    if path.is_dir() and not (path / "model.json").is_file():
        raise StateError("the folder holds no model.json", where=str(path), fix="name a version's folder in it")
    if path.suffix == ".json":
        raise StateError("needed a model, got what is said beside one", where=str(path), fix="name its .safetensors")
    weights, about = (path / "model.safetensors", path / "model.json") if path.is_dir() else (path, _beside(path))
    student, own, meta = read_model(weights, about, registry)
    files, classes = (weights, about), meta["classes"]
    return FrozenModel(student, len(classes), classes, own, files, sha256(*files), module_bytes(student))


def _read_onnx(options: CheckpointOptions, schema: RecordSchema) -> FrozenModel:
    """An ONNX model; what is said beside it about its records is how they are normalised before it sees them."""
    path, about = options.path, _beside(options.path)
    if not path.exists():
        raise StateError("there is no such model", where=str(path), fix="name a file that is there")
    try:
        meta = json.loads(about.read_text("utf-8")) if about.exists() else {}
        own = RecordSchema.model_validate(meta["schema"]) if "schema" in meta else None
    except (OSError, ValueError, TypeError) as fault:
        raise StateError(f"what is said of the model cannot be read: {fault}", where=str(about)) from fault
    seen = own or chosen(schema, options.columns, str(path), "name columns of the stream: columns: [...]").schema
    network = OnnxNetwork(path, seen, output=options.output, probabilities=options.probabilities)
    whole: nn.Module = nn.Sequential(Normalise(own), network) if own else network
    files = tuple(file for file in (path, about) if file.exists())
    classes = list(meta.get("classes", range(network.outputs)))
    return FrozenModel(whole.eval(), network.outputs, classes, own, files, sha256(*files), path.stat().st_size)


_NAMES = "name the stream's labels in the order of its outputs: classes: [...]"


def _beside(path: Path) -> Path:
    """The JSON of a file: of its own name, or model.json."""
    own = path.with_suffix(".json")
    return own if own.exists() else path.with_name("model.json")


def sha256(*files: Path) -> str:
    """One hash over files in their order."""
    total = hashlib.sha256()
    for file in files:
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def columns_of(model: FrozenModel, names: Sequence[str], schema: RecordSchema, where: str) -> Columns:
    """The stream's columns that the model reads: those named, else those of its own names.

    Raises:
        PluginError: a column is missing, or is not what the model reads.
    """
    own = model.schema.inputs if model.schema else ()
    names = names or tuple(column.name for column in own)
    fix = f"name the stream's columns in the order of its inputs ({_said(own) or 'any'}): columns: [...]"
    columns = chosen(schema, names, where, fix)
    theirs = columns.schema.inputs
    if own and [(c.kind, c.width) for c in own] != [(c.kind, c.width) for c in theirs]:
        raise PluginError(f"needed {_said(own)}, got {_said(theirs)}", where=where, fix=fix)
    return columns


def chosen(schema: RecordSchema, names: Sequence[str], where: str, fix: str) -> Columns:
    """These columns of the stream.

    Raises:
        PluginError: a name that is none of them.
    """
    try:
        return Columns(schema, names)
    except ValueError as fault:
        raise PluginError(str(fault), where=where, fix=fix) from None


def _said(columns: Sequence[InputColumn]) -> str:
    return ", ".join(f"{column.name} {column.kind} {list(column.shape)}" for column in columns)


def _classes_of(model: FrozenModel, options: CheckpointOptions, schema: RecordSchema, where: str) -> Sequence[Label]:
    """The stream's label that each output stands for.

    Raises:
        PluginError: not one for each output, one twice, or of another type than the stream's.
    """
    classes = options.classes or model.classes
    if len(classes) != model.outputs or len(set(classes)) != len(classes):
        raise PluginError(
            f"needed {model.outputs} different classes, one for each output, got {list(classes)}",
            where=where,
            fix=_NAMES,
        )
    needed = int if schema.label_type == "int" else str
    if not all(isinstance(label, needed) for label in classes):
        raise PluginError(
            f"the stream's labels are of type {schema.label_type}, those of the model are {list(classes)[:10]}",
            where=where,
            fix=_NAMES,
        )
    return classes


def identity(model: FrozenModel, schema: RecordSchema) -> dict[str, str]:
    """What a model's answers follow from: its files, and the columns that it reads of ``schema``."""
    return {"sha256": model.sha256, "columns": json.dumps([column.name for column in schema.inputs])}


def same(now: Mapping[str, str], before: Mapping[str, str], where: str) -> None:
    """Check that what a state was made with is what is here.

    Raises:
        StateConflict: it is not; both are named.
    """
    for what in {**before, **now}:
        needed, got = before.get(what, "none"), now.get(what, "none")
        if needed != got:
            raise StateConflict(
                f"needed the {what} {needed:.80} of the checkpoint, got {got:.80}",
                where=where,
                fix="go back to the first, or give the new teacher another id",
            )


@hookimpl
def streamkd_teachers() -> Iterable[Kind]:
    """Models from outside."""
    yield Kind("checkpoint", CheckpointTeacher, CheckpointOptions, "a model from a file: any student's, or ONNX")
