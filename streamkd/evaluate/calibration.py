"""How far predicted probabilities can be believed: likelihood, calibration error, and its diagram.

Pure functions of probabilities [records, classes] and label positions [records]; a label that the model does
not know is -1: it has probability 0 and every prediction for it is wrong. Called by ``streamkd.evaluate.report``.
"""

from dataclasses import dataclass

import numpy as np

BINS = 15
SMALLEST = 1e-12  # of a probability: one certain mistake costs 27.6 nats, not infinity


@dataclass(frozen=True, slots=True)
class Bin:
    """One bar of a reliability diagram: records whose confidence lies in (low, high]."""

    low: float
    high: float
    records: int
    confidence: float
    accuracy: float


def nll(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood in nats: ``-1/n Σ log p(y)``, with p at least ``SMALLEST``. At least 0."""
    rows, labels = _checked(probabilities, labels)
    known = labels >= 0
    chosen = np.where(known, rows[np.arange(len(rows)), np.where(known, labels, 0)], 0.0)
    return float(np.mean(-np.log(np.maximum(chosen, SMALLEST))))


def ece(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error ``Σ_m |B_m|/n · |acc(B_m) - conf(B_m)|`` (Guo et al. 2017, eq. 3), 0 to 1.

    Bins of equal width, closed above; confidence is the largest probability.
    """
    found = reliability(probabilities, labels, bins)
    total = sum(one.records for one in found)
    return float(sum(one.records * abs(one.accuracy - one.confidence) for one in found) / total)


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> list[Bin]:
    """The bins that hold records, from low confidence to high (the same paper, figure 1)."""
    rows, labels = _checked(probabilities, labels)
    confidence = rows.max(axis=1)
    right = rows.argmax(axis=1) == labels
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = bin_of(confidence, bins)
    records = np.bincount(place, minlength=bins)
    confidences = np.bincount(place, weights=confidence, minlength=bins)
    rights = np.bincount(place, weights=right, minlength=bins)
    return [
        Bin(float(edges[m]), float(edges[m + 1]), int(n), float(confidences[m] / n), float(rights[m] / n))
        for m, n in enumerate(records)
        if n
    ]


def bin_of(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """The bin of each confidence [records], 0 to ``bins`` - 1; bins are closed above."""
    return np.clip(np.searchsorted(np.linspace(0.0, 1.0, bins + 1), confidence, side="left") - 1, 0, bins - 1)


def _checked(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    if rows.ndim != 2 or labels.shape != rows.shape[:1] or not rows.size:
        raise ValueError(f"needed [records, classes] and [records], got {rows.shape} and {labels.shape}")
    if labels.max() >= rows.shape[1]:
        raise ValueError(f"needed label positions below {rows.shape[1]}, got {labels.max()}")
    if not np.isfinite(rows).all() or (np.abs(rows.sum(axis=1) - 1) > 1e-3).any():
        raise ValueError("needed rows of probabilities that sum to 1")
    return rows, labels
