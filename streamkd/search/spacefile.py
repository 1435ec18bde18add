"""The space of a search, from a file or by default, fitted to the configuration that it searches around.

    space file ─► Document (with lines) ─► Written ─► each path is found, and its ends are tried ─► Space

Where something does not fit, the error names file, line, dotted path and the nearest key.
"""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from streamkd.config import Config
from streamkd.document import Document
from streamkd.errors import ConfigError
from streamkd.plugins import Registry
from streamkd.search import defaults, written
from streamkd.search.domains import Choice, Parameter, Value, same
from streamkd.search.places import Draft
from streamkd.search.space import Space

FIXED = ("checkpoint", "device", "name", "observers", "seed", "serve", "stream.name", "stream.records", "stream.source")
"""What every trial of a search has in common, or what the search says itself (``--seeds``)."""


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
    """The space that a document writes.

    Raises:
        ConfigError: it does not fit the configuration.
    """
    if not document.tree:
        raise ConfigError("has no parameters", where=document.name, fix="see docs/tune.md")
    standing: dict[str, Value] = {}
    for path in sorted(written.conditions(document)):
        with _placed(document, path):
            standing[path] = Draft(config, registry).value(path)
    fitting = _Fitting(Space(written.parameters(document, standing)), config, registry, document)
    return Space(tuple(fitting.fitted(one) for one in fitting.space.parameters))


@dataclass(frozen=True)
class _Fitting:
    """A space beside the configuration that it has to fit."""

    space: Space
    config: Config
    registry: Registry
    document: Document

    def fitted(self, one: Parameter) -> Parameter:
        """The parameter, after its ends were tried on the configuration wherever it counts.

        Whole ends at a place that takes fractions mean the whole interval.
        """
        ways = list(self._ways(one))
        for way in ways:
            self._refuse_place(one, way)
        if one.integer and not isinstance(one.domain, Choice) and one.domain.step is None:
            fractional = replace(one, integer=False)
            between = fractional.nearest(_between(fractional))
            one = fractional if all(self._takes(one, between, way) for way in ways) else one
        for way, value in itertools.product(ways, _tried(one)):
            with _placed(self.document, one.path, f"{value!r} is refused: "):
                self._refuse(one, value, way)
        return one

    def _ways(self, one: Parameter) -> Iterator[dict[str, Value]]:
        """Each combination of values under which the parameter counts, and what lets those count."""
        above = [other for other in self.space.parameters if other.path in one.when]
        for values in itertools.product(*one.when.values()):
            way: dict[str, Value] = {}
            for other in above:
                way |= next(self._ways(other))
            yield way | dict(zip(one.when, values, strict=True))

    def _values(self, way: Mapping[str, Value]) -> dict[str, Value]:
        """Of everything that counts under a condition: the configuration's value, else the domain's middle or first."""
        here: dict[str, Value] = {}
        draft = Draft(self.config, self.registry)
        values: dict[str, Value] = {}
        for one in self.space.parameters:
            if one not in self.space.active(values):
                continue
            if one in self.space.active(here):
                with _placed(self.document, one.path):
                    here[one.path] = draft.value(one.path)
            values[one.path] = way.get(one.path, here.get(one.path, one.grid(1)[0]))
        return values

    def _refuse_place(self, one: Parameter, way: Mapping[str, Value]) -> None:
        others = {path: value for path, value in self._values(way).items() if path != one.path}
        with _placed(self.document, one.path):
            draft = self.space.draft(self.config, others, self.registry)
            place = _place(draft, one.path)
            twin = [other for other in others if _place(draft, other) == place]
            if twin:
                raise ConfigError(f"is the same place as {twin[0]}", where=one.path, fix="leave one of them out")
            if any(f"{place}.".startswith(f"{fixed}.") for fixed in FIXED):
                fix = "name the seeds of every trial with --seeds" if place == "seed" else "leave it out"
                raise ConfigError("is the same in every trial of a search", where=one.path, fix=fix)

    def _takes(self, one: Parameter, value: Value, way: Mapping[str, Value]) -> bool:
        try:
            self._refuse(one, value, way)
        except ConfigError:
            return False
        return True

    def _refuse(self, one: Parameter, value: Value, way: Mapping[str, Value]) -> None:
        draft = self.space.draft(self.config, self._values({**way, one.path: value}), self.registry)
        draft.config()
        if not isinstance(value, dict | list) and not same(got := draft.value(one.path), value):
            raise ConfigError(f"the configuration makes {got!r} of it", where=one.path)


def _tried(one: Parameter) -> tuple[Value, ...]:
    """All of a choice; both ends of an interval and one value between them, no whole number if it can be."""
    if isinstance(one.domain, Choice):
        return one.domain.values
    return (*one.grid(2), one.nearest(_between(one)))


def _between(one: Parameter) -> float:
    low, high = one.grid(2)
    step = None if isinstance(one.domain, Choice) else one.domain.step
    return float(low + (step or (high - low) * 0.38196601))


def _place(draft: Draft, path: str) -> str:
    return ".".join(map(str, draft.keys(path)))


@contextmanager
def _placed(document: Document, path: str, about: str = "") -> Iterator[None]:
    """An error inside gets file and line: those of the parameter that it names, else those of ``path``."""
    try:
        yield
    except ConfigError as fault:
        at = fault.where if fault.where in document.lines else path
        raise ConfigError(about + fault.message, where=document.where(at), fix=fault.fix) from None
