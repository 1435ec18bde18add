"""What the teachers answer on a step's rows: in person, or from the cache.

    rows: fresh | remembered | unseen ─► live teachers all, versioned ones the ends, cached the middle ─► Answers
                                         those of the present all, while they are ``ahead``

Called by the ``pool``, whose teachers these are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from streamkd.replay.ring import Remembered
from streamkd.teachers.cache import Cache
from streamkd.teachers.guard import Guard
from streamkd.teachers.teacher import Teacher


@dataclass(frozen=True, slots=True)
class Answers:
    """Logits and where they count, [batch, teachers, classes]."""

    logits: Tensor
    known: Tensor
    complete: bool = False
    """Everything is known: nothing has to be masked."""


class TeacherPanel:
    """The pool's teachers as those who answer; ``teachers`` is the pool's own list, which changes."""

    def __init__(self, teachers: Sequence[Teacher], guard: Guard, cache: Cache) -> None:
        self.teachers, self.guard, self.cache = teachers, guard, cache
        self.ahead: frozenset[str] = frozenset()
        self._everything = torch.ones(1, 1, 1, dtype=torch.bool)

    def answers(self, x: Tensor, fresh: int, remembered: Remembered | None, classes: int) -> Answers:
        """What every teacher says of the rows; the first ``fresh`` have just arrived, behind the remembered ones come
        such as nobody has seen before.

        An answer that is not finite is none: it is masked, so that a broken teacher hurts only itself.
        """
        if self._all_known(classes):
            every = [self.guard.ask(teacher, x, classes) for teacher in self.teachers]
            if all(answer is not None for answer in every):
                parts = [answer[0] for answer in every if answer is not None]
                logits = torch.stack(parts, 1) if len(parts) > 1 else parts[0].unsqueeze(1)
                self._everything = self._everything.to(logits.device)
                return Answers(logits, self._everything.expand(logits.shape), complete=True)
        return self._partial(x, fresh, remembered, classes)

    def unseen(self, answers: Answers) -> Answers:
        """Of what is said of rows the part of those teachers who would answer had nobody ever seen them."""
        able = [teacher.role in ("live", "versioned", "present") for teacher in self.teachers]
        heard = torch.tensor(able, dtype=torch.bool, device=answers.known.device)  # of no teacher, too
        return Answers(answers.logits, answers.known & heard.view(1, -1, 1))

    def _all_known(self, classes: int) -> bool:
        """Whether every teacher answers every row over every class, so that nothing has to be masked."""
        # looked at each time: a resumed learner must come to the same, whatever teachers knew before
        live = bool(self.teachers) and all(teacher.role == "live" for teacher in self.teachers)
        return live and all(self._known(t, classes).all() for t in self.teachers)

    def _partial(self, x: Tensor, fresh: int, remembered: Remembered | None, classes: int) -> Answers:
        """Answers where some teachers are asked about some rows, or know some classes."""
        rows, end = len(x), fresh + (len(remembered.y) if remembered is not None else 0)
        logits = x.new_zeros((rows, len(self.teachers), classes), dtype=torch.float32)
        known = torch.zeros((rows, len(self.teachers), classes), dtype=torch.bool, device=x.device)
        for index, teacher in enumerate(self.teachers):
            for part in _asked(teacher, fresh, end, rows) if self._speaks(teacher) else []:
                if (answer := self.guard.ask(teacher, x[part], classes)) is not None:
                    logits[part, index], known[part, index] = answer
            if remembered is None or teacher.role in ("live", "prequential", "present"):
                continue
            if teacher.role == "remembered":
                logits[fresh:end, index] = remembered.logits().float()
                columns = torch.arange(classes, device=x.device)
                known[fresh:end, index] = columns < remembered.width().unsqueeze(1)
            else:
                kept, answered = self.cache.answers(teacher, remembered, classes)
                logits[fresh:end, index] = kept.float()
                known[fresh:end, index] = self._known(teacher, classes).to(x.device) & answered.unsqueeze(1)
        return Answers(logits, known & torch.isfinite(logits))

    def _known(self, teacher: Teacher, classes: int) -> Tensor:
        """Of the classes those that it knows; nothing where it fails to say so."""
        known = self.guard.guarded(teacher, teacher.known, "known")
        return known if known is not None and len(known) == classes else torch.zeros(classes, dtype=torch.bool)

    def _speaks(self, teacher: Teacher) -> bool:
        return teacher.role != "present" or teacher.key in self.ahead


def _asked(teacher: Teacher, fresh: int, end: int, rows: int) -> list[slice]:
    """The rows that a teacher is asked about in person; those between ``fresh`` and ``end`` are remembered ones."""
    if teacher.role in ("live", "present"):
        return [slice(0, rows)]
    if teacher.role == "prequential":
        return [slice(0, fresh)] if fresh and teacher.fresh else []
    # a snapshot would speak of rows between records with the labels of its time, and of no other
    unseen = [slice(end, rows)] if rows > end and teacher.role == "versioned" else []
    # the fresh ones last: a versioned teacher sees them again when it learns them, and may remember their features
    return [*unseen, slice(0, fresh)] if fresh and (teacher.fresh or teacher.role == "versioned") else unseen
