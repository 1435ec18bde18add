"""What a parameter may be: an interval, perhaps in the logarithm or in steps, or a choice. Plain data.

``Parameter.suggest`` asks an Optuna trial for a value; ``told`` is the same value as Optuna knows it. ``when`` names
other parameters of the space, each a choice, and the values of theirs under which this one counts.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

Value: TypeAlias = Any  # plain JSON


class Asking(Protocol):
    """An Optuna trial, as far as a parameter needs it."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = ..., log: bool = ...) -> float:
        """A number."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = ..., log: bool = ...) -> int:
        """A whole number."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """One of these."""


@dataclass(frozen=True)
class Interval:
    """``low`` to ``high``, both included, even or (``log``) even in the logarithm; ``step``: from ``low`` in steps."""

    low: float
    high: float
    step: float | None = None
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """One of these; Optuna knows each by its name."""

    values: tuple[Value, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """A word as it stands, anything else as JSON."""
        return tuple(value if isinstance(value, str) else json.dumps(value) for value in self.values)

    def place(self, value: Value) -> int | None:
        """Where a value is among them."""
        return next((at for at, one in enumerate(self.values) if same(one, value)), None)


Domain: TypeAlias = Interval | Choice


@dataclass(frozen=True)
class Parameter:
    """A place of the configuration as one dimension of a search. ``integer``: its values are whole numbers."""

    path: str
    domain: Domain
    integer: bool = False
    when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)

    def suggest(self, trial: Asking) -> Value:
        """What the trial gives for it."""
        domain = self.domain
        if isinstance(domain, Choice):
            return domain.values[domain.names.index(trial.suggest_categorical(self.path, domain.names))]
        if self.integer:
            low, high = int(domain.low), int(domain.high)
            return trial.suggest_int(self.path, low, high, step=int(domain.step or 1), log=domain.log)
        value = trial.suggest_float(self.path, domain.low, domain.high, step=domain.step, log=domain.log)
        return _rounded(value) if domain.step else value

    def told(self, value: Value) -> Any:
        """A value as Optuna knows it; ``None`` where it lies outside, as the configuration's own may."""
        if isinstance(self.domain, Choice):
            place = self.domain.place(value)
            return None if place is None else self.domain.names[place]
        return min(max(value, self.domain.low), self.domain.high) if self.contains(value) else None

    def contains(self, value: Value) -> bool:
        """Whether the value lies in the domain."""
        if isinstance(self.domain, Choice):
            return self.domain.place(value) is not None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        step = self.domain.step or (1 if self.integer else None)
        slack = 1e-9 * step if step else 0.0  # values of steps are rounded
        steps = (value - self.domain.low) / step if step else 0.0
        inside = self.domain.low - slack <= value <= self.domain.high + slack
        return inside and math.isclose(steps, round(steps), rel_tol=1e-9, abs_tol=1e-9)

    def every(self) -> tuple[Value, ...] | None:
        """All of its values; ``None`` of an interval without steps."""
        if isinstance(self.domain, Choice):
            return self.domain.values
        count = self._steps(self.domain)
        return None if count is None else tuple(self._at(self.domain, step) for step in range(count + 1))

    def ends(self) -> tuple[Value, ...]:
        """All of a choice; the first and the last value of an interval, and one between, no whole number if it can."""
        domain = self.domain
        if isinstance(domain, Choice):
            return domain.values
        count = self._steps(domain)
        if count is not None:
            return tuple(self._at(domain, step) for step in (0, count, min(count, 1)))
        return float(domain.low), float(domain.high), domain.low + (domain.high - domain.low) * 0.38196601

    def _steps(self, domain: Interval) -> int | None:
        step = domain.step or (1 if self.integer else None)
        return None if step is None else math.floor((domain.high - domain.low) / step + 1e-9)

    def _at(self, domain: Interval, steps: int) -> float:
        value = _rounded(domain.low + steps * (domain.step or 1))
        return round(value) if self.integer else value


def same(one: Value, other: Value) -> bool:
    """Equal as JSON: 1 is 1.0, yes is not 1."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _rounded(value: float) -> float:
    """0.1 + 2·0.1 is 0.3."""
    return float(f"{value:.12g}")
