"""The mixture: what student and teachers said of the records that have just come, and what each is worth by it.

    a step's fresh rows, not learned yet ─► probabilities of each source ─┐
    held-out records unlike what comes now ───────────────────────────────┴─► Sharpness ─► FixedShare ─► answers

Twice: ``now`` by what comes alone, for answers to the very next records; ``share`` by what still holds as well and over
those who can be served, for a published version, which may be asked about anything (``streamkd.teachers.mixture``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from streamkd.gates.fixed_share import FixedShare
from streamkd.gates.sharpness import Sharpness
from streamkd.learning.batch import StepBatch
from streamkd.replay.ring import Remembered
from streamkd.students.networks import Student, at_rest
from streamkd.teachers.answers import Answers
from streamkd.teachers.pool import Pool
from streamkd.teachers.teacher import Servable

STUDENT = "student"
OF_NOW = ("prequential", "present")  # roles of teachers that speak of what comes: of other rows they are asked for this


@dataclass(frozen=True, slots=True)
class Testimony:
    """By whom what was said: probabilities [rows, sources, classes] of the sources, and ``mixed`` [rows, classes].

    ``each`` [rows, 2, pairs, classes] is what the pairs of rate and share made of it, of ``Mixture.now`` and ``share``;
    ``opinions`` are the pool's. Both are there where labels come later.
    """

    names: tuple[str, ...]
    probabilities: np.ndarray
    mixed: np.ndarray
    each: np.ndarray | None = None
    opinions: Mapping[str, np.ndarray] = field(default_factory=dict)

    def of(self, names: Sequence[str]) -> np.ndarray:
        """[rows, names, classes] by these sources; who was not asked stands where the student does."""
        return self.probabilities[:, [self.names.index(name if name in self.names else STUDENT) for name in names]]


@dataclass(frozen=True, slots=True)
class Held:
    """What the sources said of held-out records: probabilities [m, sources, classes], the labels [m], and which of the
    records are unlike what comes [m].
    """

    names: tuple[str, ...]
    probabilities: np.ndarray
    labels: np.ndarray
    away: np.ndarray

    def of(self, names: Sequence[str], classes: int) -> np.ndarray:
        """[m, names, classes] by these sources; who was not asked yet stands where the student does."""
        places = [self.names.index(name if name in self.names else STUDENT) for name in names]
        found = self.probabilities[:, places].astype(np.float64)
        return np.pad(found, ((0, 0), (0, 0), (0, classes - found.shape[2])))

    def state_dict(self) -> dict[str, Any]:
        """Names, probabilities and labels."""
        arrays = {name: torch.from_numpy(getattr(self, name)) for name in ("probabilities", "labels", "away")}
        return {"names": list(self.names), **arrays}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Held":
        """What ``state_dict`` gave."""
        arrays = (state[name].numpy().copy() for name in ("probabilities", "labels", "away"))
        return cls(tuple(state["names"]), *arrays)


class Weighing:
    """``FixedShare`` over sources that are each heard as sharply as they may be."""

    def __init__(self) -> None:
        self.share, self.sharpness = FixedShare(), Sharpness()

    @property
    def names(self) -> tuple[str, ...]:
        """The sources."""
        return self.share.names

    @property
    def weights(self) -> dict[str, float]:
        """Of each source; they sum to 1."""
        return self.share.weights

    @property
    def exponents(self) -> dict[str, float]:
        """Of each source's probabilities."""
        return dict(zip(self.names, self.sharpness.of(self.names).tolist(), strict=True))

    def mixed(self, names: Sequence[str], said: np.ndarray) -> np.ndarray:
        """The answers [n, classes] to these sources' probabilities [n, sources, classes] as things stand."""
        return self.share.mixed(names, self.sharpness.heard(names, said))

    def each(self, names: Sequence[str], said: np.ndarray) -> np.ndarray:
        """The same of each pair of rate and share [n, pairs, classes]."""
        return self.share.each(names, self.sharpness.heard(names, said))

    def test(
        self,
        names: Sequence[str],
        said: np.ndarray,
        labels: np.ndarray,
        held: Held | None,
        then: np.ndarray | None = None,
    ) -> np.ndarray:
        """The same of records as they come, each by what those before it told; labels [n], -1 where there is none.

        ``then`` is what ``each`` gave when they came, if that was earlier.
        """
        kept = said[:0] if held is None else held.of(names, said.shape[2])
        columns, away = (labels[:0], labels[:0] > 0) if held is None else (held.labels, held.away)
        true = self.sharpness.heard(names, kept)[np.arange(len(kept)), :, columns]
        mixed = self.share.test(names, self.sharpness.heard(names, said), labels, true, columns, away, then)
        told, (away, each) = labels >= 0, self.share.still_true(columns, away)
        whole = told.sum() / (1 + each * away.sum())
        counts = whole * np.concatenate([np.full(told.sum(), 1 / max(told.sum(), 1)), each * away])
        self.sharpness.learn(names, np.concatenate([said[told], kept]), np.concatenate([labels[told], columns]), counts)
        return mixed

    def state_dict(self) -> dict[str, Any]:
        """Shares and exponents."""
        return {"share": self.share.state_dict(), "sharpness": self.sharpness.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.share.load_state_dict(state["share"])
        self.sharpness.load_state_dict(state["sharpness"])


class Mixture:
    """``Weighing`` of the student and whoever in the pool speaks of what comes."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.now, self.share = Weighing(), Weighing()
        self.last: Testimony | None = None
        self.then: Testimony | None = None  # of the next step's fresh rows, where they came earlier than their labels

    def test(self, plan: StepBatch, logits: Tensor, held: Held | None) -> None:
        """The step's fresh rows test the sources; call it when the teachers have answered and learned them.

        A row without label, or one that came before, is answered and tells nothing; nor does one of which nobody said
        anything when it came.
        """
        fresh = plan.fresh
        said = dict(self._said(plan, torch.softmax(logits[:fresh].detach().double(), 1)))
        labels = plan.y[:fresh].clone()
        labels[plan.offer.again] = -1
        names, probabilities = tuple(said), np.stack([*said.values()], 1)
        columns, then = labels.cpu().numpy(), self.then
        self.then = None
        if then is not None:
            probabilities = then.of(names)
            columns[np.isnan(probabilities).any((1, 2))] = -1
        able = [place for place, name in enumerate(names) if self._servable(name)]
        now, share = (None, None) if then is None or then.each is None else then.each.swapaxes(0, 1)
        self.share.test([names[place] for place in able], probabilities[:, able], columns, held, share)
        mixed = self.now.test(names, probabilities, columns, None, now)
        self.last = Testimony(names, probabilities, mixed if then is None else then.mixed)

    def _servable(self, name: str) -> bool:
        average = self.pool.average
        if name == STUDENT or (average is not None and name == average.key):
            return True
        return any(isinstance(teacher, Servable) for teacher in self.pool.everybody if teacher.key == name)

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
        names = tuple(found)
        probabilities = np.stack([*found.values()], 1)
        able = [place for place, name in enumerate(names) if name in self.share.names]
        share = self.share.each([names[place] for place in able], probabilities[:, able])
        each = np.stack([self.now.each(names, probabilities), share], 1)
        return Testimony(names, probabilities, self.now.mixed(names, probabilities), each, self.pool.opinions(x))

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
    return Held(tuple(found), np.stack([*found.values()], 1).astype(np.float32), held.y.cpu().numpy(), away)


def completed(
    logits: Float[Tensor, "batch classes"],
    known: Bool[Tensor, "batch classes"],
    student: Float[Tensor, "batch classes"],
) -> Float[Tensor, "batch classes"]:
    """Probabilities over all classes of a source that knows some: the others' are the student's."""
    mine = torch.softmax(logits.to(student.dtype).masked_fill(~known, -torch.inf), 1)
    left = 1 - (student * ~known).sum(1, keepdim=True)
    return torch.where(known, mine * left, student)
