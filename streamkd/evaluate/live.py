"""Live quality, without a test set: on the held-out part of the memory, named as such.

Accuracy per task of the served model, forgetting (each task's best so far minus now), and a bounded history of
both with the gate's weights, for the page and the report.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

ENOUGH = 5  # held-out records of a task that has just begun; of one or two, "0 %" says nothing
POINTS = 240  # of the history; every second one goes when it is full, so old and new stay equally spaced


class LiveQuality:
    """Held-out accuracy by task, the best that each task had, and the history."""

    def __init__(self) -> None:
        self.per_task: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.history: list[dict[str, Any]] = []
        self._every = 1
        self._asked = 0

    @torch.no_grad()
    def measure(
        self,
        predict: Callable[[Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        task: Tensor,
        names: Sequence[str],
        current: int | None = None,
    ) -> None:
        """Score a model on held-out rows x [n, *shape], y [n], by their task [n].

        The ``current`` task has no figure before it has ``ENOUGH`` of them.
        """
        right = predict(x).argmax(1) == y
        self.per_task = {}
        for index, held in zip(*(found.tolist() for found in task.unique(return_counts=True)), strict=True):
            if index == current and held < ENOUGH:
                continue
            accuracy = float(right[task == index].float().mean())
            self.per_task[names[index]] = accuracy
            self.best[names[index]] = max(self.best.get(names[index], 0.0), accuracy)

    @property
    def accuracy(self) -> float | None:
        """Mean over the tasks; ``None`` before the first measurement."""
        return sum(self.per_task.values()) / len(self.per_task) if self.per_task else None

    @property
    def forgetting(self) -> float | None:
        """Mean over the tasks of best so far minus now, on held-out records (after Chaudhry et al. 2018)."""
        if not self.per_task:
            return None
        return sum(self.best[name] - now for name, now in self.per_task.items()) / len(self.per_task)

    def note(
        self,
        record: int,
        prequential: float | None,
        hard: float | None,
        weights: Mapping[str, float],
        served: float | None = None,
    ) -> None:
        """Add a point to the history, or not: it keeps at most ``POINTS``, equally spaced.

        ``prequential`` is the student's, ``served`` that of the versions that users were answered by.
        """
        self._asked += 1
        if self._asked % self._every:
            return
        point = {"record": record, "served": served, "prequential": prequential, "holdout": self.accuracy}
        self.history.append({**point, "forgetting": self.forgetting, "hard": hard, "weights": dict(weights)})
        if len(self.history) > POINTS:
            del self.history[1::2]
            self._every *= 2

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "history": self.history, "every": self._every, "asked": self._asked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.history = dict(state["best"]), list(state["history"])
        self._every, self._asked = state["every"], state["asked"]
