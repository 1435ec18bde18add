"""Test, then train: what arriving records were answered by the student, the served version and the mixture.

    come ─► answered (and kept, where labels come later) ─► labels ─► measured, by what was said when the record came

Called by the learner.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from streamkd.evaluate.arrival import Arrivals
from streamkd.evaluate.measures import Measures
from streamkd.learner.pending import Pending
from streamkd.learning.batch import Taken
from streamkd.learning.class_weights import ClassWeights
from streamkd.learning.mixture import STUDENT, Testimony
from streamkd.learning.step import Step
from streamkd.records import Late, Records, RecordSchema, Source
from streamkd.streams.log.log import Log
from streamkd.tasks.experience import TensorBatch
from streamkd.tasks.labels import LabelSpace


class Prequential:
    """Measures: ``student`` in training, ``version`` that is served, ``mixture`` as each record found it.

    ``delayed``: by what users were answered, of records of a log whose labels came later.
    """

    def __init__(
        self,
        source: Source,
        schema: RecordSchema,
        device: torch.device,
        labels: LabelSpace,
        journal: Log | None,
        class_weights: ClassWeights | None,
    ) -> None:
        self.student, self.version, self.mixture, self.delayed = Measures(), Arrivals(), Measures(), Measures()
        self._labels, self._journal, self._class_weights = labels, journal, class_weights
        self.pending = Pending(source, schema, device) if isinstance(source, Late) else None
        self._partition = source.partitions[0]

    def come(self, records: Records, step: Step | None) -> None:
        """Who has come before the last label of a batch is answered, if labels come later; it is not learned yet."""
        if self.pending is None:
            return
        ask = None if step is None else lambda x: (step.mixture.ask(step.student, x), self.version.answer(x))
        self.pending.answer(self._partition, int(records.offsets[-1]), ask)

    def score(self, batch: TensorBatch, records: Records, step: Step) -> None:
        """The served version is measured: by its answer to the batch, or that which it gave when the records came."""
        if self._journal is not None:
            self._count_delayed(records, self._journal)
        if self.pending is None:
            self.version.score(batch.x, batch.y)
            return
        step.mixture.then, published = self.pending.take(records.offsets.tolist(), step.student.classes)
        _count(self.version.measures, batch.y.cpu().numpy(), published)

    def _count_delayed(self, records: Records, journal: Log) -> None:
        """Records whose label was joined to a prediction, by what was answered then."""
        answers = journal.answers(int(records.offsets[0]), int(records.offsets[-1]) + 1)
        pairs = zip(records.offsets.tolist(), records.labels, strict=True) if answers else ()
        told = [(label, answers[at].label) for at, label in pairs if at in answers and label is not None]
        known = [pair for pair in told if pair[1] in self._labels]
        if known:
            self.delayed.add(*(np.array(self._labels.indices(column)) for column in zip(*known, strict=True)))

    def count(self, taken: Taken, said: Testimony | None) -> np.ndarray:
        """Student and mixture are measured by what a step has heard of them.

        Returns:
            [labelled fresh rows] whether the student in training was wrong.
        """
        labels, given = taken.answers()
        said = self._weighted(said)
        if self._class_weights is not None:
            self._class_weights.see(labels)
        if self.pending is None:
            self.student.add(labels, given)
            if said is not None:
                self.mixture.add(labels, said.mixed.argmax(1))
        elif said is not None:
            _count(self.student, labels, said.probabilities[:, said.names.index(STUDENT)])
            _count(self.mixture, labels, said.mixed)
        return (given != labels)[labels >= 0]

    def _weighted(self, said: Testimony | None) -> Testimony | None:
        """What the mixture said, each class counting as it is answered."""
        if said is None or self._class_weights is None:
            return said
        rows = said.mixed * self._class_weights.of(self._labels.labels[: said.mixed.shape[1]])
        return replace(said, mixed=rows / rows.sum(1, keepdims=True))

    def state_dict(self) -> dict[str, Any]:
        """The counts, and the answers that wait."""
        parts = {"student": self.student, "version": self.version.measures}
        measures = {**parts, "mixture": self.mixture, "delayed": self.delayed}
        kept = {"pending": self.pending, "class_weights": self._class_weights}
        return {name: one.state_dict() for name, one in (measures | kept).items() if one is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.student.load_state_dict(state["student"])
        self.version.measures.load_state_dict(state["version"])
        self.mixture.load_state_dict(state["mixture"])
        if "delayed" in state:
            self.delayed.load_state_dict(state["delayed"])
        if self.pending is not None and "pending" in state:
            self.pending.load_state_dict(state["pending"])
        if self._class_weights is not None and "class_weights" in state:
            self._class_weights.load_state_dict(state["class_weights"])


def _count(measures: Measures, labels: np.ndarray, said: np.ndarray) -> None:
    """Rows of which anything was said: probabilities [rows, classes], NaN where there was nobody."""
    there = ~np.isnan(said[:, 0])
    measures.add(labels[there], said[there].argmax(1), said[there])
