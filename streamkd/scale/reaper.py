"""Ends the agents of a Ray whose driver was killed: they would stay for a minute, trying to report it to a dead head.

    watching(raylet's pid) ─► a process of its own, which reads from the driver ─► nobody writes any more ─► SIGKILL

Everything else of Ray goes with its driver by itself. Where there is no /proc the minute stays.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def watching(parent: int) -> Iterator[None]:
    """Until the end of the block, the children that a process has now go with this one, however it ends."""
    command = [sys.executable, "-I", "-S", __file__, *_children(parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):  # its end closes the pipe
        yield


def _children(parent: int) -> list[str]:
    """Process numbers, with when they began."""
    found = []
    for task in Path(f"/proc/{parent}/task").glob("*/children"):
        for pid in task.read_text().split():
            with suppress(OSError):
                found.append(f"{pid}:{_born(int(pid))}")
    return found


def _born(pid: int) -> str:
    """When a process began: its number may be another one's by now."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


if __name__ == "__main__":
    sys.stdin.read()
    for one in sys.argv[1:]:
        number, _, began = one.partition(":")
        with suppress(OSError):
            if _born(int(number)) == began:
                os.kill(int(number), signal.SIGKILL)
