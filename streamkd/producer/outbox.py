"""What a producer still owes: batches numbered in order, kept until the server has them on disk.

    batches ─► pieces ─► next() at the rate, within the window ─► transport
                              unacknowledged ◄── acknowledge(sequence) ── acks
                              └─► again() after a reconnect

One thread sends and one reads acks; the lock is here.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from streamkd.errors import SchemaMismatch

PIECE_BYTES = 8 << 20
WINDOW_BYTES = 32 << 20
WINDOW_PIECES = 128


@dataclass(frozen=True, slots=True)
class Ack:
    """The server has everything up to ``sequence`` on disk: ``records`` more than at the ack before."""

    sequence: int
    accepted: int
    rejected: int
    offset: int
    records: int


@dataclass(frozen=True, slots=True)
class Piece:
    """One numbered batch on the transport."""

    sequence: int
    rows: pa.RecordBatch


class Outbox:
    """Pieces to send and to send again."""

    def __init__(self, batches: Iterable[pa.RecordBatch], rate: float | None, on_ack: Callable[[Ack], None]) -> None:
        self._pieces = enumerate(_pieces(batches, rate))
        self._rate = rate
        self._on_ack = on_ack
        self._in_flight: deque[Piece] = deque()
        self._in_flight_bytes = 0
        self._changed = threading.Condition()
        self._began = time.monotonic()
        self._pending: Piece | None = None
        self._sent_twice = -1
        self.sent = self.resent = self.accepted = self.rejected = self.acknowledged = self.early = 0
        self.note = ""  # what the server says of those that are early
        self._pull()
        self.schema = self._pending.rows.schema if self._pending else None

    @property
    def done(self) -> bool:
        """Whether everything is sent and acknowledged."""
        with self._changed:
            return self._pending is None and not self._in_flight

    def again(self) -> list[Piece]:
        """What was sent and not acknowledged, in order."""
        with self._changed:
            pieces = list(self._in_flight)
        self._sent_twice = max([self._sent_twice, *(piece.sequence for piece in pieces)])
        self.resent += sum(piece.rows.num_rows for piece in pieces)
        return pieces

    def next(self, connected: Callable[[], bool]) -> Piece | None:
        """The next new piece, after waiting for the rate and the window; ``None`` at the end or once not ``connected``.

        Raises:
            SchemaMismatch: the batches do not all have one schema.
        """
        piece = self._pending
        if piece is None or not self._wait(connected):
            return None
        if piece.rows.schema != self.schema:
            raise SchemaMismatch(
                f"needed batches of one schema, got {self.schema} and then {piece.rows.schema}", where="push"
            )
        with self._changed:
            self._in_flight.append(piece)
            self._in_flight_bytes += piece.rows.nbytes
        self.sent += piece.rows.num_rows
        self._pull()
        return piece

    def acknowledge(self, sequence: int, said: Mapping[str, Any]) -> None:
        """The server has all pieces up to ``sequence``, and ``said`` what became of them.

        A ``duplicate`` that we sent once it has from before.
        """
        with self._changed:
            from_before = (
                bool(said.get("duplicate")) and bool(self._in_flight) and self._in_flight[0].sequence > self._sent_twice
            )
            records = self._forget(sequence)
        self.accepted += 0 if from_before else said["accepted"]
        self.rejected += 0 if from_before else said["rejected"]
        self.early, self.note = self.early + said.get("early", 0), said.get("note", self.note)
        self.acknowledged += records
        self._on_ack(Ack(sequence, said["accepted"], said["rejected"], said["offset"], records))

    def skip(self, sequence: int) -> bool:
        """Leave out all pieces up to ``sequence``, as the server has them; ``False`` where none is left after it."""
        with self._changed:
            self.acknowledged += self._forget(sequence)
        while self._pending and self._pending.sequence <= sequence:
            self.acknowledged += self._pending.rows.num_rows
            self._pull()
        return not self.done

    def _forget(self, sequence: int) -> int:
        """Drop what is acknowledged; how many records that are."""
        records = 0
        while self._in_flight and self._in_flight[0].sequence <= sequence:
            piece = self._in_flight.popleft()
            self._in_flight_bytes -= piece.rows.nbytes
            records += piece.rows.num_rows
        self._changed.notify_all()
        return records

    def wake(self) -> None:
        """Let ``next`` look again whether it is connected."""
        with self._changed:
            self._changed.notify_all()

    def _pull(self) -> None:
        sequence, rows = next(self._pieces, (0, None))
        self._pending = Piece(sequence, rows) if rows is not None else None

    def _wait(self, connected: Callable[[], bool]) -> bool:
        with self._changed:
            while connected():
                early_seconds = self._began + self.sent / self._rate - time.monotonic() if self._rate else 0.0
                full = len(self._in_flight) >= WINDOW_PIECES or self._in_flight_bytes >= WINDOW_BYTES
                if not full and early_seconds <= 0:
                    return True
                self._changed.wait(None if full else early_seconds)
        return False


def _pieces(batches: Iterable[pa.RecordBatch], rate: float | None) -> Iterator[pa.RecordBatch]:
    """Batches cut to what one message may hold, and at a rate to a tenth of a second."""
    for batch in batches:
        if not batch.num_rows:
            continue
        size = max(1, PIECE_BYTES * batch.num_rows // max(1, batch.nbytes))
        size = min(size, max(1, math.ceil(rate / 10))) if rate else size
        for start in range(0, batch.num_rows, size):
            yield batch.slice(start, size)
