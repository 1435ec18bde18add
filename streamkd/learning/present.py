"""The present, for those who teach: who knows what comes now better than the student, and what each is worth by it.

    answers to records before they were learned ─► records on which a teacher, or the student, was right alone
                                                ─► clearly more of the teacher's? it teaches, whatever a row's age
    weights of the mixture (``FixedShare``)     ─► each teacher's beside the mean: the gate's ``present``

Teachers of the present forget. So they teach while they are ahead of the student, which is where the world has changed,
and while every class and every domain that has come still comes. Otherwise nobody asks them, and the gate goes by
held-out records of all times alone.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from streamkd.learning.mixture import STUDENT, Held, Mixture
from streamkd.teachers.pool import Pool

HALF_LIFE = 1_000  # records after which a mistake counts half
AWAY = 0.3  # of the held-out records are unlike what comes: a tenth would be by chance (``streamkd.learning.recent``)
AHEAD = 2.0  # standard errors by which a teacher has to be ahead: it is asked at every step


class Present:
    """By teacher of the present, the records that it alone, and that the student alone, was right on; they fade."""

    def __init__(self, pool: Pool, mixture: Mixture) -> None:
        self.pool, self.mixture = pool, mixture
        self.alone: dict[str, np.ndarray] = {}
        self._whole = True  # whether what comes is like all that has come

    def after_step(self, labels: Int[Tensor, "batch"], held: Held | None) -> None:
        """The columns of a step's fresh rows, -1 where they tell nothing, when everybody has been heard of them.

        ``held`` are the held-out records as they were last looked at.
        """
        said, columns = self.mixture.last, labels.cpu().numpy()
        if said is None:
            return
        told = columns >= 0
        right = (said.probabilities.argmax(2) == columns[:, None])[told]
        student, kept = right[:, said.names.index(STUDENT)], 0.5 ** (told.sum() / HALF_LIFE)
        for key in self._theirs(said.names):
            mine = right[:, said.names.index(key)]
            counts = np.array([(mine & ~student).sum(), (student & ~mine).sum()], dtype=np.float64)
            self.alone[key] = kept * self.alone.get(key, np.zeros(2)) + counts
        self._whole = held is None or bool(held.away.mean() <= AWAY)
        self.pool.ahead = self._ahead()

    def _theirs(self, names: tuple[str, ...]) -> list[str]:
        return [t.key for t in self.pool.teachers if t.role == "present" and t.key in names]

    def _ahead(self) -> frozenset[str]:
        """Who teaches now: the sign test of its records and the student's (McNemar 1947)."""
        if not self._whole or self.mixture.now.share.presence.absent().any():
            return frozenset()
        here = {key: counts for key, counts in self.alone.items() if key in self.pool.keys}
        return frozenset(key for key, (mine, theirs) in here.items() if mine - theirs > AHEAD * (mine + theirs) ** 0.5)

    def worth(self) -> Float[Tensor, "teachers"] | None:
        """Each teacher's weight over their mean, 1 of one that has none; ``None`` where nobody is ahead."""
        if not self.pool.ahead:
            return None
        weights = self.mixture.now.weights
        share = {key: weights[key] for key in self.pool.keys if key in weights}
        mean = sum(share.values()) / len(share)
        return torch.tensor([share.get(key, mean) / mean for key in self.pool.keys])

    def state_dict(self) -> dict[str, Any]:
        """The counts, and whether all still comes."""
        alone = {key: torch.from_numpy(counts.copy()) for key, counts in self.alone.items()}
        return {"alone": alone, "whole": self._whole}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.alone = {key: counts.numpy().copy() for key, counts in state["alone"].items()}
        self._whole = state["whole"]
        self.pool.ahead = self._ahead()
