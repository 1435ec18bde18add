"""Detectors of drift: the student's errors rise, or the inputs are no longer what they were.

``adwin``         the window of errors falls into two whose means differ (Bifet and Gavaldà 2007)
``page-hinkley``  the errors have summed up to more than their mean allows (Page 1954)
``two-sample``    an input's values differ from those at the task's begin (Kolmogorov-Smirnov, corrected by Bonferroni)

Errors are those of the student before it learned the records. Only a rise tells of drift: a student that learns errs
less. Whatever is found within ``minimum`` records of a boundary is taken for that boundary, and every boundary, whoever
saw it, starts a detector anew. They are heard within tasks that the stream names as well.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import Field

from streamkd.hookspecs import Kind, Options, hookimpl
from streamkd.records import Records
from streamkd.tasks.boundary import Detector


class Chart(Protocol):
    """Follows numbers in [0, 1], one at a time."""

    def update(self, value: float) -> bool:
        """Take the next number; whether they have risen. Then it starts anew."""
        ...

    def restart(self) -> None:
        """Forget all numbers."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Adwin:
    """ADWIN over zeros and ones: the longest newest window that has one mean, in buckets of 1, 2, 4, ... numbers.

    Every ``CLOCK`` numbers each cut between two buckets is looked at: a difference of means above
    ε = sqrt(2/m σ² ln(2 ln(n)/δ)) + 2/(3m) ln(2 ln(n)/δ), 1/m = 1/n0 + 1/n1, is a change, and the older part goes.
    """

    CLOCK, BUCKETS, SHORTEST, GRACE = 32, 5, 5, 10

    def __init__(self, delta: float) -> None:
        self._delta = delta
        self.restart()

    def restart(self) -> None:
        self._rows: list[list[float]] = [[]]  # sums of buckets, oldest first; row r has buckets of 2**r numbers
        self._count = 0

    @property
    def width(self) -> int:
        """Numbers in the window."""
        return sum(len(row) << place for place, row in enumerate(self._rows))

    def update(self, value: float) -> bool:
        self._rows[0].append(value)
        self._merge()
        self._count += 1
        risen = self._count % self.CLOCK == 0 and self._shrink()
        if risen:
            self.restart()
        return risen

    def _merge(self) -> None:
        """Of a row with too many buckets the two oldest become one of the next."""
        place = 0
        while len(self._rows[place]) > self.BUCKETS:
            if place + 1 == len(self._rows):
                self._rows.append([])
            first, second, *self._rows[place] = self._rows[place]
            self._rows[place + 1].append(first + second)
            place += 1

    def _shrink(self) -> bool:
        """Drop the oldest bucket for as long as some cut tells of a change; whether one was a rise."""
        while (rise := self._cut()) is not None:
            if rise > 0:
                return True
            self._rows[-1].pop(0)
            while len(self._rows) > 1 and not self._rows[-1]:
                self._rows.pop()
        return False

    def _cut(self) -> float | None:
        """The difference of means at the oldest cut that tells of a change."""
        width = self.width
        if width <= self.GRACE:
            return None
        sizes = np.array([1 << p for p in reversed(range(len(self._rows))) for _ in self._rows[p]], float)
        sums = np.array([total for row in reversed(self._rows) for total in row])
        old, new = sizes.cumsum()[:-1], sizes[::-1].cumsum()[::-1][1:]
        rise = sums[::-1].cumsum()[::-1][1:] / new - sums.cumsum()[:-1] / old
        long = (old >= self.SHORTEST) & (new >= self.SHORTEST)
        shortfall = self.SHORTEST - 1
        share = 1 / np.maximum(old - shortfall, 1) + 1 / np.maximum(new - shortfall, 1)
        mean, certain = sums.sum() / width, math.log(2 * math.log(width) / self._delta)
        epsilon = np.sqrt(2 * share * mean * (1 - mean) * certain) + 2 / 3 * certain * share
        found = np.flatnonzero(long & (np.abs(rise) > epsilon))
        return float(rise[found[0]]) if len(found) else None

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [list(row) for row in self._rows], "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rows, self._count = [list(row) for row in state["rows"]], state["count"]


