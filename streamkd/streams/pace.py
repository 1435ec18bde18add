"""How many records a batch has: a number of the configuration, or as many as keep up with the source.

    records that wait, time spent learning ─► Gearbox ─► rows ─► journaled from this offset on ─► Batcher

What a record costs falls with the rows of its step: a step replays as many remembered ones, and is as much bookkeeping,
however many are fresh. So when records come faster than they are learned, batches are larger, and where there is time
to spare they are smaller, which is more replay for each record. Time decides, so it is written down before it is used:
a learner that goes back to its checkpoint cuts the same batches again (decision 41).
"""

import logging
import time
from collections.abc import Callable
from typing import Protocol

from streamkd.errors import Overloaded

logger = logging.getLogger(__name__)

# times the configuration's rows; a record costs at most twice what it costs in the next
GEARS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
LAG_SECONDS = 2.0  # of learning that may wait, before batches grow
LOOK_SECONDS = 1.0  # after which a gear has shown what it takes
SPARE_SECONDS = 5.0  # of which more than half were idle, before they shrink


class PaceJournal(Protocol):
    """Who remembers from which offsets on batches had how many rows."""

    def put_pace(self, start: int, rows: int) -> None:
        """Write it down; of two at one offset the later stands.

        Raises:
            Overloaded: it could not be.
        """
        ...

    def paces(self) -> list[tuple[int, int]]:
        """All that is written, by offset."""
        ...


class Gearbox:
    """Chooses rows by what waits and by how busy the learner is; one gear at a time."""

    def __init__(self, rows: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.gears = sorted({max(1, round(rows * gear)) for gear in GEARS})
        self._clock = clock
        self._since, self._busy, self._learned = clock(), 0.0, 0
        self._out: tuple[float, int] | None = None

    def out(self, rows: int) -> None:
        """A batch of so many rows is handed out, to be learned until ``rows`` is asked again."""
        self._out = self._clock(), rows

    def rows(self, now: int, waiting: int) -> int:
        """How many rows the next batch should have, after batches of ``now`` rows, while so many records wait."""
        moment = self._clock()
        if self._out is not None:
            begun, learned = self._out
            self._busy, self._learned, self._out = self._busy + moment - begun, self._learned + learned, None
        span = moment - self._since
        if span < LOOK_SECONDS or not self._learned:
            return now
        if waiting * self._busy > LAG_SECONDS * self._learned:
            return self._shift(now, 1)
        if span < SPARE_SECONDS:
            return now
        return self._shift(now, -1 if 2 * self._busy < span else 0)

    def _shift(self, now: int, gears: int) -> int:
        """From the gear nearest to ``now`` so many up, as far as there are any; and look anew."""
        self._since, self._busy, self._learned = self._clock(), 0.0, 0
        place = min(range(len(self.gears)), key=lambda place: abs(self.gears[place] - now))
        return self.gears[min(max(place + gears, 0), len(self.gears) - 1)]


class Pace:
    """Rows of the batch at an offset: as far as the journal goes as it says, beyond as the gearbox does.

    ``rows`` are the configuration's: of batches before the first entry, and where there is no gearbox.
    """

    def __init__(self, rows: int, journal: PaceJournal | None = None, gearbox: Gearbox | None = None) -> None:
        self._configured, self._journal, self._gearbox = rows, journal, gearbox
        self._entries = [] if journal is None else journal.paces()
        self.rows = rows
        self.changes = 0

    @property
    def follows(self) -> bool:
        """Whether it follows the source."""
        return self._gearbox is not None

    def at(self, start: int, waiting: int) -> int:
        """How many rows the batch has that begins at ``start``, where so many records wait."""
        self.rows = next((rows for at, rows in reversed(self._entries) if at <= start), self._configured)
        if not self._entries or start >= self._entries[-1][0]:
            self._change(start, self._configured if self._gearbox is None else self._gearbox.rows(self.rows, waiting))
        return self.rows

    def out(self, rows: int) -> None:
        """A batch of so many rows is handed out."""
        if self._gearbox is not None:
            self._gearbox.out(rows)

    def _change(self, start: int, rows: int) -> None:
        """From ``start`` on; where that cannot be written down, another time."""
        if rows == self.rows or self._journal is None:
            return
        try:
            self._journal.put_pace(start, rows)
        except Overloaded as fault:
            logger.warning("batches stay at %d records, as %d cannot be journaled: %s", self.rows, rows, fault)
            return
        logger.info("batches of %d records from offset %d on, before of %d", rows, start, self.rows)
        self._entries = [*(entry for entry in self._entries[-1:] if entry[0] < start), (start, rows)]
        self.rows, self.changes = rows, self.changes + 1
