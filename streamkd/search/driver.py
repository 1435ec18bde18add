"""The driver of a search: creates or resumes its ledger, lets an engine run the trials, writes the results.

    Search.next ─► engine: a worker runs the trial, `course.steps` writes each reading ─► Search.told: goes on?
                     │                                                                        │
                     └─ crash, hang, memory, end ─► Search.ended ◄────────────────────────────┘ no: pruned

An engine is a way to run trials and nothing else: which trial is next, whether one goes on, what is written and shown
are the search's. Engines are handed in by name, so that this knows none of them.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from streamkd import config as configuration
from streamkd.config import Config
from streamkd.errors import ConfigError, StateConflict, StreamkdError
from streamkd.evaluate.seeds import plain
from streamkd.plugins import Registry
from streamkd.search import sampling
from streamkd.search.course import Job, Make
from streamkd.search.halving import Halving
from streamkd.search.ledger import DONE, Ledger, TrialRecord
from streamkd.search.objective import objective
from streamkd.search.settings import Settings
from streamkd.search.space import Space

if TYPE_CHECKING:
    from streamkd.search.outcome import Outcome
    from streamkd.search.recording import Recording

UNFINISHED = ("waiting", "running", "lost")
"""States of trials that a resumed search runs again."""
SAME = ("seeds", "objectives", "scheduler", "sampler", "reduction", "rungs", "seed")
"""Settings that a resumed search cannot change: its trials would not be comparable, or not be proposed again."""


class Engine(Protocol):
    """Runs the trials of a search."""

    def run(self, search: "Search") -> None:
        """Run what ``search.next()`` gives until it gives ``None`` and nothing is running, or ``search.stopping``.

        Each trial that it took ends in ``search.ended``, whatever becomes of its worker. On an exception (Ctrl-C too),
        and when the search is stopping, it ends its workers before it lets go; what was running is then marked as lost.
        """


Engines = Mapping[str, Callable[[Settings], Engine]]


@dataclass(frozen=True)
class Standing:
    """Where a search stands, for whoever watches it."""

    trials: tuple[TrialRecord, ...]
    settings: Settings
    directions: Mapping[str, str]
    total: int
    seconds: float


Watch = Callable[[Standing], None]
"""Told whenever a trial moved, by one thread at a time."""


class Search:
    """A search under way, as an engine sees it. Any thread of the driver's process may call it.

    ``total``: records of a whole trial, per seed. ``job``: what the workers need, beside the recordings.
    """

    def __init__(
        self,
        job: Job,
        registry: Registry,
        settings: Settings,
        recordings: "Mapping[int, Recording]",
        watches: Sequence[Watch] = (),
    ) -> None:
        self.job, self.settings, self.recordings = job, settings, recordings
        self.config, self.space, self.ledger, self.make = job.config, job.space, job.ledger, job.make
        self.total = job.milestones[-1]
        self.directions = {name: objective(name).direction for name in settings.objectives}
        self._registry, self._watches = registry, watches
        self._lock = threading.RLock()
        self._begun = time.monotonic()
        self._halving = self._halving_of(settings)
        self._trials: dict[int, TrialRecord] = {}
        self._unfinished: list[TrialRecord] = []
        for record in job.ledger.trials():
            self._remember(record)

    def _halving_of(self, settings: Settings) -> Halving | None:
        if settings.scheduler != "asha":
            return None
        leading = self.directions[settings.objectives[0]]
        return Halving(settings.rung_records(self.total), settings.reduction, leading)

    def _remember(self, record: TrialRecord) -> None:
        """A trial of the search that is resumed: over, or to be run again."""
        if record.state in UNFINISHED:
            self._unfinished.append(record)
            return
        self._trials[record.number] = record
        if self._halving is not None and record.state != "failed":
            for reading in record.readings:
                value = reading["objectives"].get(self.settings.objectives[0])
                self._halving.goes_on(record.number, reading["records"], value)

    @property
    def stopping(self) -> bool:
        """Whether the time is over: running trials are to be left at once."""
        budget = self.settings.time_budget_seconds
        return budget is not None and time.monotonic() - self._begun >= budget

    def next(self) -> TrialRecord | None:
        """The next trial, in the ledger as running; ``None`` where no more is to be begun."""
        with self._lock:
            record = None if self.stopping else self._again() or self._new()
            if record is not None:
                record = replace(record, state="running", begun_at=time.time())
                self._note(record, write=True)
            return record

    def _again(self) -> TrialRecord | None:
        """A trial that was under way when the search was stopped, with its number and values, from its beginning."""
        if not self._unfinished:
            return None
        record = self._unfinished.pop(0)
        return TrialRecord(record.number, record.values)

    def _new(self) -> TrialRecord | None:
        number = next(n for n in count() if n not in self._trials)  # a damaged file leaves a gap, which is filled
        if number >= self.settings.trials:
            return None
        known = [*self._trials.values()]
        if number == 0:
            return TrialRecord(0, self.space.values_of(self.config, self._registry))
        values = sampling.propose(self.space, self.settings, self.directions, number, known)
        return None if values is None else TrialRecord(number, values)

    def told(self, record: TrialRecord) -> bool:
        """A worker gave a reading, which is in the ledger: whether the trial goes on."""
        with self._lock:
            self._note(record)
            if self._halving is None or record.state != "running":
                return True
            return self._halving.goes_on(record.number, record.records, record.objective(self.settings.objectives[0]))

    def ended(self, record: TrialRecord) -> None:
        """A trial is over, with this state and reason. Told twice, the first word counts."""
        with self._lock:
            before = self._trials.get(record.number)
            if before is None or before.state not in DONE or before == record:
                self._note(record, write=before != record)

    def leave(self) -> None:
        """Mark what is under way as lost: nobody runs it any more. The ledger may know of one that was just begun."""
        with self._lock:
            for record in [one for one in self.ledger.trials() if one.state not in DONE]:
                self._note(replace(record, state="lost"), write=True)

    def _note(self, record: TrialRecord, write: bool = False) -> None:
        if write:
            self.ledger.write(record)
        self._trials[record.number] = record
        standing = self.standing()
        for watch in self._watches:
            watch(standing)

    def standing(self) -> Standing:
        """Where the search stands now."""
        with self._lock:
            trials = tuple(self._trials[number] for number in sorted(self._trials))
            seconds = time.monotonic() - self._begun
            return Standing(trials, self.settings, self.directions, self.total, seconds)


def tune(
    config: Config,
    registry: Registry,
    space: Space,
    settings: Settings,
    out: Path | str,
    engines: Engines,
    *,
    make: Make | None = None,
    resume: bool = False,
    command: str = "",
    watches: Sequence[Watch] = (),
) -> "Outcome":
    """Run a search, or go on with it, and write its results, also when it is interrupted.

    Raises:
        ConfigError: no such engine. StateConflict: another search is there. StreamkdError: nothing could run, with the
            reasons. KeyboardInterrupt: after the results were written.
    """
    from streamkd.search import recording, results

    engine = _engine(settings, engines)
    recordings = {seed: recording.record(config, registry, seed) for seed in settings.seeds}
    total = max(one.total for one in recordings.values())
    header = _header(config, space, settings, total, command) | {"validation": _validation(recordings)}
    ledger = _resumed(out, header) if resume else Ledger.create(out, header)
    milestones = settings.milestones(total)
    job = Job(config, space, ledger, settings.objectives, milestones, settings.threads, make or _trial())
    with ledger.lock():
        search = Search(job, registry, settings, recordings, watches)
        try:
            engine.run(search)
        finally:
            search.leave()
            outcome = results.write(ledger, registry)
        _refuse_nothing(outcome)
    return outcome


def _engine(settings: Settings, engines: Engines) -> Engine:
    if settings.engine not in engines:
        raise ConfigError(f"needed one of {', '.join(engines)}, got {settings.engine!r}", where="--engine")
    return engines[settings.engine](settings)


def _trial() -> Make:
    from streamkd.search.trial import Trial

    return Trial


def _header(config: Config, space: Space, settings: Settings, total: int, command: str) -> dict[str, Any]:
    return plain(
        {
            "name": config.name,
            "config": configuration.dump(config),
            "space": space.to_json(),
            "settings": settings.to_json(),
            "objectives": {name: objective(name).direction for name in settings.objectives},
            "seeds": settings.seeds,
            "total": total,
            "command": command,
        }
    )


def _validation(recordings: "Mapping[int, Recording]") -> dict[str, int]:
    """How many validation records the trials are measured by, of how many, over all seeds."""
    parts = recordings.values()
    return {"records": sum(one.validated for one in parts), "given": sum(one.held_out for one in parts)}


def _resumed(out: Path | str, header: Mapping[str, Any]) -> Ledger:
    """The ledger that is there, if it is of the same search."""
    ledger = Ledger.open(out)
    before = {**ledger.header, **{name: ledger.header["settings"].get(name) for name in SAME}}
    now = {**header, **{name: header["settings"][name] for name in SAME}}
    for what in ("config", "space", "total", *SAME):
        if before.get(what) != now[what]:
            raise StateConflict(
                f"the search was begun with another {what}{_both(before.get(what), now[what])}",
                where=str(out),
                fix="go on with what it was begun with, or begin another with --out",
            )
    return ledger


def _both(before: Any, now: Any, path: str = "") -> str:
    """The first place where two values differ, and what is there."""
    keys: list[Any] = []
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        before, now = {keys[0]: None} | before, {keys[0]: None} | now
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        keys = [at for at, (one, other) in enumerate(zip(before, now, strict=True)) if one != other]
    if keys:
        return _both(before[keys[0]], now[keys[0]], f"{path}.{keys[0]}" if path else str(keys[0]))
    return f": {path or 'it'} was {before!r}, is {now!r}"


def _refuse_nothing(outcome: "Outcome") -> None:
    """A search that came to nothing is an error, not an empty table."""
    if any(one.readings for one in outcome.trials):
        return
    counts: dict[str, int] = {}
    for one in outcome.trials:
        why = one.reason or ("stopped before its first reading" if one.state == "lost" else one.state)
        counts[why] = counts.get(why, 0) + 1
    said = "; ".join(f"{count} × {why}" for why, count in list(counts.items())[:3]) or "none was begun"
    raise StreamkdError(
        f"no trial gave a reading: {said}",
        where="streamkd tune",
        fix="run the configuration by itself with `streamkd run`, or give the search more time, memory or workers",
    )
