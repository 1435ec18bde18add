"""The pool: all teachers, what they answer on a step's rows, who is admitted and who goes.

    rows (fresh + remembered) ─► Pool.answers ─► logits, known [batch, teachers, classes] ─► gate, loss

Live teachers are asked about every row. A frozen teacher's answers on remembered rows come from the memory's
cache, filled in bulk, so the cost of a step does not grow with the pool. So do a settled teacher's, whose cache is
filled anew whenever it has changed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from streamkd.distill.credit import Ledger, held_out_credit
from streamkd.distill.memory import Memory, Remembered, Ring, whole
from streamkd.distill.questions import Questions, group
from streamkd.distill.students import Student
from streamkd.distill.teachers import EmaTeacher, Observing, Settled, SnapshotMaker, SnapshotTeacher, Teacher, copy_of
from streamkd.errors import ConfigError, PluginError
from streamkd.records import Label

ANNOTATE_ROWS = 64  # remembered rows that wait before the frozen teachers are asked about all of them at once


@dataclass(frozen=True, slots=True)
class Answers:
    """Logits and where they count, [batch, teachers, classes]."""

    logits: Tensor
    known: Tensor
    complete: bool = False
    """Everything is known: nothing has to be masked."""


class Pool:
    """Teachers by key, in the order of the configuration, snapshots behind them by age."""

    def __init__(
        self,
        teachers: Sequence[Teacher],
        snapshots: SnapshotMaker | None,
        memory: Memory,
        *,
        limit: int,
        limit_bytes: int,
        admit_margin: float = 0.0,
    ) -> None:
        self.teachers: list[Teacher] = list(teachers)
        self.snapshots = snapshots
        self.memory = memory
        self.limit, self.limit_bytes, self.admit_margin = limit, limit_bytes, admit_margin
        self.worth: dict[str, float] = {}
        self.accuracy: dict[str, float] = {}
        self.ages: dict[str, int] = {t.key: 0 for t in self.teachers}
        self.taken = 0
        self._slots: dict[str, int] = {}
        self._versions: dict[str, int] = {}  # of settled teachers, as their cached answers were given
        self._observers = [t for t in self.teachers if isinstance(t, Observing)]
        self._settled = [t for t in self.teachers if t.role == "settled"]
        self.questions = Questions()
        self._complete: tuple[tuple[int, int], bool] = ((-1, -1), False)
        self._everything = torch.ones(1, 1, 1, dtype=torch.bool)
        self._pending = 0
        self._facts: Tensor | None = None
        self._ledger = Ledger()
        if len(self.teachers) > limit:
            raise ConfigError(
                f"{len(self.teachers)} teachers are configured, the pool takes {limit}",
                where="pool.limit",
                fix="raise pool.limit, or name fewer teachers",
            )
        for teacher in self.teachers:
            if _cached(teacher):
                self._assign_slot(teacher)

    @property
    def keys(self) -> tuple[str, ...]:
        """The teachers' names, in the order of the answers."""
        return tuple(teacher.key for teacher in self.teachers)

    @property
    def average(self) -> EmaTeacher | None:
        """The first moving average, if there is one."""
        return next((t for t in self.teachers if isinstance(t, EmaTeacher)), None)

    def grow(self, labels: Sequence[Label]) -> None:
        """New labels for teachers and caches."""
        for teacher in self.teachers:
            teacher.grow(labels)
        self.memory.grow(len(labels))
        self._refresh()

    def answers(self, x: Tensor, fresh: int, remembered: Remembered | None, classes: int) -> Answers:
        """What every teacher says of the rows; the first ``fresh`` have just arrived.

        An answer that is not finite is none: it is masked, so that a broken teacher hurts only itself.
        """
        if self.complete(classes):
            every = [self.questions.ask(teacher, x, classes) for teacher in self.teachers]
            if all(answer is not None for answer in every):
                parts = [answer[0] for answer in every if answer is not None]
                logits = torch.stack(parts, 1) if len(parts) > 1 else parts[0].unsqueeze(1)
                return Answers(logits, self._everything.expand(logits.shape), complete=True)
        return self._partial(x, fresh, remembered, classes)

    def complete(self, classes: int) -> bool:
        """Whether every teacher answers every row over every class, so that nothing has to be masked."""
        if self._complete[0] != (classes, len(self.teachers)):
            live = bool(self.teachers) and all(t.role == "live" and bool(t.known().all()) for t in self.teachers)
            self._complete = ((classes, len(self.teachers)), live)
            device = self.teachers[0].known().device if live else None
            self._everything = torch.ones(1, 1, 1, dtype=torch.bool, device=device)
        return self._complete[1]

    def _partial(self, x: Tensor, fresh: int, remembered: Remembered | None, classes: int) -> Answers:
        """Answers where some teachers are asked about some rows, or know some classes."""
        rows = len(x)
        logits = x.new_zeros((rows, len(self.teachers), classes), dtype=torch.float32)
        known = torch.zeros((rows, len(self.teachers), classes), dtype=torch.bool, device=x.device)
        for index, teacher in enumerate(self.teachers):
            asked = rows if teacher.role == "live" else fresh if teacher.fresh or teacher.role == "settled" else 0
            if asked and (answer := self.questions.ask(teacher, x[:asked], classes)) is not None:
                logits[:asked, index], known[:asked, index] = answer
            if remembered is None or teacher.role == "live":
                continue
            if teacher.role == "remembered":
                logits[fresh:, index] = remembered.logits().float()
                columns = torch.arange(classes, device=x.device)
                known[fresh:, index] = columns < remembered.width().unsqueeze(1)
            else:
                self.questions.of(group(teacher)).cached += rows - fresh
                cached, answered = remembered.frozen(self._slots[teacher.key])
                logits[fresh:, index] = cached.float()
                known[fresh:, index] = teacher.known().to(x.device) & answered.unsqueeze(1)
        return Answers(logits, known & torch.isfinite(logits))

    def features(self, x: Tensor, wanted: Mapping[str, tuple[str, ...]]) -> dict[str, dict[str, Tensor]]:
        """Outputs of the teachers' named layers on fresh rows.

        Raises:
            PluginError: a loss names a teacher that is not in the pool.
        """
        by_key = {teacher.key: teacher for teacher in self.teachers}
        for key in wanted:
            if key not in by_key:
                raise PluginError(
                    f"a loss reads layers of the teacher {key!r}, which is not in the pool",
                    where="losses",
                    fix=f"teachers here: {', '.join(by_key) or 'none'}",
                )
        return {key: by_key[key].features(x, layers) for key, layers in wanted.items()}

    def observe(self, x: Tensor, y: Tensor) -> None:
        """Teachers that learn from labels themselves see a step's fresh labelled rows: raw x [n, *shape], columns y."""
        for teacher in self._observers:
            self.questions.guarded(cast(Teacher, teacher), partial(teacher.observe, x, y))

    def after_step(self, student: Student, inserted: int) -> None:
        """Live teachers follow; cached answers are asked for once enough rows wait, or their teacher has changed."""
        self._ledger.age += 1
        for teacher in self.teachers:
            if teacher.role == "live":
                teacher.after_step(student)
        self._pending += inserted
        if self._pending >= ANNOTATE_ROWS:
            self.annotate()
        else:
            self._refresh()

    def _refresh(self) -> None:
        """Ask the settled teachers that have changed anew."""
        for teacher in self._settled:
            if self._outdated(teacher):
                self._ask_anew(teacher)

    @torch.no_grad()
    def annotate(self) -> None:
        """Ask each teacher with a cache about the remembered rows that it has not seen, in one pass."""
        self._pending = 0
        for teacher in self.teachers:
            if _cached(teacher):
                self._ask_anew(teacher)

    def _outdated(self, teacher: Teacher) -> bool:
        return isinstance(teacher, Settled) and teacher.version != self._versions.get(teacher.key)

    @torch.no_grad()
    def _ask_anew(self, teacher: Teacher) -> None:
        """Fill the gaps of its cached answers, all of which are gaps where it has changed."""
        rings = (self.memory.replayed, self.memory.holdout)
        if isinstance(teacher, Settled) and self._outdated(teacher):
            self._versions[teacher.key] = teacher.version
            for ring in rings:
                ring.forget(self._slots[teacher.key])
        for ring in rings:
            self._annotate(teacher, ring)

    def _annotate(self, teacher: Teacher, ring: Ring) -> None:
        if ring.x is None:
            return
        slot = self._slots[teacher.key]
        places = (~ring.answered[: ring.filled, slot]).nonzero().squeeze(1)
        if not len(places):
            return
        answer = self.questions.ask(teacher, ring.x[places], ring.logits.shape[1])
        if answer is not None:
            ring.frozen[places, slot] = answer[0].half()
            ring.answered[places, slot] = True

    def end_task(self, student: Student) -> str | None:
        """A task has ended: teachers age, worth is measured anew, a snapshot may be admitted; returns its key."""
        for key in self.ages:
            self.ages[key] += 1
        admitted = self._admit(student) if self.snapshots else None
        self.annotate()
        self.assess(student)
        self._evict(self._over_budget)
        return admitted if admitted in self._slots else None

    def _admit(self, student: Student) -> str | None:
        assert self.snapshots is not None
        source = self.average.student if self.average else student
        candidate = self.snapshots.take(source, self.taken)
        self.taken += 1
        accuracy = _held_out_accuracy(candidate, self.memory.holdout)
        chance = 1 / max(candidate.student.classes, 1)
        if accuracy is not None and accuracy < chance + self.admit_margin:
            return None
        if len(self._slots) >= self.memory.replayed.teacher_slots:
            if not self._mine():
                return None
            self._drop(self._least())
        self.teachers.append(candidate)
        self.ages[candidate.key] = 0
        self._assign_slot(candidate)
        return candidate.key

    def _assign_slot(self, teacher: Teacher) -> None:
        free = set(range(self.memory.replayed.teacher_slots)) - set(self._slots.values())
        slot = self._slots[teacher.key] = min(free)
        for ring in (self.memory.replayed, self.memory.holdout):
            ring.forget(slot)

    def _mine(self) -> list[SnapshotTeacher]:
        return [t for t in self.teachers if isinstance(t, SnapshotTeacher)]

    def _least(self) -> SnapshotTeacher:
        """The snapshot whose loss the pool would feel least on held-out records, the oldest of equals."""
        return min(self._mine(), key=lambda t: (self.worth.get(t.key, 0.0), -self.ages[t.key]))

    def _evict(self, over: Callable[[], bool]) -> None:
        while self._mine() and over():
            self._drop(self._least())

    def _over_budget(self) -> bool:
        return self._too_many() or sum(t.size_bytes() for t in self.teachers) > self.limit_bytes

    def _too_many(self) -> bool:
        most = self.snapshots.limit if self.snapshots else 0
        return len(self._mine()) > most or len(self.teachers) > self.limit

    def _drop(self, teacher: Teacher) -> None:
        self.teachers.remove(teacher)
        for book in (self.worth, self.accuracy, self.ages, self._slots):
            book.pop(teacher.key, None)
        self.questions.strikes.pop(teacher.key, None)
        self._facts = None

    @torch.no_grad()
    def assess(self, student: Student) -> None:
        """Accuracy of each teacher on held-out records of labels that it knows, and its marginal worth.

        Worth is what the mean over held-out records of max_k p_k(y) loses without the teacher.
        """
        ring = self.memory.holdout
        self._facts = None
        if ring.x is None or not ring.filled:
            return
        remembered = whole(ring)
        assert remembered is not None
        answers = self.answers(remembered.x, 0, remembered, student.classes)
        soft = torch.softmax(answers.logits.masked_fill(~answers.known, -torch.inf), -1).nan_to_num(0.0)
        heard = answers.known.gather(2, _column(remembered.y, len(self.teachers))).squeeze(2)
        right = (soft.argmax(-1) == remembered.y.unsqueeze(1)) & heard
        likelihood = soft.gather(2, _column(remembered.y, len(self.teachers))).squeeze(2) * heard
        best = likelihood.max(1).values.mean()
        for index, teacher in enumerate(self.teachers):
            others = torch.cat([likelihood[:, :index], likelihood[:, index + 1 :]], 1)
            without = others.max(1).values.mean() if others.shape[1] else best.new_zeros(())
            self.worth[teacher.key] = float(best - without)
            self.accuracy[teacher.key] = float(right[:, index].sum() / heard[:, index].sum().clamp_min(1))

    def facts(self, device: torch.device) -> Tensor:
        """[teachers, 2] for the gate: held-out accuracy, and 1 / (1 + age in tasks)."""
        if self._facts is None or len(self._facts) != len(self.teachers):
            rows = [[self.accuracy.get(k, 0.5), 1 / (1 + self.ages[k])] for k in self.keys]
            self._facts = torch.tensor(rows, device=device).reshape(len(rows), 2)
        return self._facts

    @torch.no_grad()
    def credit(self, classes: int, device: torch.device) -> Tensor:
        """[teachers, classes] for the gate: mean held-out log-likelihood, NaN where none; measured every few steps."""
        measured = self._ledger.fresh(self.keys, classes, device)
        if measured is not None:
            return measured
        remembered = whole(self.memory.holdout)
        if remembered is None or not len(remembered.y):
            return torch.full((len(self.teachers), classes), torch.nan, device=device)
        answers = self.answers(remembered.x, 0, remembered, classes)
        return self._ledger.write(self.keys, held_out_credit(answers.logits, answers.known, remembered.y))

    def state_dict(self) -> dict[str, Any]:
        return {
            "teachers": {t.key: t.state_dict() for t in self.teachers},
            "snapshots": [t.key for t in self.teachers if isinstance(t, SnapshotTeacher)],
            "slots": dict(self._slots),
            "versions": dict(self._versions),
            "pending": self._pending,
            "strikes": self.questions.strikes,
            "worth": dict(self.worth),
            "accuracy": dict(self.accuracy),
            "ages": dict(self.ages),
            "taken": self.taken,
            "credit": self._ledger.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], build: Callable[[int], Student], labels: Sequence[Label]) -> None:
        """Restore; ``build`` gives a student of so many classes for each snapshot that was there.

        Teachers that the configuration no longer names are left out, new ones begin as they are.
        """
        for key in state["snapshots"] if self.snapshots else []:
            saved = state["teachers"][key]
            self.teachers.append(SnapshotTeacher(key, copy_of(build(len(saved["student"]["body.head.weight"])))))
        for teacher in self.teachers:
            if teacher.key in state["teachers"]:
                teacher.load_state_dict(state["teachers"][teacher.key])
            teacher.grow(labels)
        here = set(self.keys)
        self.worth = {k: v for k, v in state["worth"].items() if k in here}
        self.accuracy = {k: v for k, v in state["accuracy"].items() if k in here}
        self.ages = {k: state["ages"].get(k, 0) for k in self.keys}
        slots = self.memory.replayed.teacher_slots
        self._slots = {k: slot for k, slot in state["slots"].items() if k in here and slot < slots}
        self._versions = {k: n for k, n in state.get("versions", {}).items() if k in here}
        self._pending, self.taken = state["pending"], state["taken"]
        if "credit" in state:
            self._ledger.load_state_dict(state["credit"])
        self.questions.strikes = {k: n for k, n in state["strikes"].items() if k in here}
        # by count alone: bytes grow with the labels within a task, and are looked at when it ends
        self._evict(self._too_many)
        for teacher in self.teachers:
            if _cached(teacher) and teacher.key not in self._slots:
                self._assign_slot(teacher)
        self._facts = None


def _cached(teacher: Teacher) -> bool:
    """Whether its answers on remembered rows lie in the memory."""
    return teacher.role in ("frozen", "settled")


def _column(labels: Tensor, teachers: int) -> Tensor:
    return labels.view(-1, 1, 1).expand(-1, teachers, 1)


@torch.no_grad()
def _held_out_accuracy(teacher: SnapshotTeacher, ring: Ring) -> float | None:
    """On held-out records of labels that it knows; ``None`` without any."""
    if ring.x is None or not ring.filled:
        return None
    mine = ring.y[: ring.filled] < teacher.student.classes
    if not mine.any():
        return None
    x, y = ring.x[: ring.filled][mine], ring.y[: ring.filled][mine]
    return float((teacher.student(x).argmax(1) == y).float().mean())
