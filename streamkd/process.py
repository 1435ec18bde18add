"""A process of ours beside this one: started on one end of a socket pair, gone with its parent, bounded in memory.

spawn(MODULE, their end) ─► python -m MODULE --fd N: descriptor(), die_with_parent(), bound_memory(...)
"""

import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

_PR_SET_PDEATHSIG = 1
Process = subprocess.Popen[bytes]


def spawn(module: str, end: socket.socket, environment: Mapping[str, str] = MappingProxyType({})) -> Process:
    """``python -m MODULE --fd N`` with its end of a socket pair, which is closed here; there it is ``descriptor()``."""
    with end:
        command = [sys.executable, "-P", "-m", module, "--fd", str(end.fileno())]
        settings = {**os.environ, **environment}
        return subprocess.Popen(command, pass_fds=[end.fileno()], stdin=subprocess.DEVNULL, env=settings)


def descriptor() -> int:
    """The end of the socket pair that this process was given."""
    return int(sys.argv[sys.argv.index("--fd") + 1])


def follow_parent() -> None:
    """Be killed when the parent dies, and leave the stop signals to it.

    A terminal and a service manager send them to the whole group, and children stop in order, when they are told.
    """
    if sys.platform == "linux":  # elsewhere nothing: they see the end of the stream
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)


def bound_address_space(limit_bytes: int) -> None:
    """An allocation past the limit fails in this process instead of starving the others."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = limit_bytes if hard == resource.RLIM_INFINITY else min(limit_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def bound_memory(more_bytes: int) -> None:
    """Let this process allocate so much more than it has now; libraries alone take a gigabyte. Linux only.

    What is beyond is a ``MemoryError``. ``RLIMIT_AS`` would count what CUDA only reserves.
    """
    status = Path("/proc/self/status")
    lines = status.read_text("ascii").splitlines() if status.exists() else []
    taken = next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:")), 0)
    resource.setrlimit(resource.RLIMIT_DATA, (taken + more_bytes, taken + more_bytes))


def lacks_memory(fault: BaseException) -> bool:
    """Whether it says that there is none left: torch has a class of its own on a GPU, and none on a CPU."""
    torchs = type(fault).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(fault)
    return torchs or isinstance(fault, MemoryError)
