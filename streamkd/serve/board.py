"""What is known of the running server: what the learner said last, how the processes fare, who is ready.

    children's messages ─► Board ◄─ drain ─► /v2/health, /v1/status, lag of each answer

Written by the supervisor's threads, read by the HTTP server; the learner's words outlive the learner, so the
page goes on while it is restarted.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

ProcessState = Literal["starting", "running", "restarting", "stopped", "failed"]


@dataclass
class Process:
    """One child process as it stands."""

    state: ProcessState = "starting"
    restarts: int = 0
    pid: int | None = None


@dataclass
class Board:
    """The last status of the learner and the state of each child; every method may be called from any thread."""

    name: str
    source: str
    started_timestamp_seconds: float = field(default_factory=time.time)
    draining: bool = False
    urls: dict[str, str] = field(default_factory=dict)
    _status: dict[str, Any] = field(default_factory=dict)
    _processes: dict[str, Process] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, status: Mapping[str, Any]) -> None:
        """Take the learner's status."""
        with self._lock:
            self._status = {key: value for key, value in status.items() if key != "kind"}

    def process(self, name: str, state: ProcessState, pid: int | None = None, restarted: bool = False) -> None:
        """Take the state of a child."""
        with self._lock:
            process = self._processes.setdefault(name, Process())
            process.state, process.pid = state, pid
            process.restarts += restarted

    def state_of(self, name: str) -> ProcessState | None:
        """How a child fares; ``None`` where the server has none of that name."""
        with self._lock:
            return self._processes[name].state if name in self._processes else None

    def records_trained(self) -> int:
        """Records that the learner has trained, as far as it has said."""
        trained = self._status.get("records_trained")
        return trained if isinstance(trained, int) else 0

    def lag_records(self, published_records: int) -> int:
        """Records trained since a version was cut; a learner that went back to its checkpoint has none."""
        return max(0, self.records_trained() - published_records)

    def status(self, version: int | None, published_at: float | None, reason: str, dead_letters: int) -> dict[str, Any]:
        """The status page's data: the learner's words, and the server's own under ``server``."""
        with self._lock:
            processes = {
                name: {"state": p.state, "restarts": p.restarts, "pid": p.pid} for name, p in self._processes.items()
            }
            status = dict(self._status)
        server = {
            "name": self.name,
            "source": self.source,
            "ready": not reason,
            "reason": reason,
            "version": version,
            "published_timestamp_seconds": published_at,
            "dead_letters": dead_letters,
            "started_timestamp_seconds": self.started_timestamp_seconds,
            "timestamp_seconds": time.time(),
            "urls": dict(self.urls),
            "processes": processes,
        }
        return {**status, "server": server}
