"""The trials of a search as one run of Ray Tune.

    Search.next ─► Asked ─► Tuner ─► TrialActor ─► result ─► scheduler: goes on?
                              └─ Events: told, ended ─► Search        └─ no ─► pruned

The class API, for an actor that serves one trial after another saves seconds of imports for each, and because what
population-based training does between two milestones is a call and not a thread's business. A searcher of our own,
for the search proposes values for both engines. Never ``Tuner.restore``: it would run again what reported shortly
before a kill, and knows nothing of trials that the ledger knows; each run takes what the ledger has left to do.
"""

import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from streamkd.scale.cluster import Cluster, found
from streamkd.scale.population import Population, Rungs
from streamkd.scale.trainable import RECORD, SAVED, TrialActor, heard, left, told
from streamkd.search.driver import Search
from streamkd.search.ledger import DONE, TrialRecord
from streamkd.search.objective import objective

CRASH = "crash: the process of the trial ended"
KEPT_STATES = 4
"""States of a stream that Ray keeps for each trial of a population; others may be taking over the last ones."""


def run(search: Search, cluster: Cluster, schedule_seconds: float) -> None:
    """Run all that the search has to run; every trial that is taken ends in ``search.ended``.

    Raises:
        StreamkdError: nothing could be begun for so long, while nothing ran.
    """
    settings = search.settings
    events = Events(search, cluster.local, schedule_seconds)
    population = settings.scheduler == "pbt"
    saved = _take_all(search, events) if population else {}
    if population and not events.records:
        return
    tuner = tune.Tuner(
        _actor(search),
        param_space={"trial": tune.grid_search([told(one) for one in events.records.values()])} if population else {},
        tune_config=tune.TuneConfig(
            reuse_actors=True, num_samples=1 if population else -1, max_concurrent_trials=_concurrency(search, cluster),
            search_alg=None if population else Asked(search, events), scheduler=_scheduler(search, events, saved),
            trial_name_creator=_name, trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=time.strftime("%Y%m%d-%H%M%S", time.gmtime()), storage_path=_beside(search),
            stop=Ends(events), callbacks=[events], verbose=0, failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=KEPT_STATES if population else None, checkpoint_at_end=False
            ),
        ),
    )  # fmt: skip
    try:
        tuner.fit()
    finally:
        if events.fault is not None:
            raise events.fault
    if not search.stopping:
        _tidy(search)


def _beside(search: Search) -> str:
    """Ray's own directory, in that of the search."""
    folder = search.job.ledger.store.local
    return f"{folder if folder is not None else search.job.ledger.store.place}/ray"


def _take_all(search: Search, events: "Events") -> dict[int, Path]:
    """Take every trial of the population; where an earlier run left its stream, from there."""
    saved: dict[int, Path] = {}
    while (record := search.next()) is not None:
        events.records[record.number] = record
        for folder in _folders(search, record.number):
            if (found := left(folder)) is not None:
                events.records[record.number], saved[record.number] = found, folder
                break
    return saved


def _folders(search: Search, number: int) -> list[Path]:
    """Where a trial's stream was saved, the newest first; on a disk alone."""
    above = search.job.ledger.store.local
    found = [] if above is None else (above / "ray").glob(f"*/{number:05}/checkpoint_*/{SAVED}")
    return [one.parent for one in sorted(found, key=lambda one: one.stat().st_mtime, reverse=True)]


def _tidy(search: Search) -> None:
    """Remove what Ray wrote: when all is done nobody goes on from it."""
    if (folder := search.job.ledger.store.local) is not None:
        shutil.rmtree(folder / "ray", ignore_errors=True)


def _actor(search: Search) -> Any:
    """The trainable with what all trials share, put into the object store once."""
    settings = search.settings
    shared = tune.with_parameters(
        TrialActor, job=search.job, recordings=dict(search.recordings),
        hang_seconds=settings.hang_seconds, memory_bytes=settings.memory_bytes,
    )  # fmt: skip
    return tune.with_resources(shared, {"cpu": settings.cpus_per_trial, "gpu": settings.gpus_per_trial})


def _scheduler(search: Search, events: "Events", saved: Mapping[int, Path]) -> TrialScheduler:
    settings, total = search.settings, search.total
    mode = objective(settings.objectives[0]).direction
    if settings.scheduler == "pbt":
        return Population(settings, total, mode, search.job.space, events.records, saved)
    if settings.scheduler == "asha":
        before = [record for record in search.job.ledger.trials() if record.state in DONE and record.state != "failed"]
        return Rungs(settings, total, mode, before)
    return FIFOScheduler()


def _concurrency(search: Search, cluster: Cluster) -> int | None:
    """No more than fit, on a Ray of our own: then the searcher is asked when a place is free, and knows most.

    On a cluster that may grow, trials that wait are what makes it grow.
    """
    settings = search.settings
    fits = cluster.fits(settings.cpus_per_trial, settings.gpus_per_trial) if cluster.local else None
    return min((bound for bound in (settings.concurrency, fits) if bound), default=None)


