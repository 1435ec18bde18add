"""Training batches, cut from a source so that a replay cuts them the same.

    source ─► full batches by count, in order, of what is not skipped ─► learner
           ─► what waits longer than ``flush_seconds``: cut journaled first, then handed out

A cut by count depends on the offset alone. A cut by the clock does not, nor does a count that keeps up with the source
(``streamkd.streams.pace``), so both are written down before they are used; after a crash what is journaled for that
offset wins, whatever has arrived meanwhile.
"""

import logging
import time
from collections.abc import Callable, Mapping

import pyarrow as pa

from streamkd.errors import Overloaded, PluginError, SourceError
from streamkd.records import Chunk, Source
from streamkd.streams.log.log import Log
from streamkd.streams.log.paces import Gear
from streamkd.streams.pace import Gearbox, Pace
from streamkd.streams.skips import Skips

SOURCE = "hold the source to its contract with streamkd.testing.check_source"
logger = logging.getLogger(__name__)


class Batcher:
    """Cuts one source. The caller keeps the offsets: the next batch depends on them and the journal alone.

    ``journal`` is where the cuts by the clock are kept; without one there are none. A batch has the rows of
    ``gear``, or as many as ``gearbox`` says. A batch ends where one of ``skips`` begins; the caller passes over it.
    """

    def __init__(
        self,
        source: Source,
        gear: Gear | int,
        flush_seconds: float,
        journal: Log | None = None,
        clock: Callable[[], float] = time.monotonic,
        gearbox: Gearbox | None = None,
        skips: Skips | None = None,
    ) -> None:
        if len(source.partitions) > 1 and not source.finite:
            said = f"needed one partition, got {len(source.partitions)} of a source without end"
            raise SourceError(said, where="batcher", fix="their interleaving would have to be journaled")
        self._source, self._skips = source, skips or Skips()
        self.pace = Pace(Gear(gear) if isinstance(gear, int) else gear, journal, gearbox)
        self._flush_seconds = flush_seconds
        self._journal = journal
        self._clock = clock
        self._waiting: tuple[str, int, float] | None = None
        self._refused = False

    def next(self, offsets: Mapping[str, int]) -> Chunk | None:
        """The batch at these offsets, or ``None`` when none is due now.

        Partitions of a finite source take turns: always the one that has given least.
        """
        for partition in sorted(self._source.partitions, key=lambda name: (offsets.get(name, 0), name)):
            start = offsets.get(partition, 0)
            stop = self._journal.cut_at(start) if self._journal else None
            size = self.pace.at(start, self._behind(partition, start))
            skip = self._skips.next(partition, start)
            if skip is not None and skip < (start + size if stop is None else stop):
                stop = skip
            chunk = self._gather(partition, start, size if stop is None else stop - start)
            if self._due(chunk, start, stop):
                self._waiting = None
                self.pace.out(chunk.rows.num_rows)
                return chunk
            if not self._at_end(partition, start):
                return None  # no other partition may overtake: the order must not depend on time
        return None

    def _behind(self, partition: str, start: int) -> int:
        """How many records wait from ``start`` on; where nothing hangs on it nobody is asked."""
        return (self._source.end(partition) or start) - start if self.pace.follows else 0

    def _due(self, chunk: Chunk, start: int, stop: int | None) -> bool:
        rows = chunk.rows.num_rows
        if not rows:
            return False
        if stop is not None:
            return chunk.next_offset >= stop  # a journaled cut is only handed out whole
        return rows >= self.pace.rows or self._at_end(chunk.partition, chunk.next_offset) or self._flushed(chunk, start)

    def _gather(self, partition: str, start: int, rows: int) -> Chunk:
        """Up to ``rows`` rows; a source may give them in pieces."""
        chunk = self._read(partition, start, rows)
        if chunk.rows.num_rows in (0, rows):
            return chunk
        parts, at, missing = [chunk.rows], chunk.next_offset, rows - chunk.rows.num_rows
        while missing and (more := self._read(partition, at, missing)).rows.num_rows:
            parts.append(more.rows)
            at, missing = more.next_offset, missing - more.rows.num_rows
        joined = parts[0] if len(parts) == 1 else pa.concat_batches(parts)
        return Chunk(joined, partition, start, at)

    def _read(self, partition: str, start: int, rows: int) -> Chunk:
        """What the source gives.

        Raises:
            PluginError: it is no chunk that goes on behind its own rows: the same would be learned for ever.
        """
        chunk = self._source.read(partition, start, rows)
        where = f"source {type(self._source).__name__}, read({partition!r}, {start}, {rows})"
        if not isinstance(chunk, Chunk) or not isinstance(chunk.rows, pa.RecordBatch):
            raise PluginError(
                f"needed a streamkd.api.Chunk of a RecordBatch, got {type(chunk).__name__}", where=where, fix=SOURCE
            )
        if chunk.rows.num_rows > rows or chunk.next_offset < start + chunk.rows.num_rows:
            said = f"needed at most {rows} rows and next_offset behind them"
            got = f"got {chunk.rows.num_rows} and {chunk.next_offset}"
            raise PluginError(f"{said}, {got}", where=where, fix="next_offset is the first that is not read yet")
        return chunk

    def _at_end(self, partition: str, offset: int) -> bool:
        return self._source.finite and offset == self._source.end(partition)

    def _flushed(self, chunk: Chunk, start: int) -> bool:
        """Whether the rows have waited too long; the cut is then on disk."""
        if self._journal is None:
            return False
        now = self._clock()
        if self._waiting is None or self._waiting[:2] != (chunk.partition, start):
            self._waiting = (chunk.partition, start, now)
        if now - self._waiting[2] < self._flush_seconds:
            return False
        return self._journaled(start, chunk)

    def _journaled(self, start: int, chunk: Chunk) -> bool:
        """Write the cut down; where that fails the rows wait on, since a cut that nobody knows of is no cut."""
        assert self._journal is not None
        try:
            self._journal.put_cut(start, chunk.next_offset)
        except Overloaded as fault:
            if not self._refused:
                logger.warning("%d records wait for a cut that cannot be journaled: %s", chunk.rows.num_rows, fault)
            self._refused, self._waiting = True, None
            return False
        self._refused = False
        return True
