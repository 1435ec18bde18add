"""A teacher in a process of its own, as the pool sees it: it answers, or it is away.

    call ─► away by the journal, or still? ─► the process, within its time ─► what it says
                        ▲                          └ lost ─► journaled ─► away for so many calls, then as it was kept
                        └──────────────────────────────────────────────────┘

What a process does in which time is no matter of the log. So each absence is written down before it is used, under the
number of its call; how long it lasts is counted in calls, twice as many each time; and the teacher comes back as it was
when a checkpoint last asked for its state. A learner that goes back to a checkpoint takes the same steps again.
"""

import logging
import tempfile
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any, BinaryIO

import torch
from torch import Tensor

from streamkd.choices import Isolation
from streamkd.errors import PluginError
from streamkd.isolation import frames
from streamkd.isolation.absences import AbsenceJournal
from streamkd.isolation.worker import Lost, Worker
from streamkd.records import Label
from streamkd.state.tree import Tree
from streamkd.teachers.guard import Absent

START_SECONDS = 120.0  # for the libraries, and whatever the teacher loads
AGAIN_SECONDS = 60.0  # for the same in the middle of the stream, where the supervisor waits for signs of life
FIRST = 1_000  # calls of the first absence: a process takes seconds to start
STEADY = 100  # times an absence, after which so many answered calls make it the first again
logger = logging.getLogger(__name__)


