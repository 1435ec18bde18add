"""Prequential accuracy of what is served: a frozen model answers each record as it comes, before anybody learns it.

    served model ─► take (a copy that stays as it is) ─► score every arriving batch ─► accuracy, overall

The student's own prequential accuracy says how well it learns; this says how well users were answered. Whoever serves
decides when another model is taken: ``streamkd run`` every so many records, a server when it publishes. Called by the
learner.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamkd.evaluate.accuracy import Prequential

BLOCK = 128
"""Records that wait to be answered together: in batches of ten they take 9 % of the learner's time (digits, the default
teachers), together 1 to 2 %. No later model answers them: another one is taken only when nobody waits."""
Predict = Callable[[Tensor], Tensor]
"""Raw inputs [batch, *shape] to logits [batch, classes], columns by arrival as in the learner's label space."""


class Arrivals:
    """How many arriving records the model that is served had right; ``seconds`` is what asking it took.

    Records that come while there is no model are not counted: nobody could be answered.
    """

    def __init__(self, window: int) -> None:
        self._prequential = Prequential(window)
        self._model: Predict | None = None
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self.seconds = 0.0

    def take(self, model: Predict) -> None:
        """From now on this model is served: one at rest, on the records' device, that nobody trains or grows."""
        self._answer()
        self._model = model

    def score(self, x: Tensor, y: Tensor) -> None:
        """Count a batch x [batch, *shape] of columns y [batch] before it is learned; -1: without label.

        A label that the model does not know yet is one that it has wrong.
        """
        if self._model is None:
            return
        self._waiting.append((x, y))
        if sum(len(y) for _, y in self._waiting) >= BLOCK:
            self._answer()

    @torch.no_grad()
    def answer(self, x: Tensor) -> Tensor | None:
        """Logits of records x [rows, *shape] whose labels come later; ``None`` while there is no model."""
        self._answer()
        return None if self._model is None else self._model(x)

    def count(self, columns: np.ndarray, y: np.ndarray) -> None:
        """Count answers that were given earlier: columns [rows], -1 where there was none; y [rows] are right."""
        there = (columns >= 0) & (y >= 0)
        self._prequential.add(int((columns == y)[there].sum()), int(there.sum()))

    @torch.no_grad()
    def _answer(self) -> None:
        """Count what waits, by the model that was there when it came."""
        if self._model is None or not self._waiting:
            return
        begun = time.perf_counter()
        x, y = (torch.cat(part) for part in zip(*self._waiting, strict=True))
        self._waiting = []
        labelled = y >= 0
        right = (self._model(x).argmax(1) == y) & labelled
        self._prequential.add(int(right.sum()), int(labelled.sum()))
        self.seconds += time.perf_counter() - begun

    @property
    def accuracy(self) -> float | None:
        """Over the window; ``None`` before the first record that a model was there for."""
        self._answer()
        return self._prequential.accuracy

    @property
    def overall(self) -> float | None:
        """Over every record that was counted."""
        self._answer()
        return self._prequential.overall

    @property
    def records(self) -> int:
        """How many were counted."""
        self._answer()
        return self._prequential.records

    def state_dict(self) -> dict[str, Any]:
        """The counts. The model is not in it: whoever resumes takes the version that is served."""
        self._answer()
        return {"prequential": self._prequential.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._prequential.load_state_dict(state["prequential"])
