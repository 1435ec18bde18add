"""What arriving records were answered, and how often that was right: by the student, the served version, the mixture.

    come ─► answered (and kept, where labels come later) ─► labels ─► counted, by what was said when the record came

Called by the learner.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from streamkd.evaluate.accuracy import Prequential
from streamkd.evaluate.arrival import Arrivals
from streamkd.learner.waiting import Waiting
from streamkd.learning.batch import Taken
from streamkd.learning.mixture import STUDENT, Testimony
from streamkd.learning.step import Step
from streamkd.records import Late, Records, RecordSchema, Source
from streamkd.tasks.experience import TensorBatch

WINDOW = 1_000  # records of the prequential accuracy


class Answered:
    """Accuracies: ``student`` in training, ``version`` that is served, ``mixture`` as each record found it."""

    def __init__(self, source: Source, schema: RecordSchema, device: torch.device) -> None:
        self.student, self.mixture = Prequential(WINDOW), Prequential(WINDOW)
        self.version = Arrivals(WINDOW)
        self.waiting = Waiting(source, schema, device) if isinstance(source, Late) else None
        self._partition = source.partitions[0]

    def come(self, records: Records, step: Step | None) -> None:
        """Who has come before the last label of a batch is answered, if labels come later; it is not learned yet."""
        if self.waiting is None:
            return
        ask = None if step is None else lambda x: (step.mixture.ask(step.student, x), self.version.answer(x))
        self.waiting.answer(self._partition, int(records.offsets[-1]), ask)

    def score(self, batch: TensorBatch, records: Records, step: Step) -> None:
        """The served version is counted: by its answer to the batch, or that which it gave when the records came."""
        if self.waiting is None:
            self.version.score(batch.x, batch.y)
            return
        step.mixture.then, columns = self.waiting.take(records.offsets.tolist(), step.student.classes)
        self.version.count(columns, batch.y.cpu().numpy())

    def count(self, taken: Taken, said: Testimony | None) -> float:
        """Student and mixture are counted, by what a step has heard of them; the student's accuracy, NaN of no rows."""
        labels, logits = (tensor[: taken.fresh].cpu().numpy() for tensor in (taken.plan.y, taken.logits))
        then = None if said is None or self.waiting is None else said.probabilities[:, said.names.index(STUDENT)]
        right, told = _right(logits if then is None else then, labels)
        self.student.add(right, told)
        if said is not None:
            self.mixture.add(*_right(said.mixed, labels))
        return right / told if told else math.nan

    def state_dict(self) -> dict[str, Any]:
        """The counts, and the answers that wait."""
        return {
            "prequential": self.student.state_dict(),
            "arrivals": self.version.state_dict(),
            "answered": self.mixture.state_dict(),
            "waiting": None if self.waiting is None else self.waiting.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; what an older one does not have begins where it was written."""
        self.student.load_state_dict(state["prequential"])
        if "arrivals" in state:
            self.version.load_state_dict(state["arrivals"])
        if "answered" in state:
            self.mixture.load_state_dict(state["answered"])
        if self.waiting is not None and state.get("waiting"):
            self.waiting.load_state_dict(state["waiting"])


def _right(said: np.ndarray, labels: np.ndarray) -> tuple[int, int]:
    """On how many labelled rows [rows, classes] the first choice was right, and of how many anything was said."""
    there = (labels >= 0) & ~np.isnan(said[:, 0])
    return int((said.argmax(1) == labels)[there].sum()), int(there.sum())
