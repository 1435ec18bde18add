"""Standardised inputs by the moments of the records so far: h = (x - mean) / std, in float64."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

ARRAYS = ("mean", "squares", "gain")


class Standard:
    """Running moments of ``features`` numbers (Welford's update), for teachers that learn record by record.

    What is not finite counts as its mean; a feature that has been constant is 0.
    """

    def __init__(self, features: int) -> None:
        self.count = 0
        self.mean, self.squares, self.gain = np.zeros(features), np.zeros(features), np.zeros(features)

    def learn(self, row: np.ndarray) -> None:
        """Take a record's finite numbers [features]."""
        self.count += 1
        apart = row - self.mean
        self.mean += apart / self.count
        self.squares += apart * (row - self.mean)
        std = np.sqrt(self.squares / self.count)
        varied = std > 1e-9 * np.abs(self.mean)  # below that a spread is rounding
        self.gain = np.divide(1.0, std, out=np.zeros_like(std), where=varied)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Rows [..., features], standardised."""
        return (np.where(np.isfinite(rows), rows, self.mean) - self.mean) * self.gain

    def numbers(self) -> dict[str, Tensor]:
        """Mean and gain, float32."""
        return {"mean": torch.from_numpy(self.mean).float(), "gain": torch.from_numpy(self.gain).float()}

    def state_dict(self) -> dict[str, Any]:
        """The moments."""
        return {"count": self.count, **{name: torch.from_numpy(getattr(self, name).copy()) for name in ARRAYS}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from moments."""
        self.count = state["count"]
        for name in ARRAYS:
            setattr(self, name, state[name].numpy().copy())
