"""The teacher ``linear``: multinomial logistic regression that learns record by record, at several rates side by side.

    h = (x - mean) / std               moments of the records so far, each record taken in before it is learned
    p = softmax(W h + b)
    W, b ← W - η (p - e_y) hᵀ, b - η (p - e_y)      one step of gradient descent a record, for each rate η
    answers ─► fixed share over the rates (``streamkd.gates.fixed_share``)

A rate stays as it is, so what came long ago fades: at a high one within records, at a low one hardly. In float64; what
is not finite in a record counts as its mean, and such a record is not learned. It speaks of what comes, in the order in
which it comes, and teaches nobody.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from streamkd.gates.fixed_share import NOBODY, FixedShare
from streamkd.hookspecs import Options, TeacherKind, hookimpl
from streamkd.plugins import Registry
from streamkd.records import Label, RecordSchema
from streamkd.students.columns import Columns
from streamkd.teachers.heads import Heads, read
from streamkd.teachers.standard import Standard
from streamkd.teachers.teacher import Role, TeacherContext

HELD = ("weights", "bias", "learned")


class LinearOptions(Options):
    """Logistic regression by gradient descent, a step a record."""

    rates: tuple[float, ...] = Field(default=(0.003, 0.03, 0.3), min_length=1, description="learning rates")


class LinearTeacher:
    """Weights [rates, classes, features] over standardised inputs; it knows the labels that it has learned."""

    role: Role = "prequential"
    fresh = False

    def __init__(self, options: LinearOptions, context: TeacherContext) -> None:
        self.key = context.key
        self._rates = np.array(options.rates)[:, None]
        self._names = tuple(map(str, options.rates))
        self._columns = Columns(context.schema, context.schema.student)
        features = int(np.prod(self._columns.schema.shape))
        shape = len(options.rates), len(context.labels)
        self._weights, self._bias = np.zeros((*shape, features)), np.zeros(shape)
        self._learned = np.zeros(len(context.labels), dtype=bool)
        self._standard = Standard(features)
        self.share = FixedShare()

    def logits(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        said = self._said(self._standard(self._rows(x)))
        return self._given(self.share.mixed(self._names, said), x)

    def known(self) -> Bool[Tensor, "classes"]:
        return torch.from_numpy(self._learned.copy())

    def grow(self, labels: Sequence[Label]) -> None:
        more = len(labels) - len(self._learned)
        self._weights = np.pad(self._weights, ((0, 0), (0, more), (0, 0)))
        self._bias, self._learned = np.pad(self._bias, ((0, 0), (0, more))), np.pad(self._learned, (0, more))

    def test_then_train(
        self, x: Tensor, y: Int[Tensor, "batch"], learn: Bool[Tensor, "batch"]
    ) -> Float[Tensor, "batch classes"]:
        rows, labels = self._rows(x), y.cpu().numpy()
        taught = learn.cpu().numpy() & np.isfinite(rows).all(1)
        answers = np.empty((len(rows), len(self._learned)))
        for place, row in enumerate(rows):
            said = self._said(self._standard(row[None]))
            tested = np.where(taught[place], labels[place : place + 1], -1)
            answers[place] = self.share.test(self._names, said, tested, *NOBODY)[0]
            if taught[place]:
                self._learn(row, int(labels[place]))
        return self._given(answers, x)

    def _said(self, h: np.ndarray) -> np.ndarray:
        """[n, rates, classes] probabilities over the classes that it has learned; even before there are any."""
        known = self._learned if self._learned.any() else ~self._learned
        said = _softmax(np.einsum("rcf,nf->nrc", self._weights, h) + self._bias) * known
        return said / said.sum(2, keepdims=True)

    def _learn(self, row: np.ndarray, label: int) -> None:
        """Its moments first, then a step of gradient descent at each rate."""
        self._standard.learn(row)
        h = self._standard(row)
        slope = _softmax(self._weights @ h + self._bias)
        slope[:, label] -= 1.0
        slope *= self._rates
        self._weights -= slope[:, :, None] * h
        self._bias -= slope
        self._learned[label] = True

    def _rows(self, x: Tensor) -> np.ndarray:
        return self._columns(x).flatten(1).cpu().numpy().astype(np.float64)

    @staticmethod
    def _given(answers: np.ndarray, x: Tensor) -> Tensor:
        return torch.from_numpy(np.log(answers + 1e-9)).to(x.device, torch.float32)

    def part(self) -> Heads | None:
        """A copy as it is now; nothing before it has learned."""
        if not self._learned.any():
            return None
        weight = np.concatenate([self._weights, self._bias[:, :, None]], 2).transpose(0, 2, 1)
        share = torch.tensor([*self.share.weights.values()])
        numbers = {"weight": torch.from_numpy(weight).float(), "share": share, "known": self.known()}
        return Heads("linear", {**numbers, **self._standard.numbers()})

    def size_bytes(self) -> int:
        return self._weights.nbytes

    def state_dict(self) -> dict[str, Any]:
        arrays = {name: torch.from_numpy(getattr(self, f"_{name}").copy()) for name in HELD}
        return {"standard": self._standard.state_dict(), "share": self.share.state_dict(), **arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._standard.load_state_dict(state["standard"])
        self.share.load_state_dict(state["share"])
        for name in HELD:
            setattr(self, f"_{name}", state[name].numpy().copy())


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
