"""Which classes come now: one that is not seen is not contradicted, and what is known of it may still be true."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

RECENT = 200  # records of what comes that are kept, to tell what is like them
MISSED = 5.0  # records of a class that should have come and did not: by chance one time in 150 (Poisson)
ARRAYS = ("first", "last", "count")


class Presence:
    """By class, when it was first and last seen and how often: it is absent when by its own rate too many are missing.

    The rate is that since it was first seen. So a rare class is absent when it really does not come, and the classes of
    a task that is over are absent within a few records.
    """

    def __init__(self) -> None:
        self.now = 0
        self.first, self.last, self.count = (np.zeros(0, dtype=np.int64) for _ in ARRAYS)

    def see(self, label: int) -> None:
        """A record of a class has come."""
        if label >= len(self.count):
            more = (0, label + 1 - len(self.count))
            self.first, self.last, self.count = (np.pad(a, more) for a in (self.first, self.last, self.count))
        self.now += 1
        if not self.count[label]:
            self.first[label] = self.now
        self.last[label] = self.now
        self.count[label] += 1

    def absent(self) -> np.ndarray:
        """[classes] which of the classes that have come do not come now; up to the last one that was seen."""
        missed = (self.now - self.last) * self.count / (self.now - self.first + 1)
        return (self.count > 0) & (missed > MISSED)

    def rare(self) -> np.ndarray:
        """[classes] which come too seldom for the recent records to show what they are like now."""
        return (self.count > 0) & (self.count * RECENT < MISSED * (self.now - self.first + 1))

    def told(self) -> bytes:
        """All that ``absent`` and ``rare`` say, to see whether it is still the same."""
        return self.absent().tobytes() + self.rare().tobytes()

    def state_dict(self) -> dict[str, Any]:
        """What the next answers follow from."""
        return {"now": self.now, **{name: torch.from_numpy(getattr(self, name).copy()) for name in ARRAYS}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.now = state["now"]
        for name in ARRAYS:
            setattr(self, name, state[name].numpy().copy())


def of_labels(which: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What ``absent`` or ``rare`` says of each of these labels [m]; nothing of one that has not come."""
    if not len(which):
        return np.zeros(len(labels), dtype=bool)
    return which.take(labels, mode="clip") & (labels < len(which))
