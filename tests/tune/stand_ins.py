"""Trials that behave as they are told by their values, so that a slot meets what a process can do to itself.

They are made where a trial is made, in its own process, by a class of this module.
"""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from streamkd import config as configuration
from streamkd.config import Config
from streamkd.errors import TrialFailed
from streamkd.plugins import Registry
from streamkd.tune import search
from streamkd.tune.controller import Controller
from streamkd.tune.settings import Settings
from streamkd.tune.space.domains import Categorical, Interval, Parameter
from streamkd.tune.space.space import Space
from streamkd.tune.trials.trial import TrialReading
from streamkd.tune.worker import failure

REGISTRY = Registry.load()
TREE: dict[str, Any] = {
    "name": "stand-in",
    "stream": {"source": {"name": "replay", "dataset": "digits", "per_class": 60}},
    "gate": {"name": "per-sample"},
}
RATE, DEED = "optimizer.learning_rate", "memory.size"
DEEDS = ("nothing", "segfault", "sleep", "nan", "raise", "memory", "exit", "killed", "spin")
SPACE = Space(
    (
        Parameter(RATE, Interval(1e-4, 1e-1, log=True)),
        Parameter(DEED, Categorical(tuple(100 + at for at in range(len(DEEDS)))), integer=True),
    )
)
"""A deed is told by the memory's size: the values of a trial are all that reaches it."""
GOOD = Space(SPACE.parameters[:1])
"""Of trials that do nothing bad."""
ALL = Space(SPACE.parameters[1:])
"""Each deed once, by a grid."""


def config(**more: Any) -> Config:
    """A configuration that does nothing bad by itself."""
    return configuration.from_tree({**TREE, "memory": {"size": 100}, **more}, REGISTRY)


class StandIn:
    """Advances without learning; its figure is better the nearer its rate is to 0.01."""

    seconds = 0.0

    def __init__(
        self,
        config: Config,
        registry: Registry,
        recordings: Mapping[int, Any],
        names: Sequence[str],
        beat: Callable[[], None],
    ) -> None:
        self._begun = False
        self._deed = DEEDS[config.memory.size - 100]
        self._figure = 0.9 - 0.1 * abs(float(np.log10(config.optimizer.learning_rate)) + 2)
        self._seeds, self._names = list(recordings), list(names)

    def advance(self, records: int) -> TrialReading:
        """A reading; on the way to the second one it does its deed."""
        if self._begun:
            self._do()
        time.sleep(self.seconds)
        self._begun = True
        figures = [self._figure + 0.001 * at for at in range(len(self._seeds))]
        means = dict.fromkeys(self._names, float(np.mean(figures)))
        return TrialReading(records, means, dict.fromkeys(self._names, figures))

    def _do(self) -> None:
        if self._deed == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif self._deed == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self._deed == "exit":
            os._exit(3)
        elif self._deed == "sleep":
            time.sleep(1_000)
        elif self._deed == "spin":
            while True:
                pass
        elif self._deed == "nan":
            raise TrialFailed("nan", "the loss is nan")
        elif self._deed == "raise":
            raise ValueError("a stand-in's own error")
        elif self._deed == "memory":
            np.ones(1 << 32)


class Slow(StandIn):
    """Takes a tenth of a second to each milestone."""

    seconds = 0.1


class Looking(StandIn):
    """Fails with what it sees of the GPUs."""

    def advance(self, records: int) -> TrialReading:
        raise TrialFailed("error", f"sees {os.environ['CUDA_VISIBLE_DEVICES']!r}")


class Taking(StandIn):
    """On its way to the second reading it ends the process that its slot is in."""

    def _do(self) -> None:
        server = Path(f"/proc/{os.getppid()}/stat").read_text()
        os.kill(int(server.rpartition(")")[2].split()[1]), signal.SIGKILL)


def here(before: Callable[[Mapping[str, Any]], Any] = lambda values: None) -> search.Runner:
    """Runs trials in this process, one after another; ``before`` is told the values of each."""

    def run(controller: Controller) -> None:
        while not controller.stopping and (asked := controller.begin()) is not None:
            before(asked.values)
            try:
                trial = controller.job.begun(asked.values)
                for step, milestone in enumerate(controller.job.milestones, 1):
                    if not controller.read(asked, step, asdict(trial.advance(milestone))):
                        break
            except Exception as fault:
                controller.fail(asked, failure(fault))

    return run


def tune(out: Path, run: search.Runner | None = None, make: Any = StandIn, **more: Any) -> Any:
    """A search of stand-ins, in this process unless ``run`` says where."""
    rest = {name: more.pop(name) for name in ("resume", "watches", "space", "config") if name in more}
    settings = Settings(**{"sampler": "random", "seeds": (100,), "trials": 6, **more})
    given, space = rest.pop("config", config()), rest.pop("space", GOOD)
    return search.tune(given, REGISTRY, space, settings, out, make=make, run=run or here(), **rest)
