"""Mistakes of selectors of the served model."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mistakes.mistake import ALOOF, Mistake
from streamkd.teachers.served import Served
from streamkd.teachers.teacher import copy_of


class Even:
    """A selector that is right: the mean of what all say, each of the classes that it knows."""

    def __init__(self, options: Any) -> None: ...

    def choose(self, candidates: Any) -> Any:
        parts = {"student": candidates.student, **candidates.teachers}
        if candidates.average is not None:
            parts["average"] = candidates.average
        return Served(parts, self.combine, {"weights": [1 / len(parts)] * len(parts)})

    def combine(self, logits: Tensor, known: Tensor, how: Any) -> Tensor:
        said = torch.softmax(logits.masked_fill(~known, -torch.inf), 2)
        return torch.einsum("bpc,p->bc", said, torch.tensor(how["weights"])).clamp_min(1e-12).log()


class Wordless:
    def __init__(self, options: Any) -> None: ...

    def choose(self, candidates: Any) -> Any:
        return candidates.student


class Hopeful(Even):
    """Takes it that there is an average."""

    def choose(self, candidates: Any) -> Any:
        return candidates.average.eval()


class Copying(Even):
    def choose(self, candidates: Any) -> Any:
        return copy_of(candidates.student)


class Backwards(Even):
    """Puts the teachers first."""

    def choose(self, candidates: Any) -> Any:
        parts = {**candidates.teachers, "student": candidates.student}
        return Served(parts, self.combine, {"weights": [1 / len(parts)] * len(parts)})


class Certain(Even):
    """Log of what may be 0."""

    def combine(self, logits: Tensor, known: Tensor, how: Any) -> Tensor:
        return torch.softmax(logits.masked_fill(~known, -torch.inf), 2)[:, -1].log()


class Sharpening(Even):
    """Makes the student surer of itself."""

    def choose(self, candidates: Any) -> Any:
        candidates.student.head.weight.data.mul_(1.1)
        return candidates.student


class Gambling(Even):
    def choose(self, candidates: Any) -> Any:
        torch.rand(())
        return super().choose(candidates)


class Alternating(Even):
    """One after the other."""

    def __init__(self, options: Any) -> None:
        self.turns = 0

    def choose(self, candidates: Any) -> Any:
        self.turns += 1
        return candidates.average if candidates.average is not None and self.turns % 2 else candidates.student


class Remembering(Even):
    """Combines by what it keeps, not by ``how``."""

    weights: Any = None

    def choose(self, candidates: Any) -> Any:
        chosen = super().choose(candidates)
        self.weights = chosen.how["weights"]
        return chosen

    def combine(self, logits: Tensor, known: Tensor, how: Any) -> Tensor:
        return super().combine(logits, known, {"weights": self.weights})


class Tensorial(Even):
    """A tensor in ``how``."""

    def choose(self, candidates: Any) -> Any:
        chosen = super().choose(candidates)
        chosen.how["weights"] = torch.tensor(chosen.how["weights"])
        return chosen

    def combine(self, logits: Tensor, known: Tensor, how: Any) -> Tensor:
        return super().combine(logits, known, {"weights": how["weights"].tolist()})


def selector(name: str, clause: str, make: Callable[..., Any]) -> Mistake:
    return Mistake("selectors", name, clause, make)


CHOOSES = "it chooses a student, or a Served of several candidates"
MISTAKES = (
    selector("combines nothing", "`make(options)` gives a selector", Wordless),
    selector("takes it that there is an average", CHOOSES, Hopeful),
    selector("a copy of a candidate", CHOOSES, Copying),
    selector("a teacher before the student", CHOOSES, Backwards),
    selector("logits of -inf", "it maps [batch, *shape] to finite logits", Certain),
    selector("changes the student", "it leaves the candidates as they are", Sharpening),
    selector("draws from torch's generator", ALOOF, Gambling),
    selector("one after the other", "of the same candidates it chooses the same", Alternating),
    selector("combines by what it remembers", "read from a version's files it answers the same", Remembering),
    selector("a tensor in how", "read from a version's files it answers the same", Tensorial),
)
