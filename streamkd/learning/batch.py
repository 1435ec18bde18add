"""What a step is about: its rows as one batch, and how far it has come.

arrived rows | replayed rows | vicinal rows ─► StepBatch ─► Taken: logits, weights, loss
"""

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from streamkd.replay.memory import Offer
from streamkd.teachers.answers import Answers

NOTHING = Offer({}, [], [])


@dataclass(frozen=True, slots=True)
class StepBatch:
    """A step's rows, fresh ones first: x [batch, *shape], y [batch], and the teachers' answers.

    A row without label has -1 in y; ``unlabelled`` says that there are such. Remembered rows all have one; the last
    ``drawn`` rows, from the vicinity of the others, have none. ``mass`` [batch] is what each counts, 0 where it is held
    out; ``None``: all alike. ``met`` [batch] is how often each label was learned before. ``offer`` says which fresh
    rows the memory takes: those that it holds out teach nobody, now or when they come again.
    """

    x: Tensor
    y: Tensor
    fresh: int
    task: int
    answers: Answers
    unlabelled: bool = False
    drawn: int = 0
    met: Tensor | None = None
    offer: Offer = NOTHING
    mass: Tensor | None = None


@dataclass(slots=True)
class Taken:
    """A step as far as it has come; a listener may add to ``loss`` before the backward pass.

    ``weights`` [records, sources] are the gate's; rows from the records' vicinity would only dilute them.
    ``skipped``: loss or gradients were not finite, and nothing moved.
    """

    plan: StepBatch
    logits: Tensor = field(init=False)
    weights: Tensor = field(init=False)
    loss: Tensor = field(init=False)
    skipped: bool = False

    @property
    def fresh(self) -> int:
        """How many rows have arrived."""
        return self.plan.fresh

    def known(self) -> tuple[int, int]:
        """How many fresh rows have a label, and on how many of them the student's first choice was that."""
        # numpy: a fifth of the calls that torch would take
        labels = self.plan.y[: self.fresh].cpu().numpy()
        right = int((self.logits[: self.fresh].detach().cpu().numpy().argmax(1) == labels).sum())
        return int((labels >= 0).sum()) if self.plan.unlabelled else self.fresh, right

    def wrong(self) -> np.ndarray:
        """[labelled fresh rows] whether the student's first choice was another than the label."""
        labels = self.plan.y[: self.fresh].cpu().numpy()
        chosen = self.logits[: self.fresh].detach().cpu().numpy().argmax(1)
        return (chosen != labels)[labels >= 0]
