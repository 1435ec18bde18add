"""What teachers have in common that learn record by record with several answers side by side.

    record ─► answers [heads, classes] ─► fixed share ─► p     (a test)
           └─► every head learns it                            (then training)

Which of the heads follows the present is told by the records themselves. Such a teacher speaks of what comes now, and
teaches while it knows that better than the student: what it has forgotten may still be true. A gap counts as its
column's mean, and so does what is not finite; a record with the latter is not learned.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from streamkd.gates.fixed_share import NOBODY, FixedShare, at_once
from streamkd.incremental.standard import Standard
from streamkd.records import Label
from streamkd.students.columns import Amounts, Columns, with_gaps
from streamkd.teachers import checkpoint
from streamkd.teachers.teacher import Role, TeacherContext

FAR = 1e6  # a logit beyond is of weights that have diverged
N = TypeVar("N", int, float)


def finite(numbers: np.ndarray) -> np.ndarray:
    """The numbers, where one is not finite with 0 in its place (and the greatest there is for infinity)."""
    return numbers if np.isfinite(numbers).all() else np.nan_to_num(numbers)


def distinct(numbers: tuple[N, ...]) -> tuple[N, ...]:
    """The numbers that tell heads apart.

    Raises:
        ValueError: one of them is there twice.
    """
    twice = sorted({number for number in numbers if numbers.count(number) > 1})
    if twice:
        raise ValueError(f"needed different numbers, got {twice[0]:g} twice")
    return numbers


def stacked(rows: Sequence[np.ndarray]) -> Tensor | None:
    """Waiting rows as they are kept in a state."""
    return torch.from_numpy(np.stack(rows)) if rows else None


def unstacked(kept: Tensor | None) -> list[np.ndarray]:
    """The rows again."""
    return [] if kept is None else [*kept.numpy().copy()]


class SideBySide(ABC):
    """Heads by ``names`` over the same features; it knows the labels that it has learned.

    ``identity`` is what its state is bound to, beside the names.
    """

    role: Role = "present"
    fresh = True
    reading = 0
    """How often it has begun to read rows otherwise."""

    def __init__(self, context: TeacherContext, names: Sequence[str], identity: dict[str, str]) -> None:
        self.key = context.key
        self.names = tuple(names)
        assert len(set(names)) == len(names)  # a share goes by its name
        self.share = FixedShare()
        self.learned = np.zeros(len(context.labels), dtype=bool)
        self._identity = {**identity, "heads": "; ".join(names)}
        self._columns = Columns(context.schema, context.schema.student)
        self._amounts = Amounts(self._columns.schema.inputs)
        self.standard = Standard(self._amounts.all.numpy())

    @abstractmethod
    def answers(self, rows: np.ndarray) -> np.ndarray:
        """[n, heads, classes] logits of each head to rows [n, ...] as they are ``read``."""

    @abstractmethod
    def learn(self, rows: np.ndarray, labels: np.ndarray) -> None:
        """Take rows [n, ...] as they are ``read``, and their labels [n], together: n is 1 in batches of up to forty."""

    def read(self, rows: np.ndarray) -> np.ndarray:
        """What of raw rows [n, features], in which gaps are NaN, it goes by: all that no lesson changes, at once."""
        return rows

    def unchanged(self) -> int:
        """How many records may be learned, at least one, before it answers otherwise."""
        return 1

    def logits(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        if not self.learned.any():
            return torch.zeros(len(x), len(self.learned), device=x.device)
        return self._given(self.share.mixed(self.names, self._said(self.read(self._rows(self._flat(x))))), x)

    def known(self) -> Bool[Tensor, "classes"]:
        return torch.from_numpy(self.learned.copy())

    def grow(self, labels: Sequence[Label]) -> None:
        self.learned = np.pad(self.learned, (0, len(labels) - len(self.learned)))

    def opinion(self, x: Tensor) -> np.ndarray:
        """[n, heads + pairs, classes] what each head says of rows that have come, and each pair of rate and share."""
        said = self._said(self.read(self._rows(self._flat(x))))
        return np.concatenate([said, self.share.each(self.names, said)], 1)

    def test_then_train(
        self, x: Tensor, y: Int[Tensor, "batch"], learn: Bool[Tensor, "batch"], then: np.ndarray | None = None
    ) -> Float[Tensor, "batch classes"]:
        flat, labels = self._flat(x), y.cpu().numpy()
        raw = self._rows(flat)
        rows, reading = self.read(raw), self.reading
        tested = np.where((learn.cpu() & flat.isfinite().all(1)).numpy(), labels, -1)
        said = np.empty((len(rows), len(self.names), len(self.learned)))
        start, block, first = 0, at_once(len(rows)), 0 if self.learned.any() else len(rows)
        while start < len(rows):
            if reading != self.reading:
                rows, reading = self.read(raw), self.reading
            span = slice(start, start + self._span(tested[start:], block))
            said[span] = self._said(rows[span])
            told = start + np.flatnonzero(tested[span] >= 0)
            for some in (told[place : place + block] for place in range(0, len(told), block)):
                self.learned[tested[some]] = True
                self.learn(rows[some], tested[some])
            start = span.stop
            first = min(first, start) if self.learned.any() else first
        answers = self._weighed(said, tested, then)
        answers[:first] = 1.0  # nothing was learned yet
        return self._given(answers, x)

    def _weighed(self, said: np.ndarray, labels: np.ndarray, then: np.ndarray | None) -> np.ndarray:
        """The answers [n, classes] from those of the heads, which are tested: as they are, or as they were ``then``."""
        if then is None:
            return self.share.test(self.names, said, labels, *NOBODY)
        answers, told = self.share.mixed(self.names, said), np.where(np.isnan(then).any((1, 2)), -1, labels)
        heads, each = np.split(then, [len(self.names)], 1)
        self.share.test(self.names, heads, told, *NOBODY, each)
        return answers

    def _span(self, labels: np.ndarray, block: int) -> int:
        """How many of the rows of these labels (-1: not learned) are answered alike, whoever of them is learned.

        As many as are learned together, or more; but a class that is new is known to the next row.
        """
        most = max(self.unchanged(), block)
        if most == 1:
            return 1
        new = np.flatnonzero((labels >= 0) & ~self.learned[labels])
        return min(len(labels), most, *(new[:1] + 1).tolist())

    def _said(self, rows: np.ndarray) -> np.ndarray:
        """[n, heads, classes] probabilities over the classes that were learned; even before there are any."""
        if not self.learned.any():
            return np.full((len(rows), len(self.names), len(self.learned)), 1 / len(self.learned))
        said = np.where(self.learned, finite(self.answers(rows)).clip(-FAR, FAR), -np.inf)
        raised = np.exp(said - said.max(2, keepdims=True))
        return raised / raised.sum(2, keepdims=True)

    def _flat(self, x: Tensor) -> Tensor:
        return self._columns(x).flatten(1).cpu()

    def _rows(self, flat: Tensor) -> np.ndarray:
        return with_gaps(flat.double(), self._amounts.missing, self._amounts.told_by).numpy()

    @staticmethod
    def _given(answers: np.ndarray, x: Tensor) -> Tensor:
        return torch.from_numpy(np.log(answers)).to(x.device, torch.float32)

    def numbers(self) -> dict[str, Tensor]:
        """What ``Heads`` needs beside the weights."""
        share = torch.tensor([*self.share.weights.values()])
        gaps = {"missing": self._amounts.missing, "told_by": self._amounts.told_by}
        return {
            "share": share,
            "known": self.known(),
            **self.standard.numbers(),
            **(gaps if len(gaps["missing"]) else {}),
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "identity": dict(self._identity),
            "standard": self.standard.state_dict(),
            "share": self.share.state_dict(),
            "learned": torch.from_numpy(self.learned.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            StateConflict: it was learned with other heads or features.
        """
        checkpoint.same(self._identity, state["identity"], f"teacher {self.key}")
        self.standard.load_state_dict(state["standard"])
        self.share.load_state_dict(state["share"])
        self.learned = state["learned"].numpy().copy()
