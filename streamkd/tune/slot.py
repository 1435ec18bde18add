"""A place where trials run, one after another, each in a child process of its own.

    begin(values) ─► a child, forked ─► advance(milestone) ─► reading, or TrialFailed ─► end

Whatever a trial does to its process ends there: a crash, an end without a word, silence for too long. The imports of a
trial take seconds: a server process makes them once, and children are forked from it, which has no threads and has
computed nothing. ``tune.cluster`` has the same slots on other machines.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

from streamkd.errors import TrialFailed
from streamkd.tune.settings import Settings
from streamkd.tune.space.space import Values
from streamkd.tune.worker import main

START_SECONDS = 300.0
"""A child that has not begun its trial after so long is taken to hang: the first one waits for the imports."""
TICK_SECONDS = 0.25
GRACE_SECONDS = 2.0


class SlotStopped(Exception):
    """The search is being stopped; the trial is left where it is."""


class Slot(Protocol):
    """Where one trial runs at a time."""

    def begin(self, values: Values) -> None:
        """Begin a trial under these values.

        Raises:
            TrialFailed, SlotStopped: as ``advance``.
        """

    def advance(self, milestone: int) -> Mapping[str, Any]:
        """Train to so many records a seed; the reading there.

        Raises:
            TrialFailed: with its kind and what is known. SlotStopped: the search is stopping.
        """

    def end(self) -> None:
        """The trial is over, or left."""


class ProcessSlot:
    """A slot of this machine. ``job``: a pickled ``worker.Job``; ``made_in``: the module of what makes its trials;
    ``devices``: the GPUs that its trials see (``None``: all).
    """

    def __init__(
        self,
        job: bytes,
        made_in: str,
        settings: Settings,
        devices: str | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._job, self._settings, self._devices, self._stopping = job, settings, devices, stopping
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload([main.__module__, made_in])
        self._process: Any = None
        self._log = tempfile.NamedTemporaryFile(prefix="streamkd-tune-")  # noqa: SIM115 - as long as the slot

    def begin(self, values: Values) -> None:
        """See ``Slot``."""
        self._connection, theirs = self._context.Pipe()
        given = (self._job, values, theirs, self._log.name, self._devices, self._settings.memory_bytes)
        process = self._context.Process(target=main, args=given, daemon=True)
        try:
            process.start()
        except OSError as fault:  # the server is gone; the next trial has another one
            raise TrialFailed("crash", f"its process could not be begun: {fault}") from None
        finally:
            theirs.close()
        self._process = process
        self._heard, self._begun = time.monotonic(), False

    def advance(self, milestone: int) -> Mapping[str, Any]:
        """See ``Slot``."""
        with suppress(OSError):  # it died meanwhile: the reading says it
            self._connection.send(milestone)
        while True:
            if self._stopping():
                raise SlotStopped
            what, said = self._said()
            if what == "read":
                reading: Mapping[str, Any] = said
                return reading
            if what == "failed":
                kind, _, why = said.partition(": ")
                raise TrialFailed(kind, why)

    def _said(self) -> tuple[str, Any]:
        """The next word of the child; after a while without one, whether it is still to be waited for."""
        try:
            if self._connection.poll(TICK_SECONDS):
                word: tuple[str, Any] = self._connection.recv()
                self._heard, self._begun = time.monotonic(), True
                return word
        except (EOFError, OSError):
            self._process.join(GRACE_SECONDS)
            raise _crash(self._process.exitcode, Path(self._log.name)) from None
        silent, least = time.monotonic() - self._heard, self._settings.hang_seconds
        if silent > (least if self._begun else max(START_SECONDS, least)):
            did = "learned nothing for" if self._begun else "did not begin in"
            raise TrialFailed("hang", f"{did} {silent:.0f} s")
        return "nothing", None

    def end(self) -> None:
        """See ``Slot``."""
        if self._process is not None:
            self._connection.close()
            self._process.kill()
            self._process.join()
            self._process.close()
            self._process = None


@contextmanager
def slots(job: bytes, made_in: str, settings: Settings, stopping: Callable[[], bool]) -> Iterator[Sequence[Slot]]:
    """The slots of this machine: as many as were asked for, or as its CPUs take; all see the same GPUs."""
    count = settings.concurrency or max(1, int(_cpus() / settings.cpus_per_trial))
    made = [ProcessSlot(job, made_in, settings, stopping=stopping) for _ in range(count)]
    try:
        yield made
    finally:
        for slot in made:
            slot.end()


def _crash(code: int | None, log: Path) -> TrialFailed:
    """What an exit code says, and the last words."""
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    last = f": {lines[-1].strip()[:200]}" if lines else ""
    if code == -signal.SIGKILL:
        return TrialFailed("memory", "the process was killed (SIGKILL), which is how the system frees memory")
    if code is not None and code < 0:
        return TrialFailed("crash", f"the process ended by {signal.Signals(-code).name}{last}")
    return TrialFailed("crash", f"the process ended with exit code {code}{last}")


def _cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
