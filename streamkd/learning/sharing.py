"""Sharing: a student begins with layers of a teacher, and keeps on inheriting head rows as labels come.

    donor (network, classes) ─► layers by name, or by map ─► the student's tensors; head rows by label

A *layer* is a module with tensors of its own, by its dotted name; a name stands for everything below it. Tensors of a
layer must agree in shape, unless the map lists the layer with ``fit: slice``: then the leading block that both have is
copied, and the rest stays as it was drawn. Called when a student is put together, and by ``Step.grow``.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from streamkd.errors import PluginError, StateConflict
from streamkd.records import Label
from streamkd.students.networks import Student
from streamkd.teachers.teacher import layer


@runtime_checkable
class WeightSource(Protocol):
    """A teacher whose network can be inherited: its layers, and the label of each output of its head."""

    network: nn.Module
    classes: Sequence[Label]


@dataclass(frozen=True, slots=True)
class Origin:
    """The donor's layer that a layer of the student comes from; ``sliced``: the leading block that both have."""

    layer: str
    sliced: bool = False


class WeightTransfer:
    """What one student inherits of one donor.

    Args:
        layers: names of the student's layers; ``None``: all that the donor has under the same name.
        origins: for layers of the student, from which of the donor's layers they come.
        frozen: inherited layers are not trained on, but the head and layers of which only a part is inherited.

    Raises:
        PluginError: a layer that is not there (the nearest is named), or a donor without layers.
    """

    def __init__(
        self,
        donor: WeightSource,
        student: Student,
        *,
        layers: Sequence[str] | None = None,
        origins: Mapping[str, Origin] | None = None,
        frozen: bool = False,
    ) -> None:
        self._donor, self._frozen, self._origins = donor, frozen, dict(origins or {})
        self._theirs = {name: module for name, module in donor.network.named_modules() if _tensors(module)}
        for name in (*(layers or ()), *self._origins):
            layer(student, name)
        self._pairs = self._paired(student, layers)
        head = next((name for name, module in student.named_modules() if module is student.head), "")
        self._head = self._pairs.pop(head, None)

    @torch.no_grad()
    def begin(self, student: Student, labels: Sequence[Label]) -> None:
        """Copy the layers into a fresh student that knows ``labels``, and freeze them where that is wanted.

        Raises:
            PluginError: two tensors do not agree in shape; both are named.
        """
        for name, origin in self._pairs.items():
            ours, theirs = student.get_submodule(name), self._theirs[origin.layer]
            for part, tensor in _tensors(theirs).items():
                self._copy(ours, name, part, tensor, origin)
            if self._frozen and not origin.sliced:
                ours.requires_grad_(False)
        self.follow([student], labels, 0)

    @torch.no_grad()
    def follow(self, students: Iterable[Student], labels: Sequence[Label], since: int) -> None:
        """Rows of the head for the labels from column ``since`` on, where the donor knows them.

        Raises:
            PluginError: the rows differ in length.
        """
        if self._head is None:
            return
        places = {label: row for row, label in enumerate(self._donor.classes)}
        pairs = [(column, places[labels[column]]) for column in range(since, len(labels)) if labels[column] in places]
        for student in students:
            for column, row in pairs:
                self._inherit_row(student.head, column, row, self._head)

    def _inherit_row(self, head: nn.Linear, column: int, row: int, origin: Origin) -> None:
        theirs = _tensors(self._theirs[origin.layer])
        weight = theirs["weight"][row]
        if not origin.sliced and len(weight) != head.in_features:
            self._refuse("the head", [head.in_features], origin.layer, [len(weight)])
        size = min(len(weight), head.in_features)
        head.weight[column, :size] = weight[:size].to(head.weight)
        if "bias" in theirs:
            head.bias[column] = theirs["bias"][row].to(head.bias)

    def _copy(self, ours: nn.Module, name: str, part: str, theirs: Tensor, origin: Origin) -> None:
        target = _tensors(ours).get(part)
        if target is None:
            self._refuse(f"{name}.{part}", "nothing", f"{origin.layer}.{part}", list(theirs.shape))
        elif target.shape == theirs.shape:
            target.copy_(theirs)
        elif origin.sliced and target.dim() == theirs.dim():
            block = tuple(slice(0, min(n, m)) for n, m in zip(target.shape, theirs.shape, strict=True))
            target[block] = theirs[block].to(target)
        else:
            self._refuse(f"{name}.{part}", list(target.shape), f"{origin.layer}.{part}", list(theirs.shape))

    def _refuse(self, ours: str, shape: Any, theirs: str, their_shape: Any) -> None:
        raise PluginError(
            f"{ours} {shape} of the student does not agree with {theirs} {their_shape} of the teacher",
            where="share",
            fix="name the layers to share, or map: {student's layer: {layer: teacher's layer, fit: slice}}",
        )

    def _paired(self, student: Student, layers: Sequence[str] | None) -> dict[str, Origin]:
        """The student's layers that are inherited, each with its origin."""
        wanted = None if layers is None else (*layers, *self._origins)
        pairs: dict[str, Origin] = {}
        for name, module in student.named_modules():
            if not _tensors(module) or not (wanted is None or any(_below(name, above) for above in wanted)):
                continue
            origin = self._origin(name)
            if origin.layer in self._theirs:
                pairs[name] = origin
            elif wanted is not None or origin.layer != name:
                layer(self._donor.network, origin.layer)
                self._refuse(name, "has tensors, and", origin.layer, "has none: it")
        if not pairs:
            known = ", ".join(self._theirs) or "none"
            raise PluginError(
                "the student has no layer of the teacher's names", where="share", fix=f"the teacher's layers: {known}"
            )
        return pairs

    def _origin(self, name: str) -> Origin:
        above = max((key for key in self._origins if _below(name, key)), key=len, default=None)
        if above is None:
            return Origin(name)
        origin = self._origins[above]
        return Origin(origin.layer + name[len(above) :], origin.sliced)

    def state_dict(self) -> dict[str, Any]:
        """What later inheritance follows from: the donor's classes and the rows of its head."""
        if self._head is None:
            return {}
        rows = hashlib.sha256()
        for tensor in _tensors(self._theirs[self._head.layer]).values():
            rows.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return {"classes": json.dumps(list(self._donor.classes)), "rows": rows.hexdigest()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check that labels to come will inherit what they would have.

        Raises:
            StateConflict: the teacher is another one now.
        """
        now = self.state_dict()
        if dict(state) != now:
            raise StateConflict(
                f"needed the teacher of the checkpoint, {dict(state)}, got {now}",
                where="share",
                fix="put its files back, or begin elsewhere with --state DIR",
            )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module itself, without those of the modules in it."""
    own = {**module._parameters, **{n: b for n, b in module._buffers.items() if n not in _passing(module)}}
    return {name: tensor for name, tensor in own.items() if tensor is not None}


def _passing(module: nn.Module) -> set[str]:
    return module._non_persistent_buffers_set


def _below(name: str, above: str) -> bool:
    return name == above or name.startswith(f"{above}.")
