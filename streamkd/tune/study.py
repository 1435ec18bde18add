"""A search as Optuna keeps it, and the only door to Optuna: proposals, pruning, importances, and what is on the disk.

    create | open ─► Study ─► ask ─► Asked ─► read ... goes on? ─► end
                       └─► trials ─► TrialRecord

``DIR/journal.log`` is Optuna's journal: every step is one line, on the disk before anything goes on. It alone is the
truth. Whoever drives the search holds ``DIR/lock``; anybody may read at any time. Trials have numbers of our own, for
one that was under way when its driver was killed is another trial to Optuna when it begins again.
"""

import fcntl
import math
import os
import random
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import RLock
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from streamkd import __version__
from streamkd.config import Config
from streamkd.errors import StateError, StateInUse
from streamkd.evaluate.seeds import plain
from streamkd.plugins import Registry
from streamkd.state.directory import sync, take
from streamkd.tune.record import JOURNAL, State, TrialRecord
from streamkd.tune.settings import REDUCTION, Settings
from streamkd.tune.space.domains import Categorical, Parameter, Value, rounded
from streamkd.tune.space.space import Space, Values

LOCK = "lock"
STARTUP = (4, 10)
"""So many trials are drawn at random before Optuna models: a third of all, between these."""
FEWEST = 8
"""Trials below which nothing is said of importances."""
OWN = ("nan", "memory")
"""Failures that the values of a trial are to blame for: Optuna hears of it as pruned, and proposes others."""


@dataclass(frozen=True)
class Asked:
    """A trial that is to be run."""

    number: int
    values: Values
    trial: optuna.Trial


