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

Direction = Literal["max", "min"]
Place = Literal["mark", "within", "stop"]
NINETY = 0.9
PREDICTION_SECONDS, STEP_SECONDS = 0.02, 0.1
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
    """A name, which way is better, one line for people; ``of``: the figure of one seed.

    What it needs beside the served model at marks: ``fine``, points within the tasks too; ``student``, the student's
    accuracy; ``timed``, the seconds of a prediction.
    """

    name: str
    direction: Direction
    summary: str
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
        prediction, step = (*(float(limit) / 1e3 for limit in limits), STEP_SECONDS)[:2]
        fitting = kind == "latency" and len(limits) <= 2 and min(prediction, step) > 0
    except ValueError:
        fitting = False
    if fitting:
        return replace(OBJECTIVES["latency"], name=name, of=partial(within_limits, prediction=prediction, step=step))
    near = difflib.get_close_matches(kind, OBJECTIVES, 1)
    raise ConfigError(
        f"there is no objective {name!r}",
        where="objective",
        fix=(f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(OBJECTIVES)}, latency:MS:MS",
    )


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
    points = curve.whole()
    if not points:
        return 0.0
    now = points[-1]
    over = [name for name in now.served if curve.spans[name][1] < now.records]
    best = {name: max(point.served.get(name, 0.0) for point in points[:-1]) for name in over if points[:-1]}
    return mean([best[name] - now.served[name] for name in best])


def records_to_ninety(curve: Curve) -> float:
    """Mean over the tasks that have begun of the records from their beginning until nine tenths were right.

    A task of which that has not been seen yet counts with all the records that came since.
    """
    if not curve.points:
        return 0.0
    now = curve.points[-1].records
    reached = {}
    for name in {name for point in curve.points for name in point.served}:
        there = [point.records for point in curve.points if point.served.get(name, 0.0) >= NINETY]
        reached[name] = min(there, default=now) - curve.spans[name][0]
    return mean([*reached.values()])


def within_limits(curve: Curve, prediction: float = PREDICTION_SECONDS, step: float = STEP_SECONDS) -> float:
    """``anytime``, times limit / seconds for each limit that is exceeded: twice as slow is worth half."""
    slow = [seconds / limit for seconds, limit in ((curve.prediction_seconds, prediction), (curve.step_seconds, step))]
    return anytime(curve) / (max(slow[0], 1.0) * max(slow[1], 1.0))


OBJECTIVES: dict[str, Objective] = {
    one.name: one
    for one in (
        Objective("accuracy", "max", "any-time average accuracy over the tasks seen so far", anytime),
        Objective("final-accuracy", "max", "average accuracy at the end", final),
        Objective("forgetting", "min", "what tasks that are over have lost since their best", forgetting),
        Objective(
            "records-to-90", "min", "records until nine tenths of a task are right", records_to_ninety, fine=True
        ),
        Objective(
            "latency", "max", "accuracy, less where a prediction or a step takes too long", within_limits, timed=True
        ),
        Objective("student-accuracy", "max", "any-time average accuracy of the student itself", student, student=True),
    )
}
