"""The files of one place on their way into the log: each that is settled, in order, from where the log is.

    look: files, unchanged for so long ─► those that the ledger does not know ─► in order
    read: file ─► batches ─► log: rows, the file's position and its entry, in one transaction
    a file that cannot be read, or is another one than was read ─► told, counted, an entry; the others go on

The log is the truth. Whatever goes wrong with positions ends in the same way: what is under way is forgotten, the log
asked, the file read again from where it says.
"""

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Literal

import pyarrow as pa

from streamkd import logs
from streamkd.errors import NotReady, Overloaded, RecordError, SourceError, first_line
from streamkd.streams.encoding.canonical import arrow_schema
from streamkd.streams.ingest.admission import Sifted
from streamkd.streams.ingest.intake import Intake
from streamkd.streams.ingest.into_log import IntoLog
from streamkd.streams.log.batches import no_rows
from streamkd.streams.log.positions import OffsetConflict
from streamkd.streams.watched import contents
from streamkd.streams.watched.contents import FileForm
from streamkd.streams.watched.ledger import FileEntry, Ledger, entry_of, once_more
from streamkd.streams.watched.place import WatchedFile, WatchedPlace

logger = logging.getLogger(__name__)
TRIES = 3  # processes that a file may end before it is left alone; times it may be out of reach before others go first
TOLD = 20  # of the files that were not read, in the status
POLL_SECONDS, BACK_OFF_SECONDS = 0.1, 1.0
STATES = ("waiting", "reading", "read", "refused", "changed", "older")
Order = Literal["name", "modified"]