class PageHinkley:
    """The sum of (number - mean so far - δ), never below 0, is above the threshold.

    Old terms do not fade, as they do in other versions: a sum that is far below its start, after errors have become
    fewer, would rise by fading alone.
    """

    SHORTEST = 30

    def __init__(self, delta: float, threshold: float) -> None:
        self._delta, self._threshold = delta, threshold
        self.restart()

    def restart(self) -> None:
        self._count, self._mean, self._sum = 0, 0.0, 0.0

    def update(self, value: float) -> bool:
        self._count += 1
        self._mean += (value - self._mean) / self._count
        self._sum = max(0.0, self._sum + value - self._mean - self._delta)
        risen = self._count >= self.SHORTEST and self._sum > self._threshold
        if risen:
            self.restart()
        return risen

    def state_dict(self) -> dict[str, Any]:
        return {"count": self._count, "mean": self._mean, "sum": self._sum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._count, self._mean, self._sum = state["count"], state["mean"], state["sum"]


class DriftOptions(Options):
    """A change that is seen too soon after a boundary is that boundary."""

    minimum: int = Field(default=300, ge=0, description="a task has at least so many records")


class AdwinOptions(DriftOptions):
    """ADWIN over the student's errors."""

    delta: float = Field(default=0.002, gt=0, lt=1, description="confidence of a cut; smaller: fewer false alarms")


class PageHinkleyOptions(DriftOptions):
    """Page and Hinkley's test over the student's errors."""

    delta: float = Field(default=0.02, ge=0, description="a rise of the error rate that is borne")
    threshold: float = Field(default=50.0, gt=0, description="errors above the mean and delta, in sum")


class RisingErrors:
    """A chart over the student's errors as a detector: the task ends with the batch after the rise."""

    within_tasks = True

    def __init__(self, chart: Chart, minimum: int) -> None:
        self._chart, self._minimum = chart, minimum
        self._since, self._risen = 0, False

    def scored(self, wrong: np.ndarray) -> None:
        for one in wrong.tolist():
            self._risen |= self._chart.update(float(one))

    def begins(self, records: Records, new_labels: Sequence[Any], since_boundary: int) -> str | None:
        risen, self._risen = self._risen, False
        if since_boundary < self._since:
            self._chart.restart()
        self._since = since_boundary
        return "" if risen and since_boundary >= self._minimum else None

    def state_dict(self) -> dict[str, Any]:
        return {"chart": self._chart.state_dict(), "since": self._since, "risen": self._risen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._chart.load_state_dict(state["chart"])
        self._since, self._risen = state["since"], state["risen"]


class TwoSampleOptions(DriftOptions):
    """A task's first inputs beside the newest ones."""

    reference: int = Field(default=500, ge=20, description="records from the task's begin")
    recent: int = Field(default=200, ge=20, description="the newest records")
    features: int = Field(default=100, ge=1, description="at most so many elements of an input, drawn once")
    alpha: float = Field(default=1e-5, gt=0, lt=1, description="part of the looks that are false alarms, at most")


class TwoSample:
    """The first ``reference`` records of a task beside the newest ``recent``, looked at twice in each ``recent``.

    Of every feature the largest difference of the two distribution functions; it is a change where its probability
    under one distribution, 2 exp(-2 d² nm/(n+m)), is below ``alpha`` over the number of features. Records that hang on
    those before them (a season, a class after another) differ more than that says.
    """

    within_tasks = True

    def __init__(self, options: TwoSampleOptions) -> None:
        self._options = options
        self._first = self._newest = np.zeros((0, 0), np.float32)
        self._since = self._unseen = 0

    def begins(self, records: Records, new_labels: Sequence[Any], since_boundary: int) -> str | None:
        if since_boundary < self._since or not self._first.size:
            self._first = self._newest = np.zeros((0, self._width(records)), np.float32)
            self._unseen = 0
        self._since = since_boundary
        self._take(self._features(records))
        due = len(self._newest) == self._options.recent and self._unseen >= self._options.recent // 2
        if not due or since_boundary < self._options.minimum:
            return None
        self._unseen = 0
        return "" if differ(self._first, self._newest, self._options.alpha) else None

    def _width(self, records: Records) -> int:
        return min(self._options.features, math.prod(records.inputs.shape[1:]))

    def _features(self, records: Records) -> np.ndarray:
        """[records, features], the same elements of each; a copy."""
        flat = records.inputs.reshape(len(records), math.prod(records.inputs.shape[1:]))
        chosen = np.random.default_rng(0).permutation(flat.shape[1])[: self._options.features]
        return flat[:, np.sort(chosen)].astype(np.float32)

    def _take(self, rows: np.ndarray) -> None:
        """The first rows are the reference; those behind are the newest."""
        room = self._options.reference - len(self._first)
        self._first = np.concatenate([self._first, rows[:room]]) if room > 0 else self._first
        rest = rows[max(room, 0) :]
        self._newest = np.concatenate([self._newest, rest])[-self._options.recent :]
        self._unseen += len(rest)

    def state_dict(self) -> dict[str, Any]:
        windows = {"first": torch.from_numpy(self._first.copy()), "newest": torch.from_numpy(self._newest.copy())}
        return {**windows, "since": self._since, "unseen": self._unseen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._first, self._newest = state["first"].cpu().numpy().copy(), state["newest"].cpu().numpy().copy()
        self._since, self._unseen = state["since"], state["unseen"]


def differ(first: np.ndarray, second: np.ndarray, alpha: float) -> bool:
    """Whether some feature of [n, features] and [m, features] has another distribution; false in ``alpha`` of cases."""
    n, m = len(first), len(second)
    least = math.sqrt(math.log(2 * first.shape[1] / alpha) * (n + m) / (2 * n * m))
    return bool((distances(first, second) > least).any())


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Kolmogorov and Smirnov's: of each feature the largest difference of the two distribution functions [features]."""
    both = np.concatenate([first, second])
    order = both.argsort(0, kind="stable")
    steps = np.where(order < len(first), 1 / len(first), -1 / len(second)).cumsum(0)
    ordered = np.take_along_axis(both, order, 0)
    last_of_ties = np.concatenate([ordered[1:] != ordered[:-1], np.ones((1, both.shape[1]), bool)])
    return np.where(last_of_ties, np.abs(steps), 0.0).max(0)


def _adwin(options: AdwinOptions) -> Detector:
    return RisingErrors(Adwin(options.delta), options.minimum)


def _page_hinkley(options: PageHinkleyOptions) -> Detector:
    return RisingErrors(PageHinkley(options.delta, options.threshold), options.minimum)


@hookimpl
def streamkd_detectors() -> Iterable[Kind]:
    """The detectors of drift."""
    yield Kind("adwin", _adwin, AdwinOptions, "the student's errors rise: ADWIN")
    yield Kind("page-hinkley", _page_hinkley, PageHinkleyOptions, "the student's errors rise: Page-Hinkley")
    yield Kind("two-sample", TwoSample, TwoSampleOptions, "inputs differ from the task's first: Kolmogorov-Smirnov")
