"""What whoever runs trials asks and tells: which is next, whether it goes on, how it ended.

Study ◄── begin, read: goes on?, fail, leave ── Controller ◄── threads of this machine | Ray Tune
                                                    └─► watches
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamkd.errors import TrialFailed
from streamkd.plugins import Registry
from streamkd.tune.record import TrialRecord
from streamkd.tune.settings import Settings
from streamkd.tune.study import Asked, Study
from streamkd.tune.worker import Job


@dataclass(frozen=True)
class SearchStatus:
    """Where a search stands, for whoever watches it."""

    trials: tuple[TrialRecord, ...]
    settings: Settings
    directions: Mapping[str, str]
    total: int
    seconds: float


Watch = Callable[[SearchStatus], None]
"""Told whenever a trial moved, by one thread at a time."""


class Controller:
    """A search under way, for any number of threads that run its trials."""

    def __init__(self, study: Study, job: Job, registry: Registry, watches: Sequence[Watch] = ()) -> None:
        self.job, self.settings = job, job.settings
        self._study, self._registry, self._watches = study, registry, watches
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._begun = time.monotonic()

    @property
    def seconds_left(self) -> float | None:
        """Of the time budget; ``None`` where there is none."""
        budget = self.settings.time_budget_seconds
        return None if budget is None else max(budget - (time.monotonic() - self._begun), 0.0)

    @property
    def stopping(self) -> bool:
        """Whether running trials are to be left at once: somebody stopped it, or its time is over."""
        return self._stop.is_set() or self.seconds_left == 0.0

    def stop(self) -> None:
        """Begin no more trials, and leave those that run."""
        self._stop.set()

    def begin(self) -> Asked | None:
        """The next trial; ``None`` where no more is to be begun."""
        asked = self._study.ask(self.job.space, self.settings, self.job.config, self._registry)
        self._tell()
        return asked

    def read(self, asked: Asked, step: int, reading: Mapping[str, Any]) -> bool:
        """Write the reading at the ``step``-th milestone down; whether the trial goes on. One that does not is over."""
        last = step == len(self.job.milestones)
        goes_on = self._study.read(asked, step, reading, prune=self.settings.halves and not last)
        if last or not goes_on:
            self._study.end(asked, "finished" if goes_on else "pruned")
        self._tell()
        return goes_on and not last

    def fail(self, asked: Asked, fault: TrialFailed) -> None:
        """The trial is over, and gave nothing."""
        self._study.end(asked, "failed", f"{fault.reason}: {fault.message}")
        self._tell()

    def leave(self, asked: Asked) -> None:
        """Nobody runs the trial any more: it begins again when the search goes on."""
        self._study.leave(asked)
        self._tell()

    def _tell(self) -> None:
        with self._lock:
            now, header = time.monotonic() - self._begun, self._study.header
            status = SearchStatus(
                tuple(self._study.trials()), self.settings, header["objectives"], header["total"], now
            )
            for watch in self._watches:
                watch(status)
