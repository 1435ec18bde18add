"""The teacher ``memory``: the student's own logits at the time a sample was remembered."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from streamkd.hookspecs import Kind, Options, hookimpl
from streamkd.records import Label
from streamkd.teachers.teacher import Role, TeacherContext


class RecallTeacher:
    """The student's logits as they were when a sample was remembered (DER++, Buzzega et al. 2020, equation 6).

    It answers nothing by itself: its answers lie in the memory.
    """

    role: Role = "remembered"
    fresh = False

    def __init__(self, options: Options, context: TeacherContext) -> None:
        self.key = context.key
        self._width = len(context.labels)

    def logits(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        return torch.zeros(len(x), self._width, device=x.device)

    def known(self) -> Bool[Tensor, "classes"]:
        return torch.zeros(self._width, dtype=torch.bool)

    def grow(self, labels: Sequence[Label]) -> None:
        self._width = len(labels)


@hookimpl
def streamkd_teachers() -> Iterable[Kind]:
    """Remembered logits."""
    yield Kind("memory", RecallTeacher, Options, "the student's own remembered logits")
