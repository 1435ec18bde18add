"""The space that is searched where no file says another: what matters in most streams. docs/tune.md says why.

It holds only what the configuration has and has not switched off, and every domain is wide enough for the value that
stands there, so that the configuration itself is a point of the space.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from streamkd.config import Config
from streamkd.errors import ConfigError
from streamkd.plugins import Registry
from streamkd.tune.space.domains import Categorical, Domain, Interval, Parameter, Value
from streamkd.tune.space.places import Places


@dataclass(frozen=True)
class Suggestion:
    """A domain for a place. ``*`` in the path: each entry of the list."""

    path: str
    domain: Domain
    integer: bool = False


def _log(low: float, high: float) -> Interval:
    return Interval(low, high, log=True)


ADAM = Suggestion("optimizer.learning_rate", _log(3e-4, 1e-2))
SGD = replace(ADAM, domain=_log(0.01, 0.5))
REPLAY = Suggestion("memory.replay", _log(20, 120), integer=True)
ADAPTING = (
    Suggestion("adapt.learning_rate", _log(1e-4, 1e-2)),
    Suggestion("adapt.every", _log(3, 50), integer=True),
    Suggestion("adapt.horizon", _log(1, 4), integer=True),
)
TAUGHT = (
    Suggestion("losses.*.temperature", _log(1.0, 5.0)),
    Suggestion("losses.*.weight", _log(0.01, 10.0)),
    Suggestion("gate.floor", Interval(0.05, 0.6)),
    Suggestion("gate.hard", Interval(0.1, 0.9)),
    Suggestion("teachers.*.decay", Categorical((0.98, 0.99, 0.995, 0.998, 0.999, 0.9995))),
    Suggestion("vicinal.rows", Interval(0, 240, 60), integer=True),
)


def parameters(config: Config, registry: Registry) -> tuple[Parameter, ...]:
    """The default space of a configuration."""
    places = Places(config, registry)
    found: list[Parameter] = []
    for suggestion in _suggested(config, registry):
        for path in _paths(suggestion.path, config):
            try:
                value = places.value(path)
            except ConfigError:
                continue  # this plugin has no such option
            log = isinstance(suggestion.domain, Interval) and suggestion.domain.log
            if value or not (suggestion.integer or log):  # 0 is switched off
                found.append(_holding(Parameter(path, suggestion.domain, suggestion.integer), value, config))
    return tuple(found)


def _suggested(config: Config, registry: Registry) -> Iterator[Suggestion]:
    yield SGD if config.optimizer.name == "sgd" else ADAM
    yield REPLAY
    if config.teachers:
        yield from TAUGHT
        if _adapts(config, registry):
            yield from ADAPTING


def _adapts(config: Config, registry: Registry) -> bool:
    """Whether the gate has parameters that adapting could move."""
    kind = registry.kind("gates", config.gate.name)
    return any(True for _ in kind.make(kind.options.model_validate(config.gate.values)).parameters())


def _paths(pattern: str, config: Config) -> Iterator[str]:
    """The pattern's paths; entries of a list by name where that is theirs alone."""
    first, star, option = pattern.partition(".*.")
    if not star:
        yield pattern
        return
    named = [t.key for t in config.teachers] if first == "teachers" else [loss.name for loss in config.losses]
    for index, name in enumerate(named):
        if option == "weight" and index == 0:
            continue
        alone = named.count(name) == 1 and "." not in name and not name.isdigit()
        yield f"{first}.{name if alone else index}.{option}"


def _holding(parameter: Parameter, value: Value, config: Config) -> Parameter:
    """The parameter with a domain that holds the value, and that the configuration can bear."""
    domain = parameter.domain
    if isinstance(domain, Categorical):
        return replace(parameter, domain=Categorical(tuple(sorted({*domain.values, value}))))
    high = domain.high
    if parameter.path == "memory.replay":  # more than it holds cannot be replayed
        high = max(domain.low + 1, min(high, config.memory.size or high))
    wide = replace(domain, low=min(domain.low, value), high=max(high, value))
    held = replace(parameter, domain=wide)
    return held if held.contains(value) else replace(parameter, domain=replace(wide, step=None))
