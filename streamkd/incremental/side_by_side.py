"""What teachers have in common that learn record by record with several answers side by side.

    record ─► standardised ─► features h ─► answers [heads, classes] ─► fixed share ─► p     (a test)
                                        └─► every head learns h and the label                (then training)

Which of the heads follows the present is told by the records themselves. Such a teacher speaks of what comes, in the
order in which it comes, and teaches nobody: what it has forgotten may still be true. In float64; what is not finite in
a record counts as its mean, and such a record is not learned.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from streamkd.gates.fixed_share import NOBODY, FixedShare
from streamkd.incremental.standard import Standard
from streamkd.records import Label
from streamkd.students.columns import Columns
from streamkd.teachers import checkpoint
from streamkd.teachers.teacher import Role, TeacherContext

N = TypeVar("N", int, float)


def distinct(numbers: tuple[N, ...]) -> tuple[N, ...]:
    """The numbers that tell heads apart.

    Raises:
        ValueError: one of them is there twice.
    """
    twice = sorted({number for number in numbers if numbers.count(number) > 1})
    if twice:
        raise ValueError(f"needed different numbers, got {twice[0]:g} twice")
    return numbers


class SideBySide(ABC):
    """Heads by ``names`` over the same features; it knows the labels that it has learned.

    ``identity`` is what its state is bound to, beside the names.
    """

    role: Role = "prequential"
    fresh = False

    def __init__(self, context: TeacherContext, names: Sequence[str], identity: dict[str, str]) -> None:
        self.key = context.key
        self.names = tuple(names)
        self.share = FixedShare()
        self.learned = np.zeros(len(context.labels), dtype=bool)
        self._identity = {**identity, "heads": "; ".join(names)}
        self._columns = Columns(context.schema, context.schema.student)
        self.standard = Standard(int(np.prod(self._columns.schema.shape)))

    @abstractmethod
    def encoded(self, rows: np.ndarray) -> np.ndarray:
        """[n, width] of raw rows [n, features]."""

    @abstractmethod
    def answers(self, h: np.ndarray) -> np.ndarray:
        """[n, heads, classes] logits of each head."""

    @abstractmethod
    def learn(self, row: np.ndarray, h: np.ndarray, label: int) -> None:
        """Take a raw row [features], whose features were h [width] when it was tested."""

    def logits(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        if not self.learned.any():
            return torch.zeros(len(x), len(self.learned), device=x.device)
        return self._given(self.share.mixed(self.names, self._said(self.encoded(self._rows(x)))), x)

    def known(self) -> Bool[Tensor, "classes"]:
        return torch.from_numpy(self.learned.copy())

    def grow(self, labels: Sequence[Label]) -> None:
        self.learned = np.pad(self.learned, (0, len(labels) - len(self.learned)))

    def test_then_train(
        self, x: Tensor, y: Int[Tensor, "batch"], learn: Bool[Tensor, "batch"]
    ) -> Float[Tensor, "batch classes"]:
        rows, labels = self._rows(x), y.cpu().numpy()
        taught = learn.cpu().numpy() & np.isfinite(rows).all(1)
        answers = np.empty((len(rows), len(self.learned)))
        for place, row in enumerate(rows):
            h = self.encoded(row[None])
            tested = np.where(taught[place], labels[place : place + 1], -1)
            answer = self.share.test(self.names, self._said(h), tested, *NOBODY)[0]
            answers[place] = answer if self.learned.any() else 1.0
            if taught[place]:
                self.learned[labels[place]] = True
                self.learn(row, h[0], int(labels[place]))
        return self._given(answers, x)

    def _said(self, h: np.ndarray) -> np.ndarray:
        """[n, heads, classes] probabilities over the classes that were learned; even before there are any."""
        known = self.learned if self.learned.any() else ~self.learned
        said = self.answers(h)
        raised = np.exp(said - said.max(2, keepdims=True)) * known
        return raised / raised.sum(2, keepdims=True)

    def _rows(self, x: Tensor) -> np.ndarray:
        return self._columns(x).flatten(1).cpu().numpy().astype(np.float64)

    @staticmethod
    def _given(answers: np.ndarray, x: Tensor) -> Tensor:
        return torch.from_numpy(np.log(answers)).to(x.device, torch.float32)

    def numbers(self) -> dict[str, Tensor]:
        """What ``Heads`` needs beside the weights."""
        share = torch.tensor([*self.share.weights.values()])
        return {"share": share, "known": self.known(), **self.standard.numbers()}

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
