"""A model's earlier selves as a step's pool, compared with it on records before they were learned, as they come.

For loops that need have no held-out memory of their own (``streamkd.avalanche.plugin``); where there is one, the pool
is measured on it all at once (``streamkd.learning.held_out``).
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from streamkd.gates.gate import Gate, GateInputs, Measured
from streamkd.gates.likelihood import drawn_to_mean, label_likelihoods
from streamkd.hookspecs import Options
from streamkd.learning.batch import ARRIVED, StepBatch, Taken
from streamkd.learning.step import Step
from streamkd.losses.match_gate import fused_target, soft_answers
from streamkd.records import InputColumn, Label, RecordSchema
from streamkd.replay.memory import Memory
from streamkd.replay.ring import whole
from streamkd.replay.rows import StepRows
from streamkd.students.networks import Student, at_rest
from streamkd.teachers.admission import Applicant
from streamkd.teachers.answers import Answers
from streamkd.teachers.pool import Pool
from streamkd.teachers.recall import RecallTeacher
from streamkd.teachers.snapshot import SnapshotMaker, SnapshotTeacher
from streamkd.teachers.teacher import EmaOptions, EmaTeacher, Teacher, TeacherContext

KEPT = 0.9  # of what a class's records have told, at each further one: the last ten or so count
ROUND = 0.01  # of mistakes, added to both sides: from so few records a smaller difference says nothing
SCHEMA = RecordSchema(inputs=(InputColumn(name="x"),))  # its columns are read by nobody here


class Comparison:
    """Who said what of records before they were learned, of each class the last ten or so."""

    def __init__(self) -> None:
        self._logs: dict[str, Tensor] = {}  # [2, classes] by teacher: Σ log p(y), records
        self._mistakes = torch.zeros(3, 0)  # the teachers', the model's, records

    def judge(self, evidence: GateInputs, gate: Gate) -> None:
        """Take in what the teachers say of the labels, and the mistakes that they make as the gate weighs them."""
        found = torch.stack(label_likelihoods(evidence.answers, evidence.known, evidence.labels), 1)
        before = self._logs
        self._logs = {key: _kept(before.get(key), new) for key, new in zip(evidence.teachers, found, strict=True)}
        self._count(evidence, gate(evidence))  # which reads what was taken in

    def _count(self, evidence: GateInputs, weights: Tensor) -> None:
        taught = fused_target(soft_answers(evidence.answers, evidence.known, 1.0), weights)
        best, place = taught.max(1)
        theirs = (place != evidence.labels) | (best <= 0)  # where no teacher speaks, too
        ours = evidence.logits.argmax(1) != evidence.labels
        member = F.one_hot(evidence.labels, evidence.logits.shape[1]).to(taught.dtype)
        new = torch.stack([theirs, ours, torch.ones_like(ours)]).to(taught.dtype) @ member
        self._mistakes = _kept(self._mistakes, new)

    def advantage(self) -> float:
        """1 - e/s, at least 0: what part of the model's mistakes s the teachers, who make e, would spare it.

        Means over the classes: a mini-batch has more of some than of others.
        """
        met = self._mistakes[2] > 0
        if not bool(met.any()):
            return 0.0
        theirs, ours = (self._mistakes[:2, met] / self._mistakes[2, met]).mean(1).tolist()
        return max(0.0, 1 - (theirs + ROUND) / (ours + ROUND))

    def state_dict(self) -> dict[str, Any]:
        return {"logs": dict(self._logs), "mistakes": self._mistakes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._logs, self._mistakes = dict(state["logs"]), state["mistakes"]

    def measured(self) -> Measured:
        """For a gate: the mean log p(label) of each teacher judged last and each class; NaN for who has not spoken."""
        return Measured(drawn_to_mean(*torch.stack([*self._logs.values()]).unbind(1)))


def _kept(old: Tensor | None, new: Tensor) -> Tensor:
    """Sums over records by class, of which the last row counts these, and what the new ones leave of the old."""
    return new if old is None else _wider(old.to(new.device), new.shape[1]) * KEPT ** new[-1] + new


def _wider(tensor: Tensor, classes: int) -> Tensor:
    return F.pad(tensor, (0, classes - tensor.shape[-1]))


class AnyCopy:
    """The admission that refuses nobody: each step says how far a copy is heard."""

    def admits(self, _applicant: Applicant) -> bool:
        return True


class EarlierSelves(Pool):
    """Average, remembered logits and copies from the ends of tasks, measured by a ``Comparison``.

    Copies are asked about fresh rows too. Where one is too many, the one least ``listened`` to makes room.
    """

    def __init__(self, student: Student, memory: Memory, *, decay: float, snapshots: int) -> None:
        keys = ("average", "memory") if memory.replayed.capacity else ("average",)
        device = next(student.parameters()).device
        average, *recall = (TeacherContext(key, student, SCHEMA, [], device) for key in keys)
        teachers: list[Teacher] = [EmaTeacher(EmaOptions(decay=decay), average)]
        teachers += [RecallTeacher(Options(), context) for context in recall]
        maker = SnapshotMaker("snapshot", snapshots, fresh=True) if snapshots else None
        most = len(teachers) + snapshots
        super().__init__(teachers, maker, memory, limit=most, limit_bytes=sys.maxsize, admission=AnyCopy())
        self.comparison = Comparison()
        self.listened: dict[str, float] = {}

    @property
    def copies(self) -> list[SnapshotTeacher]:
        """Of the average, the oldest first."""
        return self._mine()

    def state_dict(self) -> dict[str, Any]:
        own = {"comparison": self.comparison.state_dict(), "listened": dict(self.listened)}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any], build: Callable[[int], Student], labels: Sequence[Label]) -> None:
        super().load_state_dict(state, build, labels)
        self.comparison.load_state_dict(state["comparison"])
        self.listened = dict(state["listened"])

    @torch.no_grad()
    def advantage(self, step: Step, taken: Taken, *, held_out: bool) -> float:
        """The teachers' advantage, after a look at the rows that arrived, and perhaps at the held-out ones."""
        plan, fresh = taken.plan, taken.fresh
        answers = Answers(plan.answers.logits[:fresh], plan.answers.known[:fresh], plan.answers.complete)
        self._judge(step, plan.x[:fresh], plan.y[:fresh], taken.logits[:fresh], answers)
        held = whole(self.memory.holdout) if held_out else None
        if held is not None and len(held.y):
            with at_rest(step.student) as student:
                logits = student(held.x)
            self._judge(step, held.x, held.y, logits, self.answers(held.x, len(held.y), None, student.classes))
        return self.comparison.advantage()

    def _judge(self, step: Step, x: Tensor, y: Tensor, logits: Tensor, answers: Answers) -> None:
        self.comparison.judge(
            step.evidence(StepBatch(StepRows.of(x, y), {ARRIVED: len(y)}, 0, answers), logits), step.gate
        )

    def listen(self, weights: Mapping[str, float]) -> None:
        """How much each teacher was listened to in a step, by its key."""
        for key, weight in weights.items():
            self.listened[key] = self.listened.get(key, 0.0) + weight

    def end_task(self, student: Student) -> str | None:
        if self.snapshots and len(self.copies) >= self.snapshots.limit:
            self._drop(min(self.copies, key=lambda copy: self.listened.get(copy.key, 0.0)))
        self.listened.clear()
        return super().end_task(student)
