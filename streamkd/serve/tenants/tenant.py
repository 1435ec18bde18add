"""One tenant as the server knows it: its configuration, how it stands, what was counted, and whether it wants a turn.

    its learner's and its ingress' messages ─► Tenant ◄─ HTTP, the queue

Whatever goes wrong is this tenant's: ``reason`` says it, and it is tried again, ever less often, at least every five
minutes: a state directory that somebody has put right goes on by itself. A changed configuration file is tried at once.
"""

import threading
import time
from pathlib import Path
from typing import Any

from streamkd.config import Config, dump
from streamkd.serve.processes import messages
from streamkd.serve.processes.child import Backoff
from streamkd.serve.processes.messages import Message, Offsets
from streamkd.serve.processes.server_status import ServerStatus
from streamkd.serve.tenants.folder import TenantFile
from streamkd.telemetry import Exposition, Recorder

FIRST_SECONDS = 1.0  # before a turn that failed is tried again; twice as long each time
LAST_SECONDS = 300.0


class Tenant:
    """One of them. ``tell`` is called from the children's threads, the rest from the server's loop."""

    def __init__(self, name: str, file: TenantFile, state: Path, config: Config | None, reason: str = "") -> None:
        """``config=None``: it cannot be used, for that ``reason``."""
        self.name, self.file, self.state, self.config = name, file, state, config
        self.refused = reason  # of the file as it lies there now, which may be newer than what is in use
        self.failed = self.shut_out = ""  # why its learner, or its ingress, could not go on
        self.status = ServerStatus(name, "http", pushed=True)
        self.recorder, self.exposition = Recorder(), Exposition()
        self.turns = self.failures = 0
        self.longest_wait_seconds = 0.0
        self.asked_in = self.taken_in = self.leaving = self.gone = False  # of the ingress
        self.committed: messages.Committed | None = None
        self._before: Offsets = {}
        self._backoff, self._asking = Backoff(FIRST_SECONDS, LAST_SECONDS), Backoff(FIRST_SECONDS, LAST_SECONDS)
        self._not_before = self._ask_after = 0.0
        self._lock = threading.Lock()

    @property
    def reason(self) -> str:
        """What is wrong with it; empty where nothing is."""
        return self.failed or self.shut_out or self.refused

    @property
    def lag(self) -> int:
        """Records that wait to be learned, as far as is known."""
        return self.status.lag.records() or 0

    @property
    def least_seconds(self) -> float:
        """How long a turn is at least: a short batch is cut after a silence, which must fit in."""
        return 3 * self.config.stream.batch.flush_seconds if self.config else 0.0

    def wants(self) -> bool:
        """Whether it is to stand in the queue."""
        return self.taken_in and not self.leaving and self.lag > 0 and time.monotonic() >= self._not_before

    def may_ask_in(self) -> bool:
        """Whether the ingress is to be told to open its log."""
        is_time = time.monotonic() >= self._ask_after
        return self.config is not None and not (self.leaving or self.asked_in) and is_time

    def let_in(self) -> None:
        """The ingress takes its records."""
        self.taken_in, self.shut_out = True, ""
        self.status.open()

    def let_out(self, reason: str) -> None:
        """The ingress does not, and is asked again later."""
        self.asked_in, self.taken_in, self.gone, self.shut_out = False, False, True, reason
        self._ask_after = time.monotonic() + self._asking.after(0.0)
        self.status.shut(f"records are not taken: {reason}")

    def begin(self) -> messages.Begin:
        """What a child is told first."""
        assert self.config is not None
        return messages.Begin(dump(self.config), str(self.state.absolute()))

    def turn_begun(self, waited_seconds: float) -> None:
        """A worker has it."""
        self.turns += 1
        self.longest_wait_seconds = max(self.longest_wait_seconds, waited_seconds)
        self._before = self.committed.offsets if self.committed else {}

    def turn_over(self, failure: str = "") -> None:
        """The worker has left it; after a ``failure`` what was learned since the checkpoint is to come again."""
        offsets = self.committed.offsets if self.committed else {}
        self.status.lag.hear(offsets)
        self.status.process("learner", "stopped", reason=failure)
        self.failures += bool(failure)
        self.failed = failure
        if failure or (
            offsets == self._before and self.lag
        ):  # it may be a record of its own that ends whoever learns it
            self._not_before = time.monotonic() + self._backoff.after(0.0)
        else:
            self._backoff, self._not_before = Backoff(FIRST_SECONDS, LAST_SECONDS), 0.0

    def tell(self, message: Message) -> None:
        """Take what a child says of it."""
        match message:
            case messages.Beat():
                self.status.lag.hear(message.offsets, message.ends)
            case messages.Status(status):
                self.status.tell(status)
            case messages.Counted(deltas):
                with self._lock:
                    self.exposition.apply(deltas)
            case messages.Committed():
                self.committed = message
                self.status.lag.hear(message.offsets)

    def summary(self, turn: str) -> dict[str, Any]:
        """A line of the list of tenants."""
        return {
            "state": "failed" if self.failed or self.shut_out or self.config is None else turn,
            "reason": self.reason,
            "records_trained": self.status.records_trained(),
            "lag_records": self.lag,
            "turns": self.turns,
            "failures": self.failures,
            "longest_wait_seconds": round(self.longest_wait_seconds, 3),
        }
