"""What predictions are worth that were each made before its label was known: pure functions of arrays.

``predicted`` [n] are classes, -1 where nobody said anything; ``y`` [n] are the labels, in the order of the stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BEFORE = 1_000  # records of a former accuracy, of one concept at most
WINDOW = 100  # records of an accuracy that has recovered or not
RECOVERED = 0.95  # of the former accuracy


@dataclass(frozen=True)
class Recovery:
    """After the change at ``record``: how many ``records`` until ``RECOVERED`` of the former accuracy was back.

    Where the concept ended first (``reached`` is false) all of its records. ``again``: it had been there before.
    """

    record: int
    records: int
    reached: bool
    again: bool


def accuracy(predicted: np.ndarray, y: np.ndarray) -> float:
    """The part that is right, over all records."""
    return float((predicted == y).mean())


def no_change(y: np.ndarray, delay: int = 0) -> np.ndarray:
    """The newest label that is known when each record comes, if labels are known ``delay`` records late."""
    return np.concatenate([np.full(min(delay + 1, len(y)), -1), y[: max(0, len(y) - delay - 1)]])


def temporal_kappa(predicted: np.ndarray, y: np.ndarray, delay: int = 0) -> float:
    """(p - q) / (1 - q), p our accuracy and q that of ``no_change`` (Bifet et al. 2013, kappa temporal).

    1 is perfect, 0 no better than the last label, below 0 worse; NaN where the last label is always right.
    """
    p, q = accuracy(predicted, y), accuracy(no_change(y, delay), y)
    return (p - q) / (1 - q) if q < 1 else float("nan")


def recoveries(predicted: np.ndarray, y: np.ndarray, concepts: np.ndarray) -> list[Recovery]:
    """One for each record with which another concept begins; concepts [n] are any numbers."""
    right = np.concatenate([[0], np.cumsum(predicted == y)])
    changes = (1 + np.flatnonzero(np.diff(concepts))).tolist()
    edges = zip([0, *changes], changes, [*changes[1:], len(y)], strict=False)
    return [
        Recovery(at, *_until(right, begin, at, end), bool((concepts[:at] == concepts[at]).any()))
        for begin, at, end in edges
    ]


def _until(right: np.ndarray, begin: int, at: int, end: int) -> tuple[int, bool]:
    """Records from ``at`` to the end of the first window of that accuracy; ``right`` [n + 1] counts from the start.

    The former concept began at ``begin``, the new one goes to ``end``.
    """
    before = min(BEFORE, at - begin)
    former = (right[at] - right[at - before]) / before
    recent = (right[at + WINDOW : end + 1] - right[at : end + 1 - WINDOW]) / WINDOW
    reached = np.flatnonzero(recent >= RECOVERED * former)
    return (int(reached[0]) + WINDOW, True) if len(reached) else (end - at, False)


def mean_recovery(found: Sequence[Recovery], again: bool) -> float | None:
    """Records, over the changes to concepts that had (not) been there before; ``None`` where there are none."""
    lengths = [one.records for one in found if one.again is again]
    return float(np.mean(lengths)) if lengths else None
