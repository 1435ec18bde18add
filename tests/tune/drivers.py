"""Searches in processes of their own, that tests kill: what is left of them, and what they had come to."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from streamkd.tune import study
from streamkd.tune.record import DONE, TrialRecord
from streamkd.tune.study import Study

HERE = Path(__file__).parent


def drive(out: Path, trials: int, *more: str) -> subprocess.Popen[bytes]:
    """A search in a process of its own, with children; ``more``: see ``drive.py``."""
    return subprocess.Popen([sys.executable, str(HERE / "drive.py"), str(out), str(trials), *more])


def over(out: Path) -> dict[int, TrialRecord]:
    """The trials that are over, as the journal has them."""
    if not study.exists(out):
        return {}
    return {one.number: one for one in Study.open(out).trials() if one.state in DONE}


def wait_for(what: Callable[[], bool], seconds: float = 90.0) -> None:
    """Until it is so, or so long."""
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.1)


def family(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def works(process: psutil.Process) -> bool:
    """Whether a process is at work: one that has ended may wait for somebody to take note of it."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def refuse_repeated(before: dict[int, TrialRecord], after: dict[int, TrialRecord]) -> None:
    """Every trial that was over is as it was: same readings, same seconds."""
    for number, one in before.items():
        assert after[number] == one
