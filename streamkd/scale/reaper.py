"""Ends those processes of a Ray whose driver was killed that Ray leaves behind for a while.

    watching(folder, raylet) ─► a process of its own, which reads from the driver ─► nobody writes any more ─► SIGKILL

Ray's agents would try for a minute to report the end to a head that is gone, and a worker that is just starting finds
out late. Everything else goes with its driver by itself. Where there is no /proc both stay as long as they do.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def watching(folder: Path, parent: int) -> Iterator[None]:
    """Until the end of the block: when this process ends, however, the children that a process has now end too, and
    all of Ray's that were started with the folder among their arguments.
    """
    command = [sys.executable, "-I", "-S", __file__, str(folder), *_children(parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):  # its end closes the pipe
        yield


def _children(parent: int) -> list[str]:
    """Process numbers, with when they began."""
    found = []
    for task in Path(f"/proc/{parent}/task").glob("*/children"):
        for pid in task.read_text().split():
            with suppress(OSError):
                found.append(f"{pid}:{_born(pid)}")
    return found


def _born(pid: str) -> str:
    """When a process began: its number may be another one's by now."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def _reap(folder: str, children: list[str]) -> None:
    for process in Path("/proc").glob("[0-9]*"):
        pid = process.name
        with suppress(OSError):
            line = (process / "cmdline").read_bytes()
            if (folder.encode() in line and b"/ray/" in line) or f"{pid}:{_born(pid)}" in children:
                os.kill(int(pid), signal.SIGKILL)


if __name__ == "__main__":
    sys.stdin.read()
    _reap(sys.argv[1], sys.argv[2:])
