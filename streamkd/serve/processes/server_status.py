"""What is known of the running server: what the learner said last, how its processes fare, the lag, who is ready.

    children's messages ─► ServerStatus ◄─ drain ─► /v2/health, /v1/status, lag of each answer

Written by the supervisor's threads, read by the HTTP server; the learner's words outlive the learner, so the
page goes on while it is restarted.
"""

import math
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

    ``pushed``: records are pushed, and the server is ready while the ingress listens wherever the configuration says.
    """

    name: str
    source: str
    pushed: bool = False
    started_timestamp_seconds: float = field(default_factory=time.time)
    draining: bool = False
    urls: dict[str, str] = field(default_factory=dict)
    lag: Lag = field(default_factory=Lag)
    _status: Json = field(default_factory=dict)
    _ingress: Json = field(default_factory=dict)
    _processes: dict[str, ProcessStatus] = field(default_factory=dict)
    _shut: str = "records are not taken yet: the learner has not loaded"
    _shut_since: float = -math.inf
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, status: Json) -> None:
        """Take the learner's status."""
        with self._lock:
            self._status = status

    def tell_ingress(self, said: Json) -> None:
        """Take how labels that come later, the order by event time and watched files stand, as the ingress says it."""
        with self._lock:
            self._ingress = {name: said[name] for name in ("labels", "order", "files") if name in said}

    def process(self, name: str, state: ProcessState, pid: int | None = None, reason: str = "") -> None:
        """Take the state of a child; ``restarting`` counts a restart, ``reason`` says why."""
        with self._lock:
            process = self._processes.setdefault(name, ProcessStatus())
            process.state, process.pid, process.doing, process.silent_seconds = state, pid, "", 0.0
            process.restarts += state == "restarting"
            process.reason = reason or process.reason
        if name == "ingress" and state in ("restarting", "stopped"):
            self.shut(f"records are not taken: the ingress {reason or 'has stopped'}")

    def heartbeat(self, name: str, doing: str, silent_seconds: float) -> None:
        """Take what a child's main loop does, and how long ago it said so."""
        with self._lock:
            process = self._processes.setdefault(name, ProcessStatus())
            process.doing, process.silent_seconds = doing, silent_seconds

    def open(self) -> None:
        """The ingress listens everywhere."""
        with self._lock:
            self._shut = ""

    def shut(self, reason: str) -> None:
        """It does not, any more; for the time of a restart that sends nobody away: producers come again."""
        with self._lock:
            if not self._shut:
                self._shut_since = time.monotonic()
            self._shut = reason

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
        if not self.pushed:
            return ""
        with self._lock:
            if self._shut and time.monotonic() - self._shut_since > GRACE_SECONDS:
                return self._shut
            silent_seconds = self._processes.get("ingress", ProcessStatus()).silent_seconds
        if silent_seconds > GRACE_SECONDS:
            return f"records are not taken: the ingress has been silent for {silent_seconds:.0f} s"
        return ""

    def status(
        self,
        version: int | None,
        published_at: float | None,
        reason: str,
        refused: Mapping[str, int],
        pinned: Mapping[str, Any] | None = None,
    ) -> Json:
        """The status page's data: the learner's words, and the server's own under ``server``.

        ``refused``: dead letters since the start, by reason.
        """
        with self._lock:
            processes = {name: asdict(process) for name, process in self._processes.items()}
            status = {**self._status, **self._ingress}
        server = {
            "name": self.name,
            "source": self.source,
            "ready": not reason,
            "reason": reason,
            "version": version,
            "published_timestamp_seconds": published_at,
            "pinned": pinned,
            "dead_letters": sum(refused.values()),
            "refused": dict(refused),
            "started_timestamp_seconds": self.started_timestamp_seconds,
            "timestamp_seconds": time.time(),
            "urls": dict(self.urls),
            "processes": processes,
        }
        return {**status, "lag_records": self.lag.records(), "server": server}
