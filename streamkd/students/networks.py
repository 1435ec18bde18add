"""Students: the small networks that learn, their normalisation inside, their head growing with the labels.

    raw inputs [batch, *shape] ─► Normalise (of its own columns) ─► body ─► logits [batch, classes]

``build`` makes one, ``grow`` widens its head (optimiser state follows), ``write_published`` and
``load_published`` carry one over to the process that answers requests.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from streamkd.errors import PluginError, StateError
from streamkd.hookspecs import Kind, Options, hookimpl
from streamkd.plugins import Registry
from streamkd.records import InputColumn, Label, RecordSchema
from streamkd.students.columns import Amounts, Columns
from streamkd.students.images import CHANNELS, SMALLEST

torch_dtype = {name: getattr(torch, name) for name in ("uint8", "int8", "int16", "int32", "int64", "float16")}
torch_dtype |= {"float32": torch.float32, "float64": torch.float64}
M = TypeVar("M", bound=nn.Module)
Width = Annotated[int, Field(gt=0)]
WEIGHTS = "model.safetensors"


class MlpOptions(Options):
    """A multi-layer perceptron."""

    hidden: tuple[Width, ...] = Field(default=(256, 256), description="width of each hidden layer")


class ConvnetOptions(Options):
    """A small convolutional network for images."""

    channels: tuple[Width, ...] = Field(default=(32, 64), min_length=1, description="channels; each halves the image")
    hidden: Width = 128
    channels_last: bool = Field(default=False, description="images of 1, 3 or 4 pixels' height are meant as they are")


class Mlp(nn.Module):
    """Linear and ReLU layers over the flattened input."""

    def __init__(self, options: MlpOptions, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        widths = [int(np.prod(shape)), *options.hidden]
        layers = [nn.Linear(before, after) for before, after in pairwise(widths)]
        self.hidden = nn.ModuleList(layers)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return self.head(x)


class Convnet(nn.Module):
    """3×3 convolutions with ReLU and 2×2 pooling, one hidden layer; no batch normalisation, which streams upset."""

    def __init__(self, options: ConvnetOptions, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        if len(shape) not in (2, 3):
            raise PluginError(
                f"needed an input of (height, width) or (height, width, channels), got {shape}",
                where="student convnet",
                fix="set the column's shape, or take the student mlp",
            )
        height, width, channels = (*shape, 1)[:3]
        if not options.channels_last and height in CHANNELS and min(width, channels) >= SMALLEST:
            raise PluginError(
                f"needed (height, width, channels), got {list(shape)}, which looks like {height} channels first",
                where="student convnet",
                fix="write layout: CHW beside the column's shape; channels_last: true under student if they are "
                f"{height} pixels high",
            )
        steps = [channels, *options.channels]
        self.convolutions = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(steps))
        for _ in options.channels:
            if min(height, width) > 1:
                height, width = height // 2, width // 2
        self.hidden = nn.Linear(steps[-1] * height * width, options.hidden)
        self.head = nn.Linear(options.hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1) if x.dim() == 3 else x.permute(0, 3, 1, 2)
        for convolution in self.convolutions:
            x = convolution(x)
            if min(x.shape[-2:]) > 1:
                x = torch.max_pool2d(x, 2)
            x = torch.relu(x)  # the greatest first: the same numbers, and a quarter of them to look at
        return self.head(torch.relu(self.hidden(x.flatten(1))))


@hookimpl
def streamkd_students() -> Iterable[Kind]:
    """The built-in students."""
    yield Kind("mlp", Mlp, MlpOptions, "linear and ReLU layers; any input")
    yield Kind("convnet", Convnet, ConvnetOptions, "small convolutional network; images")


class Normalise(nn.Module):
    """``(x * scale - mean) / std`` in float32, as one multiply-add; mean and std may be fitted on the first records.

    Where a column says ``follow`` they go on by exponential forgetting over about as many records; a number that stands
    still meanwhile is not blown up: its std stays a tenth of the greatest that it had.

    Of the records' columns only those are seen that the schema gives to the student. What is no amount stays as it is,
    and an amount that was missing is 0, halfway between two rows as well: ``x * gain + bias * (1 - indicator)``. The
    statistics are those of what was there; they are buffers: they are checkpointed and published with the student.
    """

    gain: Tensor
    bias: Tensor
    moments: Tensor
    count: Tensor
    absent: Tensor
    least: Tensor

    def __init__(self, schema: RecordSchema) -> None:
        super().__init__()
        self.columns = Columns(schema, schema.student)
        schema = self.columns.schema
        columns = schema.inputs
        flat = len(columns) > 1
        gain, bias = (torch.cat(p).reshape(schema.shape) for p in zip(*map(_affine, columns), strict=True))
        plain = not flat and bool((gain == gain.flatten()[0]).all() and (bias == bias.flatten()[0]).all())
        self.fit = max(column.fit for column in columns)
        if plain and not self.fit:
            gain, bias = gain.flatten()[0].clone(), bias.flatten()[0].clone()
        self._amounts = Amounts(columns)
        fitted = torch.cat([torch.full((c.width,), bool(c.fit)) for c in columns])
        self._fitted = (fitted & self._amounts.all).reshape(schema.shape)
        self._following = torch.cat([torch.full((c.width,), c.follow) for c in columns]).reshape(schema.shape)
        self.follows = bool(self._following.any())
        self._scale = torch.cat([torch.full((c.width,), c.scale) for c in columns]).reshape(schema.shape)
        self.register_buffer("gain", gain)
        self.register_buffer("bias", bias)
        self.register_buffer("moments", torch.zeros((2, *schema.shape) if self.fit else (2, 0), dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        if self.fit and len(self._amounts.missing):
            self.register_buffer("absent", torch.zeros(schema.shape, dtype=torch.int64))
        if self.follows:
            self.register_buffer("least", torch.zeros(schema.shape, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        x = self.columns(x).float()
        z = (x * self.gain).add_(self.bias)
        if len(self._amounts.missing):
            z[:, self._amounts.missing] -= self.bias[self._amounts.missing] * x[:, self._amounts.told_by]
        return z

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Take the first ``fit`` records into mean and std, and where they follow, all others."""
        new = max(self.fit - int(self.count), 0)
        self._learn(self.columns(x[:new]), torch.ones_like(self._following))
        if self.follows:
            self._learn(self.columns(x[new:]), self._following)
            self._fade()

    def _learn(self, x: Tensor, which: Tensor) -> None:
        """Welford's update by batch, float64, of the elements ``which``."""
        if not len(x):
            return
        there = self._there(x) * which.to(x.device)
        before = int(self.count)
        seen, fresh = before - self._gone(), there.sum(0)
        x = x.double() * self._scale.to(x.device).double()
        total = (seen + fresh).clamp_min(1)
        mean = (x * there).sum(0) / fresh.clamp_min(1)
        shift = torch.where(fresh > 0, mean - self.moments[0], 0.0)
        self.moments[0] += shift * (fresh / total)
        self.moments[1] += ((x - mean) ** 2 * there).sum(0) + shift**2 * (seen * fresh / total)
        self.count.fill_(before + len(x))
        if "absent" in self._buffers:
            self.absent += (len(x) - fresh.long()) * which.to(x.device)
        self._take(total)

    def _fade(self) -> None:
        """What has been seen counts as ``fit`` records."""
        if (kept := self.fit / max(int(self.count), 1)) < 1:
            self.count.fill_(self.fit)
            faded = torch.where(self._following.to(self.moments.device), kept, 1.0)
            self.moments[1] *= faded
            if "absent" in self._buffers:
                self.absent.copy_((self.absent * faded).round())

    def _there(self, x: Tensor) -> Tensor:
        """float64 [batch, *shape] 1 where an amount was there."""
        there = torch.ones(x.shape, dtype=torch.float64, device=x.device)
        if len(self._amounts.missing):
            there[:, self._amounts.missing] -= x[:, self._amounts.told_by].double()
        return there

    def _gone(self) -> Tensor | int:
        """How many of the observed records had no such amount."""
        return self.absent if "absent" in self._buffers else 0

    def _take(self, total: Tensor) -> None:
        """The moments of so many records [*shape] as gain and bias."""
        std = (self.moments[1] / total).sqrt()
        # below the resolution of float32 a spread is rounding: the feature has been constant so far
        constant = std <= 1e-6 * self.moments[0].abs()
        std = torch.where(constant, torch.ones_like(std), std.clamp_min(1e-6))
        if self.follows:
            self.least.copy_(torch.maximum(self.least, torch.where(constant, 0.0, std / 10)))
            std = torch.where(self.least > 0, torch.maximum(torch.where(constant, 0.0, std), self.least), std)
        fitted = self._fitted.to(std.device)
        self.gain.copy_(torch.where(fitted, self._scale.to(std.device).double() / std, self.gain.double()))
        self.bias.copy_(torch.where(fitted, -self.moments[0] / std, self.bias.double()))


