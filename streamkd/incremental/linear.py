"""The teacher ``linear``: multinomial logistic regression that learns record by record, at several rates side by side.

    h = (x - mean) / std               moments of the records so far, each record taken in before it is learned
    p = softmax(W h + b)
    W, b ← W - η (p - e_y) hᵀ, b - η (p - e_y)      one step of gradient descent a record, for each rate η
    answers ─► fixed share over the rates (``streamkd.gates.fixed_share``)

A rate stays as it is, so what came long ago fades: at a high one within records, at a low one hardly.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, PositiveFloat, field_validator

from streamkd.hookspecs import Options, TeacherKind, hookimpl
from streamkd.incremental.heads import Heads, read
from streamkd.incremental.side_by_side import SideBySide, distinct
from streamkd.plugins import Registry
from streamkd.records import Label, RecordSchema
from streamkd.teachers.teacher import TeacherContext


class LinearOptions(Options):
    """Logistic regression by gradient descent, a step a record."""

    rates: tuple[PositiveFloat, ...] = Field(default=(0.003, 0.03, 0.3), min_length=1, description="learning rates")

    @field_validator("rates")
    @classmethod
    def _differ(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        return distinct(rates)


class LinearTeacher(SideBySide):
    """Weights [rates, classes, features] over standardised inputs."""

    def __init__(self, options: LinearOptions, context: TeacherContext) -> None:
        super().__init__(context, [*map(str, options.rates)], {})
        self._rates = np.array(options.rates)[:, None]
        shape = len(options.rates), len(context.labels)
        self._weights, self._bias = np.zeros((*shape, len(self.standard.mean))), np.zeros(shape)

    def grow(self, labels: Sequence[Label]) -> None:
        more = len(labels) - len(self.learned)
        super().grow(labels)
        self._weights = np.pad(self._weights, ((0, 0), (0, more), (0, 0)))
        self._bias = np.pad(self._bias, ((0, 0), (0, more)))

    def answers(self, rows: np.ndarray) -> np.ndarray:
        """[n, rates, classes] logits."""
        return np.einsum("rcf,nf->nrc", self._weights, self.standard(rows)) + self._bias

    def learn(self, row: np.ndarray, label: int) -> None:
        """Its moments first, then a step of gradient descent at each rate."""
        self.standard.learn(row)
        h = self.standard(row)
        slope = np.nan_to_num(_softmax(self._weights @ h + self._bias))
        slope[:, label] -= 1.0
        slope *= self._rates
        self._weights -= slope[:, :, None] * h
        self._bias -= slope

    def part(self) -> Heads | None:
        """A copy as it is now; nothing before it has learned."""
        if not self.learned.any():
            return None
        weight = np.concatenate([self._weights, self._bias[:, :, None]], 2).transpose(0, 2, 1)
        return Heads("linear", {"weight": torch.from_numpy(weight).float(), **self.numbers()})

    def size_bytes(self) -> int:
        return self._weights.nbytes

    def state_dict(self) -> dict[str, Any]:
        arrays = {"weights": torch.from_numpy(self._weights.copy()), "bias": torch.from_numpy(self._bias.copy())}
        return {**super().state_dict(), **arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._weights, self._bias = (state[name].numpy().copy() for name in ("weights", "bias"))


def _softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def load(
    directory: Path, _about: Mapping[str, Any], _schema: RecordSchema, _classes: int, _registry: Registry
) -> Heads:
    """The part that wrote itself there."""
    return Heads("linear", read(directory))


@hookimpl
def streamkd_teachers() -> Iterable[TeacherKind]:
    """Logistic regression."""
    summary = "logistic regression, learned record by record at several rates"
    yield TeacherKind("linear", LinearTeacher, LinearOptions, summary, load=load)
