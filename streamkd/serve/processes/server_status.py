"""What is known of the running server: what the learner said last, how its processes fare, the lag, who is ready.

    children's messages ─► ServerStatus ◄─ drain ─► /v2/health, /v1/status, lag of each answer

Written by the supervisor's threads, read by the HTTP server; the learner's words outlive the learner, so the
page goes on while it is restarted.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from streamkd.serve.processes.messages import Json, Offsets

GRACE_SECONDS = 10.0  # a restart takes a second or two; its first delays are below this
ProcessState = Literal["starting", "running", "restarting", "stopped", "failed"]


@dataclass
class ProcessStatus:
    """One child process as it stands. ``silent_seconds``: since its main loop was last known to go on."""

    state: ProcessState = "starting"
    restarts: int = 0
    pid: int | None = None
    reason: str = ""
    doing: str = ""
    silent_seconds: float = 0.0


class IngestState:
    """Whether pushed records are taken: the ingress listens wherever the configuration says.

    Closed for the time of a restart it sends nobody away: producers come again. Any thread may call.
    """

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


class Lag:
    """How many records wait to be learned: of every partition its end less its offset, as last heard.

    A learner that hangs says nothing more: its offsets stand, the ends that the ingress says rise, and so does the lag.
    Any thread may call.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: dict[str, int] = {}
        self._offsets: dict[str, int] = {}

    def hear(self, offsets: Offsets, ends: Offsets = MappingProxyType({})) -> None:
        """Take what was said last. Ends only rise; a restarted learner's offsets fall."""
        with self._lock:
            for partition, end in ends.items():
                self._ends[partition] = max(end, self._ends.get(partition, 0))
            self._offsets.update(offsets)

    def records(self) -> int | None:
        """Records that are there and not trained; ``None`` where the source has no end, or nobody has said it."""
        with self._lock:
            lags = [max(0, end - self._offsets[p]) for p, end in self._ends.items() if p in self._offsets]
        return sum(lags) if lags else None


@dataclass
class ServerStatus:
    """The last status of the learner and the state of each child; every method may be called from any thread.

    ``ingest``: of the ingress, where the configuration has a push source.
    """

    name: str
    source: str
    ingest: IngestState | None = None
    started_timestamp_seconds: float = field(default_factory=time.time)
    draining: bool = False
    urls: dict[str, str] = field(default_factory=dict)
    lag: Lag = field(default_factory=Lag)
    _status: Json = field(default_factory=dict)
    _processes: dict[str, ProcessStatus] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, status: Json) -> None:
        """Take the learner's status."""
        with self._lock:
            self._status = status

    def process(self, name: str, state: ProcessState, pid: int | None = None, reason: str = "") -> None:
        """Take the state of a child; ``restarting`` counts a restart, ``reason`` says why."""
        with self._lock:
            process = self._processes.setdefault(name, ProcessStatus())
            process.state, process.pid, process.doing, process.silent_seconds = state, pid, "", 0.0
            process.restarts += state == "restarting"
            process.reason = reason or process.reason
        if name == "ingress" and self.ingest is not None and state in ("restarting", "stopped"):
            self.ingest.close(f"records are not taken: the ingress {reason or 'has stopped'}")

    def heartbeat(self, name: str, doing: str, silent_seconds: float) -> None:
        """Take what a child's main loop does, and how long ago it said so."""
        with self._lock:
            process = self._processes.setdefault(name, ProcessStatus())
            process.doing, process.silent_seconds = doing, silent_seconds
        if name == "ingress" and self.ingest is not None:
            self.ingest.silent(silent_seconds)

    def records_trained(self) -> int:
        """Records that the learner has trained, as far as it has said."""
        trained = self._status.get("records_trained")
        return trained if isinstance(trained, int) else 0

    def lag_records(self, published_records: int) -> int:
        """Records trained since a version was cut; a learner that went back to its checkpoint has none."""
        return max(0, self.records_trained() - published_records)

    def closed(self) -> str:
        """Why the server is not ready, whatever its predictions are; empty where records are taken too."""
        if self.draining:
            return "the server is stopping"
        return self.ingest.reason() if self.ingest is not None else ""

    def status(
        self,
        version: int | None,
        published_at: float | None,
        reason: str,
        dead_letters: int,
        pinned: Mapping[str, Any] | None = None,
    ) -> Json:
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
