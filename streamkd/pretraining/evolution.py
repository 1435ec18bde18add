"""Evolution strategies: a mean that moves towards what did better, by no gradient but that of its own noise.

    ε_i ~ N(0, I);  f(μ + σε_i), f(μ - σε_i) under the same conditions  ─► d_i
    u_i = sign(d_i) · rank(|d_i|) / n        signed ranks: one hard condition does not outvote all others
    g = Σ u_i ε_i / n;  v ← β·v + (1 - β)·g;  μ ← μ + rate · v - rate · pull · μ

Antithetic pairs as in Salimans et al. (2017), each pair under conditions of its own, which both halves share. What
comparisons do not tell of moves little: Adam, which they have there, moves every number as far, and of fourteen most by
chance. The pull goes to 0, where the mean began. Pure: a generation's noise follows from the seed and its number alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

MOMENTUM = 0.8  # β: about as many pairs as there are numbers in what is looked back on


@dataclass(frozen=True)
class Evolution:
    """How far it has come; where all pairs agree on a number, it moves by about half of ``rate`` in a generation."""

    mean: tuple[float, ...]
    seed: int = 0
    sigma: float = 0.3
    rate: float = 0.2
    pull: float = 0.0
    generation: int = 0
    velocity: tuple[float, ...] = ()

    def noise(self, pairs: int) -> np.ndarray:
        """ε [pairs, numbers] of the next generation."""
        return np.random.default_rng([self.seed, self.generation]).standard_normal((pairs, len(self.mean)))

    def candidates(self, pairs: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Both halves of each pair."""
        mean = np.array(self.mean)
        return [(mean + self.sigma * one, mean - self.sigma * one) for one in self.noise(pairs)]

    def told(self, differences: Sequence[float]) -> "Evolution":
        """The next generation, by what the first half of each pair did better than the second."""
        gradient = signed_ranks(np.array(differences)) @ self.noise(len(differences)) / len(differences)
        velocity = MOMENTUM * np.array(self.velocity or np.zeros(len(self.mean))) + (1 - MOMENTUM) * gradient
        mean = (1 - self.rate * self.pull) * np.array(self.mean) + self.rate * velocity
        kept = (tuple(mean.tolist()), tuple(velocity.tolist()))
        return replace(self, mean=kept[0], velocity=kept[1], generation=self.generation + 1)

    def as_json(self) -> dict[str, Any]:
        """As plain JSON values, exact."""
        return asdict(self)

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> "Evolution":
        """Back from ``as_json``."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()
        }
        return cls(**values)


def signed_ranks(differences: np.ndarray) -> np.ndarray:
    """Of each its sign times the rank of its size over their number; 0 stays 0, equals share their rank (Wilcoxon)."""
    sizes = np.abs(differences)
    ranks = (sizes[:, None] > sizes).sum(1) + ((sizes[:, None] == sizes).sum(1) + 1) / 2
    return np.sign(differences) * ranks / len(differences)
