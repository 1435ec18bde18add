"""How many records wait to be learned, measured by the supervisor.

    ingress, or learner where records are pulled: ends ─┐
    learner: offsets ───────────────────────────────────┴─► end - offset, summed over the partitions

A learner that hangs says nothing more: its offsets stand where they were, the ends rise, and so does the lag.
"""

import threading
from collections.abc import Mapping
from typing import Any


class Lag:
    """The last word on every partition; any thread may tell and ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: dict[str, int] = {}
        self._offsets: dict[str, int] = {}

    def hear(self, message: Mapping[str, Any]) -> None:
        """Take the ``ends`` and ``offsets`` of a message. Ends only rise; a restarted learner's offsets fall."""
        with self._lock:
            for partition, end in message.get("ends", {}).items():
                self._ends[partition] = max(end, self._ends.get(partition, 0))
            self._offsets.update(message.get("offsets", {}))

    def records(self) -> int | None:
        """Records that are there and not trained; ``None`` where the source has no end, or nobody has said it."""
        with self._lock:
            lags = [max(0, end - self._offsets[p]) for p, end in self._ends.items() if p in self._offsets]
        return sum(lags) if lags else None
