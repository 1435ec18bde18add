"""The trials of a search as one run of Ray Tune.

    Search.next ─► Asked ─► Tuner ─► TrialActor ─► result ─► scheduler: goes on?
                              └─ Events: told, ended ─► Search        └─ no ─► pruned

The class API, for an actor that serves one trial after another saves seconds of imports for each, and because what
population-based training does between two milestones is a call and not a thread's business. A searcher of our own,
for the search proposes values for both engines. Never ``Tuner.restore``: it would run again what reported shortly
before a kill, and knows nothing of trials that the ledger knows; each run takes what the ledger has left to do.
"""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from streamkd.scale.cluster import Cluster
from streamkd.scale.events import Ends, Events
from streamkd.scale.population import Members, Population, Rungs
from streamkd.scale.trainable import SAVED, TrialActor, left, number_of, told
from streamkd.search.driver import Search
from streamkd.search.ledger import DONE
from streamkd.search.objective import objective

KEPT_STATES = 3
"""States of a stream that Ray keeps for each trial of a population: its own, the one before, which others may yet take
over, and one more, without which Ray warns."""


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
    concurrency = _concurrency(search, cluster)
    tuner = tune.Tuner(
        _actor(search),
        param_space={"trial": tune.grid_search([told(one) for one in events.records.values()])} if population else {},
        tune_config=tune.TuneConfig(
            reuse_actors=True, num_samples=1 if population else -1,
            max_concurrent_trials=None if population else concurrency,  # of a population all are alive at once
            search_alg=Members(lambda: events.over) if population else Asked(search, events),
            scheduler=_scheduler(search, events, saved, concurrency, cluster.local),
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
    complete = False
    try:
        tuner.fit()
        complete = not events.over
    finally:
        if complete or not population:
            _tidy(search)
        if events.fault is not None:
            raise events.fault


def _beside(search: Search) -> str:
    """Ray's own directory, in that of the search."""
    folder = search.job.ledger.store.local
    return f"{folder if folder is not None else search.job.ledger.store.place}/ray"


def _take_all(search: Search, events: Events) -> dict[int, Path]:
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
    """Remove what Ray wrote: nobody goes on from it, but a population that is not complete."""
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


def _scheduler(
    search: Search, events: Events, saved: Mapping[int, Path], concurrency: int | None, local: bool
) -> TrialScheduler:
    settings = search.settings
    mode = objective(settings.objectives[0]).direction
    if settings.scheduler == "pbt":
        return Population(settings, mode, search.job.space, events.records, saved, events.moved, concurrency, local)
    if settings.scheduler == "asha":
        before = [record for record in search.job.ledger.trials() if record.state in DONE and record.state != "failed"]
        return Rungs(settings, search.total, mode, before)
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


class Asked(Searcher):
    """Asks the search for the next trial. What Ray would keep of it the ledger has."""

    def __init__(self, search: Search, events: Events) -> None:
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
