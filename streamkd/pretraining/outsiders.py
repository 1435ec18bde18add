"""Teachers from outside that streams of the family have: good, bad, or changing while the stream runs.

good       has learned records of every domain, at once and in closed form
permuted   its answers stand in the wrong columns: sure of itself, and wrong
random     says anything
half       right on one half of the labels, permuted on the other
partial    knows one half of the labels, and says so
late       knows nothing before its turn, and is good from then on
lying      good until its turn; from then on its answers stand in the wrong columns
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from streamkd.records import Label
from streamkd.students.networks import Student
from streamkd.teachers.teacher import Role

Nature = Literal["good", "permuted", "random", "half", "partial", "late", "lying"]
NATURES: tuple[Nature, ...] = ("good", "permuted", "random", "half", "late", "partial", "lying")
FEATURES, RIDGE, SURE = 300, 1.0, 8.0  # of the network in closed form; what its scores are multiplied by


def closed_form(x: Tensor, labels: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
    """A network that is taught at once: ridge regression of 0 and 1 on random features (ReLU) of x [n, *shape]."""
    generator = torch.Generator().manual_seed(seed)
    flat = x.flatten(1).double()
    mean, std = flat.mean(0), flat.std(0).clamp_min(1e-6 + 0.1 * float(flat.std()))
    first = torch.randn(flat.shape[1], FEATURES, generator=generator, dtype=torch.float64) / flat.shape[1] ** 0.5
    shift = torch.randn(FEATURES, generator=generator, dtype=torch.float64)

    def features(rows: Tensor) -> Tensor:
        hidden = torch.relu((rows.flatten(1).double() - mean) / std @ first + shift)
        return torch.cat([hidden, torch.ones_like(hidden[:, :1])], 1)

    seen = features(x)
    wanted = torch.nn.functional.one_hot(labels).double()
    scatter = seen.T @ seen + RIDGE * torch.eye(seen.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(scatter, seen.T @ wanted)
    return lambda rows: (SURE * features(rows) @ weights).float()


class Outsider:
    """A teacher of a stream whose labels are the numbers below ``classes``; its turn comes after ``turn`` records."""

    role: Role = "live"
    fresh = True
    version = 0

    def __init__(
        self, key: str, nature: Nature, network: Callable[[Tensor], Tensor], classes: int, turn: int, seed: int
    ) -> None:
        self.key, self.nature, self._network = key, nature, network
        self._seed, self._turn = seed, turn
        order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
        self._half, self._right = order[: max(1, classes // 2)], torch.arange(classes)
        wrong = {"half": self._half, "permuted": order, "lying": order}.get(nature, order[:0])
        self._wrong = self._right.clone()
        self._wrong[wrong] = wrong.roll(1)
        self._labels: list[int] = []
        self._records = 0

    def anew(self, labels: Sequence[Label]) -> "Outsider":
        """The same teacher before any stream, where these labels are known."""
        found = Outsider(self.key, self.nature, self._network, len(self._right), self._turn, self._seed)
        found.grow(labels)
        return found

    @property
    def _turned(self) -> bool:
        return self._records >= self._turn

    @torch.no_grad()
    def logits(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        if self.nature == "random":
            generator = torch.Generator().manual_seed(self._seed)
            return 3.0 * torch.randn(len(x), len(self._labels), generator=generator)
        wrong = self.nature != "lying" or self._turned
        return self._network(x)[:, (self._wrong if wrong else self._right)[self._labels]]

    def known(self) -> Bool[Tensor, "classes"]:
        if self.nature == "late" and not self._turned:
            return torch.zeros(len(self._labels), dtype=torch.bool)
        if self.nature == "partial":
            return torch.isin(torch.tensor(self._labels), self._half)
        return torch.ones(len(self._labels), dtype=torch.bool)

    def features(self, x: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        return {}

    def grow(self, labels: Sequence[Label]) -> None:
        self._labels = [int(label) for label in labels]

    def observe(self, x: Tensor, y: Tensor) -> None:
        self._records += len(y)

    def after_step(self, student: Student) -> None: ...

    def size_bytes(self) -> int:
        return 0

    def state_dict(self) -> dict[str, Any]:
        return {"records": self._records}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._records = state["records"]
