"""What a step is about: its rows as one batch, and how far it has come.

arrived rows | replayed rows | those of each source ─► StepBatch ─► Taken: logits, weights, loss
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from streamkd.replay.holdout import Offer
from streamkd.replay.rows import StepRows
from streamkd.teachers.answers import Answers

NOTHING = Offer()
ARRIVED, REPLAYED = "arrived", "replayed"


@dataclass(frozen=True, slots=True)
class StepBatch:
    """A step's rows and the teachers' answers to them.

    ``origins`` says in their order how many rows came from where: ``arrived``, ``replayed``, each source by its key.
    ``unlabelled``: some have no label. ``offer`` says which of the arrived rows the memory takes: those that it holds
    out have no mass, and teach nobody, now or when they come again.
    """

    rows: StepRows
    origins: Mapping[str, int]
    task: int
    answers: Answers
    unlabelled: bool = False
    offer: Offer = NOTHING

    @property
    def x(self) -> Tensor:
        """[batch, *shape], the arrived rows first."""
        return self.rows.x

    @property
    def y(self) -> Tensor:
        """[batch] columns, -1 without label."""
        return self.rows.y

    @property
    def fresh(self) -> int:
        """How many rows have arrived."""
        return self.origins[ARRIVED]

    @property
    def records(self) -> int:
        """How many rows are records: those that arrived, and replayed ones behind them."""
        return self.fresh + self.origins.get(REPLAYED, 0)


@dataclass(slots=True)
class Taken:
    """A step as far as it has come; a listener may add to ``loss`` before the backward pass.

    ``weights`` [records, sources] are the gate's; rows that are no records would only dilute them.
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

    def answers(self) -> tuple[np.ndarray, np.ndarray]:
        """[fresh rows] their labels, -1 where there is none, and the student's first choices."""
        # numpy: a fifth of the calls that torch would take
        labels = self.plan.y[: self.fresh].cpu().numpy()
        return labels, self.logits[: self.fresh].detach().cpu().numpy().argmax(1)
