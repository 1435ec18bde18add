"""The search space as a YAML file: each key a path of the configuration, each value a domain.

optimizer.learning_rate: {loguniform: [1.e-4, 1.e-2]}
memory.replay: {quniform: [20, 100, 20]}               # the same as {uniform: [20, 100], step: 20}
gate.name: {choice: [per-sample, fixed]}
gate.hard: {uniform: [0.1, 0.9], when: {gate.name: fixed}}
"""

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, model_validator

from streamkd.document import Document
from streamkd.errors import ConfigError
from streamkd.records import Model
from streamkd.search.domains import Choice, Domain, LogUniform, Parameter, Uniform, Value, same

KINDS = ("uniform", "loguniform", "quniform", "qloguniform", "choice")


class Written(Model):
    """One parameter as it is written."""

    uniform: tuple[int | float, int | float] | None = None
    loguniform: tuple[int | float, int | float] | None = None
    quniform: tuple[int | float, int | float, int | float] | None = None
    qloguniform: tuple[int | float, int | float, int | float] | None = None
    choice: list[Any] | None = None
    step: int | float | None = None
    when: dict[str, Any] = Field(default={})

    @model_validator(mode="after")
    def _one_domain_that_has_values(self) -> "Written":
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"needed one of {', '.join(KINDS)}, got {' and '.join(given) or 'none'}")
        if self.step is not None and given[0] not in ("uniform", "loguniform"):
            raise ValueError(f"step belongs to uniform and loguniform, not to {given[0]}")
        if self.choice is not None:
            _refuse_choice(self.choice)
        else:
            _refuse_interval(*self.interval(), log="log" in given[0])
        return self

    def interval(self) -> tuple[float, float, float | None]:
        """Low, high, step."""
        low, high, *step = self.uniform or self.loguniform or self.quniform or self.qloguniform or (0, 0)
        return low, high, step[0] if step else self.step

    def domain(self) -> Domain:
        """The domain; numbers of a choice are put in order, so that neighbours are next to each other."""
        if self.choice is None:
            return (LogUniform if self.loguniform or self.qloguniform else Uniform)(*self.interval())
        values = [_number(value) for value in self.choice]
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        return Choice(tuple(sorted(values) if numbers else values))

    def whole(self) -> bool:
        """Whether its ends, and its step if it has one, are whole numbers."""
        return self.choice is None and all(isinstance(end, int) for end in self.interval() if end is not None)


def _refuse_choice(values: list[Any]) -> None:
    if not values:
        raise ValueError("needed something to choose from, got an empty list")
    for index, value in enumerate(values):
        if any(same(value, other) for other in values[:index]):
            raise ValueError(f"the choice {value!r} is there twice")


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


def parameters(document: Document, standing: Mapping[str, Value]) -> tuple[Parameter, ...]:
    """The parameters that are written, each after those that its condition names.

    ``standing``: what the configuration has at paths that conditions name and the file does not; a parameter whose
    condition does not hold there is left out.

    Raises:
        ConfigError: with file, line and path.
    """
    written = {str(path): _checked(document, str(path), tree) for path, tree in document.tree.items()}
    found = {}
    for path, one in written.items():
        when = {str(other): _several(values) for other, values in one.when.items()}
        held = [any(same(standing[other], value) for value in when[other]) for other in when if other in standing]
        if all(held):
            inside = {other: values for other, values in when.items() if other not in standing}
            found[path] = Parameter(path, one.domain(), one.whole(), inside)
    for parameter in found.values():
        _refuse_conditions(parameter, found, document)
    return tuple(_in_order(found, document))


def _checked(document: Document, path: str, tree: Any) -> Written:
    if not isinstance(tree, Mapping):
        fix = "write for example {uniform: [0.1, 0.9]}"
        raise ConfigError(f"needed a domain, got {tree!r:.40}", where=document.where(path), fix=fix)
    return document.check(Written, tree, path)


def conditions(document: Document) -> set[str]:
    """The paths that conditions name and that are no parameters of the file."""
    specs = [spec for spec in document.tree.values() if isinstance(spec, Mapping)]
    named = [spec["when"] for spec in specs if isinstance(spec.get("when"), Mapping)]
    return {str(path) for when in named for path in when if path not in document.tree}


def _several(values: Any) -> tuple[Value, ...]:
    return tuple(values) if isinstance(values, list) else (values,)


def _refuse_conditions(parameter: Parameter, found: Mapping[str, Parameter], document: Document) -> None:
    for path, values in parameter.when.items():
        where = document.where(f"{parameter.path}.when.{path}")
        if path not in found:
            raise ConfigError(f"the condition's {path} is left out itself", where=where, fix="leave this out too")
        domain = found[path].domain
        if not isinstance(domain, Choice):
            raise ConfigError(f"needed a choice as the condition, {path} is an interval", where=where)
        for value in values:
            if not any(same(value, one) for one in domain.values):
                words = [str(one) for one in domain.values]
                near = difflib.get_close_matches(str(value), words, 1)
                fix = (f"did you mean {near[0]!r}? " if near else "") + f"its choices: {', '.join(words)}"
                raise ConfigError(f"{value!r} is no choice of {path}", where=where, fix=fix)


def _in_order(found: Mapping[str, Parameter], document: Document) -> Iterator[Parameter]:
    waiting = dict(found)
    while waiting:
        ready = [path for path, one in waiting.items() if not any(other in waiting for other in one.when)]
        if not ready:
            circle = next(iter(waiting))
            raise ConfigError("its condition leads back to itself", where=document.where(circle))
        for path in ready:
            yield waiting.pop(path)