def _affine(column: InputColumn) -> tuple[Tensor, Tensor]:
    """Gain and bias of one column, flat; mean and std go over its last axis (channels). Amounts alone are scaled."""
    amounts = Amounts([column]).all
    gain, bias = torch.ones(column.width), torch.zeros(column.width)
    shape = (int(amounts.sum()),) if column.raw or column.kind in ("category", "time") else column.axes or (1,)
    mean, std = (torch.as_tensor(v, dtype=torch.float64).expand(shape).reshape(-1) for v in (column.mean, column.std))
    gain[amounts], bias[amounts] = (column.scale / std).float(), (-mean / std).float()
    return gain, bias


class Student(nn.Module):
    """A body behind its normalisation: raw inputs [batch, *shape] to logits [batch, classes]."""

    def __init__(self, body: nn.Module, schema: RecordSchema, seed: int) -> None:
        super().__init__()
        self.normalise = Normalise(schema)
        self.body = body
        self.seed = seed
        self._head_start: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or len(x) > 1:
            return self.body(self.normalise(x))
        with by_running_statistics(self.body):
            return self.body(self.normalise(x))

    @property
    def head(self) -> nn.Linear:
        """The last layer, one output per label."""
        return cast(nn.Linear, self.body.head)

    @property
    def classes(self) -> int:
        """Width of the head."""
        return self.head.out_features

    def known(self) -> Tensor:
        """bool [classes]: the classes of which its logits tell something."""
        return torch.ones(self.classes, dtype=torch.bool)

    def begin_from(self, start: Mapping[str, Tensor]) -> None:
        """Take the weights of a student of one class, whose head row then begins every class.

        Raises:
            ValueError: they are of another architecture, or this student knows more than one class.
        """
        try:
            self.load_state_dict(dict(start))
        except RuntimeError as fault:
            raise ValueError(f"the start does not fit the student: {fault}") from None
        self._head_start = start["body.head.weight"].clone(), start["body.head.bias"].clone()

    def grow(self, classes: int, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Widen the head to ``classes``; parameters stay the same objects, their optimiser state is padded with 0.

        A new row depends on the seed and its class alone, or is the one that ``begin_from`` gave to every class: so
        growing in steps equals growing at once.
        """
        head, more = self.head, classes - self.classes
        if more <= 0:
            return
        weights, biases = self._head_start or (_head_rows(head, self.seed, classes), torch.zeros(1))
        for parameter, rows in ((head.weight, weights), (head.bias, biases)):
            _append(cast(nn.Parameter, parameter), rows.to(parameter.device).expand(more, *rows.shape[1:]), optimizer)
        head.out_features = classes

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take the state of a student whose head may be wider."""
        self.grow(len(state["body.head.weight"]))
        self.load_state_dict(dict(state))


def _head_rows(head: nn.Linear, seed: int, classes: int) -> Tensor:
    """The rows from the head's width to ``classes``, each drawn from a generator of its own."""
    generator, bound = torch.Generator(), head.in_features**-0.5
    rows = torch.empty(classes - head.out_features, head.in_features)
    for column, row in enumerate(rows, head.out_features):
        row.uniform_(-bound, bound, generator=generator.manual_seed(seed * 1_000_003 + column))
    return rows


def _append(parameter: nn.Parameter, rows: Tensor, optimizer: torch.optim.Optimizer | None) -> None:
    """Rows at the end, all in one copy: one by one a head of 8,000 classes would be copied 8,000 times."""
    before = parameter.shape
    parameter.data = torch.cat([parameter.data, rows])
    parameter.grad = None
    for name, value in (optimizer.state.get(parameter, {}) if optimizer else {}).items():
        if isinstance(value, Tensor) and value.shape == before:
            optimizer.state[parameter][name] = torch.cat([value, torch.zeros_like(rows)])  # type: ignore[union-attr]


def build(
    kind: Kind,
    options: Options,
    schema: RecordSchema,
    classes: int,
    seed: int,
    start: Mapping[str, Tensor] | None = None,
) -> Student:
    """A fresh student; its first weights depend on the seed alone, or are ``start``, those of a student of one class.

    Raises:
        PluginError: the body has no linear layer ``head`` of that width. ValueError: ``start`` does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = kind.make(options, schema.only(schema.student).shape, 1)
    head = getattr(body, "head", None)
    if not isinstance(head, nn.Linear) or head.out_features != 1 or head.bias is None:
        raise PluginError(
            f"needed a torch.nn.Linear with bias and `classes` outputs as attribute `head`, got {head!r}",
            where=f"student {kind.name}",
            fix="name the last layer `head`; it is made for one class, and grows",
        )
    student = Student(body, schema, seed)
    if start:
        student.begin_from(start)
    student.grow(classes)
    return student


@contextmanager
def by_running_statistics(module: nn.Module) -> Iterator[None]:
    """Its batch normalisation goes by what was seen before, and does not move that: a lone row is no batch to go by."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.training]
    for part in norms:
        part.eval()
    try:
        yield
    finally:
        for part in norms:
            part.train()


@contextmanager
def at_rest(student: M) -> Iterator[M]:
    """The student in evaluation mode: being looked at must not draw from a generator, nor move a running mean."""
    training = student.training
    student.eval()
    try:
        yield student
    finally:
        student.train(training)


@dataclass(frozen=True)
class LoadedVersion:
    """An immutable version, ready to predict; ``student`` may be of several parts (``streamkd.teachers.served``)."""

    student: nn.Module
    classes: list[Label]
    version: int
    schema: RecordSchema
    published_at: float
    records: int

    @torch.inference_mode()
    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Probabilities [n, classes] float32 for encoded inputs [n, *shape]; rows sum to 1."""
        x = torch.from_numpy(np.require(inputs, requirements=("C", "W")))
        return torch.softmax(self.student(x), dim=1).numpy()


def write_published(directory: Path, student: Student, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``model.safetensors`` and ``model.json`` of a version; ``meta`` needs what ``load_published`` reads.

    ``meta``: ``student`` {name, options}, ``schema``, ``classes``, ``seed``, ``records``, ``published_at``.
    """
    write_weights(directory, student)
    (directory / "model.json").write_text(json.dumps(meta), "utf-8")
    return dict(meta)


def write_weights(directory: Path, student: Student) -> None:
    """The first of these files alone."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in student.state_dict().items()}
    (directory / WEIGHTS).write_bytes(save(weights))


def put_published(folder: Path, student: Student, meta: Mapping[str, Any]) -> None:
    """The same as a folder of its own, whole or not at all.

    Raises:
        StateError: it cannot be written.
    """
    beside = folder.with_name(f".{folder.name}.new")
    try:
        json.dumps(meta, allow_nan=False)
        beside.mkdir(parents=True, exist_ok=True)
        write_published(beside, student, meta)
        beside.rename(folder)
    except (OSError, ValueError) as fault:
        raise StateError(f"the student cannot be written: {fault}", where=str(folder)) from fault


def load_published(directory: Path, registry: Registry, version: int = 0) -> LoadedVersion:
    """The version in a directory.

    Raises:
        StateError: files are missing or do not fit each other.
    """
    student, schema, meta = read_model(directory / WEIGHTS, directory / "model.json", registry)
    try:
        return LoadedVersion(student, meta["classes"], version, schema, meta["published_at"], meta["records"])
    except KeyError as fault:
        raise StateError(f"a published version cannot be loaded: no {fault}", where=str(directory)) from fault


def read_model(weights: Path, about: Path, registry: Registry) -> tuple[Student, RecordSchema, dict[str, Any]]:
    """A frozen student as it was written, how it sees a record, and all that is said about it.

    Raises:
        StateError: files are missing or do not fit each other.
    """
    try:
        meta = json.loads(about.read_text("utf-8"))
        schema = RecordSchema.model_validate(meta["schema"])
        kind = registry.kind("students", meta["student"]["name"])
        options = kind.options.model_validate(meta["student"]["options"])
        student = build(kind, options, schema, len(meta["classes"]), meta["seed"])
        student.load_state_dict(load_file(weights))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as fault:
        raise StateError(f"a published version cannot be loaded: {fault}", where=str(weights.parent)) from fault
    student.eval().requires_grad_(False)
    return student, schema, meta
