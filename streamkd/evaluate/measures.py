"""Measures of what was answered before the label was known (test, then train): over the newest records, and over all.

    labels, answers, probabilities ─► wait for each other ─► window of records ─► figures, exactly
                                                        └──► Counts of all     ─► figures, areas by histogram

Accuracy, balanced accuracy, macro F1, area under the ROC curve (one class against the rest, mean), Cohen's kappa,
kappa against the label before (*temporal*) and against the most frequent label (*M*; Bifet et al. 2015), log-loss,
calibration error; recall, precision, F1 and confusion by class. When to look
at which is in docs/explanation/measures.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streamkd.evaluate.counts import Answered, Counts

WINDOW = 1_000  # records
BLOCK = 128  # records that wait to be counted together: alone, ten cost as much
NONE = np.zeros(0, np.int64)
UNTOLD = np.full((1, 1), np.nan)  # in the place of probabilities that were not given


class Measures:
    """Prequential (Gama et al. 2013), with a sliding window of the newest ``window`` records."""

    def __init__(self, window: int = WINDOW) -> None:
        self._window = window
        self._ever = Counts()
        self._newest = Answered.of(NONE, NONE, UNTOLD[:0])
        self._waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._waits = 0

    def add(self, labels: np.ndarray, given: np.ndarray, probabilities: np.ndarray | None = None) -> None:
        """Count records in the order in which their labels came.

        Args:
            labels: their columns [n]; -1 without label, which counts nowhere.
            given: the columns that were answered [n], whenever that was.
            probabilities: [n, classes] that were answered, rows that sum to 1; without them a record counts in no area,
                log-loss or calibration error.
        """
        there = labels >= 0
        if not there.all():
            labels, given = labels[there], given[there]
            probabilities = None if probabilities is None else probabilities[there]
        self._waiting.append((labels, given, UNTOLD.repeat(len(labels), 0) if probabilities is None else probabilities))
        self._waits += len(labels)
        if self._waits >= BLOCK:
            self._count()

    def _count(self) -> None:
        """Take what waits."""
        if not self._waits:
            return
        labels, given, rows = zip(*self._waiting, strict=True)
        before = int(self._newest.labels[-1]) if len(self._newest.labels) else -1
        more = Answered.of(np.concatenate(labels), np.concatenate(given), _stacked(rows), before)
        self._waiting, self._waits = [], 0
        self._ever.add(more)
        self._newest = self._newest.and_(more).last(self._window)

    @property
    def accuracy(self) -> float | None:
        """Over the window; ``None`` before the first record."""
        self._count()
        newest = self._newest
        return float((newest.labels == newest.given).mean()) if len(newest.labels) else None

    @property
    def overall(self) -> float | None:
        """Accuracy over every record so far: the figure of a report."""
        self._count()
        return self._ever.accuracy

    @property
    def records(self) -> int:
        """How many were counted so far."""
        self._count()
        return self._ever.records

    def figures(self, names: Sequence[Any]) -> dict[str, Any]:
        """``newest`` and ``all`` records' measures as plain values; ``names`` are the labels by column."""
        self._count()
        counts = Counts()
        counts.add(self._newest)
        newest = counts.figures(names, self._newest.areas())
        return {"newest": newest, "all": newest if self._ever.records <= self._window else self._ever.figures(names)}

    def state_dict(self) -> dict[str, Any]:
        self._count()
        return {"ever": self._ever.state_dict(), "newest": self._newest.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._ever.load_state_dict(state["ever"])
        self._newest = Answered.from_state(state["newest"])


def of_tests(names: Sequence[Any], labels: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    """The measures of one model on records [n] that have no order, from its probabilities [n, classes]; exactly.

    ``names`` are the labels by column. One that the model does not know is a column beyond its classes.
    """
    told, counts = Answered.of(labels, probabilities.argmax(1), probabilities.astype(np.float64)), Counts()
    counts.add(told)
    found = counts.figures(names, told.areas())
    found.pop("kappa_temporal", None)
    return found


def told(found: Mapping[str, Any]) -> str:
    """Figures in one line for a person."""
    if not found["records"]:
        return "no record yet"
    parts = [
        ("balanced accuracy", "balanced_accuracy"),
        ("macro F1", "macro_f1"),
        ("ROC AUC", "auc"),
        ("kappa", "kappa"),
    ]
    said = [f"{name} {found[key]:.3f}" for name, key in parts if found.get(key) is not None]
    majority = found["majority"]
    return (
        f"accuracy {found['accuracy']:.3f} of {found['records']:,.0f} records, "
        f"where always {majority['label']!r} has {majority['share']:.3f}; {', '.join(said)}"
    )


def _stacked(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Probabilities [n, classes] of batches that may know fewer classes than the last."""
    width = max(one.shape[1] for one in rows)
    return np.concatenate([np.pad(one, ((0, 0), (0, width - one.shape[1]))) for one in rows]).astype(np.float64)
