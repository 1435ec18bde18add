"""Keeps one child process alive: starts it, hears it, and starts it again when it dies.

    start ─► running ─► (died) ─► wait 0.1 s, 0.2 s, ... 10 s ─► start ...      said "fatal" or "stopped": no more

One thread per child starts it, reads its channel and waits for its end. It must be one: the kernel kills a
child with the *thread* that started it (``PR_SET_PDEATHSIG``).
"""

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from streamkd.errors import StreamkdError
from streamkd.serve.board import Board
from streamkd.serve.channel import Channel, pair
from streamkd.telemetry import Recorder

FIRST_DELAY_SECONDS = 0.1
LAST_DELAY_SECONDS = 10.0
HEALTHY_SECONDS = 60.0
_EXIT_SECONDS = 5.0
Message = dict[str, Any]
logger = logging.getLogger(__name__)


class Backoff:
    """How long to wait before the next start: twice as long each time, from the beginning after a healthy run."""

    def __init__(self) -> None:
        self._delay = FIRST_DELAY_SECONDS

    def after(self, run_seconds: float) -> float:
        """The wait after a run of that length."""
        if run_seconds >= HEALTHY_SECONDS:
            self._delay = FIRST_DELAY_SECONDS
        delay, self._delay = self._delay, min(2 * self._delay, LAST_DELAY_SECONDS)
        return delay


class Keeper:
    """One child, ``python -m MODULE --fd N``, which is told ``start()`` first."""

    def __init__(
        self,
        name: str,
        module: str,
        start: Callable[[], Message],
        hear: Callable[[Message], None],
        board: Board,
        recorder: Recorder,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._module = module
        self._start = start
        self._hear = hear
        self._board = board
        self._recorder = recorder
        self._environment = {**os.environ, **(environment or {})}
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"keeper of {name}", daemon=True)

    def start(self) -> None:
        """Start the child, once."""
        if not self._thread.is_alive() and not self._ended.is_set():
            self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether there is a child, or will be one again."""
        return self._thread.is_alive()

    def send(self, message: Message) -> bool:
        """Tell the child; ``False`` where there is none at this moment."""
        with self._lock:
            channel = self._channel
        if channel is None:
            return False
        try:
            channel.send(message)
        except EOFError:
            return False
        return True

    def ask_to_end(self, message: Message) -> None:
        """Tell the child to end; it is not started again."""
        self._ended.set()
        self.send(message)

    def kill(self) -> None:
        """End the child now; it is not started again."""
        self._ended.set()
        with self._lock:
            if self._process is not None:
                self._process.kill()

    def join(self, timeout: float) -> bool:
        """Wait until the child is gone for good."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _keep(self) -> None:
        backoff = Backoff()
        while not self._ended.is_set():
            begin = time.monotonic()
            code = self._run()
            if self._ended.is_set():
                break
            delay = backoff.after(time.monotonic() - begin)
            logger.warning("the %s ended with code %s; it is started again in %.1f s", self.name, code, delay)
            self._recorder.count("process_restarts_total", process=self.name)
            self._board.process(self.name, "restarting", restarted=True)
            self._ended.wait(delay)
        self._board.process(self.name, "stopped")

    def _run(self) -> int:
        """One life of the child; returns its exit code."""
        channel, theirs = pair()
        command = [sys.executable, "-P", "-m", self._module, "--fd", str(theirs.fileno())]
        with theirs:
            process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=self._environment
            )
        self._recorder.set("process_up", 1, process=self.name)
        self._board.process(self.name, "running", process.pid)
        with contextlib.suppress(EOFError):
            channel.send(self._start())
        with self._lock:
            self._process, self._channel = process, channel
        if self._ended.is_set():  # asked to end before there was someone to ask
            process.kill()
        try:
            self._listen(channel)
            return _reap(process)
        finally:
            with self._lock:
                self._process = self._channel = None
            channel.close()
            self._recorder.set("process_up", 0, process=self.name)

    def _listen(self, channel: Channel) -> None:
        while True:
            try:
                message = channel.receive()
            except EOFError:
                return
            except StreamkdError as fault:
                logger.warning("the %s said what is no message: %s", self.name, fault)
                continue
            if message is not None:
                self._take(message)

    def _take(self, message: Message) -> None:
        if message.get("kind") in ("fatal", "stopped"):
            self._ended.set()
        try:
            self._hear(message)
        except (StreamkdError, KeyError, TypeError, ValueError) as fault:
            logger.warning("a message of the %s is left out (%r): %.200r", self.name, fault, message)


def _reap(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a child that has closed its channel; one that does not end then is killed."""
    try:
        return process.wait(_EXIT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
