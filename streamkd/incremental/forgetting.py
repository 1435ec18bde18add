"""The teacher ``forgetting``: ridge regression that forgets, at several half-lives side by side.

    record ─► standardised, or in bins ─► random features h ─► for each half-life: A ← γA + h hᵀ,  B ← γB + h e_yᵀ
                                               ─► (now and then) W = (A + λI)⁻¹ B ─► softmax(hW / τ)
    answers ─► fixed share over the half-lives (``streamkd.gates.fixed_share``) ─► p

The moments are sums, so that forgetting costs a multiplication: least squares with a forgetting factor (Haykin 2002,
chapter 9), solved in blocks. The shortest half-life follows a world that turns, the longest knows more of one that does
not; which holds now is told by the records themselves (``streamkd.incremental.side_by_side``).
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor, nn

from streamkd.analytic.random_features import RandomFeatures
from streamkd.hookspecs import Options, TeacherKind, hookimpl
from streamkd.incremental.bins import Bins, apart
from streamkd.incremental.heads import Heads, read
from streamkd.incremental.side_by_side import SideBySide, distinct, stacked, unstacked
from streamkd.plugins import Registry
from streamkd.records import Label, RecordSchema
from streamkd.students.columns import Amounts, Columns
from streamkd.teachers.teacher import TeacherContext, copy_of, module_bytes

BLOCK = 20  # records that are taken together: until there are as many nothing changes
FEW, WIDE = 16, 8  # a solution lasts for so small a part of the half-life, but for a record for every so many features
RIDGE = 1e-3  # regularisation, relative to a feature's mean square; more while there are fewer records than features
TRIALS = 2_000  # records after which what a temperature was worth counts half
SHARPNESS = tuple(2.0**k for k in range(-2, 8))  # 1 / τ


class ForgettingOptions(Options):
    """Ridge regression on random features, whose lessons fade."""

    half_lives: tuple[PositiveInt, ...] = Field(
        default=(100, 800, 6_400),
        min_length=1,
        description="records after which a lesson counts half; one regression for each",
    )
    width: int = Field(default=128, ge=8, le=2_048, description="random features of a record")

    bins: int = Field(
        default=8,
        ge=0,
        le=64,
        description="of each column, for which there are regressions too; 0: none",
    )

    @field_validator("half_lives")
    @classmethod
    def _differ(cls, half_lives: tuple[int, ...]) -> tuple[int, ...]:
        return distinct(half_lives)


class Hidden(nn.Module):
    """Features of inputs [batch, features], raw and standardised: random ones, and where they are few the inputs too.

    With ``bins`` the same again of those that are ``amounts``, in bins (``streamkd.incremental.bins``). ``parts`` are
    the columns of the two sets of features, with a 1 at the end that both share.
    """

    def __init__(self, amounts: Tensor, width: int, bins: int, seed: int) -> None:
        super().__init__()
        self.width, self.seed = width, seed
        features = len(amounts)
        self.bins = Bins(amounts, bins)
        self.random = RandomFeatures((features,), 0, width, seed)
        self._few = features <= width
        plain = width + features * self._few
        self.parts = [[*range(plain), -1]]
        if self.bins.width:
            self.binned = RandomFeatures((self.bins.width,), 0, width, seed + 1)
            self.parts.append([*range(plain, plain + width + self.bins.width), -1])

    def forward(self, x: Tensor, z: Tensor) -> Float[Tensor, "batch hidden"]:
        found = [self.random(z), z] if self._few else [self.random(z)]
        if self.bins.width:
            encoded = self.bins(x)
            found += [self.binned(encoded), encoded]
        return torch.cat(found, 1)


class Head:
    """One regression on the columns ``part`` of the features: moments, what was solved, and how sure it may be.

    In float64, on the CPU.
    """

    def __init__(self, half_life: int, part: Sequence[int], classes: int) -> None:
        self.half_life, self.part, width = half_life, list(part), len(part)
        self.every = max(half_life // FEW, width // WIDE)
        self.square, self.cross = torch.zeros(width, width).double(), torch.zeros(width, classes).double()
        self.weight = torch.zeros(width, classes).double()
        self.surprise = torch.zeros(len(SHARPNESS)).double()
        self.mass = 0.0
        self.waiting = torch.zeros(0, width).double()
        self.labels = torch.zeros(0, dtype=torch.int64)

    @property
    def sharpness(self) -> float:
        """1 / τ of the best likelihood so far."""
        return SHARPNESS[int(self.surprise.argmin())] if self.mass else 0.0

    def learn(self, h: Tensor, labels: Tensor) -> None:
        """Take records' features [n, features] and labels [n]; solve when enough have come."""
        self.waiting, self.labels = torch.cat([self.waiting, h[:, self.part]]), torch.cat([self.labels, labels])
        if len(self.labels) >= self.every:
            self._solve(self.waiting, self.labels)
            self.waiting, self.labels = self.waiting[:0].clone(), self.labels[:0].clone()

    def _solve(self, h: Tensor, y: Tensor) -> None:
        """Test the records, forget a little, take them, solve."""
        if self.mass:
            z = h @ self.weight
            told = torch.stack([F.cross_entropy(z * sharp, y, reduction="sum") for sharp in SHARPNESS])
            self.surprise = self.surprise * 0.5 ** (len(y) / TRIALS) + told
        kept = 0.5 ** (torch.arange(len(y) - 1, -1, -1).double() / self.half_life)
        fade = 0.5 ** (len(y) / self.half_life)
        weighed = h * kept.unsqueeze(1)
        self.square.mul_(fade).addmm_(weighed.T, h)
        self.cross.mul_(fade).index_add_(1, y, weighed.T)
        self.mass = self.mass * fade + float(kept.sum())
        width = len(self.square)
        ridge = RIDGE * float(self.square.diagonal().mean()) * (1 + width / self.mass)
        factor = torch.linalg.cholesky(self.square + (ridge + 1e-9) * torch.eye(width).double())
        # by rows, as it is after a restart: laid out by columns the same product rounds otherwise
        self.weight = torch.cholesky_solve(self.cross, factor).contiguous()

    def grow(self, classes: int) -> None:
        """Room for ``classes`` classes."""
        more = (0, classes - self.cross.shape[1])
        self.cross, self.weight = F.pad(self.cross, more), F.pad(self.weight, more)

    def state_dict(self) -> dict[str, Any]:
        """Its moments, what was solved, and what waits."""
        return {name: getattr(self, name) for name in (*TENSORS, "mass")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        for name in TENSORS:
            setattr(self, name, state[name].clone())
        self.mass = state["mass"]


TENSORS = ("square", "cross", "weight", "surprise", "waiting", "labels")


class ForgettingHeads(Heads):
    """What is served of the teacher: linear answers to its features."""

    def __init__(self, numbers: dict[str, Tensor], columns: Columns, features: Hidden) -> None:
        super().__init__("forgetting", numbers, columns)
        self.map = features

    def features(self, rows: Tensor, z: Tensor) -> Float[Tensor, "batch width"]:
        """Of inputs [batch, features], raw and standardised."""
        return self.map(rows, z)

    def write(self, directory: Path) -> dict[str, Any]:
        """Put its numbers into a version's directory."""
        return {**super().write(directory), "width": self.map.width, "bins": self.map.bins.bins, "seed": self.map.seed}


def load(directory: Path, about: Mapping[str, Any], schema: RecordSchema, _classes: int, _all: Registry) -> Heads:
    """The part that wrote itself there; the random features follow from their seed."""
    own, bins = apart(read(directory))
    columns = Columns(schema, schema.student)
    amounts = Amounts(columns.schema.inputs).all
    features = Hidden(amounts, about["width"], about["bins"], about["seed"])
    features.bins.load_state_dict(bins)
    return ForgettingHeads(own, columns, features)


class ForgettingTeacher(SideBySide):
    """One ``Head`` for each half-life and set of features."""

    def __init__(self, options: ForgettingOptions, context: TeacherContext) -> None:
        amounts = Amounts(Columns(context.schema, context.schema.student).schema.inputs).all
        self._map = Hidden(amounts, options.width, options.bins, context.student.seed)
        many = [(half_life, part) for part in self._map.parts for half_life in options.half_lives]
        alike = len({len(part) for part in self._map.parts}) < len(self._map.parts)
        names = [
            f"{len(part)} features{' in bins' if alike and part is not self._map.parts[0] else ''}, {half_life}"
            for half_life, part in many
        ]
        super().__init__(context, names, {"seed": str(context.student.seed)})
        self.heads = [Head(half_life, part, len(context.labels)) for half_life, part in many]
        self._block: list[tuple[np.ndarray, int]] = []

    def grow(self, labels: Sequence[Label]) -> None:
        super().grow(labels)
        for head in self.heads:
            head.grow(len(labels))

    def unchanged(self) -> int:
        """Until the block is full it answers as it does."""
        return BLOCK - len(self._block)

    def answers(self, rows: np.ndarray) -> np.ndarray:
        """[n, heads, classes] logits, as sure as each may be."""
        h = self._features(rows).numpy()
        return np.stack([h[:, head.part] @ (head.weight.numpy() * head.sharpness) for head in self.heads], 1)

    def learn(self, rows: np.ndarray, labels: np.ndarray) -> None:
        """When a block is full: its moments, then every head takes the records."""
        for row, label in zip(rows, labels.tolist(), strict=True):
            self._block.append((row, label))
            if len(self._block) == BLOCK:
                self._learn_block()

    def _learn_block(self) -> None:
        rows, labels = (np.stack(column) for column in zip(*self._block, strict=True))
        self._block = []
        self.standard.learn(rows)
        self._map.bins.learn(self.standard.filled(rows))
        h = self._features(rows)
        for head in self.heads[: None if self._map.bins.fitted else len(self.heads) // len(self._map.parts)]:
            head.learn(h, torch.from_numpy(labels))

    @torch.no_grad()
    def _features(self, rows: np.ndarray) -> Tensor:
        """[n, features + 1] of raw rows, the last a 1; float64."""
        h = self._map(*(torch.from_numpy(part).float() for part in (self.standard.filled(rows), self.standard(rows))))
        return F.pad(h.double(), (0, 1), value=1.0)

    def part(self) -> ForgettingHeads | None:
        """A copy as it is now; nothing before it has learned."""
        if not any(head.mass for head in self.heads):
            return None
        weight = torch.stack([self._spread(head) for head in self.heads])
        return ForgettingHeads({"weight": weight, **self.numbers()}, self._columns, copy_of(self._map))

    def _spread(self, head: Head) -> Tensor:
        """[features + 1, classes] its solution, zeros elsewhere."""
        whole = torch.zeros(self._map.parts[-1][-2] + 2, head.weight.shape[1])
        whole[head.part] = (head.weight * head.sharpness).float()
        return whole

    def size_bytes(self) -> int:
        """Moments and solutions of all heads, and the features' numbers."""
        tensors = [t for head in self.heads for t in (head.square, head.cross, head.weight, head.waiting)]
        return module_bytes(self._map) + sum(t.numel() * t.element_size() for t in tensors)

    def state_dict(self) -> dict[str, Any]:
        block = {"rows": stacked([row for row, _ in self._block]), "labels": [label for _, label in self._block]}
        mine = {"heads": [head.state_dict() for head in self.heads], "bins": self._map.bins.state_dict()}
        return {**super().state_dict(), **mine, "block": block, "first": stacked(self._map.bins.first)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for head, held in zip(self.heads, state["heads"], strict=True):
            head.load_state_dict(held)
        self._map.bins.load_state_dict(state["bins"])
        self._block = [*zip(unstacked(state["block"]["rows"]), state["block"]["labels"], strict=True)]
        self._map.bins.first = unstacked(state["first"])


@hookimpl
def streamkd_teachers() -> Iterable[TeacherKind]:
    """Ridge regression that forgets."""
    yield TeacherKind(
        "forgetting",
        ForgettingTeacher,
        ForgettingOptions,
        "ridge regression that forgets, at several half-lives side by side",
        load=load,
    )
