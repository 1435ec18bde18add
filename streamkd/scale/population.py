"""Ray's schedulers as a search uses them: halving that knows what earlier runs measured, and a population.

    ASHA        objective at a rung, those of this and of earlier runs there ─► Rungs ─► goes on, or is ended
    population  objective at a milestone, among those that came there ─► lower quarter?
                ─► state of one of the upper quarter, its values a step aside ─► the stream goes on

Both are Ray's own; what differs is said at each.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler

from streamkd.scale.trainable import METRIC, RECORD, TIME, heard, told
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
        number = heard(trial.config["trial"]).number
        decision = super().on_trial_result(tune_controller, trial, result) if METRIC in result else TrialScheduler.STOP
        return TrialScheduler.CONTINUE if number == 0 else str(decision)

    def _stand(self, record: TrialRecord, objective: str) -> None:
        nobody: Any = None
        trial: Any = SimpleNamespace(trial_id=f"before-{record.number}")
        self.on_trial_add(nobody, trial)
        for reading in record.readings:
            if (value := reading["objectives"].get(objective)) is not None:
                super().on_trial_result(nobody, trial, {TIME: reading["records"], METRIC: value})


class Population(PopulationBasedTraining):
    """Population-based training whose steps are the space's own, over what may change in a running stream.

    Figures are compared where they were measured, at the same milestone: along a stream they rise and fall for all
    alike. Trial 0, what all are compared with, takes over nobody. Every stream is saved at every milestone, so that a
    search that was killed goes on from there: ``saved`` are the folders in which an earlier run left them.

    ``records`` are the trials as they stand, by number. One that takes over another keeps its number and, up to where
    it goes on, its readings.
    """

    def __init__(
        self,
        settings: Settings,
        total: int,
        mode: str,
        space: Space,
        records: dict[int, TrialRecord],
        saved: Mapping[int, Path],
    ) -> None:
        super().__init__(
            time_attr=TIME, metric=METRIC, mode=mode, perturbation_interval=interval(settings, total),
            custom_explore_fn=lambda config: config, log_config=False, require_attrs=False,
        )  # fmt: skip
        self._space, self._records, self._saved = space, records, saved
        self._objective, self._sign = settings.objectives[0], 1.0 if mode == "max" else -1.0
        self._rng = np.random.default_rng(settings.seed)
        self._scores: dict[int, dict[Trial, float]] = {}  # by milestone, the higher the better
        self._now = 0

    def on_trial_add(self, tune_controller: Any, trial: "Trial") -> None:
        """As Ray has it; the trial goes on where an earlier run left it, and what it read there counts."""
        super().on_trial_add(tune_controller, trial)
        record = self._records[heard(trial.config["trial"]).number]
        for reading in record.readings:
            if (value := reading["objectives"].get(self._objective)) is not None:
                self._note(trial, reading["records"], value)
        if (folder := self._saved.get(record.number)) is not None:
            state = self._trial_state[trial]
            state.last_train_time = state.last_perturbation_time = record.records
            manager: Any = trial.run_metadata.checkpoint_manager
            manager._latest_checkpoint_result = _TrainingResult(
                checkpoint=Checkpoint.from_directory(str(folder)), metrics={TIME: record.records}
            )

    def on_trial_result(self, tune_controller: Any, trial: "Trial", result: dict[str, Any]) -> str:
        """As Ray has it, with the trial's record as it is after this reading."""
        record = heard(result[RECORD])
        self._records[record.number] = record
        if METRIC in result:
            self._now = result[TIME]
            self._note(trial, self._now, result[METRIC])
        return str(super().on_trial_result(tune_controller, trial, result))

    def _note(self, trial: "Trial", records: int, value: float) -> None:
        self._scores.setdefault(records, {})[trial] = self._sign * value

    def _quantiles(self) -> tuple[list["Trial"], list["Trial"]]:
        """The lower and the upper quarter of those that came to this milestone and still run."""
        here = {trial: score for trial, score in self._scores[self._now].items() if not trial.is_finished()}
        ordered = sorted(here, key=lambda trial: here[trial])
        count = min(math.ceil(len(ordered) * self._quantile_fraction), len(ordered) // 2)
        lower = [trial for trial in ordered[:count] if heard(trial.config["trial"]).number != 0]
        return lower, ordered[len(ordered) - count :]

    def _checkpoint_or_exploit(self, trial: "Trial", tune_controller: Any, upper: Any, lower: Any) -> None:
        super()._checkpoint_or_exploit(trial, tune_controller, upper, lower)
        if trial.status == trial.RUNNING and not trial.is_saving:
            tune_controller._schedule_trial_save(trial, result=self._trial_state[trial].last_result)

    def _get_new_config(self, trial: "Trial", trial_to_clone: "Trial") -> tuple[dict[str, Any], dict[str, Any]]:
        mine = self._records[heard(trial.config["trial"]).number]
        other = self._records[heard(trial_to_clone.config["trial"]).number]
        state: Any = self._trial_state[trial_to_clone]
        at = int(state.last_result[TIME])
        values = dict(self._space.perturb(other.latest, self._rng, self._space.mutable()))
        change = {"records": at, "values": values, "parent": other.number}
        kept = tuple(reading for reading in mine.readings if reading["records"] <= at)
        record = replace(mine, readings=kept, parent=other.number, changes=(*mine.changes, change))
        self._records[mine.number] = record
        return {"trial": told(record)}, {}


def interval(settings: Settings, total: int) -> int:
    """Records between two looks at the population: a milestone."""
    return max(1, total // settings.reduction**settings.rungs)
