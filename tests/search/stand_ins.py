"""Trials that behave as they are told by their values, so that an engine meets what a process can do to itself.

They are made where a trial is made, in the engine's own processes, by a function of this module.
"""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streamkd import config as configuration
from streamkd.config import Config
from streamkd.errors import TrialFailed
from streamkd.plugins import Registry
from streamkd.search.course import Reading
from streamkd.search.space import Choice, LogUniform, Parameter, Space

TREE: dict[str, Any] = {
    "name": "stand-in",
    "stream": {"source": {"name": "replay", "dataset": "digits", "per_class": 60}},
    "gate": {"name": "per-sample"},
}
RATE, DEED = "optimizer.learning_rate", "memory.size"
DEEDS = ("nothing", "segfault", "sleep", "nan", "raise", "memory", "exit", "killed", "spin")
SPACE = Space(
    (
        Parameter(RATE, LogUniform(1e-4, 1e-1)),
        Parameter(DEED, Choice(tuple(100 + at for at in range(len(DEEDS)))), integer=True),
    )
)
"""A deed is told by the memory's size: the values of a trial are all that reaches it."""
GOOD = Space(SPACE.parameters[:1])
"""Of trials that do nothing bad."""


def config(**more: Any) -> Config:
    """A configuration that does nothing bad by itself."""
    return configuration.from_tree({**TREE, "memory": {"size": 100}, **more}, Registry.load())


class StandIn:
    """Advances without learning; its figure is better the nearer its rate is to 0.01."""

    seconds = 0.0

    def __init__(self, config: Config, registry: Registry, recordings: Mapping[int, Any], names: Sequence[str]) -> None:
        self.records = 0
        self._total = max(one.total for one in recordings.values())
        self._deed = DEEDS[config.memory.size - 100]
        self._figure = 0.9 - 0.1 * abs(float(np.log10(config.optimizer.learning_rate)) + 2)
        self._seeds, self._names = list(recordings), list(names)

    @property
    def seen(self) -> int:
        return self.records * len(self._seeds)

    @property
    def finished(self) -> bool:
        return self.records >= self._total

    def advance(self, records: int) -> Reading:
        """A reading; on the way to the second one it does its deed."""
        if self.records:
            self._do()
        time.sleep(self.seconds)
        self.records = records
        figures = [self._figure + 0.001 * at for at in range(len(self._seeds))]
        means = dict.fromkeys(self._names, float(np.mean(figures)))
        return Reading(records, means, dict.fromkeys(self._names, figures), self._seeds, means[self._names[0]])

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
    """Takes a while for each milestone, so that somebody can be killed in between."""

    seconds = 0.15