class Study:
    """A search on the disk; made by ``create`` or ``open``. Any thread of its driver may call it."""

    def __init__(self, place: Path, study: optuna.Study) -> None:
        self.place, self._study = place, study
        self._lock = RLock()
        self.header: Mapping[str, Any] = study.user_attrs.get("search", {})

    @classmethod
    def create(cls, place: Path | str, header: Mapping[str, Any]) -> "Study":
        """A new search with this header: plain values, among them ``name``, and ``objectives`` (name: "max" or "min").

        Raises:
            StateInUse: there is one already. StateError: the place cannot be written.
        """
        if exists(place):
            raise StateInUse(
                "holds a search already", where=str(place), fix="go on with --resume, or name another --out"
            )
        with in_words(place, "a folder that can be written"):
            Path(place).mkdir(parents=True, exist_ok=True)
        ways = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}
        study = optuna.create_study(
            storage=_storage(place),
            study_name=header["name"],
            directions=[ways[way] for way in header["objectives"].values()],
            load_if_exists=True,
        )
        study.set_user_attr("search", plain({"streamkd": __version__, "begun_at": time.time(), **header}))
        sync(Path(place))
        return cls(Path(place), study)

    @classmethod
    def open(cls, place: Path | str) -> "Study":
        """The search that is there.

        Raises:
            StateError: there is none, or it is damaged.
        """
        if not exists(place):
            raise StateError("is no search directory", where=str(place), fix="name one that `streamkd tune` made")
        return cls(Path(place), optuna.load_study(study_name=None, storage=_storage(place)))

    @contextmanager
    def driven(self) -> Iterator[None]:
        """Be its only driver until the end of the block; what a killed one left is put right.

        Raises:
            StateInUse: another process drives it; its process id is named.
        """
        handle = os.open(self.place / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            take(handle, self.place, "drives this search", "--out")
            _mend(self.place / JOURNAL)
            for one in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                self._lose(one.number, one.user_attrs.get("trial"))
            yield
        finally:
            os.close(handle)

    def driver(self) -> int | None:
        """The process that drives it now; ``None`` where nobody does."""
        with suppress(FileNotFoundError), (self.place / LOCK).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return int(file.read().strip() or 0)
        return None

    def ask(self, space: Space, settings: Settings, config: Config, registry: Registry) -> Asked | None:
        """The next trial; ``None`` where no more is to be begun. First come those that were under way.

        Trial 0 is the configuration as it stands. What is proposed for a number depends on the seed and on what is
        known by then alone, so a search that goes on asks as one that was never stopped.
        """
        with self._lock:
            number = self._next(space, settings, config, registry)
            if number is None:
                return None
            trial = self._study.ask()
            given = trial.user_attrs.get("trial")
            if given is None:
                self._study.sampler = _sampler(settings, number)
                given = {"number": number, "values": space.drawn(lambda one: suggest(trial, one))}
            else:
                for one in space.active(given["values"]):
                    if one.told(given["values"][one.path]) is not None:
                        suggest(trial, one)
            trial.set_user_attr("trial", given)
            return Asked(given["number"], given["values"], trial)

    def _next(self, space: Space, settings: Settings, config: Config, registry: Registry) -> int | None:
        """The number of the next trial; one whose values are settled waits to be asked for."""
        waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if waiting:
            return int(waiting[0].user_attrs["trial"]["number"])
        taken = {one.number for one in self.trials()}
        number = next(n for n in count() if n not in taken)
        if number >= settings.trials or (number and not space.parameters):
            return None
        if number and settings.sampler != "grid":
            return number
        points = _grid(space, settings, number) if number else [space.values_of(config, registry)]
        if len(points) < number:
            return None
        self._enqueue(number, points[-1], space)
        return number

    def read(self, asked: Asked, step: int, reading: Mapping[str, Any], prune: bool) -> bool:
        """Write a reading down, the ``step``-th of its trial from 1 on; whether the trial goes on, if it may be pruned.

        Optuna's successive halving decides (Li et al., 2020, arXiv:1810.05934), with rungs at the powers of
        ``REDUCTION``. Trial 0, which all others are compared with, always goes on.
        """
        with self._lock:
            asked.trial.set_user_attr(f"reading {step:04}", plain(dict(reading)))
            if len(self.header["objectives"]) > 1:
                return True
            value = reading["objectives"].get(self._leading)
            asked.trial.report(math.nan if value is None else value, step)
            if not prune:
                return True
            self._study.pruner = optuna.pruners.SuccessiveHalvingPruner(1, REDUCTION)
            return not asked.trial.should_prune() or asked.number == 0

    def end(self, asked: Asked, state: State, reason: str = "") -> None:
        """The trial is over; with a ``reason`` it failed."""
        with self._lock:
            figures = self._last(asked.trial)
            known = [value for value in figures if value is not None]
            if state == "finished" and len(known) == len(figures):
                self._study.tell(asked.trial, known)
                return
            if state != "pruned":
                reason = reason or "nan: an objective is not finite"
                asked.trial.set_user_attr("reason", reason)
            pruned = state == "pruned" or (reason.partition(":")[0] in OWN and len(figures) == 1)
            self._study.tell(asked.trial, state=TrialState.PRUNED if pruned else TrialState.FAIL)

    def leave(self, asked: Asked) -> None:
        """Nobody runs the trial any more: it waits to begin again, under its number and with its values."""
        with self._lock:
            self._lose(asked.trial.number, {"number": asked.number, "values": asked.values})

    def trials(self) -> list[TrialRecord]:
        """Every trial, by number."""
        found = map(_record, self._study.get_trials(deepcopy=False))
        by_number = {one.number: one for one in found if one is not None}
        return [by_number[number] for number in sorted(by_number)]

    def front(self) -> list[int]:
        """The trials that no other one beats in one objective without losing in another; the first objective sorts."""
        sign = -1 if self.header["objectives"][self._leading] == "max" else 1
        ordered = sorted(self._study.best_trials, key=lambda one: sign * one.values[0])
        return [one.user_attrs["trial"]["number"] for one in ordered]

    def importances(self) -> dict[str, float]:
        """How much each parameter decides how far a trial gets, shares of 1, highest first (PED-ANOVA); none of few.

        Pruned trials count: who came farther is better, then who has the better objective.
        """
        sign = 1 if self.header["objectives"][self._leading] == "max" else -1
        places = {
            one.number: (record.records, sign * value)
            for one in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
            if (record := _record(one)) and record.state != "failed"
            and (value := record.objective(self._leading)) is not None
        }  # fmt: skip
        if len(places) < FEWEST:
            return {}
        ranks = {place: rank for rank, place in enumerate(sorted(set(places.values())))}
        ranked = optuna.create_study(direction="maximize")
        for number, place in places.items():
            one = self._study.get_trials(deepcopy=False)[number]
            ranked.add_trial(create_trial(value=ranks[place], params=one.params, distributions=one.distributions))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it speaks of parameters that few trials have
            return dict(optuna.importance.get_param_importances(ranked))

    @property
    def _leading(self) -> str:
        return next(iter(self.header["objectives"]))

    def _last(self, trial: optuna.Trial) -> list[float | None]:
        """Each objective at the trial's last reading."""
        names = sorted(name for name in trial.user_attrs if name.startswith("reading"))
        found = trial.user_attrs[names[-1]]["objectives"] if names else {}
        return [found.get(name) for name in self.header["objectives"]]

    def _lose(self, number: int, given: Mapping[str, Any] | None) -> None:
        """What nobody runs begins again; that is written first, so that it is not lost by a kill in between."""
        waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if given and given["number"] not in [one.user_attrs["trial"]["number"] for one in waiting]:
            one = self._study.get_trials(deepcopy=False)[number]
            attrs = {"trial": {"number": given["number"], "values": dict(given["values"])}}
            self._study.enqueue_trial(one.params, user_attrs=attrs)
        self._study.tell(number, state=TrialState.FAIL)

    def _enqueue(self, number: int, values: Values, space: Space) -> None:
        told = {one.path: one.told(values[one.path]) for one in space.active(values)}
        inside = {path: value for path, value in told.items() if value is not None}
        self._study.enqueue_trial(inside, user_attrs={"trial": {"number": number, "values": dict(values)}})


def suggest(trial: optuna.Trial, one: Parameter) -> Value:
    """What an Optuna trial gives for a parameter."""
    domain = one.domain
    if isinstance(domain, Categorical):
        return domain.values[domain.names.index(trial.suggest_categorical(one.path, domain.names))]
    if one.integer:
        low, high = int(domain.low), int(domain.high)
        return trial.suggest_int(one.path, low, high, step=int(domain.step or 1), log=domain.log)
    value = trial.suggest_float(one.path, domain.low, domain.high, step=domain.step, log=domain.log)
    return rounded(value) if domain.step else value


def exists(place: Path | str) -> bool:
    """Whether a search was begun at this place.

    Raises:
        StateError: its journal cannot be read.
    """
    if not (Path(place) / JOURNAL).exists():
        return False
    summaries = optuna.get_all_study_summaries(_storage(place))
    return bool(summaries) and "search" in summaries[0].user_attrs


def _record(one: FrozenTrial) -> TrialRecord | None:
    """``None`` of a trial that was asked for and not given to anybody, and of one that has begun again since."""
    given, reason = one.user_attrs.get("trial"), one.user_attrs.get("reason", "")
    if given is None or (one.state == TrialState.FAIL and not reason):
        return None
    states: dict[TrialState, State] = {
        TrialState.WAITING: "waiting",
        TrialState.RUNNING: "running",
        TrialState.COMPLETE: "finished",
        TrialState.PRUNED: "pruned",
    }
    readings = tuple(one.user_attrs[name] for name in sorted(one.user_attrs) if name.startswith("reading"))
    seconds = readings[-1]["seconds"] if readings else 0.0
    if one.state.is_finished() and one.duration is not None:
        seconds = one.duration.total_seconds()
    state = "failed" if reason else states[one.state]
    return TrialRecord(given["number"], given["values"], state, readings, reason, seconds)


def _sampler(settings: Settings, number: int) -> optuna.samplers.BaseSampler:
    seed = random.Random(f"{settings.seed}/{number}").getrandbits(32)
    if settings.sampler == "random":
        return optuna.samplers.RandomSampler(seed)
    startup = min(max(settings.trials // 3, STARTUP[0]), STARTUP[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True)


def _grid(space: Space, settings: Settings, count: int) -> list[Values]:
    """So many points of the grid, or all, in an order that the seed draws."""
    points: list[Values] = []

    def visit(trial: optuna.Trial) -> float:
        points.append(space.drawn(lambda one: suggest(trial, one)))
        return 0.0

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        walk = optuna.create_study(sampler=optuna.samplers.BruteForceSampler(settings.seed))
    walk.optimize(visit, n_trials=count)
    return points


class _Journal(JournalFileBackend):
    """A journal on whose disk there may be no room: a line is there whole, or not at all."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        path = self._file_path
        size = Path(path).stat().st_size
        with in_words(path, "a file that can be written"):
            try:
                super().append_logs(logs)
            except OSError:
                os.truncate(path, size)
                raise


def _storage(place: Path | str) -> optuna.storages.JournalStorage:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = Path(place) / JOURNAL
    with in_words(path, "a journal that can be read"):
        try:
            return optuna.storages.JournalStorage(_Journal(str(path)))
        except (ValueError, KeyError, TypeError) as fault:
            raise StateError(
                f"is damaged: {fault}", where=str(path), fix="put a copy back, or begin another search with --out"
            ) from None


@contextmanager
def in_words(where: Path | str, needed: str) -> Iterator[None]:
    """An operating system's error, told as ours."""
    try:
        yield
    except OSError as fault:
        raise StateError(
            f"needed {needed}, got: {fault.strerror or fault}", where=str(where), fix="free it, or name another"
        ) from fault


def _mend(journal: Path) -> None:
    """Cut off the line that a killed driver was writing, and break the lock of Optuna's that it held."""
    with journal.open("rb+") as file:
        whole = file.read()
        file.truncate(whole.rfind(b"\n") + 1)
    Path(f"{journal}.lock").unlink(missing_ok=True)
