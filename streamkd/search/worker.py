"""A child process that runs one trial after another for the local engine.

    driver ── TrialRecord ──► child: course.steps ── ("alive", n) ("read", record) ("failed", reason) ──► driver
           ── goes on? ─────►                                                      None ends the child

The child dies with its driver, leaves Ctrl-C to it, and writes each reading into the ledger before it tells it. What
it prints goes into a file beside it, for the reason of a crash.
"""

import contextlib
import ctypes
import os
import pickle
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from streamkd.search import sharing
from streamkd.search.course import Job, Running, reason_of, sound, steps
from streamkd.search.ledger import TrialRecord

if TYPE_CHECKING:
    from streamkd.search.recording import Recording

BEAT_SECONDS = 0.5
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Place:
    """Where a child works: the recordings, its log, its GPUs, what it may allocate beside what it begins with."""

    recordings: Path
    log: Path
    devices: str
    memory_bytes: int | None


def main(place: Place, job: bytes, connection: Connection) -> None:
    """Run trials until told ``None``, the driver is gone, or one of them leaves the process unsound."""
    _settle(place)
    unpacked: Job = pickle.loads(job)  # imports what runs a trial: after the environment is set
    recordings = sharing.read(place.recordings)
    teller = Teller(connection)
    with contextlib.suppress(EOFError, OSError):  # the driver is gone
        while (record := connection.recv()) is not None:
            if not _run(unpacked, recordings, record, teller):
                return


def _run(job: Job, recordings: "Mapping[int, Recording]", record: TrialRecord, teller: "Teller") -> bool:
    """One trial; whether the process is fit for another. After an exception that nobody foresaw it is not."""
    try:
        for read in steps(job, recordings, record, begun=teller.watch):
            teller.tell("read", read)
            if read.state == "running" and not teller.connection.recv():
                break
        return True
    except Exception as fault:
        reason = reason_of(fault)
        teller.tell("failed", reason)
        return sound(reason)
    finally:
        teller.rest()


class Teller:
    """The child's end of the pipe; while a trial learns, it says so now and then."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._lock = threading.Lock()
        self._trial: Running | None = None
        threading.Thread(target=self._beat, daemon=True).start()

    def tell(self, what: str, value: object) -> None:
        """Send one message."""
        with self._lock:
            self.connection.send((what, value))

    def watch(self, trial: Running) -> None:
        """The trial is made: from here on it is expected to learn."""
        self.tell("alive", 0)
        self._trial = trial

    def rest(self) -> None:
        """No trial runs."""
        self._trial = None

    def _beat(self) -> None:
        """Tell the records of the running trial whenever they have risen."""
        told = -1
        while True:
            time.sleep(BEAT_SECONDS)
            trial = self._trial
            if trial is not None and (seen := trial.seen) != told:
                told = seen
                with contextlib.suppress(OSError):
                    self.tell("alive", seen)


def _settle(place: Place) -> None:
    """The process as a trial needs it."""
    _die_with_driver()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    log = os.open(place.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        stream.flush()
        os.dup2(log, number)
    os.close(log)
    os.environ["CUDA_VISIBLE_DEVICES"] = place.devices
    if place.memory_bytes is not None:
        bound_memory(place.memory_bytes)


def bound_memory(more_bytes: int) -> None:
    """Let this process allocate so much more than it has now; libraries alone take a gigabyte. Linux only.

    What is beyond is a ``MemoryError``. ``RLIMIT_AS`` would count what CUDA only reserves.
    """
    status = Path("/proc/self/status")
    lines = status.read_text("ascii").splitlines() if status.exists() else []
    taken = next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:")), 0)
    resource.setrlimit(resource.RLIMIT_DATA, (taken + more_bytes, taken + more_bytes))


def _die_with_driver() -> None:
    """Ask Linux to kill this process when its parent ends, which is the fork server, which ends with the driver;
    elsewhere the closed pipe says it.
    """
    if sys.platform == "linux":
        prctl: Callable[..., int] = ctypes.CDLL(None, use_errno=True).prctl
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    driver = parent_process()
    if driver is None or not driver.is_alive():
        os._exit(0)
