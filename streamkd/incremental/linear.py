"""The teacher ``linear``: multinomial logistic regression that learns record by record, at several rates side by side.

    h = (x - mean) / std, 1            moments of the records so far, each record taken in before it is learned
    h = the amounts in bins, what is no amount, 1      (tables alone; ``streamkd.incremental.bins``)
    p = softmax(W h)
    V ← V + g²,  W ← W - η g / √V      g = (p - e_y) hᵀ, one step of AdaGrad (Duchi et al. 2011), for each rate η
    answers ─► fixed share over rates and features (``streamkd.gates.fixed_share``)

V begins at 1, so that the first steps are those of gradient descent. A weight of what is rare moves further than one
that every record moves. At a high rate what came last counts most, at a low one all that came.

Moments are float64, W and V float32.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat, field_validator
from torch import Tensor

from streamkd.hookspecs import Options, TeacherKind, hookimpl
from streamkd.incremental.bins import Bins, apart
from streamkd.incremental.heads import Heads, read
from streamkd.incremental.side_by_side import SideBySide, distinct, finite, stacked, unstacked
from streamkd.plugins import Registry
from streamkd.records import Label, RecordSchema
from streamkd.students.columns import Amounts, Columns
from streamkd.teachers.teacher import TeacherContext, copy_of


class LinearOptions(Options):
    """Logistic regression by AdaGrad, a step a record."""

    rates: tuple[PositiveFloat, ...] = Field(default=(0.03, 0.3, 1.0), min_length=1, description="learning rates")
    bins: int = Field(default=8, ge=0, le=64, description="of each column, on which there are regressions too; 0: none")

    @field_validator("rates")
    @classmethod
    def _differ(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        return distinct(rates)


class LinearHeads(Heads):
    """What is served of the teacher: its inputs as they are, and the amounts among them in bins."""

    def __init__(self, numbers: dict[str, Tensor], columns: Columns, bins: Bins) -> None:
        super().__init__("linear", numbers, columns)
        self.bins = bins

    def features(self, rows: Tensor, z: Tensor) -> Float[Tensor, "batch width"]:
        """Of inputs [batch, features], raw and standardised."""
        return torch.cat([z, self.bins(rows)], 1) if self.bins.width else z

    def write(self, directory: Path) -> dict[str, Any]:
        """Put its numbers into a version's directory."""
        return {**super().write(directory), "bins": self.bins.bins}


