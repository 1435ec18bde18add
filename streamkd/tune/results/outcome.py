"""What a search came to: the one account that files, page and words give.

Study ─► header, trials, front, importances ─► Outcome ─► verdict
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

from streamkd.tune.record import State, TrialRecord
from streamkd.tune.results import verdict
from streamkd.tune.results.verdict import Verdict
from streamkd.tune.study import Study


@dataclass(frozen=True)
class Outcome:
    """A search as it stands, finished or not. ``front``: the trials of two objectives that nothing beats;
    ``importances``: shares by path, highest first, none of few trials.
    """

    header: Mapping[str, Any]
    trials: tuple[TrialRecord, ...]
    front: tuple[TrialRecord, ...]
    importances: Mapping[str, float]

    @property
    def objectives(self) -> dict[str, str]:
        """Name: "max" or "min"; the first one leads."""
        return dict(self.header["objectives"])

    @property
    def leading(self) -> str:
        return next(iter(self.objectives))

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.header["seeds"])

    @property
    def records(self) -> int:
        """Records that all trials have seen, over all seeds."""
        return sum(one.records for one in self.trials) * len(self.seeds)

    @property
    def whole(self) -> int:
        """Records that as many whole trials would have seen."""
        return len(self.trials) * int(self.header["total"]) * len(self.seeds)

    @property
    def states(self) -> dict[str, int]:
        """How many trials are in each state; states of none are left out."""
        counts = Counter(one.state for one in self.trials)
        return {state: counts[state] for state in get_args(State) if counts[state]}

    @property
    def default(self) -> TrialRecord | None:
        """Trial 0, the configuration as it stands."""
        return next((one for one in self.trials if one.number == 0), None)

    @cached_property
    def verdict(self) -> Verdict | None:
        return verdict.choose(self.trials, self.leading, self.objectives[self.leading])

    @property
    def failures(self) -> list[TrialRecord]:
        return [one for one in self.trials if one.state == "failed"]


def read(study: Study) -> Outcome:
    """The outcome as the study has it now."""
    trials = {one.number: one for one in study.trials()}
    front = study.front() if len(study.header["objectives"]) > 1 else []
    return Outcome(study.header, tuple(trials.values()), tuple(trials[number] for number in front), study.importances())