class Watcher:
    """One place, watched; for one thread, until ``ending`` is set."""

    def __init__(
        self,
        place: WatchedPlace,
        form: FileForm,
        intake: Intake,
        ending: threading.Event,
        every_seconds: float,
        settle_seconds: float,
        order: Order,
    ) -> None:
        self._place, self._form, self._intake, self._ending = place, form, intake, ending
        self._every_seconds, self._order = every_seconds, order
        self._settling = Settling(settle_seconds)
        self._faults = logs.Seldom(logger)
        self._into_log = IntoLog(intake, self._patient, place.url)  # a file that was read must not be waited for
        self._nothing = no_rows(arrow_schema(intake.schema))
        self._ledger = Ledger(place.url)
        self._ledger.load(intake.notes(), self._into_log.written)
        self._missed: Counter[str] = Counter()  # times that a file could not be reached
        self._begun: set[str] = set()  # files that this process has begun to read
        self._ready: deque[WatchedFile] = deque()
        self._waiting = self._older = 0  # files, as of the last look
        self._next_look = 0.0

    def advance(self) -> None:
        """Look when it is time, read one file, or wait a moment.

        Raises:
            NotReady: the intake drains.
        """
        try:
            self._look()
            if self._ready:
                self._read(self._ready.popleft())
            else:
                self._ending.wait(POLL_SECONDS)
        except (Overloaded, OffsetConflict) as fault:
            self._begin_again(fault)

    def close(self) -> None:
        """See what is under way to the disk."""
        self._into_log.settle()

    def _look(self, reading: WatchedFile | None = None) -> None:
        """See what is there, if it is time; ``reading`` is being read."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + self._every_seconds
        try:
            found = self._place.look()
        except (OSError, pa.ArrowException, UnicodeError) as fault:
            self._tell_fault(self._place.url, fault)
            return
        waiting = list(self._news(each for each in found if reading is None or each.name != reading.name))
        is_begun = self._ledger.is_begun
        ready = [each for each in waiting if is_begun(each) or self._settling.is_settled(each)]
        self._missed = Counter({each.name: self._missed[each.name] for each in waiting})
        self._ready = deque(sorted(ready, key=self._key))
        self._waiting = len(waiting)
        self._next_look = min(self._next_look, self._settling.keep({*waiting}.difference(ready)))
        if (folded := self._ledger.fold(waiting)) is not None:
            self._into_log.move(folded[0], {self._ledger.mark: folded[1]})
            self._load()
        self._tell()

    def _news(self, found: Iterable[WatchedFile]) -> Iterator[WatchedFile]:
        """Files that are still to be read; of what was read and is another one now it is said."""
        self._older = 0
        for each in found:
            standing = self._ledger.standing(each, self._into_log.at(each.name))
            if standing == "waiting":
                yield each
            elif standing == "changed" and self._ledger.is_changed(each):
                self._refuse_changed(each)
            self._older += standing == "older"

    def _key(self, found: WatchedFile) -> tuple[bool, bool, int, str]:
        """What is begun goes first, what could not be reached again and again last."""
        age = found.modified if self._order == "modified" else 0
        return self._missed[found.name] >= TRIES, not self._ledger.is_begun(found), age, found.name

    def _read(self, found: WatchedFile) -> None:
        """One file to its end; what does not let itself be reached now comes again at the next look."""
        while self._intake.is_full(self._nothing) and self._patient():
            self._into_log.settle()
        if not self._begin(found):
            return
        try:
            with self._place.at_hand(found) as path:
                self._put(found, contents.read(path, found.name, self._into_log.at(found.name) or 0, self._form))
        except (Overloaded, OffsetConflict):
            raise
        except (OSError, pa.ArrowException) as fault:
            self._put_off(found, fault)
        except (SourceError, RecordError) as fault:
            self._refuse(found, str(fault))
        self._tell()

    def _begin(self, found: WatchedFile) -> bool:
        """Write down that it is read, before it can end this process; whether it is to be read at all."""
        entry = entry_of(found, "reading")
        if (known := self._ledger.entries.get(found.name)) and self._ledger.is_begun(found):
            entry = known if found.name in self._begun else once_more(known)
        if entry.tries > TRIES:
            self._refuse(found, f"{TRIES} processes ended while they read it")
            return False
        self._begun.add(found.name)
        self._note(found.name, entry)
        return True

    def _put(self, found: WatchedFile, batches: Iterator[tuple[Sifted, int]]) -> None:
        """Rows into the log, the last of them with the word that they are the last."""
        held = (Sifted(self._nothing, 0), self._into_log.at(found.name) or 0)
        for batch in batches:
            if held[0].total:
                self._send(found, held, entry_of(found, "reading"))
            held = batch
            self._look(found)
            while not self._intake.may_bring(self._place.url) and self._patient():
                self._into_log.settle()
            if self._ending.is_set():
                raise NotReady("the server is shutting down")
        self._send(found, held, entry_of(found, "read"))
        self._waiting = max(0, self._waiting - 1)

    def _send(self, found: WatchedFile, batch: tuple[Sifted, int], entry: FileEntry) -> None:
        self._into_log.put(found.name, [batch], note=entry.note())
        self._ledger.put(found.name, entry)

    def _note(self, name: str, entry: FileEntry) -> None:
        """Write an entry without rows."""
        self._into_log.move({name: self._into_log.at(name) or 0}, {name: entry.note()})
        self._ledger.put(name, entry)

    def _refuse_changed(self, found: WatchedFile) -> None:
        rows = self._into_log.at(found.name)
        said = f"it has changed since {rows:,} rows of it were taken; it is not read again"
        self._tell_refused(found, "changed", f"{said}\n  fix: write new rows under a new name")

    def _refuse(self, found: WatchedFile, said: str) -> None:
        rows = self._into_log.at(found.name) or 0
        taken = f"; {rows:,} rows before it were taken" if rows else ""
        self._tell_refused(found, "refused", said.replace("\n  fix: ", f"{taken}\n  fix: ") if taken else said)

    def _tell_refused(self, found: WatchedFile, state: Literal["refused", "changed"], said: str) -> None:
        logger.error("%s is refused: %s", found.name, said)
        self._intake.count_refusal("file")
        self._note(found.name, entry_of(found, state, said=logs.one_line(said)))

    def _begin_again(self, fault: Exception) -> None:
        self._faults.say("log", type(fault).__name__, f"files are read again: {first_line(fault)}")
        self._into_log.again()
        self._load()
        self._ending.wait(BACK_OFF_SECONDS)
        self._next_look = 0.0

    def _load(self) -> None:
        self._ledger.load(self._intake.notes(), self._intake.positions())

    def _patient(self) -> bool:
        """Wait a moment for room; whether to go on waiting."""
        return not self._ending.wait(POLL_SECONDS)

    def _put_off(self, found: WatchedFile, fault: Exception) -> None:
        """Try again soon, before all others so that the order stays, but not for ever before them."""
        self._missed[found.name] += 1
        if self._missed[found.name] < TRIES:
            self._ready.clear()
            self._next_look = time.monotonic() + min(self._every_seconds, BACK_OFF_SECONDS)
        self._tell_fault(found.name, fault)

    def _tell_fault(self, where: str, fault: Exception) -> None:
        self._intake.count_refusal("unreachable")
        self._faults.say(where, type(fault).__name__, f"{first_line(fault)}; it is tried again")

    def _tell(self) -> None:
        """How many files are in which state, and why the last ones were not read."""
        states = dict.fromkeys(STATES, 0) | self._ledger.counts()
        states |= {"waiting": self._waiting, "older": self._older}
        odd = [(name, entry, self._into_log.at(name) or 0) for name, entry in self._ledger.refusals(TOLD)]
        told = [{"name": name, "state": entry.state, "rows": rows, "reason": entry.said} for name, entry, rows in odd]
        self._intake.tell_files(states, told)


class Settling:
    """Files as they were seen last, and since when they are so."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: dict[WatchedFile, float] = {}

    def is_settled(self, found: WatchedFile) -> bool:
        """Whether it has been the same for long enough."""
        now = time.monotonic()
        return now - self._since.setdefault(found, now) >= self._seconds

    def keep(self, unsettled: set[WatchedFile]) -> float:
        """Forget all others; when the next of these will be settled."""
        self._since = {found: since for found, since in self._since.items() if found in unsettled}
        return min(self._since.values(), default=math.inf) + self._seconds
