"""A search under way: a thread for each slot, which asks for trials and runs them one after another.

    Study.ask ─► slot.begin ─► slot.advance(milestone) ─► Study.read: goes on? ─► ... ─► Study.end
                                  └─ crash, hang, memory, nan ─► failed, with its reason

Slots run trials and nothing else; what is next, whether one goes on and what is written is the study's. When the
search ends, in whatever way, trials under way wait to begin again, and the results are written.
"""

import pickle
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamkd import config as configuration
from streamkd.config import Config
from streamkd.errors import StateConflict, StreamkdError, TrialFailed
from streamkd.evaluate.seeds import plain
from streamkd.plugins import Registry
from streamkd.tune.record import DONE, TrialRecord
from streamkd.tune.settings import Settings
from streamkd.tune.slot import Slot, SlotStopped, slots
from streamkd.tune.space.space import Space
from streamkd.tune.study import Asked, Study
from streamkd.tune.trials.objective import objective
from streamkd.tune.worker import Job, Make, reason_of

if TYPE_CHECKING:
    from streamkd.tune.results.outcome import Outcome
    from streamkd.tune.trials.recording import Recording

SAME = ("seeds", "objectives", "scheduler", "sampler", "seed")
"""Settings that a resumed search cannot change: its trials would not be comparable, or not be proposed again."""


@dataclass(frozen=True)
class SearchStatus:
    """Where a search stands, for whoever watches it."""

    trials: tuple[TrialRecord, ...]
    settings: Settings
    directions: Mapping[str, str]
    total: int
    seconds: float


Watch = Callable[[SearchStatus], None]
"""Told whenever a trial moved, by one thread at a time."""

Slots = Callable[[bytes, str, Settings, Callable[[], bool]], AbstractContextManager[Sequence[Slot]]]
"""Opens the slots for a pickled job, the module of what makes its trials, the settings, and whether it is stopping."""


def tune(
    config: Config,
    registry: Registry,
    space: Space,
    settings: Settings,
    out: Path | str,
    *,
    make: Make | None = None,
    opened: Slots | None = None,
    resume: bool = False,
    command: str = "",
    watches: Sequence[Watch] = (),
) -> "Outcome":
    """Run a search, or go on with it, and write its results, also when it is interrupted.

    Raises:
        StateConflict: another search is there. StreamkdError: nothing could run, with the reasons. KeyboardInterrupt:
            after the results were written.
    """
    from streamkd.tune.results import files
    from streamkd.tune.trials import recording

    recordings = {seed: recording.record(config, registry, seed) for seed in settings.seeds}
    header = _header(config, space, settings, recordings, command)
    study = _resumed(out, header) if resume else Study.create(out, header)
    job = Job(config, space, recordings, settings.objectives, settings.threads, make or _trial())
    with study.driven():
        search = Search(study, job, registry, settings, header["total"], watches)
        try:
            search.run(opened or _opened(settings))
        finally:
            outcome = files.write(study, space, config, registry)
    _refuse_nothing(outcome)
    return outcome


class Search:
    """A search under way; ``total``: records of a whole trial, per seed."""

    def __init__(
        self, study: Study, job: Job, registry: Registry, settings: Settings, total: int, watches: Sequence[Watch] = ()
    ) -> None:
        self._study, self._job, self._registry, self._settings = study, job, registry, settings
        self._total, self._watches = total, watches
        self._milestones = settings.milestones(total)
        self._directions = {name: objective(name).direction for name in settings.objectives}
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._begun = time.monotonic()

    @property
    def stopping(self) -> bool:
        """Whether running trials are to be left at once: somebody stopped it, or its time is over."""
        budget = self._settings.time_budget_seconds
        return self._stop.is_set() or (budget is not None and time.monotonic() - self._begun >= budget)

    def run(self, opened: Slots) -> None:
        """Run trials on all slots until there is no more, or it is stopped."""
        job, made_in = pickle.dumps(self._job), self._job.make.__module__
        with (
            opened(job, made_in, self._settings, lambda: self.stopping) as slots,
            ThreadPoolExecutor(len(slots)) as pool,
        ):
            serving = [pool.submit(self._serve, slot) for slot in slots]
            try:
                for one in as_completed(serving):
                    one.result()
            finally:
                self._stop.set()

    def _serve(self, slot: Slot) -> None:
        while not self.stopping:
            asked = self._study.ask(self._job.space, self._settings, self._job.config, self._registry)
            if asked is None:
                return
            self._tell()
            try:
                self._advance(slot, asked)
            except SlotStopped:
                self._study.leave(asked)
            except TrialFailed as fault:
                self._study.end(asked, "failed", reason_of(fault))
            finally:
                slot.end()
                self._tell()

    def _advance(self, slot: Slot, asked: Asked) -> None:
        """One trial from its beginning to its end, or to where it is pruned."""
        slot.begin(asked.values)
        for step, milestone in enumerate(self._milestones, 1):
            reading = slot.advance(milestone)
            last = step == len(self._milestones)
            if not self._study.read(asked, step, reading, prune=self._settings.halves and not last):
                self._study.end(asked, "pruned")
                return
            self._tell()
        self._study.end(asked, "finished")

    def _tell(self) -> None:
        with self._lock:
            seconds = time.monotonic() - self._begun
            trials = tuple(self._study.trials())
            for watch in self._watches:
                watch(SearchStatus(trials, self._settings, self._directions, self._total, seconds))


def _opened(settings: Settings) -> Slots:
    if settings.address is None:
        return slots
    from streamkd.tune import cluster

    return cluster.slots


def _trial() -> Make:
    from streamkd.tune.trials.trial import Trial

    return Trial


def _header(
    config: Config, space: Space, settings: Settings, recordings: "Mapping[int, Recording]", command: str
) -> dict[str, Any]:
    parts = recordings.values()
    header: dict[str, Any] = plain(
        {
            "name": config.name,
            "config": configuration.dump(config),
            "space": space.to_json(),
            "settings": asdict(settings),
            "objectives": {name: objective(name).direction for name in settings.objectives},
            "seeds": settings.seeds,
            "total": max(one.total for one in parts),
            "validation": {"records": sum(p.validated for p in parts), "given": sum(p.held_out for p in parts)},
            "command": command,
            "directory": str(Path.cwd()),
        }
    )
    return header


def _resumed(out: Path | str, header: Mapping[str, Any]) -> Study:
    """The search that is there, if it is the same."""
    study = Study.open(out)
    before = {**study.header, **{name: study.header["settings"].get(name) for name in SAME}}
    now = {**header, **{name: header["settings"][name] for name in SAME}}
    for what in ("config", "space", "total", *SAME):
        if before.get(what) != now[what]:
            raise StateConflict(
                f"the search was begun with another {what}{_both(before.get(what), now[what])}",
                where=str(out),
                fix="go on with what it was begun with, or begin another with --out",
            )
    return study


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
        why = one.reason if one.state in DONE else "stopped before its end"
        counts[why] = counts.get(why, 0) + 1
    said = "; ".join(f"{count} × {why}" for why, count in list(counts.items())[:3]) or "none was begun"
    raise StreamkdError(
        f"no trial gave a reading: {said}",
        where="streamkd tune",
        fix="run the configuration by itself with `streamkd run`, or give the search more time, memory or workers",
    )
