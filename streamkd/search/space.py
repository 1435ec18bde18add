"""The search space: places of the configuration tree, and what each may be.

    Space ─► sample | grid | perturb ─► Values ─► apply ─► Config

``streamkd.search.spacefile`` reads one from a file, or gives the default one.
"""

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from streamkd.config import Config
from streamkd.errors import ConfigError
from streamkd.plugins import Registry
from streamkd.search.domains import Choice, Domain, LogUniform, Parameter, Uniform, Value, same
from streamkd.search.places import Draft

__all__ = ["Choice", "Domain", "LogUniform", "Parameter", "Space", "Uniform", "Value", "Values"]

Values: TypeAlias = Mapping[str, Value]
"""Dotted path to value, as plain JSON; a parameter whose condition does not hold is not in it."""

RUNNING = {
    "adapt": ("anchor", "balance", "every", "horizon", "learning_rate", "on_task_steps", "query"),
    "memory": ("replay",),
    "optimizer": ("clip_norm", "learning_rate", "momentum", "decay_steps", "start", "weight_decay"),
    "pool": ("admit_margin",),
    "vicinity": ("moved", "rows", "shift", "weight"),
}
"""What may change in a running stream, beside the fractional options of gate, losses and teachers."""


@dataclass(frozen=True)
class Space:
    """Parameters, each after those that its condition names."""

    parameters: tuple[Parameter, ...]

    def active(self, values: Values) -> tuple[Parameter, ...]:
        """The parameters whose condition holds among these values."""
        found: list[Parameter] = []
        counting: dict[str, Value] = {}
        for one in self.parameters:
            if _counts(one, counting):
                found.append(one)
                counting.update({one.path: values[one.path]} if one.path in values else {})
        return tuple(found)

    def contains(self, values: Values) -> bool:
        """Whether these are values of exactly the active parameters, each inside its domain."""
        active = {one.path: one for one in self.active(values)}
        return active.keys() == values.keys() and all(active[path].contains(values[path]) for path in values)

    def sample(self, rng: np.random.Generator) -> dict[str, Value]:
        """Values drawn independently."""
        values: dict[str, Value] = {}
        for one in self.parameters:
            if _counts(one, values):
                values[one.path] = one.sample(rng)
        return values

    def grid(self, points: int) -> Iterator[dict[str, Value]]:
        """Every combination of ``points`` values an interval and all of each choice."""
        yield from self._combined(self.parameters, {}, points)

    def _combined(
        self, ahead: tuple[Parameter, ...], values: dict[str, Value], points: int
    ) -> Iterator[dict[str, Value]]:
        if not ahead:
            yield values
        elif not _counts(ahead[0], values):
            yield from self._combined(ahead[1:], values, points)
        else:
            for value in ahead[0].grid(points):
                yield from self._combined(ahead[1:], {**values, ahead[0].path: value}, points)

    def values_of(self, config: Config, registry: Registry) -> dict[str, Value]:
        """Where a configuration itself stands; it may lie outside the domains of a space file."""
        draft = Draft(config, registry)
        values: dict[str, Value] = {}
        for one in self.parameters:
            if _counts(one, values):
                values[one.path] = draft.value(one.path)
        return values

    def apply(self, config: Config, values: Values, registry: Registry) -> Config:
        """The configuration with these values, checked; of what is not named it keeps its own.

        A parameter that counts in the configuration and under these values no more is left out: its key has its
        default.

        Raises:
            ConfigError: a path that is not in the space or does not count, or a value that is refused there.
        """
        return self.draft(config, values, registry).config()

    def draft(self, config: Config, values: Values, registry: Registry) -> Draft:
        """The configuration with these values, not checked yet.

        Raises:
            ConfigError: a path that is not in the space or in the configuration, or does not count.
        """
        here = self.values_of(config, registry)
        counting = {one.path for one in self.active({**here, **values})}
        self._refuse_strangers(values, counting)
        draft = Draft(config, registry)
        for path in here.keys() - counting:
            draft.leave_out(path)
        for path in sorted(values, key=_parents_first):
            draft.put(path, values[path])
        return draft

    def perturb(
        self, values: Values, rng: np.random.Generator, only: Collection[str] | None = None
    ) -> dict[str, Value]:
        """Each value of the paths ``only`` (``None``: all) moved to a neighbour inside its domain.

        What begins to count by that is drawn, what does not count any more is gone.
        """
        moved: dict[str, Value] = {}
        for one in self.parameters:
            if not _counts(one, moved):
                continue
            if one.path not in values:
                moved[one.path] = one.sample(rng)
            elif only is None or one.path in only:
                moved[one.path] = one.perturb(values[one.path], rng)
            else:
                moved[one.path] = values[one.path]
        return moved

    def mutable(self) -> tuple[str, ...]:
        """The paths that may change in a running stream: rates and weights, not sizes, kinds or structure."""
        return tuple(one.path for one in self.parameters if _may_change(one))

    def to_json(self) -> list[dict[str, Any]]:
        """Plain values; ``from_json`` takes them back."""
        return [_to_json(one) for one in self.parameters]

    @classmethod
    def from_json(cls, tree: list[dict[str, Any]]) -> "Space":
        """The space that ``to_json`` wrote."""
        return cls(tuple(_from_json(one) for one in tree))

    def _refuse_strangers(self, values: Values, counting: Collection[str]) -> None:
        known = [one.path for one in self.parameters]
        for path in values:
            if path not in known:
                near = difflib.get_close_matches(path, known, 1)
                fix = (f"did you mean {near[0]}? " if near else "") + f"its parameters: {', '.join(known)}"
                raise ConfigError("is no parameter of the space", where=path, fix=fix)
            if path not in counting:
                raise ConfigError("has a value, and its condition does not hold", where=path)


def _counts(one: Parameter, values: Values) -> bool:
    """Whether a parameter's condition holds among the values of those that count."""
    return all(
        path in values and any(same(values[path], value) for value in allowed) for path, allowed in one.when.items()
    )


def _parents_first(path: str) -> tuple[int, bool, str]:
    """What stands higher before what is in it, the name of a plugin before its options."""
    return path.count("."), not path.endswith("name"), path


def _may_change(one: Parameter) -> bool:
    room, _, key = one.path.partition(".")
    if room in RUNNING:
        return key in RUNNING[room]
    values = one.domain.values if isinstance(one.domain, Choice) else ()
    fractional = all(isinstance(value, float) for value in values) and not one.integer
    return fractional and room in ("gate", "losses", "teachers") and bool(key)


def _to_json(one: Parameter) -> dict[str, Any]:
    tree: dict[str, Any] = {"path": one.path, "integer": one.integer}
    if isinstance(one.domain, Choice):
        tree["choice"] = list(one.domain.values)
    else:
        kind = "loguniform" if isinstance(one.domain, LogUniform) else "uniform"
        tree |= {kind: [one.domain.low, one.domain.high], "step": one.domain.step}
    return {**tree, "when": {path: list(values) for path, values in one.when.items()}}


def _from_json(tree: Mapping[str, Any]) -> Parameter:
    domain: Domain
    if "choice" in tree:
        domain = Choice(tuple(tree["choice"]))
    elif "loguniform" in tree:
        domain = LogUniform(tree["loguniform"][0], tree["loguniform"][1], tree["step"])
    else:
        domain = Uniform(tree["uniform"][0], tree["uniform"][1], tree["step"])
    when = {path: tuple(values) for path, values in tree["when"].items()}
    return Parameter(tree["path"], domain, tree["integer"], when)
