"""The teacher ``river``: a River classifier that learns the stream record by record.

    raw row ─► its columns ─► the model's answer (``streamkd_river.answers``) ─► learn_one, where it is to be learned

It is asked about rows that have just arrived, and with ``replayed`` about every row of a step: each costs a prediction.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from streamkd.api import Columns, Label, Options, Role, StateConflict, TeacherContext, TeacherKind, hookimpl
from streamkd_river import codec, models
from streamkd_river.answers import River, answer, load, rows_of


class RiverOptions(Options):
    """Which classifier, and its parameters."""

    model: str = Field(default="forest.ARFClassifier", description="a River classifier, by River's name")
    parameters: dict[str, bool | int | float | str | None] = Field(
        default={}, description="of the classifier, by River's names"
    )
    replayed: bool = Field(default=False, description="ask it about remembered rows too, and those drawn near them")
    seed: int | None = Field(default=None, ge=0, description="of what the classifier draws; None: the student's")


class RiverTeacher:
    """A classifier over columns of the label space; it knows the labels that it has learned."""

    fresh = True

    def __init__(self, options: RiverOptions, context: TeacherContext) -> None:
        self.key = context.key
        self.role: Role = "live" if options.replayed else "prequential"
        self._columns = Columns(context.schema, context.schema.student)
        self._width = len(context.labels)
        self._learned: set[int] = set()
        seed = context.student.seed if options.seed is None else options.seed
        self._named = options.model
        self.model = models.build(options.model, options.parameters, seed, f"teacher {context.key}")

    def logits(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        return self._given([self._answer(row) for row in self._rows(x)], x)

    def known(self) -> Bool[Tensor, "classes"]:
        return torch.tensor([column in self._learned for column in range(self._width)], dtype=torch.bool)

    def grow(self, labels: Sequence[Label]) -> None:
        self._width = len(labels)

    def test_then_train(
        self, x: Tensor, y: Int[Tensor, "batch"], learn: Bool[Tensor, "batch"]
    ) -> Float[Tensor, "batch classes"]:
        answers = []
        for row, label, learned in zip(self._rows(x), y.tolist(), learn.tolist(), strict=True):
            answers.append(self._answer(row))
            if learned:
                self.model.learn_one(row, label)
                self._learned.add(label)
        return self._given(answers, x)

    def _rows(self, x: Tensor) -> list[dict[int, float]]:
        return rows_of(self._columns(x))

    def _answer(self, row: dict[int, float]) -> list[float]:
        return answer(self.model, row, self._learned, self._width)

    def _given(self, answers: list[list[float]], x: Tensor) -> Tensor:
        return torch.tensor(answers, device=x.device).reshape(len(answers), self._width)

    def part(self) -> River | None:
        """A copy as it is now; nothing before it has learned."""
        return River(codec.encode(self.model), self.known(), self._columns) if self._learned else None

    def state_dict(self) -> dict[str, Any]:
        return {"model": codec.encode(self.model), "named": self._named, "learned": sorted(self._learned)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another one stopped.

        Raises:
            StateConflict: it was another model.
            StateError: what was kept is no River model.
        """
        if state["named"] != self._named:
            raise StateConflict(
                f"the state directory has {state['named']}, the configuration {self._named}",
                where=f"teacher {self.key}: model",
                fix="go back to the first, or give this teacher another id",
            )
        self.model = codec.decode(state["model"])
        self._learned = set(state["learned"])
        self._width = max(self._width, 1 + max(self._learned, default=-1))


@hookimpl
def streamkd_teachers() -> Iterable[TeacherKind]:
    """River's classifiers."""
    summary = "a River classifier, learned record by record"
    yield TeacherKind("river", RiverTeacher, RiverOptions, summary, hook_version=1, load=load)
