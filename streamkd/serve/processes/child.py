"""Keeps one child process alive: starts it, hears it, and starts it again when it dies or hangs.

    start ─► running ─► (died | silent for too long: killed) ─► wait 0.1 s, 0.2 s, ... 10 s ─► start ...
             told ``finish``: no more

One thread per child starts it, reads its channel and waits for its end. It must be one: the kernel kills a
child with the *thread* that started it (``PR_SET_PDEATHSIG``). Whatever goes wrong in it is a failed life of the
child, and the next one follows.
"""

import contextlib
import logging
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from streamkd.errors import StreamkdError
from streamkd.process import Process, spawn
from streamkd.serve.processes.channel import Channel, pair
from streamkd.serve.processes.messages import Beat, Fatal, Message
from streamkd.serve.processes.reports import CHECKPOINT, STARTING, STOPPING
from streamkd.serve.processes.server_status import ServerStatus
from streamkd.telemetry import Recorder

FIRST_DELAY_SECONDS = 0.1
LAST_DELAY_SECONDS = 10.0
HEALTHY_SECONDS = 60.0
LOOK_SECONDS = 1.0  # between looks at a child that says nothing
PATIENCE = 5  # times the limit, for what may rightly take long
_LONG = ("", STARTING, STOPPING, CHECKPOINT)
_EXIT_SECONDS = 5.0
LEARNER = "streamkd.serve.processes.learner"
Started = tuple[Process, Channel]
logger = logging.getLogger(__name__)


class Backoff:
    """How long to wait before the next start: twice as long each time, from the beginning after a healthy run."""

    def __init__(self, first_seconds: float = FIRST_DELAY_SECONDS, last_seconds: float = LAST_DELAY_SECONDS) -> None:
        self._first = self._delay = first_seconds
        self._last = last_seconds

    def after(self, run_seconds: float) -> float:
        """The wait after a run of that length."""
        if run_seconds >= HEALTHY_SECONDS:
            self._delay = self._first
        delay, self._delay = self._delay, min(2 * self._delay, self._last)
        return delay


