"""The space of a search, from a YAML file or by default, fitted to the configuration that it searches around.

    space file ─► Document (with lines) ─► Written ─► Parameter ─► its ends are tried on the configuration ─► Space

    optimizer.learning_rate: {loguniform: [1.e-4, 1.e-2]}
    memory.replay: {uniform: [20, 100], step: 20}
    gate.name: {choice: [per-sample, fixed]}
    gate.hard: {uniform: [0.1, 0.9], when: {gate.name: fixed}}

Where something does not fit, the error names file, line, dotted path and the nearest key.
"""

import difflib
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from streamkd.config import Config
from streamkd.document import Document
from streamkd.errors import ConfigError
from streamkd.plugins import Registry
from streamkd.records import Model
from streamkd.tune.space import defaults
from streamkd.tune.space.domains import Choice, Domain, Interval, Parameter, Value, same
from streamkd.tune.space.places import Places
from streamkd.tune.space.space import Space

FIXED = ("checkpoint", "device", "name", "observers", "seed", "serve", "stream.name", "stream.records", "stream.source",
         "stream.unlabelled")  # fmt: skip
"""What every trial of a search has in common, or what the search says itself (``--seeds``)."""
KINDS = ("uniform", "loguniform", "choice")


class Written(Model):
    """One parameter as it is written."""

    uniform: tuple[int | float, int | float] | None = None
    loguniform: tuple[int | float, int | float] | None = None
    choice: list[Any] | None = None
    step: int | float | None = None
    when: dict[str, Any] = Field(default={})

    @model_validator(mode="after")
    def _one_domain_that_has_values(self) -> "Written":
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"needed one of {', '.join(KINDS)}, got {' and '.join(given) or 'none'}")
        if self.step is not None and self.uniform is None:
            raise ValueError(f"step belongs to uniform, not to {given[0]}")
        if self.choice is not None:
            _refuse_choice(self.choice)
        else:
            _refuse_interval(*self._ends(), self.step, log=self.uniform is None)
        return self

    def _ends(self) -> tuple[float, float]:
        return self.uniform or self.loguniform or (0, 0)

    def domain(self) -> Domain:
        """The domain; numbers of a choice are put in order."""
        if self.choice is None:
            return Interval(*self._ends(), self.step, log=self.uniform is None)
        values = [_number(value) for value in self.choice]
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        return Choice(tuple(sorted(values) if numbers else values))

    def whole(self) -> bool:
        """Whether its ends, and its step if it has one, are whole numbers."""
        return self.choice is None and all(isinstance(one, int) for one in (*self._ends(), self.step or 1))


def load(file: Path | None, config: Config, registry: Registry) -> Space:
    """The space of a YAML file, or the default one, for a configuration.

    Raises:
        ConfigError: it cannot be read or does not fit the configuration.
    """
    if file is None:
        return Space(defaults.parameters(config, registry))
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(f"cannot be read: {fault}", where=str(file), fix="name a readable YAML file") from None
    return of(Document.parse(text, str(file)), config, registry)


def of(document: Document, config: Config, registry: Registry) -> Space:
    """The space that a document writes, after the ends of every parameter were tried wherever it counts.

    Raises:
        ConfigError: it does not fit the configuration.
    """
    if not document.tree:
        raise ConfigError("has no parameters", where=document.name, fix="see docs/tune.md")
    found: dict[str, Parameter] = {}
    for path, tree in document.tree.items():
        found[path] = _parameter(document, str(path), tree, found)
    space, places = Space(tuple(found.values())), Places(config, registry)
    taken: dict[str, str] = {}
    for path in found:
        with _placed(document, path):
            place = ".".join(map(str, places.keys(path)))
            if any(f"{place}.".startswith(f"{fixed}.") for fixed in FIXED):
                fix = "name the seeds of every trial with --seeds" if place == "seed" else "leave it out"
                raise ConfigError("is the same in every trial of a search", where=path, fix=fix)
            if place in taken:
                raise ConfigError(f"is the same place as {taken[place]}", where=path, fix="leave one of them out")
            taken[place] = path

    def taken_as(one: Parameter, value: Value, way: Mapping[str, Value]) -> None:
        applied = space.apply(config, {**way, one.path: value}, registry)
        made = Places(applied, registry).value(".".join(map(str, places.keys(one.path))))
        if not isinstance(value, dict | list) and not same(made, value):
            raise ConfigError(f"the configuration makes {made!r} of it", where=one.path)

    def fitted(one: Parameter) -> Parameter:
        ways = list(_ways(one, found))
        if not one.when:
            with _placed(document, one.path):
                places.value(one.path)
        if one.integer and isinstance(one.domain, Interval) and one.domain.step is None:
            one = _fractional(one, [lambda value, way=way: taken_as(one, value, way) for way in ways])
        for way, value in itertools.product(ways, one.ends()):
            with _placed(document, one.path, f"{value!r} is refused: "):
                taken_as(one, value, way)
        return one

    return Space(tuple(fitted(one) for one in space.parameters))


