"""Standardised inputs by the moments of the records so far: h = (x - mean) / std, in float64."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

LEAST_STD = 0.1  # of zeros and ones of which a hundredth are ones
ARRAYS = ("mean", "squares", "gain")


class Standard:
    """Running moments of numbers (Welford's update), for teachers that learn record by record.

    What is not finite counts as its mean, and not in the moments; a number that has been constant is 0. What is no
    amount (``amounts`` bool [features]) has a std of ``LEAST_STD`` or more: the 1 of a rare category would be 100.
    """

    def __init__(self, amounts: np.ndarray) -> None:
        self._least = np.where(amounts, 0.0, LEAST_STD)
        self.count, self.gain = np.zeros(len(amounts), np.int64), np.zeros(len(amounts))
        self.mean, self.squares = np.zeros(len(amounts)), np.zeros(len(amounts))

    def learn(self, rows: np.ndarray) -> None:
        """Take records' numbers [n, features] (Chan et al. 1983, equation 2.1)."""
        there = np.isfinite(rows)
        more = np.add.reduce(there, 0)
        count = np.maximum(self.count + more, 1)
        apart = np.where(there, rows - self.mean, 0.0)
        shift = np.add.reduce(apart, 0) / np.maximum(more, 1)
        if len(rows) > 1:
            self.squares += np.square(np.where(there, apart - shift, 0.0)).sum(0)
        self.squares += shift**2 * (self.count * more / count)
        self.mean += shift * (more / count)
        self.count += more
        std = np.sqrt(self.squares / count)
        varied = std > 1e-9 * np.abs(self.mean)  # below that a spread is rounding
        self.gain = np.divide(1.0, np.maximum(std, self._least), out=np.zeros_like(std), where=varied)

    def filled(self, rows: np.ndarray) -> np.ndarray:
        """Rows [..., features] as they are, the mean where something is not finite."""
        return np.where(np.isfinite(rows), rows, self.mean)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Rows [..., features], standardised."""
        return (self.filled(rows) - self.mean) * self.gain

    def numbers(self) -> dict[str, Tensor]:
        """Mean and gain, float32."""
        return {"mean": torch.from_numpy(self.mean).float(), "gain": torch.from_numpy(self.gain).float()}

    def state_dict(self) -> dict[str, Any]:
        """The moments."""
        return {
            "count": torch.from_numpy(self.count.copy()),
            **{name: torch.from_numpy(getattr(self, name).copy()) for name in ARRAYS},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from moments."""
        self.count = np.broadcast_to(np.asarray(state["count"]), self.mean.shape).copy()
        for name in ARRAYS:
            setattr(self, name, state[name].numpy().copy())
