"""The child process that runs one trial: on the driver's machine, or on one of a cluster.

    slot ── milestone ─► child: trial.advance ── reading | TrialFailed ──► slot

It ends with its slot, leaves Ctrl-C to it, and what it prints goes into a file, for the reason of a crash. An alarm,
which each batch sets anew, ends it where it learns nothing any more, whatever it does instead.
"""

import contextlib
import errno
import os
import pickle
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from streamkd.config import Config
from streamkd.errors import StreamkdError, TrialFailed
from streamkd.evaluate.seeds import plain
from streamkd.plugins import Registry
from streamkd.process import bound_memory, lacks_memory
from streamkd.tune.settings import Settings
from streamkd.tune.space.space import Space, Values

if TYPE_CHECKING:
    from streamkd.tune.trials.recording import Recording
    from streamkd.tune.trials.trial import Trial

START_SECONDS = 300.0
"""A trial that has not begun after so long is taken to hang."""


Make = Callable[[Config, Registry, "Mapping[int, Recording]", Sequence[str], Callable[[], None]], "Trial"]
"""Makes a trial; a class or function of a module, so that other processes find it."""


@dataclass(frozen=True)
class Job:
    """What all trials of a search have in common; can be pickled."""

    config: Config
    space: Space
    recordings: "Mapping[int, Recording]"
    settings: Settings
    make: Make

    @property
    def milestones(self) -> tuple[int, ...]:
        """The records at which a trial is read."""
        return self.settings.milestones(max(one.total for one in self.recordings.values()))

    def packed(self) -> "Packed":
        """As it is sent to where trials run."""
        return Packed(pickle.dumps(self), self.make.__module__, self.settings, self.milestones)

    def begun(self, values: Values, beat: Callable[[], None] = lambda: None) -> "Trial":
        """A trial under these values; ``beat`` is called as long as it learns."""
        from streamkd.cores import compute_on

        compute_on(self.settings.threads)
        registry = Registry.load()
        config = self.space.apply(self.config, values, registry)
        return self.make(config, registry, self.recordings, self.settings.objectives, beat)


@dataclass(frozen=True)
class Packed:
    """A job that nobody has to open who only hands it on: that makes the imports of a trial, from ``made_in`` on."""

    job: bytes
    made_in: str
    settings: Settings
    milestones: tuple[int, ...]


def main(packed: Packed, values: Values, connection: Connection, log: str, devices: str | None) -> None:
    """Run a trial, milestone by milestone, until the slot has enough or is gone."""
    settings = packed.settings
    _settle(log, devices, settings.memory_bytes)
    with contextlib.suppress(OSError):  # the slot is gone
        try:
            _alarm(max(START_SECONDS, settings.hang_seconds))
            job: Job = pickle.loads(packed.job)  # noqa: S301 - from the search itself; imports what runs a trial, after the environment is set
            trial = job.begun(values, lambda: _beat(settings.hang_seconds))
            while (milestone := _next(connection)) is not None:
                _alarm(settings.hang_seconds)
                connection.send(plain(asdict(trial.advance(milestone))))
        except Exception as fault:  # noqa: BLE001 - told to the search, which counts the trial as failed
            connection.send(failure(fault))


def _next(connection: Connection) -> int | None:
    """The next milestone; nothing hurries until it comes."""
    _alarm(0)
    milestone: int | None = connection.recv()
    return milestone


def _alarm(seconds: float) -> None:
    """End this process by SIGALRM after so long; 0: never."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _beat(hang_seconds: float) -> None:
    """Called after each batch."""
    slot = parent_process()
    if slot is not None and not slot.is_alive():
        os._exit(0)
    _alarm(hang_seconds)


def failure(fault: BaseException) -> TrialFailed:
    """Why a trial failed, with its kind: nan, memory or error."""
    if isinstance(fault, TrialFailed):
        return fault
    said = " ".join(str(fault).split())[:300]
    if lacks_memory(fault) or getattr(fault, "errno", 0) == errno.ENOMEM:
        return TrialFailed("memory", said or type(fault).__name__)
    return TrialFailed("error", said if isinstance(fault, StreamkdError) else f"{type(fault).__name__}: {said}")


def _settle(log: str, devices: str | None, memory_bytes: int | None) -> None:
    """The process as a trial needs it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    handle = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        stream.flush()
        os.dup2(handle, number)
    os.close(handle)
    if devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices
    if memory_bytes is not None:
        bound_memory(memory_bytes)
