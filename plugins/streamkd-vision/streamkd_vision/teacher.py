"""The teacher ``torchvision``: a network that was trained elsewhere, frozen, asked about fresh rows too.

    raw rows ─► View ─► network ─► its outputs, put into the columns of the stream's label space

Labels that the network does not have stay unknown and are masked; its outputs for labels that the stream does
not have are left out. The answer to the last rows is kept, so that asking for logits and for features of the same
rows, as a step does, runs the network once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from streamkd.api import (
    Kind,
    Label,
    Options,
    PluginError,
    Role,
    StateConflict,
    TeacherContext,
    capture,
    hookimpl,
    module_bytes,
)
from streamkd_vision import network
from streamkd_vision.view import IMAGENET_MEAN, IMAGENET_STD, View

ROWS = 64  # at most so many images at once, so that filling the memory's cache stays small


class TorchvisionOptions(Options):
    """Which network, which weights, what its outputs mean, and how it sees a record."""

    network: str = Field(
        default="resnet18",
        description="a classification network by its name: of torchvision, `timm/...`, `efficientnet-lite0`",
    )
    weights: Path = Field(description="a local safetensors file with the network's own state dict")
    classes: tuple[int | str, ...] | None = Field(
        default=None,
        min_length=1,
        description="labels in the order of the outputs; None: the file's metadata says them",
    )
    image: tuple[int, ...] = Field(default=(), description="the image that a flat record is; empty: the record's shape")
    size: int = Field(default=224, gt=0, description="height and width that the network sees")
    scale: float | None = Field(default=None, gt=0, description="to 0..1; None: 1/255 for integers, else 1")
    mean: tuple[float, ...] = Field(default=IMAGENET_MEAN, description="per channel, of values in 0..1")
    std: tuple[float, ...] = Field(default=IMAGENET_STD, description="per channel, of values in 0..1")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the network said of some rows."""

    x: Tensor
    outputs: Tensor
    features: dict[str, Tensor]


class TorchvisionTeacher:
    """A frozen network whose outputs are matched to the stream by label.

    Versioned, not frozen: its answers in the label space's columns change when a label that it knows is new there.
    """

    role: Role = "versioned"
    fresh = True

    def __init__(self, options: TorchvisionOptions, context: TeacherContext) -> None:
        self.key = context.key
        where = f"teacher {context.key}: {options.weights}"
        weights = network.read(options.weights)
        self._classes = _classes(options.classes or weights.classes, context.schema.label_type, where)
        self._sha256 = weights.sha256
        self._network = network.build(options.network, len(self._classes), weights.tensors, where)
        self._view = _view(options, context, where)
        self._network.to(context.device)
        self._view.to(context.device)
        self._wanted: set[str] = set()
        self._last: Answer | None = None
        self.grow(context.labels)

    @property
    def version(self) -> int:
        """How many labels of the stream it knows."""
        return len(self._columns)

    def logits(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        """The network's outputs in the label space's columns; 0 in those that it does not know."""
        outputs = self._answer(x).outputs
        placed = outputs.new_zeros(len(x), self._width)
        placed[:, self._columns] = outputs[:, self._outputs]
        return placed

    def known(self) -> Bool[Tensor, "classes"]:
        mask = torch.zeros(self._width, dtype=torch.bool)
        mask[self._columns] = True
        return mask

    def features(self, x: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        """Outputs of the network's named layers.

        Raises:
            PluginError: a layer that the network does not have; the known ones are named.
        """
        self._wanted |= set(layers)
        found = self._answer(x).features
        return {name: found[name] for name in layers}

    def grow(self, labels: Sequence[Label]) -> None:
        """The label space is now this; which outputs go where follows from the labels alone."""
        places = {label: column for column, label in enumerate(labels)}
        pairs = [(places[label], output) for output, label in enumerate(self._classes) if label in places]
        self._width = len(labels)
        self._columns = [column for column, _ in pairs]
        self._outputs = [output for _, output in pairs]

    def size_bytes(self) -> int:
        return module_bytes(self._network) + module_bytes(self._view)

    def state_dict(self) -> dict[str, Any]:
        return {"weights_sha256": self._sha256}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check that the weights are those that the remembered answers came from.

        Raises:
            StateConflict: another file lies there now.
        """
        if state["weights_sha256"] != self._sha256:
            raise StateConflict(
                f"needed the weights {state['weights_sha256'][:12]}… of the checkpoint, got {self._sha256[:12]}…",
                where=f"teacher {self.key}",
                fix="put the old file back, or give the teacher of the new one another id",
            )

    def _answer(self, x: Tensor) -> Answer:
        """The network's outputs and every layer that was ever asked for, run once on the same rows."""
        last = self._last
        if last is None or not self._wanted <= last.features.keys() or not _same(last.x, x):
            last = self._last = _run(self._network, self._view, x, sorted(self._wanted))
        return last


@torch.no_grad()
def _run(body: nn.Module, view: View, x: Tensor, layers: Sequence[str]) -> Answer:
    outputs: list[Tensor] = []
    features: dict[str, list[Tensor]] = {name: [] for name in layers}
    for rows in x.split(ROWS):
        found: dict[str, Tensor] = {}
        with capture(body, layers, found):
            outputs.append(body(view(rows)))
        for name in layers:
            features[name].append(found[name])
    return Answer(x.clone(), torch.cat(outputs), {name: torch.cat(parts) for name, parts in features.items()})


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def _classes(classes: Sequence[Label] | None, label_type: str, where: str) -> tuple[Label, ...]:
    if not classes:
        raise PluginError(
            "needed the labels in the order of the outputs, got none",
            where=where,
            fix="list them as `classes`, or write them into the file's metadata",
        )
    needed = int if label_type == "int" else str
    wrong = [label for label in classes if type(label) is not needed]
    if wrong:
        raise PluginError(
            f"needed labels of the stream's type {label_type}, got {wrong[0]!r}",
            where=where,
            fix="write each class as the stream writes the label; in YAML, quotes make a string",
        )
    twice = {label for label in classes if list(classes).count(label) > 1} if len(set(classes)) < len(classes) else ()
    if twice:
        raise PluginError(f"needed each label once, got {sorted(twice, key=str)[0]!r} twice", where=where)
    return tuple(classes)


def _view(options: TorchvisionOptions, context: TeacherContext, where: str) -> View:
    schema = context.schema
    image = options.image or schema.shape
    if int(np.prod(image)) != int(np.prod(schema.shape)):
        raise PluginError(f"needed an image of {int(np.prod(schema.shape))} numbers, got {image}", where=where)
    scale = options.scale or (1 / 255 if np.issubdtype(schema.dtype, np.integer) else 1.0)
    return View(image, options.size, scale, options.mean, options.std, where)


@hookimpl
def streamkd_teachers() -> Iterable[Kind]:
    """A torchvision network as a frozen teacher."""
    yield Kind(
        "torchvision",
        TorchvisionTeacher,
        TorchvisionOptions,
        "a torchvision network, weights from a file",
        hook_version=1,
    )
