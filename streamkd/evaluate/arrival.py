"""Measures of what is served: a frozen model answers each record as it comes, before anybody learns it.

    served model ─► take (a copy that stays as it is) ─► score every arriving batch ─► Measures

The student's own prequential accuracy says how well it learns; this says how well users were answered. Whoever serves
decides when another model is taken: ``streamkd run`` every so many records, a server when it publishes. Called by the
learner.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from streamkd.evaluate.measures import WINDOW, Measures

BLOCK = 128
"""Records that wait to be answered together: in batches of ten they take 9 % of the learner's time (digits, the default
teachers), together 1 to 2 %. No later model answers them: another one is taken only when nobody waits."""
Predict = Callable[[Tensor], Tensor]
"""Raw inputs [batch, *shape] to logits [batch, classes], columns by arrival as in the learner's label space."""


class Arrivals:
    """What the model that is served said of arriving records; ``seconds`` is what asking it took.

    Records that come while there is no model are not counted: nobody could be answered. The model is in no checkpoint:
    whoever resumes takes the version that is served.
    """

    def __init__(self, window: int = WINDOW) -> None:
        self._measures = Measures(window)
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
    def answer(self, x: Tensor) -> np.ndarray | None:
        """Probabilities for records x [rows, *shape] whose labels come later; ``None`` while there is no model."""
        self._answer()
        return None if self._model is None else _probabilities(self._model(x))

    @torch.no_grad()
    def _answer(self) -> None:
        """Count what waits, by the model that was there when it came."""
        if self._model is None or not self._waiting:
            return
        begun = time.perf_counter()
        x, y = (torch.cat(part) for part in zip(*self._waiting, strict=True))
        self._waiting = []
        said = _probabilities(self._model(x))
        self._measures.add(y.cpu().numpy(), said.argmax(1), said)
        self.seconds += time.perf_counter() - begun

    @property
    def measures(self) -> Measures:
        """Of every record that came while a model was served; what was answered elsewhere may be added to them."""
        self._answer()
        return self._measures


def _probabilities(logits: Tensor) -> np.ndarray:
    return torch.softmax(logits.double(), 1).cpu().numpy()
