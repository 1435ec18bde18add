"""A place where trials run, one after another, each in a child process of its own.

    begin(values) ─► a child, forked ─► advance(milestone) ─► reading, or TrialFailed ─► end

Whatever a trial does to its process ends there. The imports of a trial take seconds: a server process makes them once,
and children are forked from it, which has no threads and has computed nothing.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from streamkd.errors import TrialFailed
from streamkd.tune.space.space import Values
from streamkd.tune.worker import Packed, main

if TYPE_CHECKING:
    from streamkd.tune.controller import Controller

TICK_SECONDS = 0.25
GRACE_SECONDS = 2.0


class SlotStopped(Exception):
    """The search is being stopped; the trial is left where it is."""


class Slot:
    """A slot of this machine; its trials see the GPUs that ``devices`` names (``None``: all)."""

    def __init__(
        self, packed: Packed, devices: str | None = None, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self._packed, self._devices, self._stopping = packed, devices, stopping
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload([main.__module__, packed.made_in])
        self._process: Any = None

    def begin(self, values: Values) -> None:
        """Begin a trial under these values.

        Raises:
            TrialFailed: it cannot be begun.
        """
        self._connection, theirs = self._context.Pipe()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the trial; it has no name, to be left behind
        log = f"/proc/{os.getpid()}/fd/{self._log.fileno()}"
        given = (self._packed, values, theirs, log, self._devices)
        process = self._context.Process(target=main, args=given, daemon=True)
        try:
            process.start()
        except OSError as fault:  # the server is gone; the next trial has another one
            self._log.close()
            raise TrialFailed("crash", f"its process could not be begun: {fault}") from None
        finally:
            theirs.close()
        self._process = process

    def advance(self, milestone: int) -> Mapping[str, Any]:
        """Train to so many records a seed; the reading there.

        Raises:
            TrialFailed: with its kind and what is known. SlotStopped: the search is stopping.
        """
        with suppress(OSError):  # it died meanwhile: the reading says it
            self._connection.send(milestone)
        try:
            while not self._connection.poll(TICK_SECONDS):
                if self._stopping():
                    raise SlotStopped
            said: Mapping[str, Any] | TrialFailed = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(GRACE_SECONDS)
            raise self._death(self._process.exitcode) from None
        if isinstance(said, TrialFailed):
            raise said
        return said

    def end(self) -> None:
        """The trial is over, or left."""
        if self._process is not None:
            self._connection.close()
            self._log.close()
            self._process.kill()
            self._process.join()
            self._process.close()
            self._process = None

    def _death(self, code: int | None) -> TrialFailed:
        """What an exit code says, and the last words."""
        if code == -signal.SIGALRM:
            return TrialFailed("hang", f"learned nothing for {self._packed.settings.hang_seconds:g} s")
        if code == -signal.SIGKILL:
            return TrialFailed("memory", "the process was killed (SIGKILL), which is how the system frees memory")
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode("utf-8", "replace").splitlines()]
        last = "".join(f": {line[:200]}" for line in [*filter(None, lines)][-1:])
        how = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
        return TrialFailed("crash", f"the process ended {how}{last}")


def run(controller: "Controller") -> None:
    """Run a search on this machine: as many trials at once as were asked for, or as its CPUs take."""
    settings, packed = controller.settings, controller.job.packed()
    count = settings.concurrency or max(1, int(_cpus() / settings.cpus_per_trial))
    with ThreadPoolExecutor(count) as pool:
        serving = [pool.submit(_serve, controller, packed) for _ in range(count)]
        try:
            for one in as_completed(serving):
                one.result()
        finally:
            controller.stop()


def _serve(controller: "Controller", packed: Packed) -> None:
    """One trial after another, until there is no more or the search is stopped."""
    slot = Slot(packed, stopping=lambda: controller.stopping)
    while not controller.stopping and (asked := controller.begin()) is not None:
        try:
            slot.begin(asked.values)
            for step, milestone in enumerate(packed.milestones, 1):
                if not controller.read(asked, step, slot.advance(milestone)):
                    break
        except SlotStopped:
            controller.leave(asked)
        except TrialFailed as fault:
            controller.fail(asked, fault)
        finally:
            slot.end()


def _cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
