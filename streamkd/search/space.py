"""The search space: places of the configuration tree, and what each may be.

    space file ─► Document (with lines) ─► each path found in the configuration, both ends tried on it ─► Space
    Space ─► sample | grid | perturb ─► Values ─► apply ─► Config

Without a file there is a default space of what the configuration has (``streamkd.search.defaults``).
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from streamkd.config import Config
from streamkd.plugins import Registry
from streamkd.search.domains import Choice, Domain, LogUniform, Parameter, Uniform, Value

__all__ = ["Choice", "Domain", "LogUniform", "Parameter", "Space", "Uniform", "Value", "Values"]

Values: TypeAlias = Mapping[str, Value]
"""Dotted path to value, as plain JSON; a parameter whose condition does not hold is not in it."""


@dataclass(frozen=True)
class Space:
    """Parameters, each after those that its condition names."""

    parameters: tuple[Parameter, ...]

    @classmethod
    def load(cls, file: Path | None, config: Config, registry: Registry) -> "Space":
        """The space of a YAML file, or the default one, for a configuration.

        Raises:
            ConfigError: it cannot be read or does not fit the configuration, with file, line, dotted path and the
                nearest known key.
        """
        raise NotImplementedError

    def active(self, values: Values) -> tuple[Parameter, ...]:
        """The parameters whose condition holds among these values."""
        raise NotImplementedError

    def contains(self, values: Values) -> bool:
        """Whether these are values of exactly the active parameters, each inside its domain."""
        raise NotImplementedError

    def sample(self, rng: np.random.Generator) -> dict[str, Value]:
        """Values drawn independently."""
        raise NotImplementedError

    def grid(self, points: int) -> Iterator[dict[str, Value]]:
        """Every combination of ``points`` values an interval and all of each choice."""
        raise NotImplementedError

    def values_of(self, config: Config, registry: Registry) -> dict[str, Value]:
        """Where a configuration itself stands; it may lie outside the domains of a space file."""
        raise NotImplementedError

    def apply(self, config: Config, values: Values, registry: Registry) -> Config:
        """The configuration with these values, checked.

        Raises:
            ConfigError: a path that is not in the space or in the configuration, or a value that is refused there.
        """
        raise NotImplementedError

    def perturb(
        self, values: Values, rng: np.random.Generator, only: Collection[str] | None = None
    ) -> dict[str, Value]:
        """Each value of the paths ``only`` (``None``: all) moved to a neighbour inside its domain."""
        raise NotImplementedError

    def mutable(self) -> tuple[str, ...]:
        """The paths that may change in a running stream: rates and weights, not sizes, kinds or structure."""
        raise NotImplementedError

    def to_json(self) -> list[dict[str, Any]]:
        """Plain values; ``from_json`` takes them back."""
        raise NotImplementedError

    @classmethod
    def from_json(cls, tree: list[dict[str, Any]]) -> "Space":
        """The space that ``to_json`` wrote."""
        raise NotImplementedError
