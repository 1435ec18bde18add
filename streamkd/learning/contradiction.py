"""What comes now contradicts some of what is remembered: which records, and whether that is more than chance.

    the teacher that knows the present best ─► mistakes on records as they come ──┐
                                           ─► mistakes on remembered records ─────┴─► clearly more?
    among them those that it calls otherwise, near recent records on which it is right ─► ``Ring.contradicted``

Age by contradiction, not by time. Of a class that does not come now nothing is contradicted (``Presence``), nor is a
record unlike any that comes: a former domain may still be as it was. Where the world has not changed, a teacher of the
present is right on remembered records as often as on new ones, however hard they are. What a memory does with a
contradicted record is its policy's to say. The nearest relative is self-adjusting memory (Losing, Hammer and Wersing
2016), which cleans a long-term memory by the neighbours in a short-term one.
"""

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from streamkd.learning.mixture import Mixture
from streamkd.learning.recent import FEW, Recent, near
from streamkd.replay.memory import Memory, Ring
from streamkd.teachers.pool import Pool
from streamkd.teachers.teacher import Incremental, Servable, Teacher

EVERY = 10  # steps between two looks
SURE = 4.0  # standard errors by which mistakes on what is remembered are more: it is asked hundreds of times


class Contradiction:
    """Looks at the memory every ``EVERY`` steps; where no teacher of the pool follows the present, it never does."""

    def __init__(self, memory: Memory, pool: Pool, mixture: Mixture, recent: Recent) -> None:
        self.memory, self.pool, self.mixture, self.recent = memory, pool, mixture, recent
        self.age = 0
        self.changed = False
        self._wrong: list[np.ndarray] = []

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
        able = [t for t in self.pool.everybody if isinstance(t, Incremental) and isinstance(t, Servable)]
        return max(cast(list[Teacher], able), key=lambda t: weights.get(t.key, 0.0), default=None)

    @torch.no_grad()
    def _look(self, teacher: Teacher) -> None:
        new, rings = np.concatenate(self._wrong), [self.memory.replayed, self.memory.holdout]
        found = [(ring, *judged) for ring in rings if (judged := self._judged(teacher, ring)) is not None]
        known = np.concatenate([wrong[told] for _, told, wrong in found]) if found else np.zeros(0, dtype=bool)
        self.changed = _more(known, new)
        known_now = self._known_now(teacher) if self.changed else None
        for ring, told, wrong in found:
            against = told & wrong
            if ring.x is not None and against.any():
                against[against] = known_now is not None and near(ring.x[: ring.filled][against], known_now)
            ring.contradicted[: ring.filled] = torch.from_numpy(against).to(ring.contradicted.device)

    def _judged(self, teacher: Teacher, ring: Ring) -> tuple[np.ndarray, np.ndarray] | None:
        """Of each place whether it can be told, and whether the teacher calls it otherwise."""
        if ring.x is None or not ring.filled:
            return None
        x, y = ring.x[: ring.filled], ring.y[: ring.filled].cpu().numpy()
        answer = self.pool.guard.ask(teacher, x, len(teacher.known()))
        if answer is None:
            return None
        logits, known = answer
        absent = np.flatnonzero(self.mixture.now.presence.absent())
        told = known.expand(logits.shape).cpu().numpy()[np.arange(len(y)), y] & ~np.isin(y, absent)
        return told, logits.masked_fill(~known, -torch.inf).argmax(1).cpu().numpy() != y

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
        return {"age": self.age, "changed": self.changed, "wrong": wrong}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.age, self.changed = state["age"], state["changed"]
        self._wrong = [] if state["wrong"] is None else [state["wrong"].numpy().copy()]


def _more(known: np.ndarray, new: np.ndarray) -> bool:
    """Whether there are more mistakes among the first than among the second, beyond chance."""
    if not len(known) or not len(new):
        return False
    return bool(known.mean() - new.mean() > SURE * math.hypot(_error(known), _error(new)))


def _error(wrong: np.ndarray) -> float:
    """The standard error of a share, with two rows to spare on either side (Agresti and Coull 1998)."""
    rows = len(wrong) + 4
    share = (wrong.sum() + 2) / rows
    return math.sqrt(share * (1 - share) / rows)
