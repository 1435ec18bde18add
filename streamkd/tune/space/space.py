"""The search space: places of the configuration tree, and what each may be.

    Space ─► drawn ─► Values ─► apply ─► Config

``streamkd.tune.space.file`` reads one from a file, or gives the default one.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from streamkd.config import Config
from streamkd.errors import ConfigError
from streamkd.evaluate.seeds import plain
from streamkd.plugins import Registry
from streamkd.tune.space.domains import Interval, Parameter, Value, same
from streamkd.tune.space.places import Places

Values: TypeAlias = Mapping[str, Value]
"""Dotted path to value, as plain JSON; a parameter whose condition does not hold is not in it."""


@dataclass(frozen=True)
class Space:
    """Parameters, each after those that its condition names."""

    parameters: tuple[Parameter, ...]

    def active(self, values: Values) -> list[Parameter]:
        """The parameters whose condition holds among these values."""
        found: list[Parameter] = []
        counting: dict[str, Value] = {}
        for one in self.parameters:
            if _counts(one, counting):
                found.append(one)
                counting |= {one.path: values[one.path]} if one.path in values else {}
        return found

    def drawn(self, draw: Callable[[Parameter], Value]) -> dict[str, Value]:
        """A value for each parameter whose condition holds among those before it."""
        values: dict[str, Value] = {}
        for one in self.parameters:
            if _counts(one, values):
                values[one.path] = draw(one)
        return values

    def refuse_endless(self) -> None:
        """Refuse what has no end of values, which a grid would try.

        Raises:
            ConfigError: an interval without steps.
        """
        for one in self.parameters:
            if isinstance(one.domain, Interval) and one.step is None:
                fix = "give it a step or a choice, or use --search optuna"
                raise ConfigError("has no end of values, and a grid tries all", where=one.path, fix=fix)

    def values_of(self, config: Config, registry: Registry) -> dict[str, Value]:
        """Where a configuration itself stands; it may lie outside the domains of a space file."""
        places = Places(config, registry)
        return self.drawn(lambda one: places.value(one.path))

    def apply(self, config: Config, values: Values, registry: Registry) -> Config:
        """The configuration with these values, checked; of what is not named it keeps its own.

        A parameter that counts in the configuration and under these values no more is left out: its key has its
        default.

        Raises:
            ConfigError: a value, or a place, that is refused.
        """
        here = self.values_of(config, registry)
        counting = {one.path for one in self.active({**here, **values})}
        return Places(config, registry).changed(values, here.keys() - counting)

    def to_json(self) -> list[dict[str, Any]]:
        """Plain values, to be shown and compared."""
        found: list[dict[str, Any]] = plain([asdict(one) for one in self.parameters])
        return found


def _counts(one: Parameter, values: Values) -> bool:
    """Whether a parameter's condition holds among the values of those that count."""
    return all(
        path in values and any(same(values[path], value) for value in allowed) for path, allowed in one.when.items()
    )
