"""What comes now contradicts some of what is remembered: which records, and whether that is more than chance.

    the teacher that knows the present best ─► mistakes on records as they come ─────────────────────┐
                                           ─► mistakes on remembered ones that are like recent ones ─┴─► clearly more?
                                                                                  ─► ``Ring.contradicted``

Age by contradiction, not by time. Of a class that does not come now nothing is contradicted (``Presence``), nor is a
record unlike any that comes: a former domain may still be as it was. Where the world has not changed, a teacher of the
present is right on remembered records like them as often as on new ones, however hard they are. What a memory does
with a contradicted record is its policy's to say. The nearest relative is self-adjusting memory (Losing, Hammer and
Wersing 2016), which cleans a long-term memory by the neighbours in a short-term one.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamkd.learning.mixture import Mixture
from streamkd.learning.recent import FEW, Recent, near
from streamkd.replay.memory import Memory
from streamkd.replay.ring import Ring
from streamkd.teachers.pool import Pool
from streamkd.teachers.teacher import Teacher

EVERY = 10  # steps between two looks
IN_A_ROW = 2  # looks that say the same: a teacher that is new to a domain errs on the old one's for a while
LOOKED_AT = 500  # remembered records of a ring at most, other ones at each look
SURE = 4.0  # standard errors by which mistakes on what is remembered are more: it is asked hundreds of times


class Contradiction:
    """Looks at the memory every ``EVERY`` steps; where no teacher of the pool follows the present, it never does."""

    def __init__(self, memory: Memory, pool: Pool, mixture: Mixture, recent: Recent) -> None:
        self.memory, self.pool, self.mixture, self.recent = memory, pool, mixture, recent
        self.age = 0
        self.looks = 0
        self._turn = 0
        self._wrong: list[np.ndarray] = []

    @property
    def changed(self) -> bool:
        """Whether what is remembered is contradicted by more than chance, look after look."""
        return self.looks >= IN_A_ROW

    def after_step(self, labels: Tensor) -> None:
        """The columns [n] of a step's fresh rows, -1 where they tell nothing."""
        teacher = self._now()
        said = self.mixture.last
        if teacher is None or said is None or teacher.key not in said.names:
            return
        told, columns = (labels >= 0).cpu().numpy(), labels.cpu().numpy()
        answers = said.probabilities[:, said.names.index(teacher.key)].argmax(1)
        self._wrong.append((answers != columns)[told])
        self.age += 1
        if self.age >= EVERY:
            self._look(teacher)
            self.age, self._wrong = 0, []

    def _now(self) -> Teacher | None:
        """Of the teachers that learn record by record, and by what a record holds, the one of the largest weight."""
        weights = self.mixture.now.weights
        return max(self.pool.followers, key=lambda t: weights.get(t.key, 0.0), default=None)

    @torch.no_grad()
    def _look(self, teacher: Teacher) -> None:
        new, known_now = np.concatenate(self._wrong), self._known_now(teacher)
        rings = [ring for ring in (self.memory.replayed, self.memory.holdout) if ring.x is not None and ring.filled]
        places = [ring.places(LOOKED_AT, self._turn) for ring in rings]
        judged = [self._judged(teacher, *looked, known_now) for looked in zip(rings, places, strict=True)]
        told = [wrong[like] for like, wrong in judged]
        self._turn += 1
        more = is_more(np.concatenate(told) if told else np.zeros(0, dtype=bool), new)
        self.looks = self.looks + 1 if more else 0
        for ring, looked, (like, wrong) in zip(rings, places, judged, strict=True):
            if self.changed:
                ring.contradicted[looked] = torch.from_numpy(like & wrong).to(looked.device)
            else:
                ring.contradicted.zero_()

    def _judged(
        self, teacher: Teacher, ring: Ring, places: Tensor, known_now: Tensor | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of each place whether its record is like those that come, and whether the teacher calls it otherwise."""
        assert ring.x is not None  # it is filled
        x, y = ring.x[places], ring.y[places].cpu().numpy()
        answer = self.pool.guard.ask(teacher, x, len(teacher.known()))
        if answer is None or known_now is None:
            return np.zeros(len(y), dtype=bool), np.zeros(len(y), dtype=bool)
        logits, known = answer
        absent = np.flatnonzero(self.mixture.now.share.presence.absent())
        told = known.expand(logits.shape).cpu().numpy()[np.arange(len(y)), y] & ~np.isin(y, absent)
        like = told & near(x, known_now)
        return like, logits.masked_fill(~known, -torch.inf).argmax(1).cpu().numpy() != y

    def _known_now(self, teacher: Teacher) -> Tensor | None:
        """Recent records on which the teacher is right; ``None`` where they are few."""
        assert self.recent.rows is not None  # there is a look after some steps only
        x, y = self.recent.rows
        answer = self.pool.guard.ask(teacher, x, len(teacher.known()))
        if answer is None:
            return None
        right = answer[0].masked_fill(~answer[1], -torch.inf).argmax(1) == y
        return x[right] if int(right.sum()) >= FEW else None

    def state_dict(self) -> dict[str, Any]:
        """What the next look follows from; the last one's findings are the memory's."""
        wrong = torch.from_numpy(np.concatenate(self._wrong)) if self._wrong else None
        return {"age": self.age, "looks": self.looks, "turn": self._turn, "wrong": wrong}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.age, self.looks, self._turn = state["age"], state["looks"], state.get("turn", 0)
        self._wrong = [] if state["wrong"] is None else [state["wrong"].numpy().copy()]


def is_more(known: np.ndarray, new: np.ndarray) -> bool:
    """Whether mistakes [m] on what is known are more often than [n] on what is new, beyond chance."""
    if not len(known) or not len(new):
        return False
    return bool(known.mean() - new.mean() > SURE * math.hypot(_error(known), _error(new)))


def _error(wrong: np.ndarray) -> float:
    """The standard error of a share, with two rows to spare on either side (Agresti and Coull 1998)."""
    rows = len(wrong) + 4
    share = (wrong.sum() + 2) / rows
    return math.sqrt(share * (1 - share) / rows)
