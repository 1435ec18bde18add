"""The whole extension surface: hooks, each yielding kinds of one thing.

A distribution offers an entry point in the group ``streamkd`` that names a module (or object)
with some of these functions marked ``@streamkd.api.hookimpl``. Built-ins come in the same way.
No hook depends on the order of calls. ``make`` of each kind is called with the arguments given below,
all by position; ``options`` is an instance of the kind's own ``options`` class.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import pluggy
from pydantic import BaseModel, ConfigDict

hookspec = pluggy.HookspecMarker("streamkd")
hookimpl = pluggy.HookimplMarker("streamkd")

Group = Literal[
    "students",
    "teachers",
    "losses",
    "gates",
    "optimizers",
    "sources",
    "detectors",
    "observers",
    "rows",
    "policies",
    "admissions",
    "selectors",
]

VERSIONS: Mapping[Group, int] = dict.fromkeys(get_args(Group), 1)
"""The version of each hook: it rises when kinds that were written for it have to change."""


class Options(BaseModel):
    """What a kind can be configured with; subclass it and give every field a type and a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@runtime_checkable
class Stateful(Protocol):
    """A part with something to keep in the checkpoint: dicts with string keys, lists, JSON scalars, tensors."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Kind:
    """One named implementation: what ``name:`` in the configuration picks.

    ``make(options, ...)`` builds it; the further arguments belong to the hook that yields it. ``hook_version`` is the
    version of that hook that it was written for: a newer one than ``VERSIONS`` says is refused, an older one is taken
    with a warning.
    """

    name: str
    make: Callable[..., Any]
    options: type[Options] = Options
    summary: str = ""
    hook_version: int = field(default=1, kw_only=True)


@dataclass(frozen=True)
class SourceKind(Kind):
    """A source of records. With ``push``, ``make`` builds a listener that fills the log instead.

    ``describe(options)`` gives the schema of the records where the source knows it, else ``None``.
    """

    push: bool = False
    describe: Callable[[Any], Any] = lambda options: None


@dataclass(frozen=True)
class TeacherKind(Kind):
    """A teacher that may be served (``streamkd.api.Servable``).

    ``load(directory, about, schema, classes, registry)`` gives back the part that wrote itself into that directory and
    gave ``about`` to be kept; ``schema`` is that of the records that requests bring.
    """

    load: Callable[..., Any] = field(kw_only=True)


@hookspec
def streamkd_students() -> Iterable[Kind]:
    """Students: ``make(options, shape, classes) -> torch.nn.Module`` that maps [batch, *shape] to [batch, classes].

    The module's last linear layer is its attribute ``head``; the label space grows it.
    """


@hookspec
def streamkd_teachers() -> Iterable[Kind]:
    """Teachers: ``make(options, context) -> streamkd.api.Teacher``."""


@hookspec
def streamkd_losses() -> Iterable[Kind]:
    """Losses: ``make(options) -> streamkd.api.Loss``, one value per sample."""


@hookspec
def streamkd_gates() -> Iterable[Kind]:
    """Gates: ``make(options) -> streamkd.api.Gate``, weights over the hard label and the teachers."""


@hookspec
def streamkd_optimizers() -> Iterable[Kind]:
    """Optimisers of the gate: ``make(options, parameters, learning_rate) -> torch.optim.Optimizer``.

    One with a ``rule`` that `streamkd meta-train` is to teach is a ``streamkd.api.Ruled``.
    """


@hookspec
def streamkd_rows() -> Iterable[Kind]:
    """Sources of rows for a step, beside those that arrive: ``make(options, context) -> streamkd.api.RowSource``.

    ``context`` is a ``streamkd.api.RowsContext``: key, schema, and a seed for a generator of the source's own.
    """


@hookspec
def streamkd_sources() -> Iterable[SourceKind]:
    """Sources: ``make(options, schema) -> streamkd.api.Source``; with ``push``, ``make(options, ingest)``."""


@hookspec
def streamkd_detectors() -> Iterable[Kind]:
    """Boundary detectors: ``make(options) -> streamkd.api.Detector``."""


@hookspec
def streamkd_observers() -> Iterable[Kind]:
    """Observers: ``make(options) -> object`` with any of the methods of ``streamkd.api.Observer``."""


@hookspec
def streamkd_policies() -> Iterable[Kind]:
    """Policies of the memory: ``make(options) -> streamkd.api.Policy``, places for the rows that it is offered."""


@hookspec
def streamkd_admissions() -> Iterable[Kind]:
    """Admission to the pool: ``make(options) -> streamkd.api.Admission``, whether a snapshot joins."""


@hookspec
def streamkd_selectors() -> Iterable[Kind]:
    """Selectors of the served model: ``make(options) -> streamkd.api.Selector``, one student or several parts."""
