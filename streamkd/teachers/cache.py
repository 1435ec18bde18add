"""The cache: what frozen and versioned teachers say of remembered rows, kept with the rows so that they are asked once.

    rows are drawn from memory ─► those without an answer by the teacher's ticket ─► the teacher ─► answers of its slot
                                  ▲ a versioned teacher has changed: it has another ticket

So nobody is asked about a row before it is replayed, and what a step asks does not depend on how much is remembered.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from streamkd.replay.memory import Memory
from streamkd.replay.ring import Remembered
from streamkd.teachers.guard import Guard, group
from streamkd.teachers.teacher import Teacher, Versioned


def cached(teacher: Teacher) -> bool:
    """Whether its answers on remembered rows lie in the memory."""
    return teacher.role in ("frozen", "versioned")


class Cache:
    """A slot of the memory's rings for each teacher with cached answers, and the ticket by which it answers now."""

    def __init__(self, memory: Memory, guard: Guard) -> None:
        self._memory, self._guard = memory, guard
        self.slots: dict[str, int] = {}
        self._tickets: dict[str, int] = {}
        self._versions: dict[str, int] = {}  # of versioned teachers, to which their tickets were given
        self._given = 0  # tickets

    @property
    def full(self) -> bool:
        """Whether every slot is taken."""
        return len(self.slots) >= self._memory.teacher_slots

    def open(self, teacher: Teacher) -> None:
        """Give a teacher a slot; no answer in it is its own."""
        free = set(range(self._memory.teacher_slots)) - set(self.slots.values())
        self.slots[teacher.key] = min(free)
        self._memory.open(min(free) + 1)
        self._give_ticket(teacher.key)

    def close(self, key: str) -> None:
        """Take a teacher's slot away, and its ticket."""
        for of_teachers in (self.slots, self._tickets, self._versions):
            of_teachers.pop(key, None)

    @torch.no_grad()
    def answers(self, teacher: Teacher, remembered: Remembered, classes: int) -> tuple[Tensor, Tensor]:
        """What it says of remembered rows [n, classes] float16, and of which of them it says anything [n] bool."""
        slot, ticket = self.slots[teacher.key], self._ticket(teacher)
        answers, asked = remembered.frozen(slot)
        there = asked == ticket
        self._guard.of(group(teacher)).cached += int(there.sum())
        if not there.all() and self._ask(teacher, remembered, ~there, classes):
            return remembered.frozen(slot)[0], torch.ones_like(there)
        return answers, there

    def _ask(self, teacher: Teacher, remembered: Remembered, which: Tensor, classes: int) -> bool:
        """About ``which`` [n] of the rows; whether it has answered."""
        # nobody has learned from rows that are held out, so there is nothing to leave out of what is said of them
        learned = remembered.y[which] if remembered.learned else None
        answer = self._guard.ask(teacher, remembered.x[which], classes, learned)
        if answer is not None:
            remembered.answer(self.slots[teacher.key], which, answer[0], self._tickets[teacher.key])
        return answer is not None

    def _ticket(self, teacher: Teacher) -> int:
        """A new one where the teacher has changed since it was given the last."""
        if isinstance(teacher, Versioned) and teacher.version != self._versions.get(teacher.key):
            self._versions[teacher.key] = teacher.version
            self._give_ticket(teacher.key)
        return self._tickets[teacher.key]

    def _give_ticket(self, key: str) -> None:
        self._given += 1
        self._tickets[key] = self._given

    def state_dict(self) -> dict[str, Any]:
        tickets = {"tickets": dict(self._tickets), "given": self._given}
        return {"slots": dict(self.slots), "versions": dict(self._versions), **tickets}

    def load_state_dict(self, state: dict[str, Any], keys: Collection[str]) -> None:
        """Restore for the teachers that are still there; one whose slot is gone has none."""
        most = self._memory.teacher_slots
        self.slots = {key: slot for key, slot in state["slots"].items() if key in keys and slot < most}
        self._versions = {key: version for key, version in state.get("versions", {}).items() if key in keys}
        # what an older checkpoint has of answers is all by the first ticket
        tickets = state.get("tickets", dict.fromkeys(self.slots, 1))
        self._tickets = {key: ticket for key, ticket in tickets.items() if key in self.slots}
        self._given = state.get("given", 1)
