"""How a search goes about it: how many trials, of what, beside each other, under which rule. Plain data.

Records are counted per seed. A trial is read at its milestones, equal parts of the stream; with halving those at a
power of ``REDUCTION`` are the rungs where it may be ended:

    milestones  total · k / 16 for k = 1, 2, ..., 16; ninths where nobody halves
    rungs       total / 16 and total / 4
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from streamkd.errors import ConfigError

REDUCTION, RUNGS = 4, 2
PARTS = 9
"""Milestones of a trial without rungs."""


@dataclass(frozen=True)
class Settings:
    """The settings of a search; kept with it. ``None`` leaves a choice to the machine, or sets no bound.

    ``objectives``: names of ``tune.trials.objective``; the first leads, a second makes a front. ``seeds``: those of a
    trial, which advance together. ``seed``: of the sampler's own draws. ``hang_seconds``: a trial that learned no
    record for so long is ended. ``memory_bytes``: what a trial may allocate. ``address``: of the Ray
    whose Ray Tune runs the trials; ``local`` is one of this machine alone.
    """

    trials: int = 16
    seeds: tuple[int, ...] = (100, 101)
    objectives: tuple[str, ...] = ("accuracy",)
    scheduler: Literal["asha", "none"] = "asha"
    sampler: Literal["optuna", "random", "grid"] = "optuna"
    seed: int = 0
    concurrency: int | None = None
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    time_budget_seconds: float | None = None
    hang_seconds: float = 300.0
    memory_bytes: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.objectives) <= 2 or len(set(self.objectives)) != len(self.objectives):
            got = ", ".join(self.objectives) or "none"
            raise ConfigError(f"needed one objective, or two for a front, got {got}", where="--objective")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            got = ", ".join(map(str, self.seeds)) or "none"
            raise ConfigError(f"needed seeds, each once, got {got}", where="--seeds")
        if self.gpus_per_trial and self.address is None:
            fix = "leave it out: trials of one machine share its GPU; or let Ray share it out with --address local"
            raise ConfigError("shares of a GPU are Ray's", where="--gpus-per-trial", fix=fix)

    @property
    def threads(self) -> int:
        """torch threads of a trial."""
        return max(1, int(self.cpus_per_trial))

    @property
    def halves(self) -> bool:
        """Whether trials may be ended at rungs: with two objectives there is no better and worse to end one by."""
        return self.scheduler == "asha" and len(self.objectives) == 1

    def milestones(self, total: int) -> tuple[int, ...]:
        """The records at which a trial is read; the last is ``total``."""
        parts = REDUCTION**RUNGS if self.halves else PARTS
        return tuple(-(-total * part // parts) for part in range(1, parts + 1))

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "Settings":
        """The settings of their plain values; what an older search lacks has its default."""
        known = {one.name for one in fields(cls)} & tree.keys()
        given: dict[str, Any] = {name: tree[name] for name in known}
        return cls(**given | {name: tuple(given[name]) for name in ("seeds", "objectives") if name in known})
