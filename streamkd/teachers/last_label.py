"""The teacher ``last-label``: whatever was learned last comes again (no change, the baseline of drifting streams).

    p(last label) = probability, the rest evenly over the other labels that it has learned

It knows nothing of what a row holds, so it is never asked about one: it teaches nobody, and what it says of each record
as it comes (``Pool.prequential``) is there for those who weigh answers by what has just come true.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from streamkd.hookspecs import Kind, Options, hookimpl
from streamkd.records import Label
from streamkd.teachers.teacher import Role, TeacherContext

NEVER = -20.0  # log-probability of a label that was never learned


class LastLabelOptions(Options):
    """The label that was learned last, again."""

    probability: float = Field(default=0.85, gt=0, lt=1, description="of the last label, once another one is known")


class LastLabel:
    """Answers that hang on the labels alone."""

    role: Role = "prequential"
    fresh = False

    def __init__(self, options: LastLabelOptions, context: TeacherContext) -> None:
        self.key = context.key
        self.probability = options.probability
        self._width = len(context.labels)
        self._learned: set[int] = set()
        self._last = -1

    def logits(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        return torch.tensor(self._answer(), device=x.device).repeat(len(x), 1)

    def known(self) -> Bool[Tensor, "classes"]:
        return torch.tensor([column in self._learned for column in range(self._width)])

    def grow(self, labels: Sequence[Label]) -> None:
        self._width = len(labels)

    def test_then_train(
        self, x: Tensor, y: Int[Tensor, "batch"], learn: Bool[Tensor, "batch"]
    ) -> Float[Tensor, "batch classes"]:
        answers = []
        for label, learned in zip(y.tolist(), learn.tolist(), strict=True):
            answers.append(self._answer())
            if learned:
                self._learned.add(label)
                self._last = label
        return torch.tensor(answers, device=x.device).reshape(len(answers), self._width)

    def _answer(self) -> list[float]:
        """Log-probabilities by column; the same everywhere before a label has come."""
        if self._last < 0:
            return [0.0] * self._width
        others = math.log((1 - self.probability) / max(len(self._learned) - 1, 1))
        answer = [others if column in self._learned else NEVER for column in range(self._width)]
        answer[self._last] = math.log(self.probability)
        return answer

    def state_dict(self) -> dict[str, Any]:
        return {"last": self._last, "learned": sorted(self._learned)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._last, self._learned = state["last"], set(state["learned"])
        self._width = max(self._width, 1 + max(self._learned, default=-1))


@hookimpl
def streamkd_teachers() -> Iterable[Kind]:
    """No change."""
    yield Kind("last-label", LastLabel, LastLabelOptions, "the label that was learned last, again (no change)")
