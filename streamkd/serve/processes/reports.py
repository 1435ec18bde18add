"""What a child tells its supervisor while it runs: that it goes on, how it stands, what it counted.

    main loop ─ beat ─► heartbeat, with what it is doing      status, metrics ─► bounded ─► channel

None of it is needed for learning: what cannot be sent is dropped and counted, never raised. Only the main loop
beats, so that silence means that the main loop stands.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from streamkd.errors import StreamkdError
from streamkd.serve.processes.bounds import bounded
from streamkd.serve.processes.channel import Channel
from streamkd.telemetry import Recorder

BEAT_SECONDS = 1.0
STARTING, STOPPING, CHECKPOINT = "starting", "stopping", "checkpoint"  # what may rightly take long


class Teller:
    """One child's telemetry. Every method raises ``EOFError`` where the supervisor is gone, and nothing else."""

    def __init__(self, channel: Channel, recorder: Recorder) -> None:
        self._channel = channel
        self._recorder = recorder
        self._doing = ""
        self._next = 0.0

    def beat(self, doing: str, more: Callable[[], Mapping[str, Any]] = dict) -> None:
        """Say that the main loop goes on and with what; at once where that is something new, else once a second.

        ``more`` is asked for what else there is to say, when it is said.
        """
        now = time.monotonic()
        if doing == self._doing and now < self._next:
            return
        self._doing, self._next = doing, now + BEAT_SECONDS
        self._send({"kind": "beat", "doing": doing, **more()})

    def status(self, status: Mapping[str, Any]) -> None:
        """Tell how it stands, within the bounds of a status."""
        try:
            told = bounded(status)
        except StreamkdError:  # no JSON; ``tell`` says so, and drops it
            told = dict(status)
        self._send({"kind": "status", **told})

    def metrics(self) -> None:
        """Tell what was counted since the last time."""
        if deltas := self._recorder.drain():
            self._send({"kind": "metrics", "deltas": deltas})

    def _send(self, message: dict[str, Any]) -> None:
        if not self._channel.tell(message):
            self._recorder.count("telemetry_dropped_total", kind=message["kind"])
