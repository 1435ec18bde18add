"""Any torch module as a teacher that never learns, its outputs matched to the stream by label.

    x [batch, *shape], raw ─► module ─► outputs [batch, classes of its own] ─► the columns of the stream's label space

A label that the module does not have is unknown and masked, an output whose label the stream does not have is left
out. The module stands in evaluation mode and sees records as they come: its normalisation, and the part of the record
that it reads, are its own matter.
"""

import copy
import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from streamkd.errors import PluginError, StateConflict
from streamkd.records import Label
from streamkd.teachers.teacher import Role, TeacherContext, layer_outputs, module_bytes


class FrozenTeacher:
    """``module`` answers; ``classes`` are the labels of its outputs, in their order.

    Versioned, not frozen: its answers in the label space's columns change when a label that it knows is new there.

    Raises:
        PluginError: no classes, one that comes twice, or one that is not of the stream's type.
    """

    role: Role = "versioned"
    fresh = True

    def __init__(self, module: nn.Module, classes: Sequence[Label], context: TeacherContext) -> None:
        self.key, self.classes = context.key, tuple(classes)
        _refuse_classes(self.classes, context)
        self.module = copy.deepcopy(module).to(context.device).eval().requires_grad_(False)
        self._digest = digest(self.module)
        self.grow(context.labels)

    @property
    def version(self) -> int:
        """How many labels of the stream it knows."""
        return len(self._columns)

    @torch.no_grad()
    def logits(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        """The module's outputs in the label space's columns; 0 in those that it does not know.

        Raises:
            PluginError: the module's outputs are not one column for each of its classes.
        """
        outputs = self.module(x)
        if outputs.shape != (len(x), len(self.classes)):
            got = f"needed outputs {(len(x), len(self.classes))}, got {tuple(outputs.shape)}"
            raise PluginError(got, where=f"teacher {self.key}", fix="name one class per output, in their order")
        placed: Tensor = outputs.new_zeros(len(x), self._width)
        placed[:, self._columns] = outputs[:, self._outputs]
        return placed

    def known(self) -> Bool[Tensor, "classes"]:
        mask = torch.zeros(self._width, dtype=torch.bool)
        mask[self._columns] = True
        return mask

    def features(self, x: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        """Outputs of the module's named layers."""
        with torch.no_grad():
            return layer_outputs(self.module, x, layers)

    def grow(self, labels: Sequence[Label]) -> None:
        """The label space is now this; which outputs go where follows from the labels alone."""
        outputs = {label: output for output, label in enumerate(self.classes)}
        pairs = [(column, outputs[label]) for column, label in enumerate(labels) if label in outputs]
        self._width = len(labels)
        self._columns, self._outputs = [column for column, _ in pairs], [output for _, output in pairs]

    def size_bytes(self) -> int:
        return module_bytes(self.module)

    def state_dict(self) -> dict[str, Any]:
        return {"weights_sha256": self._digest, "classes": list(self.classes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check that the answers that are remembered came from this module.

        Raises:
            StateConflict: the weights or the classes are others now.
        """
        now = self.state_dict()
        for what, before in state.items():
            if now.get(what) != before:
                raise StateConflict(
                    f"needed the {what} {before} of the checkpoint, got {now.get(what)}",
                    where=f"teacher {self.key}",
                    fix="put the old module back, or give the teacher of the new one another id",
                )


def _refuse_classes(classes: tuple[Label, ...], context: TeacherContext) -> None:
    where, needed = f"teacher {context.key}", int if context.schema.label_type == "int" else str
    if not classes:
        raise PluginError("needed the label of each output, got none", where=where, fix="list them in their order")
    for place, label in enumerate(classes):
        if type(label) is not needed:
            said = f"needed labels of the stream's type {context.schema.label_type}, got {label!r}"
            raise PluginError(said, where=where, fix="write each class as the stream writes the label")
        if label in classes[:place]:
            raise PluginError(f"needed each label once, got {label!r} twice", where=where)


def digest(module: nn.Module) -> str:
    """SHA-256 of names and bytes of parameters and buffers."""
    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
