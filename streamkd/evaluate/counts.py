"""What answered records come to: counts and sums that grow record by record, and the measures that follow from them.

    Answered: label, answer, probabilities ─► Counts.add ─► Counts.figures

Sums are taken one record after the other, so that they are the same bit for bit however records are grouped. Memory is
bounded: counts for each class; confusion and scores for the first ``TRACKED`` classes. Called by
``streamkd.evaluate.measures``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from streamkd.evaluate import roc
from streamkd.evaluate.calibration import BINS, SMALLEST, bin_of

TRACKED = 50  # classes, in the order in which they came, whose confusion and scores are kept: 0.4 MB of histograms
SHOWN = 20  # classes that figures list, the most frequent ones


@dataclass(frozen=True, slots=True)
class Answered:
    """Records with their label and what was answered, in their order.

    labels, given [n]: columns; before [n]: the label of the record before each, -1 of the first. scores [n, classes]:
    probabilities of the tracked classes; own [n] that of the label, sure [n] the largest one. NaN: there were none.
    """

    labels: np.ndarray
    given: np.ndarray
    before: np.ndarray
    scores: np.ndarray
    own: np.ndarray
    sure: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray, given: np.ndarray, probabilities: np.ndarray, before: int = -1) -> "Answered":
        """From probabilities [n, classes]: a class beyond them has 0; NaN first in a row without.

        ``before`` is the label of the record before.
        """
        known, at = labels < probabilities.shape[1], np.arange(len(labels))
        own = np.where(known, probabilities[at, np.where(known, labels, 0)], 0.0)
        own[np.isnan(probabilities[:, 0])] = np.nan
        former = np.concatenate([[before], labels[:-1]])[: len(labels)]
        return cls(labels, given, former, probabilities[:, :TRACKED], own, probabilities.max(1))

    def and_(self, more: "Answered") -> "Answered":
        """These and others behind them; a class that one of them has no scores of has 0 there."""
        width = max(self.scores.shape[1], more.scores.shape[1])
        scores = [np.pad(one.scores, ((0, 0), (0, width - one.scores.shape[1]))) for one in (self, more)]
        names = [name for name in (field.name for field in fields(self)) if name != "scores"]
        joined = {name: np.concatenate([getattr(self, name), getattr(more, name)]) for name in names}
        return Answered(scores=np.concatenate(scores), **joined)

    def last(self, count: int) -> "Answered":
        """The newest so many."""
        return Answered(*(getattr(self, field.name)[-count:] for field in fields(self)))

    def areas(self) -> list[tuple[float, float] | None]:
        """Of each tracked class the area under its ROC curve, exactly, and 0 that it is off."""
        scored = ~np.isnan(self.own)
        columns, labels = self.scores[scored].T, self.labels[scored]
        return [roc.exact(column, labels == place) for place, column in enumerate(columns)]

    def state_dict(self) -> dict[str, Any]:
        return {field.name: torch.from_numpy(getattr(self, field.name).copy()) for field in fields(self)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Answered":
        """What ``state_dict`` gave."""
        return cls(**{name: tensor.numpy().copy() for name, tensor in state.items()})


class Counts:
    """Counts and sums over answered records."""

    def __init__(self) -> None:
        self.by_class = np.zeros((3, 0), np.int64)  # records of this label, answers that said it, right ones
        self.confusion = np.zeros((0, 0), np.int64)  # [label, answer] of the tracked classes
        self.scores = np.zeros(
            (0, 2, roc.BINS), np.int64
        )  # of each tracked class: records that are not of it, that are
        self.unchanged = np.zeros(1, np.int64)  # records whose label was that of the record before
        self.scored = np.zeros(1, np.int64)  # records with probabilities
        self.surprise = np.zeros(1)  # their sum of -log p(label), nats
        self.sure = np.zeros((3, BINS))  # by bin of confidence: records, their confidence, right ones

    @property
    def records(self) -> int:
        """How many."""
        return int(self.by_class[0].sum())

    @property
    def accuracy(self) -> float | None:
        """The part that is right; ``None`` of no record."""
        return int(self.by_class[2].sum()) / self.records if self.records else None

    def add(self, more: Answered) -> None:
        """Count these too."""
        if not len(more.labels):
            return
        right = more.labels == more.given
        self._grow(1 + max(int(more.labels.max()), int(more.given.max())))
        for place, found in enumerate((more.labels, more.given, more.labels[right])):
            self.by_class[place] += np.bincount(found, minlength=self.by_class.shape[1])
        near = (more.labels < len(self.confusion)) & (more.given < len(self.confusion))
        np.add.at(self.confusion, (more.labels[near], more.given[near]), 1)
        self.unchanged += int((more.labels == more.before).sum())
        self._add_scores(more, ~np.isnan(more.own), right)

    def _add_scores(self, more: Answered, known: np.ndarray, right: np.ndarray) -> None:
        if not known.any():
            return
        own, sure, scores = more.own[known], more.sure[known], more.scores[known]
        np.add.at(self.surprise, np.zeros(len(own), np.int64), -np.log(np.maximum(own, SMALLEST)))
        places = bin_of(sure)
        for row, values in enumerate((1.0, sure, right[known])):
            np.add.at(self.sure[row], places, values)
        width = scores.shape[1]
        if width > len(self.scores):  # a class that was not there yet had no chance of being said
            new = np.zeros((width - len(self.scores), 2, roc.BINS), np.int64)
            new[:, 0, 0] = self.scored
            self.scores = np.concatenate([self.scores, new])
        scores = np.pad(scores, ((0, 0), (0, len(self.scores) - width)))
        columns = np.arange(len(self.scores))
        cells = (2 * columns + (more.labels[known][:, None] == columns)) * roc.BINS + roc.bins_of(scores)
        self.scores += np.bincount(cells.ravel(), minlength=self.scores.size).reshape(self.scores.shape)
        self.scored += len(own)

    def _grow(self, classes: int) -> None:
        more = classes - self.by_class.shape[1]
        if more > 0:
            self.by_class = np.pad(self.by_class, ((0, 0), (0, more)))
            room = min(classes, TRACKED) - len(self.confusion)
            self.confusion = np.pad(self.confusion, ((0, room), (0, room)))

    def areas(self) -> list[tuple[float, float] | None]:
        """As ``Answered.areas``, from the histograms: off by so much at most."""
        return [roc.of_counts(positives, negatives) for negatives, positives in self.scores]

    def figures(
        self, names: Sequence[Any], areas: Sequence[tuple[float, float] | None] | None = None
    ) -> dict[str, Any]:
        """The measures; ``None`` where one cannot be told. ``names`` are the labels by column.

        Args:
            areas: under the ROC curves of the tracked classes; those of the histograms where none are given.
        """
        if not self.records:
            return {"records": 0}
        labels, given, right = self.by_class
        there = labels > 0
        f1 = 2 * right / np.maximum(labels + given, 1)
        areas = [*(self.areas() if areas is None else areas)]
        areas += [(0.5, 0.0) if self.scored and label else None for label in labels[len(areas) : TRACKED]]  # never said
        told = [area for area in areas if area is not None]
        accuracy, n = float(right.sum() / self.records), float(self.records)
        most = int(labels.argmax())
        scored = int(self.scored[0])
        return {
            "records": self.records,
            "accuracy": accuracy,
            "majority": {"label": str(names[most]), "share": float(labels[most] / n)},
            "balanced_accuracy": float((right[there] / labels[there]).mean()),
            "macro_f1": float(f1[there | (given > 0)].mean()),
            "auc": float(np.mean([area for area, _ in told])) if told else None,
            "auc_error": float(np.mean([error for _, error in told])) if told else None,
            "kappa": _kappa(accuracy, float((labels / n) @ (given / n))),
            "kappa_temporal": _kappa(accuracy, float(self.unchanged[0] / n)),
            "kappa_m": _kappa(accuracy, float(labels[most] / n)),
            "log_loss": float(self.surprise[0] / scored) if scored else None,
            "calibration_error": float(np.abs(self.sure[2] - self.sure[1]).sum() / scored) if scored else None,
            "classes_seen": int(there.sum()),
            "classes": [self._of(place, shown, f1, areas, names) for shown in [self._shown()] for place in shown],
        }

    def _shown(self) -> list[int]:
        """The most frequent of the tracked classes, by label or answer."""
        counts = self.by_class[:2, : len(self.confusion)].sum(0)
        order = np.argsort(-self.by_class[0, : len(self.confusion)], kind="stable").tolist()
        return [place for place in order if counts[place]][:SHOWN]

    def _of(
        self,
        place: int,
        shown: Sequence[int],
        f1: np.ndarray,
        areas: Sequence[tuple[float, float] | None],
        names: Sequence[Any],
    ) -> dict[str, Any]:
        """A class: its figures, and its row of the confusion matrix."""
        labels, given, right = self.by_class[:, place].tolist()
        area = areas[place] if place < len(areas) else None
        row = {str(names[other]): int(self.confusion[place, other]) for other in shown}
        return {
            "label": str(names[place]),
            "records": labels,
            "answers": given,
            "recall": right / labels if labels else None,
            "precision": right / given if given else None,
            "f1": float(f1[place]),
            "auc": None if area is None else area[0],
            "answered": row,
            "answered_others": labels - sum(row.values()),
        }

    def state_dict(self) -> dict[str, Any]:
        return {name: torch.from_numpy(value.copy()) for name, value in vars(self).items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, tensor in state.items():
            setattr(self, name, tensor.numpy().copy())


def _kappa(accuracy: float, other: float) -> float | None:
    """What we have of the way from ``other``'s accuracy to 1; ``None`` where that is 1 already."""
    return (accuracy - other) / (1 - other) if other < 1 else None
