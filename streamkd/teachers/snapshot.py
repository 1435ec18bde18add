"""The teacher ``snapshot``: frozen copies of the average, one for each finished task while it is worth its place."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from streamkd.hookspecs import Kind, Options, hookimpl
from streamkd.records import Label
from streamkd.students.networks import Student
from streamkd.teachers.teacher import Role, TeacherContext, copy_of, layer_outputs, module_bytes


class SnapshotOptions(Options):
    """Frozen copies of the average, one per finished task while they are worth their place."""

    limit: int = Field(default=4, gt=0, description="most snapshots kept, within the pool's own budget")


class SnapshotTeacher:
    """A frozen copy of a student; it knows the labels that were there when it was taken."""

    role: Role = "frozen"

    def __init__(self, key: str, student: Student, *, fresh: bool = False) -> None:
        self.key, self.fresh = key, fresh
        self.student = student
        self._width = student.classes

    def logits(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        with torch.no_grad():
            return nn.functional.pad(self.student(x), (0, self._width - self.student.classes))

    def known(self) -> Bool[Tensor, "classes"]:
        return nn.functional.pad(self.student.known(), (0, self._width - self.student.classes))

    def features(self, x: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        with torch.no_grad():
            return layer_outputs(self.student, x, layers)

    def grow(self, labels: Sequence[Label]) -> None:
        self._width = len(labels)

    def size_bytes(self) -> int:
        return module_bytes(self.student)

    def state_dict(self) -> dict[str, Any]:
        return {"student": self.student.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.student.restore(state["student"])


@dataclass
class SnapshotMaker:
    """What ``name: snapshot`` in the configuration stands for: the pool asks it for candidates when a task ends."""

    key: str
    limit: int
    fresh: bool = False
    role: Role = field(default="snapshots", init=False)

    def take(self, source: Student, number: int) -> SnapshotTeacher:
        """A frozen copy, named after the task that has just ended."""
        return SnapshotTeacher(f"{self.key}-{number}", copy_of(source), fresh=self.fresh)


def _make_snapshots(options: SnapshotOptions, context: TeacherContext) -> SnapshotMaker:
    return SnapshotMaker(context.key, options.limit)


@hookimpl
def streamkd_teachers() -> Iterable[Kind]:
    """Snapshots."""
    yield Kind("snapshot", _make_snapshots, SnapshotOptions, "frozen copies of the average, taken when tasks end")
