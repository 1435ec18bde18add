"""The loss ``example``: generalised cross entropy to the hard label, for labels that may be wrong.

L = (1 - p_y^q) / q        q → 0: cross entropy; q = 1: mean absolute error    (Zhang and Sabuncu 2018, equation 6)
"""

from collections.abc import Iterator, Mapping

import torch
from pydantic import Field

from streamkd.api import Kind, LossInputs, Options, hookimpl


class ExampleOptions(Options):
    """How far wrong labels are forgiven."""

    q: float = Field(default=0.7, gt=0, le=1, description="towards 1 they count less, and learning is slower")


class Example:
    """One number a row: by what the student gives its label, and what the gate gives the label."""

    layers: tuple[str, ...] = ()
    teacher_layers: Mapping[str, tuple[str, ...]] = {}

    def __init__(self, options: ExampleOptions) -> None:
        self.q = options.q

    def __call__(self, lesson: LossInputs) -> torch.Tensor:
        given = torch.softmax(lesson.logits, 1).gather(1, lesson.labels.clamp_min(0).unsqueeze(1)).squeeze(1)
        loss = (1 - given.clamp_min(1e-8) ** self.q) / self.q
        return lesson.weights.sum(1) * torch.where(lesson.labels >= 0, loss, 0.0)  # what each row counts


@hookimpl
def streamkd_losses() -> Iterator[Kind]:
    """One loss."""
    yield Kind("example", Example, ExampleOptions, "generalised cross entropy to the hard label")
