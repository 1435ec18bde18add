"""The teacher ``linear``: multinomial logistic regression that learns record by record.

    h = (x - mean) / std               moments of the records so far, each record taken in before it is learned
    p = softmax(W h + b)
    W, b ← W - η (p - e_y) hᵀ, b - η (p - e_y)      one step of gradient descent a record

The rate stays as it is, so what came long ago fades. In float64; what is not finite in a record counts as its mean, and
such a record is not learned.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from streamkd.hookspecs import Kind, Options, hookimpl
from streamkd.records import Label
from streamkd.students.columns import Columns
from streamkd.teachers.teacher import Role, TeacherContext

HELD = ("weights", "bias", "learned", "mean", "squares", "gain")


class LinearOptions(Options):
    """Logistic regression by gradient descent, a step a record."""

    rate: float = Field(default=0.03, gt=0, description="learning rate")


class LinearTeacher:
    """Weights [classes, features] over standardised inputs; it knows the labels that it has learned."""

    role: Role = "live"
    fresh = True

    def __init__(self, options: LinearOptions, context: TeacherContext) -> None:
        self.key = context.key
        self.rate = options.rate
        self._columns = Columns(context.schema, context.schema.student)
        features = int(np.prod(self._columns.schema.shape))
        self._weights, self._bias = np.zeros((len(context.labels), features)), np.zeros(len(context.labels))
        self._learned = np.zeros(len(context.labels), dtype=bool)
        self._count = 0
        self._mean, self._squares, self._gain = np.zeros(features), np.zeros(features), np.zeros(features)

    def logits(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        return self._given(self._standardised(self._rows(x)) @ self._weights.T + self._bias, x)

    def known(self) -> Bool[Tensor, "classes"]:
        return torch.from_numpy(self._learned.copy())

    def grow(self, labels: Sequence[Label]) -> None:
        more = len(labels) - len(self._weights)
        self._weights = np.pad(self._weights, ((0, more), (0, 0)))
        self._bias, self._learned = np.pad(self._bias, (0, more)), np.pad(self._learned, (0, more))

    def test_then_train(
        self, x: Tensor, y: Int[Tensor, "batch"], learn: Bool[Tensor, "batch"]
    ) -> Float[Tensor, "batch classes"]:
        rows, columns = self._rows(x), y.tolist()
        taught = learn.cpu().numpy() & np.isfinite(rows).all(1)
        answers = np.empty((len(rows), len(self._weights)))
        for place, row in enumerate(rows):
            answers[place] = self._weights @ self._standardised(row) + self._bias
            if taught[place]:
                self._learn(row, columns[place])
        return self._given(answers, x)

    def _learn(self, row: np.ndarray, label: int) -> None:
        """A step of Welford's, then one of gradient descent."""
        self._count += 1
        apart = row - self._mean
        self._mean += apart / self._count
        self._squares += apart * (row - self._mean)
        std = np.sqrt(self._squares / self._count)
        varied = std > 1e-9 * np.abs(self._mean)  # below that a spread is rounding
        self._gain = np.divide(1.0, std, out=np.zeros_like(std), where=varied)
        h = (row - self._mean) * self._gain
        slope = _softmax(self._weights @ h + self._bias)
        slope[label] -= 1.0
        slope *= self.rate
        self._weights -= np.outer(slope, h)
        self._bias -= slope
        self._learned[label] = True

    def _standardised(self, rows: np.ndarray) -> np.ndarray:
        """From raw rows [..., features]; a feature that has been constant is 0."""
        return (np.where(np.isfinite(rows), rows, self._mean) - self._mean) * self._gain

    def _rows(self, x: Tensor) -> np.ndarray:
        return self._columns(x).flatten(1).cpu().numpy().astype(np.float64)

    @staticmethod
    def _given(answers: np.ndarray, x: Tensor) -> Tensor:
        return torch.from_numpy(answers).to(x.device, torch.float32)

    def size_bytes(self) -> int:
        return self._weights.nbytes

    def state_dict(self) -> dict[str, Any]:
        held = {name: getattr(self, f"_{name}") for name in HELD}
        return {"count": self._count, **{name: torch.from_numpy(array.copy()) for name, array in held.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._count = state["count"]
        for name in HELD:
            setattr(self, f"_{name}", state[name].numpy().copy())


def _softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max())
    return raised / raised.sum()


@hookimpl
def streamkd_teachers() -> Iterable[Kind]:
    """Logistic regression."""
    yield Kind("linear", LinearTeacher, LinearOptions, "logistic regression, learned record by record")
