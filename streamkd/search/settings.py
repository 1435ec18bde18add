"""How a search goes about it: how many trials, of what, beside each other, under which rule. Plain data.

Records are counted per seed. A trial is read at its milestones, equal parts of the stream; the rungs among them are
where the scheduler may end it:

    milestones  total · k / reductionʳᵘⁿᵍˢ for k = 1, 2, ...     (sixteenths by default; ninths where nobody halves)
    rungs       total / reductionʳᵘⁿᵍˢ, ..., total / reduction    (a sixteenth and a quarter by default)
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from streamkd.errors import ConfigError

SCHEDULERS = ("asha", "pbt", "none")
SAMPLERS = ("optuna", "random", "grid")
PARTS = 9
"""Milestones of a trial without rungs."""


@dataclass(frozen=True)
class Settings:
    """The settings of a search; kept in its header. ``None`` leaves a choice to the engine, or sets no bound.

    ``objectives``: names of ``search.objective``; the first leads (it prunes), a second makes a front.
    ``seeds``: those of a trial, which advance together. ``seed``: of the sampler's own draws.
    ``hang_seconds``: a trial that learned no record for so long is ended. ``memory_bytes``: what a trial's process
    may allocate.
    """

    trials: int = 16
    seeds: tuple[int, ...] = (100, 101)
    objectives: tuple[str, ...] = ("accuracy",)
    scheduler: str = "asha"
    sampler: str = "optuna"
    engine: str = "ray"
    reduction: int = 4
    rungs: int = 2
    seed: int = 0
    concurrency: int | None = None
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    time_budget_seconds: float | None = None
    hang_seconds: float = 300.0
    memory_bytes: int | None = None
    address: str | None = None
    dashboard: bool = False

    def __post_init__(self) -> None:
        for name, known in (("scheduler", SCHEDULERS), ("sampler", SAMPLERS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"needed one of {', '.join(known)}, got {getattr(self, name)!r}", where=name)
        if not 1 <= len(self.objectives) <= 2 or len(set(self.objectives)) != len(self.objectives):
            raise ConfigError(
                f"needed one objective, or two for a front, got {_listed(self.objectives)}", where="--objective"
            )
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"needed seeds, each once, got {_listed(self.seeds)}", where="--seeds")
        for name, least in (("trials", 1), ("reduction", 2), ("rungs", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"needed {least} or more, got {getattr(self, name)}", where=name)
        for name in ("concurrency", "cpus_per_trial", "time_budget_seconds", "hang_seconds", "memory_bytes"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ConfigError(f"needed more than 0, got {value}", where=name)
        if self.gpus_per_trial < 0:
            raise ConfigError(f"needed 0 or more, got {self.gpus_per_trial}", where="gpus_per_trial")

    @property
    def threads(self) -> int:
        """torch threads of a trial."""
        return max(1, int(self.cpus_per_trial))

    def milestones(self, total: int) -> tuple[int, ...]:
        """The records at which a trial is read; the last is ``total``."""
        parts = self.reduction**self.rungs if self.scheduler == "asha" else PARTS
        return tuple(sorted({-(-total * part // parts) for part in range(1, parts + 1)} - {0}))

    def rung_records(self, total: int) -> tuple[int, ...]:
        """The milestones at which a trial may be ended, rising; ``total`` is not among them."""
        parts = self.reduction**self.rungs
        places = {-(-total * self.reduction**rung // parts) for rung in range(self.rungs)}
        return tuple(sorted(places - {0, total}))

    def to_json(self) -> dict[str, Any]:
        """Plain values; ``from_json`` takes them back."""
        tree: dict[str, Any] = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in tree.items()}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "Settings":
        """The settings that ``to_json`` wrote; what an older header lacks has its default."""
        known = {one.name for one in fields(cls)}
        given = {name: value for name, value in tree.items() if name in known}
        lists: dict[str, Any] = {name: tuple(given[name]) for name in ("seeds", "objectives") if name in given}
        return replace(cls(), **(given | lists))


def _listed(values: tuple[Any, ...]) -> str:
    return ", ".join(map(str, values)) or "none"
