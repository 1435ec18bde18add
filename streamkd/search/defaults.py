"""The space that is searched where no file says another: what matters in most streams, one reason each.

It holds only what the configuration has and has not switched off, and every domain is wide enough for the value that
stands there, so that the configuration itself is a point of the space.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from streamkd.config import Config
from streamkd.errors import ConfigError
from streamkd.plugins import Registry
from streamkd.search.domains import Choice, Domain, LogUniform, Parameter, Uniform, Value
from streamkd.search.places import Draft


@dataclass(frozen=True)
class Suggestion:
    """A domain for a place, and why that one. ``*`` in the path: each entry of the list."""

    path: str
    domain: Domain
    reason: str
    integer: bool = False


ADAM = Suggestion(
    "optimizer.learning_rate",
    LogUniform(3e-4, 1e-2),
    "inner rate: a factor counts, not a difference; too low learns too late, too high forgets",
)
SGD = replace(ADAM, domain=LogUniform(0.01, 0.5))
REPLAY = Suggestion(
    "memory.replay",
    LogUniform(20, 120),
    "replay batch: more forgets less and costs more time; twice as many is one step of it",
    integer=True,
)
ADAPTING = (
    Suggestion(
        "adapt.learning_rate",
        LogUniform(1e-4, 1e-2),
        "outer rate: how fast the gate moves; quick is right where teachers differ much, and follows noise elsewhere",
    ),
    Suggestion(
        "adapt.every",
        LogUniform(3, 50),
        "adaptation interval: a step that adapts costs about twice another",
        integer=True,
    ),
    Suggestion(
        "adapt.horizon",
        LogUniform(1, 4),
        "adaptation horizon: one step's prices favour the hard label; each further step costs one more pass",
        integer=True,
    ),
)
TAUGHT = (
    Suggestion(
        "losses.*.temperature",
        LogUniform(1.0, 5.0),
        "temperature: its square multiplies the loss, and above 5 every class looks alike",
    ),
    Suggestion(
        "losses.*.weight",
        LogUniform(0.01, 10.0),
        "distillation weight of each term beside the first, whose own weight is the learning rate again",
    ),
    Suggestion(
        "gate.floor",
        Uniform(0.05, 0.6),
        "hard-label floor: a share, so evenly; below it labels cannot be outvoted",
    ),
    Suggestion(
        "gate.hard",
        Uniform(0.1, 0.9),
        "distillation weight: what the label leaves is the teachers'",
    ),
    Suggestion(
        "teachers.*.decay",
        Choice((0.98, 0.99, 0.995, 0.998, 0.999, 0.9995)),
        "averaging decay: 50 to 2,000 steps of memory, each about twice the one before",
    ),
    Suggestion(
        "vicinal.rows",
        Uniform(0, 240, 60),
        "rows that the teachers alone teach: 0 is a choice of its own, so evenly",
        integer=True,
    ),
)


def parameters(config: Config, registry: Registry) -> tuple[Parameter, ...]:
    """The default space of a configuration."""
    draft = Draft(config, registry)
    found: list[Parameter] = []
    for suggestion in _suggested(config, registry):
        for path in _paths(suggestion.path, config):
            try:
                value = draft.value(path)
            except ConfigError:
                continue  # this plugin has no such option
            if value or not (suggestion.integer or isinstance(suggestion.domain, LogUniform)):
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
    if isinstance(domain, Choice):
        return replace(parameter, domain=Choice(tuple(sorted({*domain.values, value}))))
    high = domain.high
    if parameter.path == "memory.replay":  # more than it holds cannot be replayed
        high = max(domain.low + 1, min(high, config.memory.size))
    wide = replace(domain, low=min(domain.low, value), high=max(high, value))
    held = replace(parameter, domain=wide)
    return held if held.contains(value) else replace(parameter, domain=replace(wide, step=None))