class HeartbeatAge:
    """How long a child has not been heard of, in time in which we could have heard it.

    A machine that slept, or a group that was stopped and goes on, has no child that hangs.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds = 0.0
        self._looked = clock()

    def heard(self) -> None:
        """It has beaten."""
        self._seconds, self._looked = 0.0, self._clock()

    def look(self) -> float:
        """The seconds so far; to be called every ``LOOK_SECONDS``."""
        now = self._clock()
        self._seconds += min(now - self._looked, 2 * LOOK_SECONDS)
        self._looked = now
        return self._seconds


class ChildProcess:
    """One child, ``python -m MODULE --fd N``, which is told ``start()`` first and must beat every ``hang_seconds``.

    ``start`` gives ``None`` where there is nothing to tell yet. ``doing`` is what its main loop said last that it does.
    """

    def __init__(
        self,
        name: str,
        module: str,
        start: Callable[[], Message | None],
        hear: Callable[[Message], None],
        status: ServerStatus,
        recorder: Recorder,
        hang_seconds: float,
        environment: Mapping[str, str] | None = None,
        started: Started | None = None,
    ) -> None:
        """``started``: its first life, where that has begun already."""
        self.name = name
        self._module = module
        self._start = start
        self._hear = hear
        self._status = status
        self._recorder = recorder
        self._hang_seconds = hang_seconds
        self._environment = environment or {}
        self._started = started
        self._lock = threading.Lock()
        self._process: Process | None = None
        self._channel: Channel | None = None
        self.doing, self._last_words = "", ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"{name} process", daemon=True)

    def start(self) -> None:
        """Start the child, once."""
        if not self._thread.is_alive() and not self._ended.is_set():
            self._status.process(self.name, "starting")  # before anybody is answered: the status names every child
            self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether there is a child, or will be one again."""
        return self._thread.is_alive()

    def send(self, message: Message) -> bool:
        """Tell the child; ``False`` where there is none at this moment, or it does not listen."""
        with self._lock:
            channel = self._channel
        if channel is None:
            return False
        try:
            channel.say(message)
        except EOFError:
            return False
        return True

    def finish(self) -> None:
        """Do not start the child again once it has ended."""
        self._ended.set()

    def ask_to_end(self, message: Message) -> None:
        """Tell the child to end; it is not started again."""
        self.finish()
        self.send(message)

    def kill(self) -> None:
        """End the child now; it is not started again."""
        self.finish()
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
            end = self._live()
            if self._ended.is_set():
                break
            delay = backoff.after(time.monotonic() - begin)
            logger.warning("the %s %s; it is started again in %.1f s", self.name, end, delay)
            self._recorder.count("process_restarts_total", process=self.name)
            self._status.process(self.name, "restarting", reason=end)
            self._ended.wait(delay)
        self._recorder.remove("process_heartbeat_age_seconds", process=self.name)
        self._status.process(self.name, "stopped")

    def _live(self) -> str:
        """One life of the child; how it ended, whatever happened."""
        try:
            return self._run()
        except OSError as fault:  # no more processes, descriptors or memory: it may be over in a moment
            return f"could not be started: {fault}"
        except Exception as fault:  # the outermost frame of this thread: it must not end while the child is wanted
            logger.exception("keeping the %s failed", self.name)
            return f"could not be kept: {fault!r:.200}"

    def _run(self) -> str:
        first, self._started = self._started, None
        process, channel = first or start(self._module, self._environment)
        try:
            self._begin(process, channel)
            return self._listen(channel) or f"ended with code {_reap(process)}{self._last_words}"
        finally:
            self._end(process)
            channel.close()

    def _begin(self, process: Process, channel: Channel) -> None:
        with self._lock:
            self._process, self.doing, self._last_words = process, "", ""
        self._recorder.set("process_up", 1, process=self.name)
        self._status.process(self.name, "running", process.pid)
        if (first := self._start()) is not None:
            with contextlib.suppress(EOFError):
                channel.say(first)
        with self._lock:
            self._channel = channel
        if self._ended.is_set():  # asked to end before there was someone to ask
            process.kill()

    def _end(self, process: Process) -> None:
        with self._lock:
            self._process = self._channel = None
        process.kill()  # nothing, where it has ended
        process.wait()
        self._recorder.set("process_up", 0, process=self.name)

    def _listen(self, channel: Channel) -> str:
        """Hear the child until it ends; why it must be ended, where it must."""
        silence = HeartbeatAge()
        while True:
            try:
                message = channel.hear(LOOK_SECONDS)
            except EOFError:
                return ""
            except StreamkdError as fault:
                logger.warning("the %s said what is no message: %s", self.name, fault)
                continue
            if isinstance(message, Beat):
                self.doing = message.doing
                silence.heard()
            if hangs := self._look(silence.look()):
                return hangs
            if message is not None:
                self._take(message)

    def _look(self, seconds: float) -> str:
        """Note how long the child has been silent; what is to be said where that is too long."""
        self._recorder.set("process_heartbeat_age_seconds", seconds, process=self.name)
        self._status.heartbeat(self.name, self.doing, seconds)
        if seconds <= self._hang_seconds * (PATIENCE if self.doing in _LONG else 1):
            return ""
        self._recorder.count("process_hangs_total", process=self.name)
        return f"was silent for {seconds:.0f} s ({self.doing or 'not yet begun'}) and was killed"

    def _take(self, message: Message) -> None:
        if isinstance(message, Fatal):
            self._last_words = f": {message.message}"
        try:
            self._hear(message)
        except (StreamkdError, KeyError, TypeError, ValueError) as fault:
            logger.warning("a message of the %s is left out (%r): %.200r", self.name, fault, message)


def start(module: str, environment: Mapping[str, str]) -> Started:
    """A process that runs the module, and our end of its channel."""
    channel, theirs = pair()
    try:
        return spawn(module, theirs, environment), channel
    except OSError:
        channel.close()
        raise


@contextlib.contextmanager
def started(module: str) -> Iterator[Started]:
    """A child that loads what it needs while its parent, in its main thread, still does; it is gone after the block."""
    before = signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # inherited: Ctrl-C is the parent's, while the child loads too
    try:
        process, channel = start(module, {})
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        yield process, channel
    finally:
        process.kill()
        process.wait()
        channel.close()


def _reap(process: Process) -> int:
    """The exit code of a child that has closed its channel; one that does not end then is killed."""
    try:
        return process.wait(_EXIT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