class LinearTeacher(SideBySide):
    """Weights [heads, classes, features + 1]: every rate over the inputs, and over the amounts in bins."""

    def __init__(self, options: LinearOptions, context: TeacherContext) -> None:
        amounts = Amounts(Columns(context.schema, context.schema.student).schema.inputs).all
        self._bins = Bins(amounts, options.bins)
        reads = _reads(amounts.numpy(), self._bins.width)
        names = [f"{rate}{kind}" for _, kind in zip(reads, ("", " in bins"), strict=False) for rate in options.rates]
        super().__init__(context, names, {"bins": str(options.bins)})
        rates = np.tile(options.rates, len(reads))[:, None] * reads.repeat(len(options.rates), 0)
        self._rates = rates.astype(np.float32)[:, None]  # nothing for a feature that a head does not read
        shape = len(names), len(context.labels), reads.shape[1]
        self._weights, self._squares = np.zeros(shape, np.float32), np.ones(shape, np.float32)

    def grow(self, labels: Sequence[Label]) -> None:
        more = ((0, 0), (0, len(labels) - len(self.learned)), (0, 0))
        super().grow(labels)
        self._weights, self._squares = np.pad(self._weights, more), np.pad(self._squares, more, constant_values=1.0)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Raw rows and, once there are bins, what is in each of them beside them."""
        if not self._bins.fitted:
            return rows
        return np.hstack([rows, self._bins(torch.from_numpy(self.standard.filled(rows)).float()).numpy()])

    def answers(self, rows: np.ndarray) -> np.ndarray:
        """[n, heads, classes] logits."""
        return self._products(self._features(rows)).transpose(2, 0, 1)

    def learn(self, rows: np.ndarray, labels: np.ndarray) -> None:
        """Their moments and bins first, then a step at each rate by the sum of their gradients."""
        raw = rows[:, : len(self.standard.mean)]
        self.standard.learn(raw)
        if not self._bins.fitted:
            self._bins.learn(self.standard.filled(raw))
            if self._bins.fitted:
                self.reading, rows = self.reading + 1, self.read(raw)
        h = self._features(rows)
        slope = finite(_softmax(self._products(h)))
        slope[:, labels, np.arange(len(rows))] -= 1.0
        # in place: of many classes of wide records the memory for what lies between costs more than the arithmetic
        step = slope * h if len(h) == 1 else slope @ h
        root = np.square(step)
        self._squares += root
        np.sqrt(self._squares, out=root)
        step *= self._rates
        step /= root
        self._weights -= step

    def _products(self, h: np.ndarray) -> np.ndarray:
        """[heads, classes, n] logits to features [n, features + 1]."""
        return (self._weights.reshape(-1, h.shape[1]) @ h.T).reshape(*self._weights.shape[:2], len(h))

    def _features(self, rows: np.ndarray) -> np.ndarray:
        """[n, features + 1] of rows as they are ``read``, the last a 1; zeros for bins before there are any."""
        inputs = len(self.standard.mean)
        h = np.zeros((len(rows), inputs + self._bins.width + 1), np.float32)
        h[:, :inputs], h[:, -1] = self.standard(rows[:, :inputs]), 1.0
        if rows.shape[1] > inputs:
            h[:, inputs:-1] = rows[:, inputs:]
        return h

    def part(self) -> LinearHeads | None:
        """A copy as it is now; nothing before it has learned."""
        if not self.learned.any():
            return None
        weight = torch.from_numpy(self._weights.transpose(0, 2, 1).copy()).float()
        return LinearHeads({"weight": weight, **self.numbers()}, self._columns, copy_of(self._bins))

    def size_bytes(self) -> int:
        return self._weights.nbytes + self._squares.nbytes

    def state_dict(self) -> dict[str, Any]:
        arrays = {"weights": torch.from_numpy(self._weights.copy()), "squares": torch.from_numpy(self._squares.copy())}
        bins = {"bins": self._bins.state_dict(), "first": stacked(self._bins.first)}
        return {**super().state_dict(), **arrays, **bins}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._weights, self._squares = (state[name].float().numpy().copy() for name in ("weights", "squares"))
        self._bins.load_state_dict(state["bins"])
        self._bins.first = unstacked(state["first"])


def _reads(amounts: np.ndarray, binned: int) -> np.ndarray:
    """bool [1 or 2, features + 1] of what a kind of head reads: all inputs; bins and what is no amount."""
    plain = np.r_[np.ones(len(amounts), bool), np.zeros(binned, bool), True]
    return np.stack([plain, np.r_[~amounts, np.ones(binned + 1, bool)]]) if binned else plain[None]


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Over the classes of [heads, classes, n]."""
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def load(directory: Path, about: Mapping[str, Any], schema: RecordSchema, _classes: int, _registry: Registry) -> Heads:
    """The part that wrote itself there."""
    own, inside = apart(read(directory))
    columns = Columns(schema, schema.student)
    bins = Bins(Amounts(columns.schema.inputs).all, about.get("bins", 0))  # older ones had none
    if inside:
        bins.load_state_dict(inside)
    return LinearHeads(own, columns, bins)


@hookimpl
def streamkd_teachers() -> Iterable[TeacherKind]:
    """Logistic regression."""
    summary = "logistic regression, learned record by record at several rates"
    yield TeacherKind("linear", LinearTeacher, LinearOptions, summary, load=load)
