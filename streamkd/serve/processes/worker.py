"""A worker: a learner process that takes one tenant after another, and loads what it needs once.

    supervisor ─ Begin ─► live: lock, newest checkpoint, learn, ... ─ Stop ─► checkpoint, version ─► Stopped ─► Done
               ◄─ idle ── nothing of the tenant is left                          Drain ─► the end

``python -m streamkd.serve.processes.worker --fd N`` does for each tenant what a learner does in its whole life
(``learner.live``), so that what holds of a learner holds here. What ends the process ends it for one tenant; the
supervisor starts it again.
"""

import ctypes
import gc
import sys
from contextlib import suppress
from pathlib import Path

from streamkd import logs, threads
from streamkd.errors import StreamkdError
from streamkd.serve.processes.channel import Channel
from streamkd.serve.processes.learner import live
from streamkd.serve.processes.messages import Begin, Done, Drain, Message
from streamkd.serve.processes.reports import BEAT_SECONDS, IDLE, STARTING, Reporter
from streamkd.telemetry import Recorder


def main() -> int:
    """Serve tenants until the supervisor says drain, or is gone."""
    logs.to_stderr("%(asctime)s worker %(levelname)s %(message)s")
    channel = Channel.inherited()
    threads.end_process_when_one_dies(channel.send_fatal)
    reporter = Reporter(channel, Recorder())
    with suppress(EOFError):
        reporter.beat(STARTING)
        with suppress(ImportError, RuntimeError):  # the first tenant's learner says what is wrong
            import streamkd.avalanche.strategy  # noqa: F401
        message: Message | None = None
        while not isinstance(message, Drain):
            if isinstance(message, Begin):
                _take(message, channel)
            reporter.beat(IDLE)
            message = _next(channel)
    return 0


def _take(start: Begin, channel: Channel) -> None:
    """One tenant's turn, of which nothing stays in memory."""
    logs.about(f"%(asctime)s learner of {Path(start.state).name} %(levelname)s %(message)s")
    code = live(start, channel)
    _forget()
    channel.say(Done(code))


def _next(channel: Channel) -> Message | None:
    """What is said next; a stop for a tenant that has gone of itself is nothing."""
    try:
        return channel.hear(BEAT_SECONDS)
    except StreamkdError:  # the supervisor's own message was too long for it to be one of ours
        return None


def _forget() -> None:
    """Give what the last tenant took back to the system."""
    gc.collect()
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)


if __name__ == "__main__":
    threads.run_process(main)
