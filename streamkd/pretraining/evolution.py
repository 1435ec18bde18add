"""Evolution strategies: a mean that moves towards what did better, by no gradient but that of its own noise.

    ε_i ~ N(0, I);  f(μ + σε_i), f(μ - σε_i) under the same conditions  ─► d_i
    u_i = sign(d_i) · rank(|d_i|) / n        signed ranks: one hard condition does not outvote all others
    g = Σ u_i ε_i / n;  μ ← μ + Adam(g) - rate · pull · μ

Antithetic pairs as in Salimans et al. (2017), each pair under conditions of its own, which both halves share. The pull
goes to 0, where the mean began. Pure: a generation's noise follows from the seed and its number alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

BETAS, EPS = (0.9, 0.99), 1e-8  # Adam's; fewer generations than a network has steps


@dataclass(frozen=True)
class Evolution:
    """How far it has come; ``rate`` is what the mean moves by in a generation in which all agree."""

    mean: tuple[float, ...]
    seed: int = 0
    sigma: float = 0.3
    rate: float = 0.05
    pull: float = 0.0
    generation: int = 0
    first: tuple[float, ...] = field(default=())
    second: tuple[float, ...] = field(default=())

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
        zeros, count = np.zeros(len(self.mean)), self.generation + 1
        first = BETAS[0] * np.array(self.first or zeros) + (1 - BETAS[0]) * gradient
        second = BETAS[1] * np.array(self.second or zeros) + (1 - BETAS[1]) * gradient**2
        step = first / (1 - BETAS[0] ** count) / (np.sqrt(second / (1 - BETAS[1] ** count)) + EPS)
        mean = (1 - self.rate * self.pull) * np.array(self.mean) + self.rate * step
        kept = [tuple(value.tolist()) for value in (mean, first, second)]
        return replace(self, mean=kept[0], first=kept[1], second=kept[2], generation=count)

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
