"""The pool: all teachers, what they answer on a step's rows, who is admitted and who goes.

    rows (fresh + remembered) ─► Pool.answers ─► logits, known [batch, teachers, classes] ─► gate, loss

Live teachers are asked about every row. What frozen and versioned ones say of remembered rows comes from the cache,
so the cost of a step does not grow with the pool.

Who comes, stays and goes is a matter of worth on held-out records (``worth``): of a pool over its budget the least
worthy snapshot goes.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from streamkd.errors import ConfigError, PluginError
from streamkd.gates.label_noise import LabelNoise
from streamkd.hookspecs import Stateful
from streamkd.records import Label
from streamkd.replay.memory import Memory
from streamkd.replay.ring import Remembered, whole
from streamkd.strikes import blame
from streamkd.students.networks import Student
from streamkd.teachers.admission import Admission, Applicant, Worth, WorthOptions
from streamkd.teachers.answers import Answers, TeacherPanel
from streamkd.teachers.cache import Cache, cached
from streamkd.teachers.former import FormerMaker, FormerTeacher, superfluous
from streamkd.teachers.guard import Guard, untouched
from streamkd.teachers.served import Candidates
from streamkd.teachers.snapshot import SnapshotMaker, SnapshotTeacher
from streamkd.teachers.teacher import (
    EmaTeacher,
    Following,
    Hindsight,
    Incremental,
    Layered,
    Observing,
    Servable,
    Sized,
    Teacher,
    copy_of,
)
from streamkd.teachers.worth import Assessment, assessment

COMPARED = 500  # remembered records on which copies are compared
NOT_ASKED: Mapping[str, np.ndarray] = MappingProxyType({})


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
        admission: Admission | None = None,
        former: FormerMaker | None = None,
    ) -> None:
        self.witnesses: list[Teacher] = [t for t in teachers if t.role == "prequential" and not t.fresh]
        """Who speaks of what comes, and teaches nobody: no gate weighs them."""
        self.teachers: list[Teacher] = [t for t in teachers if t not in self.witnesses]
        self.snapshots, self.former = snapshots, former
        self.memory = memory
        self.limit, self.limit_bytes = limit, limit_bytes
        self.admission = admission or Worth(WorthOptions())
        self.worth: dict[str, float] = {}
        self.accuracy: dict[str, float] = {}
        self.ages: dict[str, int] = {t.key: 0 for t in self.teachers}
        self.taken = 0
        self._observers = [t for t in self.teachers if isinstance(t, Observing)]
        self._set_witnesses(self.witnesses)
        self.prequential: dict[str, Tensor] = {}
        """What incremental teachers said of the last step's fresh rows, each before it was learned: [n, classes]."""
        self.guard = Guard()
        self.cache = Cache(memory, self.guard)
        self._panel = TeacherPanel(self.teachers, self.guard, self.cache)
        self._facts: Tensor | None = None
        self.label_noise = LabelNoise()
        self.asks_noise = False  # whether a gate wants to know of label noise
        if self._counted > limit:
            raise ConfigError(
                f"{self._counted} teachers are configured, the pool takes {limit}",
                where="pool.limit",
                fix="raise pool.limit, or name fewer teachers",
            )
        for teacher in self.teachers:
            if cached(teacher):
                self.cache.open(teacher)

    def _set_witnesses(self, witnesses: list[Teacher]) -> None:
        self.witnesses = witnesses
        self._incremental = [t for t in self.everybody if isinstance(t, Incremental)]
        self.followers = [cast(Teacher, t) for t in self._incremental if isinstance(t, Servable)]
        """Who learns record by record, and may be served."""
        self._hindsight = [t for t in self._incremental if isinstance(t, Hindsight)]

    @property
    def keys(self) -> tuple[str, ...]:
        """The teachers' names, in the order of the answers."""
        return tuple(teacher.key for teacher in self.teachers)

    @property
    def ahead(self) -> frozenset[str]:
        """The teachers of the present that teach now (``streamkd.learning.present``); no others are asked."""
        return self._panel.ahead

    @ahead.setter
    def ahead(self, keys: frozenset[str]) -> None:
        self._panel.ahead = keys

    @property
    def everybody(self) -> list[Teacher]:
        """Teachers and witnesses."""
        return [*self.teachers, *self.witnesses]

    @property
    def average(self) -> EmaTeacher | None:
        """The first moving average, if there is one."""
        return next((t for t in self.teachers if isinstance(t, EmaTeacher)), None)

    def grow(self, labels: Sequence[Label]) -> None:
        """New labels for teachers and caches."""
        for teacher in self.everybody:
            self.guard.guarded(teacher, partial(teacher.grow, labels), "grow")
        self.memory.grow(len(labels))

    def answers(self, x: Tensor, fresh: int, remembered: Remembered | None, classes: int) -> Answers:
        """What every teacher says of the rows; the first ``fresh`` have just arrived, behind the remembered ones come
        such as nobody has seen before.
        """
        return self._panel.answers(x, fresh, remembered, classes)

    def unseen(self, answers: Answers) -> Answers:
        """Of what is said of rows the part of those teachers who would answer had nobody ever seen them."""
        return self._panel.unseen(answers)

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
        asked = {key: (by_key[key], partial(_features, by_key[key], x, layers)) for key, layers in wanted.items()}
        return {key: self.guard.guarded(one, call, "features") or {} for key, (one, call) in asked.items()}

    def observe(
        self, x: Tensor, y: Tensor, learn: Tensor, then: Mapping[str, np.ndarray] = MappingProxyType({})
    ) -> None:
        """Teachers that learn from labels themselves see a step's fresh rows: raw x [n, *shape], columns y, -1 without
        label. They learn those of ``learn`` [n]; who learns record by record answers all of them on the way.

        ``then``: by teacher what ``opinions`` gave when the rows came, where that was earlier.
        """
        self.prequential = {}
        for incremental in self._incremental:
            answers = self.guard.test_then_train(incremental, x, y, learn, then.get(incremental.key))
            if answers is not None and len(answers):
                self.prequential[incremental.key] = answers
        if learn.any():
            self.observe_released(x[learn], y[learn])

    def observe_released(self, x: Tensor, y: Tensor) -> None:
        """Teachers that learn rows whenever they come see x [n, *shape] with the columns y [n].

        To who learns record by record, in the order of the stream, rows that were held out come too late.
        """
        for teacher in self._observers:
            self.guard.guarded(cast(Teacher, teacher), partial(_observe, teacher, x, y), "observe")

    def opinions(self, x: Tensor) -> dict[str, np.ndarray]:
        """By teacher what it wants to be told again when the labels of rows [n, *shape] come."""
        who = self._hindsight
        found = {teacher.key: self.guard.guarded(teacher, partial(teacher.opinion, x), "opinion") for teacher in who}
        return {key: said for key, said in found.items() if said is not None}

    @torch.no_grad()
    def keep_former(self, weights: Mapping[str, float], records: int) -> None:
        """So many records have been learned: now and then a copy of the one that speaks best of them is kept.

        ``weights`` are shares of what is answered, by teacher.
        """
        if self.former is None or not self.former.due(records):
            return
        able = [t for t in self.followers if not isinstance(t, FormerTeacher)]
        best = max(able, key=lambda t: weights.get(t.key, 0.0), default=None)
        part = None if best is None else self.guard.guarded(best, cast(Servable, best).part, "part")
        if part is not None:
            self._set_witnesses([*self.witnesses, self.former.take(part)])
        if len(copies := [t for t in self.witnesses if isinstance(t, FormerTeacher)]) > self.former.limit:
            ring = self.memory.replayed
            leaving = superfluous(copies, None if ring.x is None else ring.x[ring.places(COMPARED)])
            self._set_witnesses([t for t in self.witnesses if t is not leaving])
            self.guard.strikes.pop(leaving.key, None)

    def heard(self, logits: Tensor, answers: Answers, y: Tensor) -> None:
        """What student, logits [n, classes], and teachers said of a step's fresh rows as they came tells of the labels.

        Only where a gate asks for that.
        """
        if not self.asks_noise:
            return
        said = torch.cat([logits.unsqueeze(1), answers.logits[: len(y)]], 1)
        known = torch.cat([torch.ones_like(said[:, :1], dtype=torch.bool), answers.known[: len(y)]], 1)
        self.label_noise.observe(("student", *self.keys), said, known, y)

    def after_step(self, student: Student) -> None:
        """Live teachers follow."""
        for teacher in self.teachers:
            if teacher.role == "live" and isinstance(teacher, Following):
                self.guard.guarded(teacher, partial(teacher.after_step, student), "after_step")

    def end_task(self, student: Student) -> str | None:
        """A task has ended: teachers age, worth is measured anew, a snapshot may be admitted; returns its key."""
        for key in self.ages:
            self.ages[key] += 1
        for teacher in self._observers:
            self.guard.guarded(cast(Teacher, teacher), teacher.end_task, "end_task")
        admitted = self._admit(student) if self.snapshots else None
        self.assess(student)
        while self._mine() and self._over_budget():
            self._drop(self._least())
            self.assess(student)
        return admitted.key if admitted in self.teachers else None

    def _admit(self, student: Student) -> SnapshotTeacher | None:
        """Take a snapshot, if it may join; where there is no slot left, the least worthy one gives up its own."""
        assert self.snapshots is not None
        source = self.average.student if self.average else student
        candidate = self.snapshots.take(source, self.taken)
        self.taken += 1
        if self.cache.full and not self._mine():
            return None
        pool, alone = self.assess(student), self._verdict_of(candidate)
        leaving = self._least() if self.cache.full else None
        if pool is not None and alone is not None:
            key = leaving.key if leaving else None
            if not self.admission.admits(Applicant(alone, candidate.student.classes, pool, self.keys, key)):
                return None
        if leaving is not None:
            self._drop(leaving)
        self._join(candidate)
        return candidate

    def _join(self, teacher: SnapshotTeacher) -> None:
        self.teachers.append(teacher)
        self.ages[teacher.key] = 0
        self.cache.open(teacher)
        self._facts = None

    def _mine(self) -> list[SnapshotTeacher]:
        return [t for t in self.teachers if isinstance(t, SnapshotTeacher)]

    def _least(self) -> SnapshotTeacher:
        """The snapshot whose loss the pool would feel least on held-out records, the oldest of equals."""
        return min(self._mine(), key=lambda t: (self.worth.get(t.key, 0.0), -self.ages[t.key]))

    def _evict(self, over: Callable[[], bool]) -> None:
        while self._mine() and over():
            self._drop(self._least())

    def _over_budget(self) -> bool:
        return self._too_many() or sum(map(self.bytes_of, self.everybody)) > self.limit_bytes

    def bytes_of(self, teacher: Teacher) -> int:
        """What a teacher counts towards the pool's bytes."""
        size = self.guard.guarded(teacher, teacher.size_bytes, "size_bytes") if isinstance(teacher, Sized) else 0
        return size or 0

    def _too_many(self) -> bool:
        most = self.snapshots.limit if self.snapshots else 0
        return len(self._mine()) > most or self._counted > self.limit

    @property
    def _counted(self) -> int:
        """Teachers that take a place: one of the present is asked now and then, and nothing of it is recorded."""
        return sum(teacher.role != "present" for teacher in self.teachers)

    def _drop(self, teacher: Teacher) -> None:
        self.teachers.remove(teacher)
        for book in (self.worth, self.accuracy, self.ages):
            book.pop(teacher.key, None)
        self.cache.close(teacher.key)
        self.guard.strikes.pop(teacher.key, None)
        self._facts = None

    @torch.no_grad()
    def assess(self, student: Student) -> Assessment | None:
        """Accuracy of each teacher on held-out records of labels that it knows, and its marginal worth.

        Worth is what the mean over held-out records of max_k p_k(y) loses without the teacher; ``None`` without any.
        """
        self._facts = None
        held = self._verdict(student.classes)
        if held is not None:
            self.worth = self._measured(held.marginal())
            self.accuracy = self._measured(held.accuracy())
        return held

    def _measured(self, values: Tensor) -> dict[str, float]:
        """By teacher, of those that are asked about held-out records."""
        pairs = zip(self.teachers, values.tolist(), strict=True)
        return {teacher.key: value for teacher, value in pairs if teacher.role not in ("prequential", "present")}

    def _verdict(self, classes: int) -> Assessment | None:
        """Of all teachers on the held-out records; ``None`` without any."""
        remembered = whole(self.memory.holdout)
        if remembered is None or not len(remembered.y):
            return None
        answers = self.answers(remembered.x, 0, remembered, classes)
        return assessment(answers.logits, answers.known, remembered.y)

    @torch.no_grad()
    def _verdict_of(self, snapshot: SnapshotTeacher) -> Assessment | None:
        """Of one that is not in the pool."""
        remembered = whole(self.memory.holdout)
        if remembered is None or not len(remembered.y):
            return None
        snapshot.grow(range(self.memory.holdout.logits.shape[1]))
        logits = snapshot.logits(remembered.x).unsqueeze(1)
        return assessment(logits, snapshot.known().to(logits.device).expand_as(logits), remembered.y)

    def candidates(self, student: Student, weights: Mapping[str, float], exponents: Mapping[str, float]) -> Candidates:
        """What may be served now, the student of the stream among it; weights and exponents by teacher's key."""
        able = [t for t in self.everybody if isinstance(t, Servable)]
        parts = {t.key: part for t in able if (part := self.guard.guarded(t, t.part, "part")) is not None}
        ring, average = self.memory.holdout, self.average
        held = (ring.x[: ring.filled], ring.y[: ring.filled]) if ring.x is not None and ring.filled else None
        named = [
            {"average" if average and key == average.key else key: number for key, number in numbers.items()}
            for numbers in (weights, exponents)
        ]
        return Candidates(student, average.student if average else None, parts, held, self.noise or 0.0, *named)

    def facts(self, device: torch.device) -> Tensor:
        """[teachers, 2] for the gate: held-out accuracy, and 1 / (1 + age in tasks)."""
        if self._facts is None or len(self._facts) != len(self.teachers):
            rows = [[self.accuracy.get(k, 0.5), 1 / (1 + self.ages[k])] for k in self.keys]
            self._facts = torch.tensor(rows, device=device).reshape(len(rows), 2)
        return self._facts

    @property
    def noise(self) -> float | None:
        """The part of the labels that seems to be wrong, in [0, 1); ``None`` where that cannot be told."""
        return self.label_noise.share

    def stale(self, device: torch.device) -> Tensor:
        """[teachers] for the gate: whose answers were given on another day, and are only looked up."""
        stale = [teacher.role in ("remembered", "frozen") for teacher in self.teachers]
        return torch.tensor(stale, dtype=torch.bool, device=device)

    def state_dict(self) -> dict[str, Any]:
        return {
            "teachers": {t.key: _state_of(t) for t in self.everybody if isinstance(t, Stateful)},
            "snapshots": [t.key for t in self.teachers if isinstance(t, SnapshotTeacher)],
            "former": self.former.state_dict() if self.former else None,
            "copies": [t.key for t in self.witnesses if isinstance(t, FormerTeacher)],
            **self.cache.state_dict(),
            "strikes": self.guard.strikes,
            "worth": dict(self.worth),
            "accuracy": dict(self.accuracy),
            "ages": dict(self.ages),
            "taken": self.taken,
            "asks_noise": self.asks_noise,
            "label_noise": self.label_noise.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], build: Callable[[int], Student], labels: Sequence[Label]) -> None:
        """Restore; ``build`` gives a student of so many classes for each snapshot that was there, which then grows.

        Teachers that the configuration no longer names are left out, new ones begin as they are.
        """
        if self.snapshots is not None:
            fresh = self.snapshots.fresh
            self.teachers += [SnapshotTeacher(key, copy_of(build(1)), fresh=fresh) for key in state["snapshots"]]
        if self.former is not None and state.get("former") is not None:
            self.former.load_state_dict(state["former"])
            copies = self.former.restored({key: state["teachers"][key] for key in state["copies"]})
            self._set_witnesses([*self.witnesses, *copies])
        for teacher in self.everybody:
            if isinstance(teacher, Stateful) and teacher.key in state["teachers"]:
                teacher.load_state_dict(_own(state["teachers"][teacher.key], teacher))
            teacher.grow(labels)
        here = set(self.keys)
        self.worth = {k: v for k, v in state["worth"].items() if k in here}
        self.accuracy = {k: v for k, v in state["accuracy"].items() if k in here}
        self.ages = {k: state["ages"].get(k, 0) for k in self.keys}
        self.cache.load_state_dict(state, here)
        self.taken = state["taken"]
        self.asks_noise = state.get("asks_noise", False)
        if "label_noise" in state:
            self.label_noise.load_state_dict(state["label_noise"])
        there = {teacher.key for teacher in self.everybody}
        self.guard.strikes = {k: n for k, n in state["strikes"].items() if k in there}
        # by count alone: bytes grow with the labels within a task, and are looked at when it ends
        self._evict(self._too_many)
        for teacher in self.teachers:
            if cached(teacher) and teacher.key not in self.cache.slots:
                self.cache.open(teacher)
        self._facts = None


def _own(saved: dict[str, Any], teacher: Teacher) -> dict[str, Any]:
    """The state of a teacher that was in a process of its own, for one that is not."""
    return saved["state"] if "isolated" in saved and not hasattr(teacher, "isolated") else saved


def _observe(teacher: Observing, x: Tensor, y: Tensor) -> None:
    with untouched(x, y):
        teacher.observe(x, y)


def _state_of(teacher: Any) -> Any:
    """What a teacher keeps.

    Raises:
        PluginError: it does not say: a checkpoint without it would be another learner's.
    """
    try:
        return teacher.state_dict()
    except Exception as fault:
        raise blame(f"teacher {teacher.key}", "state_dict", fault) from fault


def _features(teacher: Teacher, x: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
    return teacher.features(x, layers) if isinstance(teacher, Layered) else {}
