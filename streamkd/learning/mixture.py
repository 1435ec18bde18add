"""The mixture: what student and teachers said of the records that have just come, and what each is worth by it.

    a step's fresh rows, not learned yet ─► probabilities of each source ─┐
    held-out records unlike what comes now ───────────────────────────────┴─► FixedShare ─► weights, answers

Twice: ``now`` by what comes alone, for answers to the very next records; ``share`` by what still holds as well, for a
published version, which may be asked about anything (``streamkd.teachers.mixture``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from streamkd.gates.fixed_share import NOBODY, FixedShare
from streamkd.learning.batch import StepBatch
from streamkd.replay.memory import Remembered
from streamkd.students.networks import Student, at_rest
from streamkd.teachers.answers import Answers
from streamkd.teachers.mixture import ENSEMBLE
from streamkd.teachers.pool import Pool
from streamkd.teachers.teacher import Servable

STUDENT = "student"
OF_NOW = ("prequential", "present")  # roles of teachers that speak of what comes: of other rows they are asked for this


@dataclass(frozen=True, slots=True)
class Testimony:
    """By whom what was said: probabilities [rows, sources, classes] of the sources, and ``mixed`` [rows, classes]."""

    names: tuple[str, ...]
    probabilities: np.ndarray
    mixed: np.ndarray


@dataclass(frozen=True, slots=True)
class Held:
    """What the sources said of held-out records: probabilities of the true label [m, sources], the labels [m], and
    which of the records are unlike what comes [m].
    """

    names: tuple[str, ...]
    probabilities: np.ndarray
    labels: np.ndarray
    away: np.ndarray

    def of(self, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """By these sources; who was not asked yet stands where the student does."""
        places = [self.names.index(name if name in self.names else STUDENT) for name in names]
        return self.probabilities[:, places], self.labels, self.away

    def state_dict(self) -> dict[str, Any]:
        """Names, probabilities and labels."""
        arrays = {name: torch.from_numpy(getattr(self, name)) for name in ("probabilities", "labels", "away")}
        return {"names": list(self.names), **arrays}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Held":
        """What ``state_dict`` gave."""
        arrays = (state[name].numpy().copy() for name in ("probabilities", "labels", "away"))
        return cls(tuple(state["names"]), *arrays)


class Mixture:
    """``FixedShare`` over the student and whoever in the pool speaks of what comes."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.now, self.share = FixedShare(), FixedShare()
        self.last: Testimony | None = None

    def test(self, plan: StepBatch, logits: Tensor, held: Held | None) -> None:
        """The step's fresh rows test the sources; call it when the teachers have answered and learned them.

        A row without label, or one that came before, is answered and tells nothing.
        """
        fresh = plan.fresh
        said = dict(self._said(plan, torch.softmax(logits[:fresh].detach().double(), 1)))
        said |= self._ensemble(said)
        labels = plan.y[:fresh].clone()
        labels[plan.offer.again] = -1
        names, probabilities = tuple(said), np.stack([*said.values()], 1)
        columns = labels.cpu().numpy()
        self.share.test(names, probabilities, columns, *(held.of(names) if held else NOBODY))
        mixed = self.now.test(names, probabilities, columns, *NOBODY)
        self.last = Testimony(names, probabilities, mixed)

    def _said(self, plan: StepBatch, student: Tensor) -> list[tuple[str, np.ndarray]]:
        fresh, answers = plan.fresh, plan.answers
        found = [(STUDENT, student.cpu().numpy())]
        heard = answers.known[:fresh].any(2).all(0).tolist()
        for place, key in enumerate(self.pool.keys):
            if heard[place] and key not in self.pool.prequential:
                whole = completed(answers.logits[:fresh, place], answers.known[:fresh, place], student)
                found.append((key, whole.cpu().numpy()))
        in_turn = self.pool.prequential.items()
        return found + [(key, torch.softmax(logits.double(), 1).cpu().numpy()) for key, logits in in_turn]

    def _ensemble(self, said: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The two that err most differently, together, as one more source; nothing where one of them is silent."""
        pair = paired(self.pool)
        return {ENSEMBLE: together(said[pair[0]], said[pair[1]])} if pair and set(pair) <= set(said) else {}

    @torch.no_grad()
    def ask(self, student: Student, x: Tensor) -> Testimony:
        """What everybody says of any rows [rows, *shape] as things stand, and what is answered."""
        with at_rest(student):
            own = torch.softmax(student(x).double(), 1)
        found = {STUDENT: own.cpu().numpy()}
        for teacher in self.pool.everybody:
            answer = self.pool.guard.ask(teacher, x, own.shape[1])
            if answer is not None and teacher.key in self.now.names:
                found[teacher.key] = completed(answer[0], answer[1].expand(own.shape), own).cpu().numpy()
        found |= self._ensemble(found) if ENSEMBLE in self.now.names else {}
        names = tuple(found)
        probabilities = np.stack([*found.values()], 1)
        return Testimony(names, probabilities, self.now.mixed(names, probabilities))

    def state_dict(self) -> dict[str, Any]:
        """The shares."""
        return {"now": self.now.state_dict(), "share": self.share.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.now.load_state_dict(state["now"])
        self.share.load_state_dict(state["share"])


def probabilities(pool: Pool, held: Remembered, logits: Tensor, answers: Answers, away: np.ndarray) -> Held:
    """What everybody said of held-out records: the student's logits [m, classes], and the pool's answers."""
    student = torch.softmax(logits.double(), 1)
    found = {STUDENT: student.cpu().numpy()}
    heard = answers.known.any(2).any(0).tolist()  # where a teacher has no answer to a record, the student's stands
    for place, key in enumerate(pool.keys):
        if heard[place] and pool.teachers[place].role not in OF_NOW:
            found[key] = completed(answers.logits[:, place], answers.known[:, place], student).cpu().numpy()
    for teacher in pool.everybody:
        if teacher.role in OF_NOW and (said := pool.guard.ask(teacher, held.x, logits.shape[1])) is not None:
            found[teacher.key] = torch.softmax(said[0].double(), 1).cpu().numpy()
    if (pair := paired(pool)) and set(pair) <= set(found):
        found[ENSEMBLE] = together(found[pair[0]], found[pair[1]])
    labels = held.y.cpu().numpy()
    told = np.stack([each[np.arange(len(labels)), labels] for each in found.values()], 1)
    return Held(tuple(found), told, labels, away)


def paired(pool: Pool) -> tuple[str, str] | None:
    """The average and the first teacher that learns in closed form; ``None`` where there are not both."""
    closed = next((t.key for t in pool.teachers if t.role == "versioned" and isinstance(t, Servable)), None)
    return (pool.average.key, closed) if pool.average is not None and closed is not None else None


def together(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The geometric pool of probabilities [..., classes], half and half."""
    both = np.sqrt(first * second)
    return both / np.maximum(both.sum(-1, keepdims=True), 1e-300)


def completed(
    logits: Float[Tensor, "batch classes"],
    known: Bool[Tensor, "batch classes"],
    student: Float[Tensor, "batch classes"],
) -> Float[Tensor, "batch classes"]:
    """Probabilities over all classes of a source that knows some: the others' are the student's."""
    mine = torch.softmax(logits.to(student.dtype).masked_fill(~known, -torch.inf), 1)
    left = 1 - (student * ~known).sum(1, keepdim=True)
    return torch.where(known, mine * left, student)
