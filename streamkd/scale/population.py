"""Ray's schedulers as a search uses them: halving that knows what earlier runs measured, and a population.

    ASHA        objective at a rung, those of this and of earlier runs there ─► Rungs ─► goes on, or is ended
    population  objectives at a milestone, when all have come there ─► lower quarter
                ─► state of one of the upper quarter, its values a step aside ─► the streams go on

Both are Ray's own; what differs is said at each.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import BasicVariantGenerator

from streamkd.scale.trainable import METRIC, TIME, number_of, told
from streamkd.search.ledger import TrialRecord
from streamkd.search.settings import Settings
from streamkd.search.space import Space

if TYPE_CHECKING:
    from ray.tune.experiment import Trial


class Rungs(ASHAScheduler):
    """Successive halving by records per seed. Trial 0, what all are compared with, is never ended.

    ``before`` are the trials of earlier runs: their figures stand at the rungs as if they had come first.
    """

    def __init__(self, settings: Settings, total: int, mode: str, before: Iterable[TrialRecord]) -> None:
        super().__init__(
            time_attr=TIME, metric=METRIC, mode=mode, max_t=total, reduction_factor=settings.reduction,
            grace_period=total / settings.reduction**settings.rungs,
        )  # fmt: skip
        for record in before:
            self._stand(record, settings.objectives[0])

    def on_trial_result(self, tune_controller: Any, trial: "Trial", result: dict[str, Any]) -> str:
        """As Ray has it; without a figure there is no way on."""
        decision = super().on_trial_result(tune_controller, trial, result) if METRIC in result else TrialScheduler.STOP
        return TrialScheduler.CONTINUE if number_of(trial) == 0 else str(decision)

    def _stand(self, record: TrialRecord, objective: str) -> None:
        nobody: Any = None
        trial: Any = SimpleNamespace(trial_id=f"before-{record.number}")
        self.on_trial_add(nobody, trial)
        for reading in record.readings:
            if (value := reading["objectives"].get(objective)) is not None:
                super().on_trial_result(nobody, trial, {TIME: reading["records"], METRIC: value})


class Population(PopulationBasedTraining):
    """Population-based training whose steps are the space's own, over what may change in a running stream.

    Trials wait for each other at every milestone, for their figures rise and fall along the stream: only those of the
    same records can be compared. Ray's own way of waiting stays for ever where one of them fails, and can move a trial
    on while it is being saved; so here all begin as paused, and the population moves when none runs. Every stream is
    saved at every milestone, so a search that was killed goes on from there. Trial 0, what all are compared with,
    takes over nobody.

    ``records``: the trials as they stand, by number; ``saved``: where an earlier run left their streams; ``moved`` is
    told a trial that takes over another, under its own number. At most ``concurrency`` trials run at once;
    ``starts_all``: there is room for all of these.
    """

    def __init__(
        self,
        settings: Settings,
        mode: str,
        space: Space,
        records: Mapping[int, TrialRecord],
        saved: Mapping[int, Path],
        moved: Callable[[TrialRecord], None],
        concurrency: int | None,
        starts_all: bool,
    ) -> None:
        super().__init__(
            time_attr=TIME, metric=METRIC, mode=mode, synch=True, log_config=False,
            custom_explore_fn=lambda config: config,
        )  # fmt: skip
        self._space, self._records, self._saved, self._moved = space, records, saved, moved
        self._concurrency, self._starts_all = concurrency or len(records), starts_all
        self._held: list[Trial] = []
        self._objective = settings.objectives[0]
        self._rng = np.random.default_rng(settings.seed)
        self._looked_at: set[int] = {0}

    def on_trial_add(self, tune_controller: Any, trial: "Trial") -> None:
        """It waits to be chosen, and goes on where an earlier run left it."""
        super().on_trial_add(tune_controller, trial)
        trial.set_status(trial.PAUSED)
        # Ray would end all but one of the processes that wait, and start others in their place
        tune_controller._tune_controller._actor_cache.increase_max(trial.placement_group_factory)
        record = self._records[number_of(trial)]
        if (folder := self._saved.get(record.number)) is not None:
            result = {TIME: record.records, METRIC: record.objective(self._objective)}
            self._stand(trial, result)
            manager: Any = trial.run_metadata.checkpoint_manager
            manager._latest_checkpoint_result = _TrainingResult(Checkpoint.from_directory(str(folder)), result)

    def on_trial_result(self, tune_controller: Any, trial: "Trial", result: dict[str, Any]) -> str:
        """It is saved, and waits for the others.

        Where none of them needs its process, it keeps it until processes that are being started are there: Ray would
        give it to a trial that waits for one of these, and end that one, time after time.
        """
        self._stand(trial, result)
        trials = tune_controller.get_trials()
        waiting = [one for one in trials if one.status == one.PAUSED and self._at(one) < self._at(trial)]
        if self._starts_all and not waiting and any(one.status == one.PENDING for one in trials):
            self._held.append(trial)
            return TrialScheduler.NOOP
        return TrialScheduler.PAUSE

    def _stand(self, trial: "Trial", result: dict[str, Any]) -> None:
        state: Any = self._trial_state[trial]
        state.last_result, state.last_train_time = result, result[TIME]
        value = result.get(METRIC)
        state.last_score = -math.inf if value is None else self._metric_op * value

    def choose_trial_to_run(self, tune_controller: Any) -> "Trial | None":
        """One of those that are furthest behind; where all are there, the population moves first."""
        live = [trial for trial in tune_controller.get_trials() if not trial.is_finished()]
        while self._held and not any(trial.status == trial.PENDING for trial in live):
            tune_controller.pause_trial(self._held.pop())
        active = [trial for trial in live if trial.status != trial.PAUSED]
        behind = min((self._at(trial) for trial in live), default=0)
        here = [trial for trial in live if trial.status == trial.PAUSED and self._at(trial) == behind]
        if behind not in self._looked_at and not active:
            self._looked_at.add(behind)
            self._move(here, tune_controller)
        ready = behind in self._looked_at and len(active) < self._concurrency
        return here[0] if here and ready else None

    def _at(self, trial: "Trial") -> int:
        return self._trial_state[trial].last_train_time

    def _move(self, here: Sequence["Trial"], tune_controller: Any) -> None:
        ordered: list[Any] = sorted(here, key=lambda trial: float(self._trial_state[trial].last_score or 0.0))
        count = min(math.ceil(len(ordered) * self._quantile_fraction), len(ordered) // 2)
        upper = ordered[len(ordered) - count :]
        for trial in upper:
            self._checkpoint_or_exploit(trial, tune_controller, [trial], [])
        for trial in ordered[:count]:
            if number_of(trial) != 0:
                self._checkpoint_or_exploit(trial, tune_controller, [upper[self._rng.integers(count)]], [trial])

    def _get_new_config(self, trial: "Trial", trial_to_clone: "Trial") -> tuple[dict[str, Any], dict[str, Any]]:
        mine, other = self._records[number_of(trial)], self._records[number_of(trial_to_clone)]
        values = dict(self._space.perturb(other.latest, self._rng, self._space.mutable()))
        change = {"records": self._at(trial_to_clone), "values": values, "parent": other.number}
        record = replace(mine, parent=other.number, changes=(*mine.changes, change))
        self._moved(record)
        return {"trial": told(record)}, {}


class Members(BasicVariantGenerator):
    """The trials of a population; it is not finished while one is alive, else Ray would end the processes that wait
    for the others. ``over``: whether all is to be left.
    """

    def __init__(self, over: Callable[[], bool]) -> None:
        super().__init__()
        self._over = over

    def is_finished(self) -> bool:
        """Whether there is neither another one nor one that may go on."""
        return bool(super().is_finished() and (not self._live_trials or self._over()))

    def save_to_dir(self, dirpath: str, session_str: str = "", **named: Any) -> None:
        """Nothing to save."""
