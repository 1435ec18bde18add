"""Class weights: what an answer counts by its class, where classes are not as frequent as they are dear.

    p(c) ─► w_c · p(c) / Σ_k w_k · p(k)

With true probabilities that is the answer of least expected cost where a mistake on class c costs w_c (Elkan 2001,
equation 2). It is applied to what is answered, whoever says it, and not to what is learned: remembered records have as
many of each class as they are.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from streamkd.records import Label

HALF_LIFE = 10_000  # records after which a record counts half
MOST = 100.0  # times the smallest of the balanced ones: probabilities of 1 in 1,000 are not told apart


class ClassWeights:
    """Given ones by label, 1 where none is given; or balanced: n / (classes · n_c) of the labels so far."""

    def __init__(self, given: Literal["balanced"] | Mapping[str, float]) -> None:
        self._given = given
        self._counts = np.zeros(0)

    def see(self, labels: np.ndarray) -> None:
        """Count records of these columns [n]; -1 without label."""
        seen = np.bincount(labels[labels >= 0], minlength=len(self._counts))
        self._counts = np.pad(self._counts, (0, len(seen) - len(self._counts)))
        self._counts = self._counts * 0.5 ** (seen.sum() / HALF_LIFE) + seen

    def of(self, names: Sequence[Label]) -> np.ndarray:
        """By column; ``names`` are the labels by column."""
        if not isinstance(self._given, str):
            return np.array([self._given.get(str(name), 1.0) for name in names])
        counts = np.pad(self._counts, (0, len(names) - len(self._counts)))
        counts = np.maximum(counts, counts.max(initial=1.0) / MOST)
        return counts.sum() / (len(names) * counts)

    def state_dict(self) -> dict[str, Any]:
        return {"counts": torch.from_numpy(self._counts.copy())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._counts = state["counts"].numpy().copy()
