"""What is known of the running server: what the learner said last, how the processes fare, who is ready.

    children's messages ─► Board ◄─ drain ─► /v2/health, /v1/status, lag of each answer

Written by the supervisor's threads, read by the HTTP server; the learner's words outlive the learner, so the
page goes on while it is restarted.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from streamkd.serve.processes.ingest_state import Door
from streamkd.serve.processes.lag import Lag

ProcessState = Literal["starting", "running", "restarting", "stopped", "failed"]


@dataclass
class Process:
    """One child process as it stands. ``silent_seconds``: since its main loop was last known to go on."""

    state: ProcessState = "starting"
    restarts: int = 0
    pid: int | None = None
    reason: str = ""
    doing: str = ""
    silent_seconds: float = 0.0


@dataclass
class Board:
    """The last status of the learner and the state of each child; every method may be called from any thread.

    ``door``: of the ingress, where the configuration has a push source.
    """

    name: str
    source: str
    door: Door | None = None
    started_timestamp_seconds: float = field(default_factory=time.time)
    draining: bool = False
    urls: dict[str, str] = field(default_factory=dict)
    lag: Lag = field(default_factory=Lag)
    _status: dict[str, Any] = field(default_factory=dict)
    _processes: dict[str, Process] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, status: Mapping[str, Any]) -> None:
        """Take the learner's status."""
        with self._lock:
            self._status = {key: value for key, value in status.items() if key != "kind"}

    def process(self, name: str, state: ProcessState, pid: int | None = None, reason: str = "") -> None:
        """Take the state of a child; ``restarting`` counts a restart, ``reason`` says why."""
        with self._lock:
            process = self._processes.setdefault(name, Process())
            process.state, process.pid, process.doing, process.silent_seconds = state, pid, "", 0.0
            process.restarts += state == "restarting"
            process.reason = reason or process.reason
        if name == "ingress" and self.door is not None and state in ("restarting", "stopped"):
            self.door.close(f"records are not taken: the ingress {reason or 'has stopped'}")

    def heartbeat(self, name: str, doing: str, silent_seconds: float) -> None:
        """Take what a child's main loop does, and how long ago it said so."""
        with self._lock:
            process = self._processes.setdefault(name, Process())
            process.doing, process.silent_seconds = doing, silent_seconds
        if name == "ingress" and self.door is not None:
            self.door.silent(silent_seconds)

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

    def shut(self) -> str:
        """Why the server is not ready, whatever its predictions are; empty when every door is open."""
        if self.draining:
            return "the server is stopping"
        return self.door.reason() if self.door is not None else ""

    def status(
        self,
        version: int | None,
        published_at: float | None,
        reason: str,
        dead_letters: int,
        pinned: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The status page's data: the learner's words, and the server's own under ``server``."""
        with self._lock:
            processes = {name: asdict(process) for name, process in self._processes.items()}
            status = dict(self._status)
        server = {
            "name": self.name,
            "source": self.source,
            "ready": not reason,
            "reason": reason,
            "version": version,
            "published_timestamp_seconds": published_at,
            "pinned": pinned,
            "dead_letters": dead_letters,
            "started_timestamp_seconds": self.started_timestamp_seconds,
            "timestamp_seconds": time.time(),
            "urls": dict(self.urls),
            "processes": processes,
        }
        return {**status, "lag_records": self.lag.records(), "server": server}
