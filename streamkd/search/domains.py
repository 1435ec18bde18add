"""What a parameter may be: an interval, an interval in the logarithm, or a choice. Plain data.

    Uniform(low, high, step)  ──┐
    LogUniform(low, high, step) ├─► Parameter(path, domain, integer, when) ─► values inside it
    Choice(values)            ──┘

``when`` names other parameters of the space, each a choice, and the values of theirs under which this one counts.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

Value: TypeAlias = Any  # plain JSON

SHRINK, GROW, SHIFT = 0.8, 1.25, 0.1
"""A perturbed value in the logarithm is multiplied by one of the first two; another moves by so much of its span."""


@dataclass(frozen=True)
class Uniform:
    """``low`` to ``high``, both included; with ``step``: ``low``, ``low + step``, ... as far as ``high``."""

    low: float
    high: float
    step: float | None = None


@dataclass(frozen=True)
class LogUniform:
    """Even in the logarithm; with ``step`` it has the values that ``Uniform`` would have."""

    low: float
    high: float
    step: float | None = None


@dataclass(frozen=True)
class Choice:
    """One of these; the neighbours of a value are those written beside it."""

    values: tuple[Value, ...]


Domain: TypeAlias = Uniform | LogUniform | Choice


@dataclass(frozen=True)
class Parameter:
    """A place of the configuration as one dimension of a search. ``integer``: its values are whole numbers."""

    path: str
    domain: Domain
    integer: bool = False
    when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)

    def sample(self, rng: np.random.Generator) -> Value:
        """A value drawn from the domain; each value of one with steps, both ends too, has its full share."""
        if isinstance(self.domain, Choice):
            return self.domain.values[int(rng.integers(len(self.domain.values)))]
        low, high = self._edges(self.domain)
        if isinstance(self.domain, LogUniform):
            return self.nearest(math.exp(rng.uniform(math.log(low), math.log(high))))
        return self.nearest(float(rng.uniform(low, high)))

    def grid(self, points: int) -> tuple[Value, ...]:
        """All of a choice; ``points`` values of an interval, both ends among them (one: its middle), or all it has."""
        if isinstance(self.domain, Choice):
            return self.domain.values
        low, high, step = self.domain.low, self._high(self.domain), self._step(self.domain)
        if step and round((high - low) / step) < points:
            return tuple(self.nearest(low + step * k) for k in range(round((high - low) / step) + 1))
        space = np.geomspace if isinstance(self.domain, LogUniform) else np.linspace
        spread = space(low, high, points) if points > 1 else space(low, high, 3)[1:2]
        return tuple(dict.fromkeys(self.nearest(float(value)) for value in spread))

    def contains(self, value: Value) -> bool:
        """Whether the value lies in the domain."""
        if isinstance(self.domain, Choice):
            return any(same(value, one) for one in self.domain.values)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        near = self.nearest(value)
        return math.isclose(near, value, rel_tol=1e-9, abs_tol=1e-12) if self._step(self.domain) else near == value

    def nearest(self, value: float) -> Value:
        """The number of an interval's domain that is nearest to this one."""
        if isinstance(self.domain, Choice):
            raise TypeError(f"{self.path} is a choice: its values have no distance")
        low, high, step = self.domain.low, self._high(self.domain), self._step(self.domain)
        inside = min(max(value, low), high)
        if step:
            inside = float(f"{low + round((inside - low) / step) * step:.12g}")  # 0.1 + 2·0.1 is 0.3
        return round(inside) if self.integer else float(inside)

    def perturb(self, value: Value, rng: np.random.Generator) -> Value:
        """A neighbour inside the domain: times 0.8 or 1.25, a tenth of the span, at least a step; the next choice.

        At an end it stays there half of the time.
        """
        up = bool(rng.integers(2))
        if isinstance(self.domain, Choice):
            values = self.domain.values
            at = next((i for i, one in enumerate(values) if same(one, value)), 0)
            return values[min(max(at + (1 if up else -1), 0), len(values) - 1)]
        here = self.nearest(value)
        if isinstance(self.domain, LogUniform):
            moved = here * (GROW if up else SHRINK)
        else:
            moved = here + (self.domain.high - self.domain.low) * (SHIFT if up else -SHIFT)
        least = self._step(self.domain) or 0.0
        return self.nearest(max(moved, here + least) if up else min(moved, here - least))

    def _step(self, domain: Uniform | LogUniform) -> float | None:
        return domain.step or (1 if self.integer else None)

    def _high(self, domain: Uniform | LogUniform) -> float:
        """The last value: the upper end, unless the steps miss it."""
        step = self._step(domain)
        return domain.low + step * math.floor((domain.high - domain.low) / step + 1e-9) if step else domain.high

    def _edges(self, domain: Uniform | LogUniform) -> tuple[float, float]:
        """Where to draw so that the first and the last of the steps are rounded to as often as those between."""
        half = (self._step(domain) or 0.0) / 2
        low = domain.low - half
        if isinstance(domain, LogUniform) and low <= 0:
            low = domain.low / 2
        return low, self._high(domain) + half


def same(one: Value, other: Value) -> bool:
    """Equal as JSON: 1 is 1.0, yes is not 1."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)
