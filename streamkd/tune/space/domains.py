"""What a parameter may be: an interval, perhaps in the logarithm or in steps, or a choice. Plain data.

``Parameter.told`` is a value as Optuna knows it. ``when`` names other parameters of the space, each a choice, and the
values of theirs under which this one counts.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Value: TypeAlias = Any  # plain JSON


@dataclass(frozen=True)
class Interval:
    """``low`` to ``high``, both included, even or (``log``) even in the logarithm; ``step``: from ``low`` in steps."""

    low: float
    high: float
    step: float | None = None
    log: bool = False


@dataclass(frozen=True)
class Categorical:
    """One of these; Optuna knows each by its name."""

    values: tuple[Value, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """A word as it stands, anything else as JSON."""
        return tuple(value if isinstance(value, str) else json.dumps(value) for value in self.values)

    def place(self, value: Value) -> int | None:
        """Where a value is among them."""
        return next((at for at, one in enumerate(self.values) if same(one, value)), None)


Domain: TypeAlias = Interval | Categorical


@dataclass(frozen=True)
class Parameter:
    """A place of the configuration as one dimension of a search. ``integer``: its values are whole numbers."""

    path: str
    domain: Domain
    integer: bool = False
    when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)

    def told(self, value: Value) -> Any:
        """A value as Optuna knows it; ``None`` where it lies outside, as the configuration's own may."""
        if isinstance(self.domain, Categorical):
            place = self.domain.place(value)
            return None if place is None else self.domain.names[place]
        return min(max(value, self.domain.low), self.domain.high) if self.contains(value) else None

    def contains(self, value: Value) -> bool:
        """Whether the value lies in the domain."""
        if isinstance(self.domain, Categorical):
            return self.domain.place(value) is not None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        low, step, slack, nearest = self.domain.low, self.step, 0.0, value
        if step is not None:  # values of steps are rounded
            slack, nearest = 1e-9 * step + 1e-11 * abs(value), low + round((value - low) / step) * step
        return low - slack <= value <= self.domain.high + slack and abs(value - nearest) <= slack

    def ends(self) -> tuple[Value, ...]:
        """All of a choice; the first and the last value of an interval, and one between, no whole number if it can."""
        domain = self.domain
        if isinstance(domain, Categorical):
            return domain.values
        step = self.step
        if step is None:
            return float(domain.low), float(domain.high), domain.low + (domain.high - domain.low) * 0.38196601
        count = math.floor((domain.high - domain.low) / step + 1e-9)
        values = (rounded(domain.low + steps * step) for steps in (0, count, min(count, 1)))
        return tuple(map(round, values) if self.integer else values)

    @property
    def step(self) -> float | None:
        """From one value of an interval to the next; ``None`` where there is no end of values between."""
        return None if isinstance(self.domain, Categorical) else self.domain.step or (1 if self.integer else None)


def same(one: Value, other: Value) -> bool:
    """Equal as JSON: 1 is 1.0, yes is not 1."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def rounded(value: float) -> float:
    """0.1 + 2·0.1 is 0.3."""
    return float(f"{value:.12g}")
