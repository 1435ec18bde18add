"""Whether records that are pushed find an open door: the ingress listens wherever the configuration says.

    shut (nothing has listened yet) ─► open ─► shut: restarted, silent, a port taken ─► open ...

The door may be shut for the time of a restart without anybody being sent away: producers come again.
"""

import threading
import time

GRACE_SECONDS = 10.0  # a restart takes a second or two; its first delays are below this


class Door:
    """The door of the ingress; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shut: str = "records are not taken yet: the learner has not loaded"
        self._since = float("-inf")
        self._silent_seconds = 0.0

    def open(self) -> None:
        """Everything listens."""
        with self._lock:
            self._shut = ""
            self._silent_seconds = 0.0

    def close(self, reason: str) -> None:
        """Not everything listens any more; the time counts from when it was open."""
        with self._lock:
            if not self._shut:
                self._since = time.monotonic()
            self._shut = reason
            self._silent_seconds = 0.0

    def silent(self, seconds: float) -> None:
        """The ingress has not been heard of for so long."""
        with self._lock:
            self._silent_seconds = seconds

    def reason(self) -> str:
        """Why records are not taken, where that has lasted for longer than a restart; else empty."""
        with self._lock:
            if self._shut and time.monotonic() - self._since > GRACE_SECONDS:
                return self._shut
            if self._silent_seconds > GRACE_SECONDS:
                return f"records are not taken: the ingress has been silent for {self._silent_seconds:.0f} s"
            return ""
