"""What a parameter may be: an interval, an interval in the logarithm, or a choice. Plain data.

    Uniform(low, high, step)  ─┐
    LogUniform(low, high, step) ├─► Parameter(path, domain, integer, when) ─► a value inside it
    Choice(values)            ─┘

A Parameter is a place of the configuration. ``when`` names other parameters of the space, and the values of them
under which this one counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

Value: TypeAlias = Any  # plain JSON


@dataclass(frozen=True)
class Uniform:
    """``low`` to ``high``, both included; with ``step``: ``low``, ``low + step``, ... as far as ``high``."""

    low: float
    high: float
    step: float | None = None


@dataclass(frozen=True)
class LogUniform:
    """Even in the logarithm; with ``step`` the values are those that ``Uniform`` would have."""

    low: float
    high: float
    step: float | None = None


@dataclass(frozen=True)
class Choice:
    """One of these; numbers among them stand in order, so that each has neighbours."""

    values: tuple[Value, ...]


Domain: TypeAlias = Uniform | LogUniform | Choice


@dataclass(frozen=True)
class Parameter:
    """One dimension of a search. ``integer``: its values are whole numbers, both ends are."""

    path: str
    domain: Domain
    integer: bool = False
    when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)

    def sample(self, rng: np.random.Generator) -> Value:
        """A value drawn from the domain."""
        raise NotImplementedError

    def grid(self, points: int) -> tuple[Value, ...]:
        """All of a choice; of an interval ``points`` values, both ends among them, or all where there are fewer."""
        raise NotImplementedError

    def contains(self, value: Value) -> bool:
        """Whether the value lies in the domain."""
        raise NotImplementedError

    def perturb(self, value: Value, rng: np.random.Generator) -> Value:
        """A neighbour inside the domain: times 0.8 or 1.25, a tenth of the interval, a step, the next choice."""
        raise NotImplementedError
