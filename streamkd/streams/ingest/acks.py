"""Acknowledgements of one put stream: the receipts of its batches, in order, several in one message.

    reader thread ─ expect(future) ─► pending ─► ack thread: wait for the oldest, fold all that are done, write

A thread of its own, since a client may send one batch and wait for its ack before it sends the next, while
the reader waits for that next. What is folded while a client does not read its acks takes no memory.
"""

import itertools
import json
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from streamkd.streams.log.log import JoinReceipt
from streamkd.streams.log.receipts import Receipt

IN_FLIGHT = 256


class Acks:
    """``write`` sends one message; its failure means that the client is gone, and the batches stay written.

    ``failed`` is called when no more acks will come: the reader may be waiting for a client that waits for one.
    """

    def __init__(self, write: Callable[[bytes], None], failed: Callable[[], None] = lambda: None) -> None:
        self._write, self._failed = write, failed
        self._pending: deque[tuple[Future[Receipt], int]] = deque()
        self._pending_bytes = 0
        self._changed = threading.Condition()
        self._finished = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="acks", daemon=True)
        self._thread.start()

    def expect(self, future: "Future[Receipt]", held_bytes: int, limit_bytes: int) -> None:
        """The next receipt to acknowledge; waits while too many batches of this stream are under way.

        Raises:
            StreamkdError: an earlier batch was not written.
        """
        with self._changed:
            self._pending.append((future, held_bytes))
            self._pending_bytes += held_bytes
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._failure is not None or not self._full(limit_bytes))
        self.raise_failure()

    def _full(self, limit_bytes: int) -> bool:
        return len(self._pending) > IN_FLIGHT or self._pending_bytes > limit_bytes

    def raise_failure(self) -> None:
        """Raise why an earlier batch was not written, if one was not."""
        if self._failure is not None:
            raise self._failure

    def finish(self) -> None:
        """Wait until everything is written and acknowledged."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        try:
            while receipts := self._next():
                for _, alike in itertools.groupby(receipts, lambda receipt: receipt.duplicate):
                    self._write(fold(list(alike)))
        except Exception as fault:  # noqa: BLE001 - a batch was not written, or the client is gone: the reader is told
            with self._changed:
                self._failure = fault
                self._changed.notify_all()
            self._failed()

    def _next(self) -> list[Receipt]:
        """The receipts that are there, waiting for the first; none when there are no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._finished)
            oldest = self._pending[0][0] if self._pending else None
        if oldest is None:
            return []
        oldest.result()  # raises why it was not written
        return self._done()

    def _done(self) -> list[Receipt]:
        receipts = []
        with self._changed:
            while self._pending and self._pending[0][0].done() and self._pending[0][0].exception() is None:
                future, held_bytes = self._pending.popleft()
                self._pending_bytes -= held_bytes
                receipts.append(future.result())
            self._changed.notify_all()
        return receipts


def fold(receipts: Sequence[Receipt]) -> bytes:
    """One acknowledgement of several batches, all new or all duplicates: the last sequence and offset, else sums.

    A batch that was sent again counts as it counted the first time, so a producer's sums are right
    whichever of its acks were lost.
    """
    body = {
        "sequence": receipts[-1].sequence,
        "accepted": sum(receipt.accepted for receipt in receipts),
        "rejected": sum(receipt.rejected for receipt in receipts),
        "offset": max(receipt.offset for receipt in receipts),
        "duplicate": receipts[-1].duplicate,
        **early(receipts),
    }
    return json.dumps(body).encode()


def early(receipts: Sequence[Receipt]) -> dict[str, int | str]:
    """What is told of labels that came before their prediction, if any did."""
    found = [receipt for receipt in receipts if isinstance(receipt, JoinReceipt) and receipt.early]
    if not found:
        return {}
    seconds = f"{found[0].early_seconds:g} s"
    note = (
        f"a label that comes before its prediction waits {seconds} for it; after that it is unknown, and may come again"
    )
    return {"early": sum(receipt.early for receipt in found), "note": note}
