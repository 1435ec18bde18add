"""Group commit: batches of all producers, written to the log in one transaction after another.

    submit(entry) ─► waiting ─► one transaction of all that wait ─► each future gets its receipt

While one transaction is synced to disk the next group gathers, so that a commit costs the same for one
producer as for many. Nobody waits for ever: what fails a transaction is told to those whose batches were in it,
and what ends the thread (the log's file is broken) to all that wait; then it ends the process.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from streamkd.errors import LogDamaged, NotReady, StreamkdError
from streamkd.streams.log.log import Entry, Log
from streamkd.streams.log.receipts import Receipt

GROUP_BYTES = 32 << 20
logger = logging.getLogger(__name__)

Group = list[tuple[Entry, "Future[Receipt]"]]
Written = Callable[[Entry, Receipt | None], None]


class Committer:
    """One thread over one log. ``written`` is told of every entry, with ``None`` where it was not written."""

    def __init__(self, log: Log, written: Written) -> None:
        self._log = log
        self._written = written
        self._waiting: deque[tuple[Entry, Future[Receipt]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self._thread.start()

    def submit(self, entry: Entry) -> "Future[Receipt]":
        """The receipt to come; when it is there the batch is on disk. Entries are written in order.

        Raises:
            NotReady: closed, or the thread is dead.
        """
        future: Future[Receipt] = Future()
        with self._changed:
            if self._closed:
                raise _ending()
            self._waiting.append((entry, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Write what waits, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        group: Group = []
        try:
            while group := self._group():
                self._commit(group)
        except BaseException:
            self._abandon(group)
            raise

    def _group(self) -> Group:
        """Everything that waits, up to ``GROUP_BYTES`` and one; nothing when closed."""
        group: Group = []
        group_bytes = 0
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            while self._waiting and group_bytes < GROUP_BYTES:
                group.append(self._waiting.popleft())
                group_bytes += group[-1][0].rows.nbytes
        return group

    def _commit(self, group: Group) -> None:
        outcomes: Sequence[Receipt | Exception]
        try:
            outcomes = self._log.append_many([entry for entry, _ in group])
        except LogDamaged:
            raise
        except Exception as fault:  # noqa: BLE001 - whatever it is, no producer may wait for ever
            if len(group) > 1 and not isinstance(fault, StreamkdError):  # one batch's, perhaps: it hurts itself alone
                for one in group:
                    self._commit([one])
                return
            logger.warning("%d batches were not written: %s", len(group), fault)
            outcomes = [fault] * len(group)
        for (entry, future), outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._written(entry, None)
                future.set_exception(outcome)
            else:
                self._written(entry, outcome)
                future.set_result(outcome)

    def _abandon(self, group: Group) -> None:
        """Tell all that wait that this thread ends; what it has written is a duplicate when it is sent again."""
        with self._changed:
            self._closed = True
            waiting = [*group, *self._waiting]
            self._waiting.clear()
        for _, future in waiting:
            if not future.done():
                future.set_exception(_ending())


def _ending() -> NotReady:
    return NotReady("the server is shutting down", fix="send the batch again after the restart")
