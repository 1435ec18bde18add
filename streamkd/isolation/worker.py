"""One life of a teacher's process, from this side: started, asked within a time, ended.

Worker(file) ─► wait(seconds): facts ─► ask(call, arguments): what it says ─► end(), or the garbage collector's
└ Lost: raised, memory, timeout, died, starting
"""

import socket
import subprocess
import time
import weakref
from collections.abc import Sequence
from typing import Any, BinaryIO

from streamkd.isolation import frames
from streamkd.process import Process, spawn
from streamkd.state.tree import Tree

MODULE = "streamkd.isolation.process"
ANSWER_BYTES = 64 << 20  # most of an answer: a teacher may not fill the learner's memory
END_SECONDS = 10.0  # that the kernel may take to end what was killed


class Lost(Exception):
    """The process is of no more use, for this ``reason``; ``trace`` is what it told of its own error."""

    def __init__(self, reason: str, said: str, trace: str = "") -> None:
        super().__init__(said)
        self.reason, self.trace = reason, trace


class Worker:
    """A process that builds what ``file`` says, and answers.

    ``timeout_seconds`` are for each answer; its state may have ``most_bytes``.
    """

    def __init__(self, file: BinaryIO, timeout_seconds: float, most_bytes: int) -> None:
        self._timeout_seconds, self._state_bytes = timeout_seconds, most_bytes
        self._facts: dict[str, Any] | None = None
        self._end, theirs = socket.socketpair()
        self.process = spawn(MODULE, theirs)
        self.end = weakref.finalize(self, _end, self.process, self._end)
        socket.send_fds(self._end, [b"0"], [file.fileno()])

    def wait(self, seconds: float) -> dict[str, Any]:
        """What it says of itself when it is built; it does so once.

        Raises:
            Lost: not within so long, or never.
        """
        if self._facts is None:
            try:
                self._facts = self._receive(time.monotonic() + seconds)
            except TimeoutError:
                raise Lost("starting", f"it is not there after {seconds:g} s") from None
        return self._facts

    def ask(self, call: str, arguments: Sequence[Tree] = ()) -> dict[str, Any]:
        """What it answers.

        Raises:
            Lost: it has not answered in time, raised, has no memory left, or is gone.
        """
        deadline = time.monotonic() + self._timeout_seconds
        try:
            frames.send(self._end, {"call": call, "arguments": list(arguments)}, deadline)
            return self._receive(deadline, self._state_bytes if call == "state" else ANSWER_BYTES)
        except TimeoutError:
            raise Lost("timeout", f"{call} took more than {self._timeout_seconds:g} s") from None
        except OSError as fault:
            raise Lost("died", f"its process is gone: {fault}") from None

    def _receive(self, deadline: float, most_bytes: int = ANSWER_BYTES) -> dict[str, Any]:
        try:
            said: dict[str, Any] = frames.receive(self._end, deadline, most_bytes)
        except TimeoutError:
            raise
        except MemoryError as fault:
            raise Lost("memory", str(fault)) from None
        except (EOFError, OSError):
            raise Lost("died", f"its process ended by itself, with {self._code()}") from None
        if "fault" in said:
            raise Lost(said["reason"], said["fault"], said["trace"])
        return said

    def _code(self) -> str:
        try:
            code = self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "its end of the socket closed"
        return f"signal {-code}" if code < 0 else f"code {code}"


def _end(process: Process, end: socket.socket) -> None:
    process.kill()  # nothing, where it has ended
    process.wait(END_SECONDS)
    end.close()
