"""The child process that runs one trial: on the driver's machine, or on one of a cluster.

    slot ── milestone ─► child: trial.advance ── ("alive",) ... ("read", reading) | ("failed", reason) ──► slot

It dies with its slot, leaves Ctrl-C to it, and what it prints goes into a file, for the reason of a crash.
"""

import contextlib
import ctypes
import errno
import os
import pickle
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from streamkd.config import Config
from streamkd.errors import StreamkdError, TrialFailed
from streamkd.evaluate.seeds import plain
from streamkd.plugins import Registry
from streamkd.tune.space.space import Space, Values

if TYPE_CHECKING:
    from streamkd.tune.trials.recording import Recording
    from streamkd.tune.trials.trial import TrialReading

BEAT_SECONDS = 0.5
PR_SET_PDEATHSIG = 1


class Running(Protocol):
    """A trial that can be advanced: ``tune.trials.trial.Trial``."""

    def advance(self, records: int) -> "TrialReading":
        """Train until every seed has seen so many records."""


Make = Callable[[Config, Registry, "Mapping[int, Recording]", Sequence[str], Callable[[], None]], Running]
"""Makes a trial; a class or function of a module, so that other processes find it."""


@dataclass(frozen=True)
class Job:
    """What all trials of a search have in common; can be pickled."""

    config: Config
    space: Space
    recordings: "Mapping[int, Recording]"
    objectives: tuple[str, ...]
    threads: int
    make: Make

    def begun(self, values: Values, beat: Callable[[], None] = lambda: None) -> Running:
        """A trial under these values; ``beat`` is called as long as it learns."""
        import torch

        torch.set_num_threads(self.threads)
        registry = Registry.load()
        config = self.space.apply(self.config, values, registry)
        return self.make(config, registry, self.recordings, self.objectives, beat)


def main(
    job: bytes, values: Values, connection: Connection, log: str, devices: str | None, memory_bytes: int | None
) -> None:
    """Run a trial, milestone by milestone, until the slot has enough or is gone."""
    _settle(log, devices, memory_bytes)
    with contextlib.suppress(EOFError, OSError):
        try:
            unpacked: Job = pickle.loads(job)  # noqa: S301 - from the search itself; imports what runs a trial, after the environment is set
            trial = unpacked.begun(values, _Pulse(connection))
            connection.send(("alive", None))
            while (milestone := connection.recv()) is not None:
                connection.send(("read", plain(asdict(trial.advance(milestone)))))
        except (EOFError, ConnectionError):
            return
        except Exception as fault:  # noqa: BLE001 - told to the search, which counts the trial as failed
            connection.send(("failed", reason_of(fault)))


class _Pulse:
    """Says now and then that the trial learns."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._told = connection, 0.0

    def __call__(self) -> None:
        if (now := time.monotonic()) - self._told > BEAT_SECONDS:
            self._told = now
            self._connection.send(("alive", None))


def reason_of(fault: BaseException) -> str:
    """Why a trial failed, its kind first: ``nan: ...``, ``memory: ...`` or ``error: ...``."""
    if isinstance(fault, TrialFailed):
        return fault.reason if fault.message == fault.reason else f"{fault.reason}: {fault.message}"
    said = " ".join(str(fault).split())[:300]
    if isinstance(fault, MemoryError) or _is_torchs_memory(fault) or getattr(fault, "errno", 0) == errno.ENOMEM:
        return f"memory: {said or type(fault).__name__}"
    return f"error: {said}" if isinstance(fault, StreamkdError) else f"error: {type(fault).__name__}: {said}"


def _is_torchs_memory(fault: BaseException) -> bool:
    """torch has a class of its own on a GPU, and none on a CPU."""
    return type(fault).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(fault)


def _settle(log: str, devices: str | None, memory_bytes: int | None) -> None:
    """The process as a trial needs it."""
    _die_with_slot()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    handle = os.open(log, os.O_WRONLY | os.O_TRUNC)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        stream.flush()
        os.dup2(handle, number)
    os.close(handle)
    if devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices
    if memory_bytes is not None:
        bound_memory(memory_bytes)


def bound_memory(more_bytes: int) -> None:
    """Let this process allocate so much more than it has now; libraries alone take a gigabyte. Linux only.

    What is beyond is a ``MemoryError``. ``RLIMIT_AS`` would count what CUDA only reserves.
    """
    status = Path("/proc/self/status")
    lines = status.read_text("ascii").splitlines() if status.exists() else []
    taken = next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:")), 0)
    resource.setrlimit(resource.RLIMIT_DATA, (taken + more_bytes, taken + more_bytes))


def _die_with_slot() -> None:
    """Ask Linux to kill this process when its parent ends, which is the fork server, which ends with the slot's
    process; elsewhere the closed pipe says it.
    """
    if sys.platform == "linux":
        prctl: Any = ctypes.CDLL(None, use_errno=True).prctl
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    slot = parent_process()
    if slot is None or not slot.is_alive():
        os._exit(0)
