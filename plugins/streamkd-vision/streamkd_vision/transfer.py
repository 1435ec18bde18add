"""The loss ``attention-transfer``: the student looks where the teacher looks.

Zagoruyko & Komodakis 2017, equation 2, with the activation-based map F(A) = Σ_c |A_c|^p::

    L_i = 1/2 · Σ_j ‖ Q_S^j / ‖Q_S^j‖₂ - Q_T^j / ‖Q_T^j‖₂ ‖₂,   Q = vec(F(A)) of sample i at pair j

β of the paper is the term's weight in the configuration. Teachers show their layers on fresh rows only, so a
remembered row has the loss 0.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from streamkd.api import Kind, LossInputs, Options, PluginError, hookimpl


class AttentionTransferOptions(Options):
    """Whose attention, from which layers to which."""

    teacher: str = Field(default="torchvision", description="the teacher's id")
    pairs: tuple[tuple[str, str], ...] = Field(
        min_length=1, description="[student layer, teacher layer]; a student's layers begin with `body.`"
    )
    power: float = Field(
        default=2.0, gt=0, description="p of the attention map: larger looks at the strongest channels"
    )


class AttentionTransfer:
    """``attention_distance`` between the layers of each pair, halved and summed."""

    def __init__(self, options: AttentionTransferOptions) -> None:
        self.layers = tuple(dict.fromkeys(student for student, _ in options.pairs))
        theirs = tuple(dict.fromkeys(teacher for _, teacher in options.pairs))
        self.teacher_layers: Mapping[str, tuple[str, ...]] = {options.teacher: theirs}
        self._teacher, self._pairs, self._power = options.teacher, options.pairs, options.power

    def __call__(self, lesson: LossInputs) -> Float[Tensor, "batch"]:
        """The loss of each sample, times what it counts: 0 in remembered rows, and in those that are held out."""
        shown = _given(lesson.teacher_features, self._teacher, "teacher")
        total = lesson.logits.new_zeros(lesson.fresh)
        for ours, theirs in self._pairs:
            student = _map(_given(lesson.features, ours, "student layer")[: lesson.fresh], self._power, ours)
            teacher = _map(_given(shown, theirs, f"layer of teacher {self._teacher}"), self._power, theirs)
            total = total + attention_distance(student, teacher.to(student.dtype)) / 2
        total = total * lesson.weights[: lesson.fresh].sum(1)
        return F.pad(total, (0, len(lesson.labels) - lesson.fresh))


def attention_map(
    activations: Float[Tensor, "batch channels height width"], power: float = 2.0
) -> Float[Tensor, "batch height width"]:
    """F(A) = Σ_c |A_c|^p: never negative; the order of the channels does not matter."""
    return activations.abs().pow(power).sum(1)


def attention_distance(
    student: Float[Tensor, "batch height width"], teacher: Float[Tensor, "batch rows columns"]
) -> Float[Tensor, "batch"]:
    """‖ Q_S/‖Q_S‖ - Q_T/‖Q_T‖ ‖₂ of each sample: from 0 (same place) to √2 (apart, as no map is negative).

    A teacher's map of another size is resized to the student's, bilinear and antialiased. A map that is zero
    everywhere stays zero. The gradient is 0 where both agree.
    """
    if teacher.shape[1:] != student.shape[1:]:
        size = list(student.shape[1:])
        teacher = F.interpolate(teacher.unsqueeze(1), size, mode="bilinear", antialias=True).squeeze(1)
    apart = F.normalize(student.flatten(1), dim=1) - F.normalize(teacher.flatten(1), dim=1)
    return torch.linalg.vector_norm(apart, dim=1)


def _map(activations: Tensor, power: float, layer: str) -> Tensor:
    if activations.dim() != 4:
        raise PluginError(
            f"needed an output of [batch, channels, height, width], got {list(activations.shape)}",
            where=f"loss attention-transfer, layer {layer}",
            fix="name a convolutional layer; a student with some is `convnet`",
        )
    return attention_map(activations, power)


def _given(found: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in found:
        raise PluginError(
            f"needed the {what} {name!r}, got {', '.join(found) or 'none'}", where="loss attention-transfer"
        )
    return found[name]


@hookimpl
def streamkd_losses() -> Iterable[Kind]:
    """Attention transfer between named layers."""
    yield Kind(
        "attention-transfer",
        AttentionTransfer,
        AttentionTransferOptions,
        "attention transfer between named layers of student and teacher",
    )
