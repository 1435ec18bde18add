"""Held-out records: one look at them for all who go by what nobody has learned, the gate and the sources of rows.

    held-out rows ─► student, teachers ─► likelihoods, label noise ─► gate ─► error reduction
    moved by a pixel ─► student, teachers ───────────────────────────► gate ─► invariance

A look lasts ``EVERY`` steps, or until there is a teacher or a class that it has not met. Two others go to these records
on their own: the adapter, whose query needs the gradient of the student as it has just moved, and the pool when a task
ends, which asks of a snapshot whether it should be there at all. What the server says of the served model goes by the
clock, and never reaches a step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from streamkd.gates.gate import GateInputs, Measured
from streamkd.gates.likelihood import held_out_likelihood
from streamkd.learning.batch import ARRIVED, StepBatch
from streamkd.learning.mixture import Held, probabilities
from streamkd.learning.recent import Recent
from streamkd.losses.match_gate import fused_target, soft_answers
from streamkd.replay.memory import Memory
from streamkd.replay.ring import whole
from streamkd.replay.rows import HeldOutFigures, StepRows
from streamkd.students.images import is_image, shifted
from streamkd.students.networks import Student, at_rest
from streamkd.teachers.answers import Answers
from streamkd.teachers.pool import Pool

Weighs = Callable[[GateInputs], Tensor]
Evidence = Callable[[StepBatch, Tensor], GateInputs]
EVERY = 10  # steps that a look lasts: a class has held-out records for some time before its teachers are much better
NOTHING_KNOWN = HeldOutFigures()


@dataclass(frozen=True, slots=True)
class Look:
    """What was found: of each of these teachers, and of all of them together."""

    teachers: tuple[str, ...]
    measured: Measured
    figures: HeldOutFigures = NOTHING_KNOWN
    held: Held | None = None


class HeldOut:
    """The last look at the held-out part of the memory; where nobody asks, nobody looks."""

    def __init__(self, student: Student, memory: Memory, pool: Pool, recent: Recent) -> None:
        self.student, self.memory, self.pool, self.recent = student, memory, pool, recent
        self.last: Look | None = None
        self.age = 0

    def measured(self) -> Measured:
        """For a gate: held-out log-likelihood [teachers, classes], NaN where none; label noise.

        That it asks is noted: from the next step on there are looks, and labels are watched for noise.
        """
        self.pool.asks_noise = True
        if self.last is not None and self._met_all(self.last):
            return self.last.measured
        like = next(self.student.parameters())
        return Measured(like.new_full((len(self.pool.keys), self.student.classes), torch.nan))

    @property
    def said(self) -> Held | None:
        """What everybody said of them; ``None`` before anything is held out."""
        return None if self.last is None else self.last.held

    def begin(self) -> None:
        """A step begins."""
        self.age += 1

    def figures(self, gate: Weighs, evidence: Evidence) -> HeldOutFigures:
        """What the teachers are worth together; a new look where the last does not hold any more.

        ``evidence`` is what a gate sees of rows. Before anything is held out all is 0.
        """
        if self.last is None or self.age >= EVERY or not self._met_all(self.last):
            self._look(gate, evidence)
        return NOTHING_KNOWN if self.last is None else self.last.figures

    def _met_all(self, look: Look) -> bool:
        return look.teachers == self.pool.keys and look.measured.credit.shape[1] == self.student.classes

    @torch.no_grad()
    def _look(self, gate: Weighs, evidence: Evidence) -> None:
        held = whole(self.memory.holdout)
        if held is None or not len(held.y):
            return
        logits, classes = self._said(held.x), self.student.classes
        answers = self.pool.answers(held.x, 0, held, classes)
        measured = Measured(held_out_likelihood(answers.logits, answers.known, held.y), self.pool.noise or 0.0)
        self.last, self.age = Look(self.pool.keys, measured), 0  # the gate goes by it in what follows

        def taught(x: Tensor, logits: Tensor, answers: Answers) -> Tensor:
            rows = StepBatch(StepRows.of(x), {ARRIVED: 0}, 0, answers, unlabelled=True)
            return fused_target(soft_answers(answers.logits, answers.known, 1.0), gate(evidence(rows, logits)))

        lying, kept = taught(held.x, logits, self.pool.unseen(answers)), 0.0
        if is_image(tuple(held.x.shape[1:])):
            x = shifted(held.x, 1, torch.Generator().manual_seed(0))
            kept = invariance(lying, taught(x, self._said(x), self.pool.answers(x, 0, None, classes)), held.y)
        spared = error_reduction(lying, torch.softmax(logits, 1), held.y)
        figures, away = HeldOutFigures(spared, kept), ~self.recent.near(held.x)
        self.last = Look(self.pool.keys, measured, figures, probabilities(self.pool, held, logits, answers, away))

    def _said(self, x: Tensor) -> Tensor:
        with at_rest(self.student) as student:
            return student(x)

    def state_dict(self) -> dict[str, Any]:
        if self.last is None:
            return {"last": None, "age": self.age}
        credit, noise = self.last.measured
        look = {"teachers": list(self.last.teachers), "credit": credit, "noise": noise}
        held = self.last.held and self.last.held.state_dict()
        return {"last": {**look, **self.last.figures._asdict(), "held": held}, "age": self.age}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore, on the student's device."""
        look, self.age, self.last = state["last"], state["age"], None
        if look is not None:
            measured = Measured(look["credit"].to(next(self.student.parameters()).device), look["noise"])
            figures = HeldOutFigures(look["error_reduction"], look["invariance"])
            held = Held.from_state(look["held"]) if look.get("held") else None
            self.last = Look(tuple(look["teachers"]), measured, figures, held)


def error_reduction(
    taught: Float[Tensor, "batch classes"], own: Float[Tensor, "batch classes"], labels: Int[Tensor, "batch"]
) -> float:
    """1 - (e + 1) / (s + 1), at least 0: what part of the student's mistakes the teachers would spare it.

    e and s are mistakes of the teachers' mixture and of the student on held-out records, one more each because there
    are few. Mistakes and not likelihoods: a student is sure of records that it has met, however little it knows.
    A record of which no teacher speaks (a row of zeros) is a mistake too.
    """
    theirs, ours = (len(labels) - int(_right(p, labels).sum()) for p in (taught, own))
    return max(0.0, 1.0 - (theirs + 1) / (ours + 1))


def invariance(
    taught: Float[Tensor, "batch classes"], moved: Float[Tensor, "batch classes"], labels: Int[Tensor, "batch"]
) -> float:
    """The share of records, of those that the teachers know and one more, which they know when moved too."""
    right = _right(taught, labels)
    return int((right & _right(moved, labels)).sum()) / (int(right.sum()) + 1)


def _right(p: Float[Tensor, "batch classes"], labels: Int[Tensor, "batch"]) -> Bool[Tensor, "batch"]:
    """Where the most probable class is the label; nowhere where nothing has a probability."""
    best, place = p.max(1)
    return (place == labels) & (best > 0)
