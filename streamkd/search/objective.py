"""What a trial is judged by: a figure of the curve of one seed, and which way is better.

    Curve (accuracy on validation tasks, at marks that the stream alone decides) ─► OBJECTIVES[name].of ─► a number

Every figure is the served model's, but for ``student-accuracy``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Direction = Literal["max", "min"]


@dataclass(frozen=True)
class Point:
    """What was measured after ``records`` of a seed: accuracy by the name of each validation task that has begun.

    ``mark``: the stream calls for this point, so every trial has it; else it is where the trial was stopped.
    """

    records: int
    served: Mapping[str, float]
    student: Mapping[str, float]
    mark: bool = True


@dataclass(frozen=True)
class Curve:
    """The points of one seed in order, and when its tasks begin and end; seconds are the 95th percentiles."""

    points: tuple[Point, ...]
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    total: int = 0
    step_seconds: float = 0.0
    prediction_seconds: float = 0.0


@dataclass(frozen=True)
class Objective:
    """A name, which way is better, one line for people; ``of``: the figure of one seed.

    ``fine``: it needs points within the tasks too. ``timed``: it needs the seconds of a prediction.
    """

    name: str
    direction: Direction
    summary: str
    of: Callable[[Curve], float]
    fine: bool = False
    timed: bool = False


OBJECTIVES: dict[str, Objective] = {}


def objective(name: str) -> Objective:
    """The objective of that name.

    Raises:
        ConfigError: there is none; the nearest is named.
    """
    raise NotImplementedError
