"""The cache: what frozen and versioned teachers say of remembered rows, kept with the rows so that they are asked once.

rows are remembered ─► pending ─► annotate: each teacher is asked about its gaps, in one pass ─► answers of its slot
                                     ▲ a versioned teacher has changed: all of its answers are gaps
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from streamkd.replay.memory import Memory, Remembered, Ring
from streamkd.teachers.guard import Guard
from streamkd.teachers.teacher import Teacher, Versioned

ANNOTATE_ROWS = 64  # remembered rows that wait before the teachers are asked about all of them at once


def cached(teacher: Teacher) -> bool:
    """Whether its answers on remembered rows lie in the memory."""
    return teacher.role in ("frozen", "versioned")


class Cache:
    """A slot of the memory's rings for each teacher with cached answers."""

    def __init__(self, memory: Memory, guard: Guard) -> None:
        self._rings: tuple[Ring, Ring] = (memory.replayed, memory.holdout)
        self._guard = guard
        self.slots: dict[str, int] = {}
        self._versions: dict[str, int] = {}  # of versioned teachers, as their cached answers were given
        self._pending = 0

    @property
    def full(self) -> bool:
        """Whether every slot is taken."""
        return len(self.slots) >= self._rings[0].teacher_slots

    def open(self, teacher: Teacher) -> None:
        """Give a teacher a slot, empty of answers."""
        free = set(range(self._rings[0].teacher_slots)) - set(self.slots.values())
        slot = self.slots[teacher.key] = min(free)
        for ring in self._rings:
            ring.forget(slot)

    def close(self, key: str) -> None:
        """Take a teacher's slot away."""
        self.slots.pop(key, None)

    def answers(self, teacher: Teacher, remembered: Remembered) -> tuple[Tensor, Tensor]:
        """What it says of remembered rows [n, classes] float16, and on which of them it was asked [n] bool."""
        return remembered.frozen(self.slots[teacher.key])

    def follow(self, teachers: Sequence[Teacher], inserted: int) -> None:
        """After a step that offered so many rows: ask about the new ones once enough wait, and whoever has changed."""
        self._pending += inserted
        if self._pending >= ANNOTATE_ROWS:
            self.annotate(teachers)
        else:
            self.refresh(teachers)

    def refresh(self, teachers: Sequence[Teacher]) -> None:
        """Ask the versioned teachers that have changed anew."""
        for teacher in teachers:
            if teacher.role == "versioned" and self._outdated(teacher):
                self._ask(teacher)

    @torch.no_grad()
    def annotate(self, teachers: Sequence[Teacher]) -> None:
        """Ask each teacher with a slot about the remembered rows that it has not seen, in one pass."""
        self._pending = 0
        for teacher in teachers:
            if cached(teacher):
                self._ask(teacher)

    def _outdated(self, teacher: Teacher) -> bool:
        return isinstance(teacher, Versioned) and teacher.version != self._versions.get(teacher.key)

    @torch.no_grad()
    def _ask(self, teacher: Teacher) -> None:
        """Fill the gaps of its answers, all of which are gaps where it has changed."""
        if isinstance(teacher, Versioned) and self._outdated(teacher):
            self._versions[teacher.key] = teacher.version
            for ring in self._rings:
                ring.forget(self.slots[teacher.key])
        for ring in self._rings:
            self._fill(teacher, ring)

    def _fill(self, teacher: Teacher, ring: Ring) -> None:
        if ring.x is None:
            return
        slot = self.slots[teacher.key]
        places = (~ring.answered[: ring.filled, slot]).nonzero().squeeze(1)
        if not len(places):
            return
        # nobody has learned from rows that are held out, so there is nothing to leave out of what is said of them
        learned = ring.y[places] if ring is self._rings[0] else None
        answer = self._guard.ask(teacher, ring.x[places], ring.logits.shape[1], learned)
        if answer is not None:
            ring.frozen[places, slot] = answer[0].half()
            ring.answered[places, slot] = True

    def state_dict(self) -> dict[str, Any]:
        return {"slots": dict(self.slots), "versions": dict(self._versions), "pending": self._pending}

    def load_state_dict(self, state: dict[str, Any], keys: Collection[str]) -> None:
        """Restore for the teachers that are still there; one whose slot is gone has none."""
        most = self._rings[0].teacher_slots
        self.slots = {key: slot for key, slot in state["slots"].items() if key in keys and slot < most}
        self._versions = {key: version for key, version in state.get("versions", {}).items() if key in keys}
        self._pending = state["pending"]