class IsolatedTeacher:
    """``about`` is what its process builds; what the teacher can do beyond answering it shows by having the methods."""

    isolated = True

    def __init__(
        self,
        about: Tree,
        limits: Isolation,
        journal: AbsenceJournal | None = None,
    ) -> None:
        self.key: str = about["key"]
        self._labels: list[Label] = list(about["labels"])
        self._known, self._bytes = torch.zeros(0, dtype=torch.bool), 0
        self._limits = limits
        self._file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - as long as processes may be started
        weakref.finalize(self, self._file.close)
        self._file.write(frames.encode({**about, "memory_bytes": limits.memory_bytes}))
        self._file.flush()
        self._journal = journal
        self._absences = {} if journal is None else journal.of(self.key)
        self._keeps = {*self._absences.values()}
        self._kept: tuple[int, Tree] = 0, None  # its state after so many calls
        self._calls = self._until = self._since = self._failures = self._restarts = 0
        self.away = self._again = False
        self._lost: Lost | None = None  # found out where nothing could be said of it
        self._worker: Worker | None = self._launched()
        self._take(self._begun())

    def _begun(self) -> dict[str, Any]:
        """Facts of the first life.

        Raises:
            PluginError: it cannot be built.
        """
        try:
            if self._worker is None:
                raise Lost("died", "no process could be started")
            facts = self._worker.wait(START_SECONDS)
        except Lost as fault:
            logger.error("%s", fault.trace or fault)
            said = f"the teacher {self.key!r} cannot be built in a process of its own: {fault}"
            raise PluginError(said, where=f"teacher {self.key}", fix="see its options and its files") from fault
        self.role, self.fresh = facts["role"], facts["fresh"]
        can = facts["can"]
        self._stateful = "state" in can
        if "test_then_train" in can:
            self.test_then_train = partial(self._asked, "test_then_train")
        if "recall" in can:
            self.recall = partial(self._asked, "recall")
        if "observe" in can:
            self.observe, self.end_task = partial(self._asked, "observe"), partial(self._asked, "end_task")
        return facts

    def logits(self, x: Tensor) -> Tensor:
        """Raises ``Absent`` where it is away, as whatever else is asked of it does."""
        return self._asked("logits", x)

    def known(self) -> Tensor:
        """As it was when it spoke last."""
        return self._known

    def size_bytes(self) -> int:
        return self._bytes

    def grow(self, labels: Sequence[Label]) -> None:
        self._labels = list(labels)
        if not self.away and self._lost is None:
            self._unasked("grow", self._labels)
        more = len(labels) - len(self._known)
        self._known = torch.nn.functional.pad(self._known, (0, more)) if more > 0 else self._known

    def _asked(self, call: str, *arguments: Tensor) -> Any:
        """A call whose answer is used, so that its absence is journaled."""
        number = self._calls
        if number in self._keeps and number > self._kept[0]:
            self._keep()  # of an absence to come: this learner went back further than to its checkpoint
        self._calls += 1
        if number < self._until:
            raise Absent(self.key)
        try:
            if number in self._absences:
                raise Lost("journaled", "the journal says so")
            if self.away:
                self._come_back()
            if self._lost is not None:
                raise self._lost
            assert self._worker is not None
            said = self._take(self._worker.ask(call, arguments))
        except Lost as fault:
            self._leave(number, fault)
            raise Absent(self.key, "" if fault.reason == "journaled" else fault.reason, str(fault)) from None
        return said.to(arguments[0].device) if isinstance(said, Tensor) else said

    def _unasked(self, call: str, *arguments: Any) -> Any:
        """A call of which the next step shows whether it went well."""
        try:
            assert self._worker is not None
            return self._take(self._worker.ask(call, arguments))
        except Lost as fault:
            self._lost = fault
            return None

    def _take(self, facts: dict[str, Any]) -> Any:
        self._known, self._bytes = facts["known"].cpu(), facts.get("bytes", 0)
        if "version" in facts:  # what comes back has another history: no number of before is its own
            self.version = (self._restarts << 32) + facts["version"]
        return facts.get("said")

    def _come_back(self) -> None:
        """In a new process, as it was kept; after an absence of the journal it is waited for."""
        if self._worker is None:
            self._worker = self._launched()
        if self._worker is None:
            raise Lost("starting", "no process could be started")
        self._worker.wait(AGAIN_SECONDS if self._again else 0.0)
        self._take(self._worker.ask("begin", (self._kept[1], self._labels)))
        self.away = self._again = False
        logger.info("teacher %s is back", self.key)

    def _leave(self, call: int, fault: Lost) -> None:
        """Away from this call on: written down, and a new process started."""
        if call not in self._absences and self._journal is not None:
            self._journal.put(self.key, call, self._kept[0])
        calls = FIRST << max(self._failures - 1, 0)
        steady = call - self._since > STEADY * calls
        self._failures = 1 if steady else self._failures + 1
        calls = FIRST << (self._failures - 1)
        self._until = self._since = call + 1 + calls
        self._restarts, self.away, self._lost = self._restarts + 1, True, None
        self._again = fault.reason == "journaled"
        trace = f"\n{fault.trace}" if fault.trace else ""
        logger.warning("teacher %s is away for %d calls: %s%s", self.key, calls, fault, trace)
        if self._worker is not None:
            self._worker.end()
        self._worker = self._launched()

    def _launched(self) -> Worker | None:
        try:
            return Worker(self._file, self._limits.timeout_seconds, self._limits.memory_bytes)
        except OSError as fault:
            logger.warning("teacher %s: no process could be started: %s", self.key, fault)
            return None

    def _keep(self) -> None:
        if self._stateful and not self.away and self._lost is None:
            state = self._unasked("state")
            if self._lost is None:
                self._kept = self._calls, state

    def state_dict(self) -> dict[str, Any]:
        """Its state, or where it is away that with which it comes back; and how it stands."""
        self._keep()
        book = {"calls": self._calls, "until": self._until, "since": self._since, "failures": self._failures}
        seen = {"known": self._known, "version": getattr(self, "version", 0), "restarts": self._restarts}
        return {"state": self._kept[1], "isolated": {**book, **seen, "kept": self._kept[0], "away": self.away}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; one of the same teacher within the learner is one, too."""
        book = state.get("isolated", {})
        self._kept = book.get("kept", 0), state["state"] if book else state
        self._calls, self._until = book.get("calls", 0), book.get("until", 0)
        self._since, self._failures = book.get("since", 0), book.get("failures", 0)
        self._restarts = book.get("restarts", 0)
        if book.get("away"):
            self.away = self._again = True
            self._known, self.version = book["known"], book["version"]
        else:
            self._unasked("begin", self._kept[1], self._labels)