def _fractional(one: Parameter, tries: Sequence[Any]) -> Parameter:
    """Whole ends at a place that takes fractions mean the whole interval."""
    fractional = replace(one, integer=False)
    try:
        for attempt in tries:
            attempt(fractional.ends()[-1])
    except ConfigError:
        return one
    return fractional


def _parameter(document: Document, path: str, tree: Any, above: Mapping[str, Parameter]) -> Parameter:
    if not isinstance(tree, Mapping):
        fix = "write for example {uniform: [0.1, 0.9]}"
        raise ConfigError(f"needed a domain, got {tree!r:.40}", where=document.where(path), fix=fix)
    one = document.check(Written, tree, path)
    when = {str(p): tuple(values) if isinstance(values, list) else (values,) for p, values in one.when.items()}
    for condition, values in when.items():
        where = document.where(f"{path}.when.{condition}")
        domain = above[condition].domain if condition in above else None
        if not isinstance(domain, Choice):
            fix = (
                f"choices above it: {', '.join(p for p, o in above.items() if isinstance(o.domain, Choice)) or 'none'}"
            )
            raise ConfigError("needed a choice that is written above, as the condition", where=where, fix=fix)
        for value in values:
            if domain.place(value) is None:
                near = difflib.get_close_matches(str(value), domain.names, 1)
                fix = (f"did you mean {near[0]!r}? " if near else "") + f"its choices: {', '.join(domain.names)}"
                raise ConfigError(f"{value!r} is no choice of {condition}", where=where, fix=fix)
    return Parameter(path, one.domain(), one.whole(), when)


def _ways(one: Parameter, found: Mapping[str, Parameter]) -> Iterator[dict[str, Value]]:
    """Each combination of values under which the parameter counts, and what lets those count."""
    above: dict[str, Value] = {}
    for path in one.when:
        above |= next(_ways(found[path], found))
    for values in itertools.product(*one.when.values()):
        yield above | dict(zip(one.when, values, strict=True))


def _refuse_choice(values: list[Any]) -> None:
    if not values:
        raise ValueError("needed something to choose from, got an empty list")
    names = Choice(tuple(values)).names
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ValueError(f"the choice {name} is there twice")


def _refuse_interval(low: float, high: float, step: float | None, log: bool) -> None:
    if not all(math.isfinite(number) for number in (low, high, step or 0.0)):
        raise ValueError("needed finite numbers")
    if low >= high:
        raise ValueError(f"needed a low end below the high one, got {low} and {high}")
    if log and low <= 0:
        raise ValueError(f"the logarithm needs a low end above 0, got {low}")
    if step is not None and not 0 < step <= high - low:
        raise ValueError(f"needed a step above 0 and at most {high - low}, got {step}")


def _number(value: Any) -> Any:
    """1e-4 without a dot is a word to YAML."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value) else value


@contextmanager
def _placed(document: Document, path: str, about: str = "") -> Iterator[None]:
    """An error inside gets file and line: those of the parameter that it names, else those of ``path``."""
    try:
        yield
    except ConfigError as fault:
        at = fault.where if fault.where in document.lines else path
        raise ConfigError(about + fault.message, where=document.where(at), fix=fault.fix) from None
