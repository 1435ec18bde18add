"""How many records a batch has, and how often the memory is rehearsed after it: as configured, or to keep up.

    records that wait, time spent learning ─► Gearbox ─► gear ─► journaled from this offset on ─► Batcher, Learner

What a record costs falls with the rows of its step: a step replays as many remembered ones, and is as much bookkeeping,
however many are fresh. So when records come faster than they are learned, batches are larger; and where there is time
to spare the student takes more steps on what is remembered. Time decides, so it is written down before it is used:
a learner that goes back to its checkpoint takes the same steps again (decision 41).
"""

import logging
import time
from collections.abc import Callable
from typing import Protocol

from streamkd.errors import Overloaded
from streamkd.streams.log.paces import Gear

logger = logging.getLogger(__name__)

TIMES = (2, 4, 8, 16, 32)  # the configuration's rows; a record costs at most twice what it costs in the next gear
MORE = (8, 4, 2, 1)  # rehearsals than the configuration has, of batches of its rows
LAG_SECONDS = 2.0  # of learning that may wait, before batches grow
LOOK_SECONDS = 1.0  # after which a gear has shown what it takes
SPARE_SECONDS = 5.0  # of which more than half were idle, before they shrink


class PaceJournal(Protocol):
    """Who remembers from which offsets on batches were learned in which gear."""

    def put_pace(self, start: int, gear: Gear) -> None:
        """Write it down; of two at one offset the later stands.

        Raises:
            Overloaded: it could not be.
        """
        ...

    def paces(self) -> list[tuple[int, Gear]]:
        """All that is written, by offset."""
        ...


class Gearbox:
    """Chooses a gear by what waits and by how busy the learner is, one up or down at a time."""

    def __init__(self, configured: Gear, clock: Callable[[], float] = time.monotonic) -> None:
        rows, rehearsals = configured
        slow = [Gear(rows, rehearsals + more) for more in MORE]
        self.gears = [*slow, configured, *(Gear(rows * times, rehearsals) for times in TIMES)]
        self._clock = clock
        self._since, self._busy, self._learned = clock(), 0.0, 0
        self._out: tuple[float, int] | None = None

    def out(self, rows: int) -> None:
        """A batch of so many rows is handed out, to be learned until ``gear`` is asked again."""
        self._out = self._clock(), rows

    def gear(self, now: Gear, waiting: int) -> Gear:
        """The gear of the next batch, after batches in ``now``, while so many records wait."""
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

    def _shift(self, now: Gear, gears: int) -> Gear:
        """From the gear nearest to ``now`` so many up, as far as there are any; and look anew."""
        self._since, self._busy, self._learned = self._clock(), 0.0, 0
        places = range(len(self.gears))
        place = min(places, key=lambda place: (abs(self.gears[place][0] - now[0]), abs(self.gears[place][1] - now[1])))
        return self.gears[min(max(place + gears, 0), len(self.gears) - 1)]


class Pace:
    """The gear of the batch at an offset: as far as the journal goes as it says, beyond as the gearbox does.

    ``configured``: of batches before the first entry, and where there is no gearbox.
    """

    def __init__(self, configured: Gear, journal: PaceJournal | None = None, gearbox: Gearbox | None = None) -> None:
        self._configured, self._journal, self._gearbox = configured, journal, gearbox
        self._entries = [] if journal is None else journal.paces()
        self.gear = configured
        self.changes = 0

    @property
    def rows(self) -> int:
        """Of a batch, now."""
        return self.gear.rows

    @property
    def follows(self) -> bool:
        """Whether it follows the source."""
        return self._gearbox is not None

    def at(self, start: int, waiting: int) -> int:
        """How many rows the batch has that begins at ``start``, where so many records wait."""
        self.gear = next((gear for at, gear in reversed(self._entries) if at <= start), self._configured)
        if not self._entries or start >= self._entries[-1][0]:
            self._change(start, self._configured if self._gearbox is None else self._gearbox.gear(self.gear, waiting))
        return self.rows

    def out(self, rows: int) -> None:
        """A batch of so many rows is handed out."""
        if self._gearbox is not None:
            self._gearbox.out(rows)

    def _change(self, start: int, gear: Gear) -> None:
        """From ``start`` on; where that cannot be written down, another time."""
        if gear == self.gear or self._journal is None:
            return
        try:
            self._journal.put_pace(start, gear)
        except Overloaded as fault:
            logger.warning("batches stay at %s, as %s cannot be journaled: %s", self.gear, gear, fault)
            return
        logger.info("batches of %s from offset %d on, before of %s", gear, start, self.gear)
        self._entries = [*(entry for entry in self._entries[-1:] if entry[0] < start), (start, gear)]
        self.gear, self.changes = gear, self.changes + 1
