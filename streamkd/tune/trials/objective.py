"""What a trial is judged by: a figure of the curve of one seed, and which way is better.

    Curve (accuracy on validation tasks, at marks that the stream alone decides) ─► objective(name).of ─► a number

A point where a trial was stopped counts in the figure at that stop and in no later one, so that a trial ends with the
same figures however often it was stopped. The served model is judged, but for ``student-accuracy``.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from streamkd.errors import ConfigError

Place = Literal["mark", "within", "stop"]
NINETY = 0.9
PREDICTION_MS, STEP_MS = 20.0, 100.0
"""Limits of ``latency`` on the 95th percentiles of a prediction at batch 1 and of a training step."""


@dataclass(frozen=True)
class Point:
    """What was measured after ``records`` of a seed: accuracy by the name of each validation task that has begun.

    Of the batches, those that lie wholly before: a task ends where the first batch that goes beyond it is yet to come.
    ``mark``: the stream calls for it, so every trial has it. ``within``: the same, of the tasks that go on alone.
    ``stop``: the trial was stopped here.
    """

    records: int
    served: Mapping[str, float]
    student: Mapping[str, float] = field(default_factory=dict)
    place: Place = "mark"


@dataclass(frozen=True)
class Curve:
    """The points of one seed in order, and where its tasks begin and end; seconds are 95th percentiles."""

    points: tuple[Point, ...]
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    step_seconds: float = 0.0
    prediction_seconds: float = 0.0

    def whole(self) -> tuple[Point, ...]:
        """The points that have every task that has begun."""
        return tuple(point for point in self.points if point.place != "within")


@dataclass(frozen=True)
class Objective:
    """A name and which way is better; ``of``: the figure of one seed.

    What it needs beside the served model at marks: ``fine``, points within the tasks too; ``student``, the student's
    accuracy; ``timed``, the seconds of a prediction.
    """

    name: str
    direction: Literal["max", "min"]
    of: Callable[[Curve], float]
    fine: bool = False
    student: bool = False
    timed: bool = False


def objective(name: str) -> Objective:
    """The objective of that name; ``latency:2:30`` sets its limits, in milliseconds.

    Raises:
        ConfigError: there is none; the nearest is named.
    """
    kind, *limits = name.split(":")
    if kind in OBJECTIVES and not limits:
        return OBJECTIVES[kind]
    try:
        prediction, step = (*map(float, limits), STEP_MS)[:2]
        if kind == "latency" and len(limits) <= 2 and min(prediction, step) > 0:
            judged = partial(within_limits, prediction=prediction / 1e3, step=step / 1e3)
            return replace(OBJECTIVES["latency"], name=name, of=judged)
    except ValueError:
        pass  # said below
    near = difflib.get_close_matches(kind, OBJECTIVES, 1)
    fix = (f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(OBJECTIVES)}, latency:MS:MS"
    raise ConfigError(f"there is no objective {name!r}", where="objective", fix=fix)


def mean(values: Sequence[float]) -> float:
    """0 of nothing: a stream that has not begun has nothing right."""
    return sum(values) / len(values) if values else 0.0


def anytime(curve: Curve) -> float:
    """Mean over the points of the mean accuracy on the tasks that had begun (Caccia et al. 2022, at task ends)."""
    return mean([mean([*point.served.values()]) for point in curve.whole()])


def student(curve: Curve) -> float:
    """``anytime`` of the student that is trained."""
    return mean([mean([*point.student.values()]) for point in curve.whole()])


def final(curve: Curve) -> float:
    """Mean accuracy on the tasks that have begun, at the last point."""
    return mean([*curve.whole()[-1].served.values()]) if curve.whole() else 0.0


def forgetting(curve: Curve) -> float:
    """Mean of best so far minus now, over the tasks that are over (Chaudhry et al. 2018); 0 before one is."""
    *before, now = curve.whole() or (Point(0, {}),)
    over = [name for name in now.served if curve.spans[name][1] < now.records and before]
    return mean([max(point.served.get(name, 0.0) for point in before) - now.served[name] for name in over])


def records_to_ninety(curve: Curve) -> float:
    """Mean over the tasks that have begun of the records from their beginning until nine tenths were right.

    A task of which that has not been seen yet counts with all the records that came since.
    """
    reached = []
    for name in {name for point in curve.points for name in point.served}:
        there = [point.records for point in curve.points if point.served.get(name, 0.0) >= NINETY]
        reached.append(min(there, default=curve.points[-1].records) - curve.spans[name][0])
    return mean(reached)


def within_limits(curve: Curve, prediction: float = PREDICTION_MS / 1e3, step: float = STEP_MS / 1e3) -> float:
    """``anytime``, times limit / seconds for each limit that is exceeded: twice as slow is worth half."""
    return anytime(curve) / (max(curve.prediction_seconds / prediction, 1.0) * max(curve.step_seconds / step, 1.0))


OBJECTIVES: dict[str, Objective] = {
    one.name: one
    for one in (
        Objective("accuracy", "max", anytime),
        Objective("final-accuracy", "max", final),
        Objective("forgetting", "min", forgetting),
        Objective("records-to-90", "min", records_to_ninety, fine=True),
        Objective("latency", "max", within_limits, timed=True),
        Objective("student-accuracy", "max", student, student=True),
    )
}
