"""A search that Ray Tune runs: it puts trials where their CPUs and GPUs are free, and tells what became of them.

    ask ◄── suggest ── Ray Tune ── StreamTrial, in an actor somewhere ─► reading | error ─► read, fail ─► goes on?

What is proposed, pruned and kept is the study's. So Ray Tune's own notes, which are enough to go on only from its last
snapshot, lie in a folder that is gone afterwards.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import RayTaskError
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from streamkd.errors import TrialFailed
from streamkd.tune import trainable
from streamkd.tune.controller import Controller
from streamkd.tune.study import Asked
from streamkd.tune.worker import failure


def fit(controller: Controller, notes: str) -> None:
    """Run the trials of a search on the Ray that this process is connected to, until there are no more.

    ``notes``: a folder for what Ray Tune writes down.
    """
    settings, running = controller.settings, dict[str, Asked]()
    resources = {"cpu": settings.cpus_per_trial, "gpu": settings.gpus_per_trial}
    tuner = tune.Tuner(
        tune.with_resources(trainable.of(controller.job), resources),
        tune_config=tune.TuneConfig(
            search_alg=Proposals(controller, running),
            scheduler=Decisions(controller, running),
            num_samples=-1,
            max_concurrent_trials=settings.concurrency,
            time_budget_s=controller.seconds_left,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            storage_path=notes, verbose=0, checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False)
        ),
    )
    try:
        tuner.fit()
    finally:
        for asked in running.values():
            controller.leave(asked)


class Proposals(Searcher):
    """What Ray Tune runs next; ``running``: what it runs, by its own names."""

    def __init__(self, controller: Controller, running: dict[str, Asked]) -> None:
        super().__init__()
        self._controller, self._running = controller, running

    def suggest(self, trial_id: str) -> Any:
        """The values of the next trial."""
        asked = self._controller.begin()
        if asked is None:
            return Searcher.FINISHED
        self._running[trial_id] = asked
        return dict(asked.values)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Its end was told by the decisions."""

    def save(self, checkpoint_path: str) -> None:
        """The journal has it."""

    def restore(self, checkpoint_path: str) -> None:
        """As ``save``."""

    def __reduce__(self) -> Any:
        return Searcher, ()  # for Ray Tune's notes


class Decisions(FIFOScheduler):
    """Whether a trial goes on, and what became of it."""

    def __init__(self, controller: Controller, running: dict[str, Asked]) -> None:
        super().__init__()
        self._controller, self._running = controller, running

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        """A milestone was reached."""
        return self.CONTINUE if self._goes_on(trial, result) else self.STOP

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> None:
        """The last milestone was reached, unless the trial was ended before it."""
        if trial.trial_id in self._running:
            self._goes_on(trial, result)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """It failed, or its actor is gone, and took it along; one that is over already has nothing to lose."""
        if trial.trial_id not in self._running:
            return
        written = trial.pickled_error_file
        fault = pickle.loads(Path(written).read_bytes()) if written else None  # noqa: S301 - by this very process
        if isinstance(fault, RayTaskError):
            why = failure(fault.cause)
        else:
            said = " ".join(str(fault or "").split())[:200]
            why = TrialFailed("crash", f"its machine or Ray's process there ended: {said}")
        self._controller.fail(self._running.pop(trial.trial_id), why)

    def _goes_on(self, trial: Any, result: Mapping[str, Any]) -> bool:
        goes_on = self._controller.read(self._running[trial.trial_id], result["step"], result["reading"][0])
        if not goes_on:
            del self._running[trial.trial_id]
        return goes_on

    def __reduce__(self) -> Any:
        return FIFOScheduler, ()  # for Ray Tune's notes