def _name(trial: Trial) -> str:
    return f"{number_of(trial):05}"


def number_of(trial: Trial) -> int:
    """The number that the ledger knows a trial of Ray's by."""
    return heard(trial.config["trial"]).number


class Asked(Searcher):
    """Asks the search for the next trial. What Ray would keep of it the ledger has."""

    def __init__(self, search: Search, events: "Events") -> None:
        super().__init__()
        self._search, self._events = search, events

    def suggest(self, trial_id: str) -> Any:
        """The next trial, or that there is none."""
        with self._events.guarded():
            if (record := self._search.next()) is not None:
                self._events.records[record.number] = record
                return {"trial": told(record)}
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The events tell the search."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Ends(tune.Stopper):
    """Ends Ray's run when the search is over."""

    def __init__(self, events: "Events") -> None:
        self._events = events

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        """Whether the time is over, or something of ours went wrong."""
        return self._events.over


class Events(tune.Callback):
    """What Ray says of the trials, said to the search; ``records`` are the trials as they stand."""

    def __init__(self, search: Search, local: bool, schedule_seconds: float) -> None:
        self.records: dict[int, TrialRecord] = {}
        self.fault: BaseException | None = None
        self._search, self._local, self._schedule_seconds = search, local, schedule_seconds
        self._actors: list[Any] = []  # of running trials alone: an actor ends when nobody holds it
        self._idle_since: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}

    @property
    def over(self) -> bool:
        """Whether all is to be left."""
        return self.fault is not None or self._search.stopping

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """An error of the search ends Ray's run and is raised after it, as it was."""
        try:
            yield
        except Exception as fault:
            self.fault = self.fault or fault

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Ray's loop goes round."""
        actors = [trial.temporary_state.ray_actor for trial in trials]
        self._actors = [actor for actor in actors if actor is not None]

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """A reading, which the actor has written down; whether it goes on was Ray's to say."""
        with self.guarded():
            record = heard(result.pop(RECORD))
            if len((moved := self.records[record.number]).changes) > len(record.changes):  # the population moved it on
                record = moved
                self._search.job.ledger.write(record)
            self.records[record.number] = record
            if record.state != "failed":
                self._search.told(record)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The trial has finished, has failed by itself, or was ended by the scheduler."""
        record = self.records[number_of(trial)]
        self._end(replace(record, state="pruned") if record.state == "running" else record)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Its actor has died; why, is in the ledger, where there was time to write."""
        number = number_of(trial)
        with self.guarded():
            written = [
                one for one in self._search.job.ledger.trials() if one.number == number and one.state == "failed"
            ]
            self._end(written[0] if written else replace(self.records[number], state="failed", reason=_death(trial)))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Ray's loop went round."""
        if self.over:
            while self._actors:  # each may be in the middle of a milestone
                with suppress(Exception):
                    ray.kill(self._actors.pop())
        elif any(trial.status == Trial.RUNNING for trial in trials) or not any(not t.is_finished() for t in trials):
            self._idle_since = None
        else:
            self._wait()

    def _end(self, record: TrialRecord) -> None:
        with self.guarded():
            self.records[record.number] = record
            self._search.ended(record)

    def _wait(self) -> None:
        now = time.monotonic()
        self._idle_since = self._idle_since or now
        if now - self._idle_since > self._schedule_seconds:
            settings = self._search.settings
            self.fault = found(self._local).too_small(
                settings.cpus_per_trial, settings.gpus_per_trial, now - self._idle_since
            )


def _death(trial: Trial) -> str:
    """Why an actor died that could write nothing itself, from what Ray says and, where its log is here, from that."""
    text = Path(trial.error_file).read_text() if trial.error_file and Path(trial.error_file).exists() else ""
    if "OutOfMemoryError" in text or "running low on memory" in text:
        return "memory: Ray ended the process, for its machine had little memory left"
    if "class_name" not in text and (lines := text.split("\n")[:-1]):
        return f"error: {lines[-1][:300]}"
    pid = re.search(r"\bpid: (\d+)", text)
    return _last_words(int(pid[1])) if pid else CRASH


def _last_words(pid: int) -> str:
    """What a process of this machine's Ray wrote down as it died: a signal, or that it had held the interpreter."""
    node = ray._private.worker._global_node
    logs: list[Path] = [] if node is None else list(Path(node.get_logs_dir_path()).glob(f"worker-*-{pid}.err"))
    for log in logs:
        with suppress(OSError):
            said = log.read_text(errors="replace")
            if found := re.search(r"^Timeout \((\d+):(\d+):(\d+)", said, re.MULTILINE):
                hours, minutes, seconds = map(int, found.groups())
                return f"hang: held its process for {3600 * hours + 60 * minutes + seconds} s"
            if found := re.search(r"\*\*\* (SIG\w+) received", said):
                return f"{CRASH} by {found[1]}"
    return CRASH
