"""A search's figures for Prometheus: trials by state, the best objective, how long a trial takes.

Standing ─► Metrics ─► Exposition ─► /metrics while the search runs
"""

from collections import Counter
from typing import get_args

from streamkd.search.driver import Standing
from streamkd.search.ledger import DONE, State, TrialRecord
from streamkd.telemetry import Exposition, Recorder


class Metrics:
    """Watches a search."""

    def __init__(self, exposition: Exposition) -> None:
        self._exposition = exposition
        self._recorder = Recorder()
        self._over: set[int] = set()

    def __call__(self, standing: Standing) -> None:
        """Take down where the search stands."""
        states = Counter[str](one.state for one in standing.trials)
        states["waiting"] += standing.settings.trials - len(standing.trials)
        for state in get_args(State):
            self._recorder.set("tune_trials", states[state], state=state)
        for name, direction in standing.directions.items():
            if (best := best_of(standing.trials, name, direction)) is not None:
                self._recorder.set("tune_best_objective", best, objective=name)
        for one in standing.trials:
            if one.state in DONE and one.number not in self._over:
                self._over.add(one.number)
                self._recorder.observe("tune_trial_seconds", one.seconds)
        self._exposition.apply(self._recorder.drain())


def best_of(trials: tuple[TrialRecord, ...], name: str, direction: str) -> float | None:
    """The best figure among the finished trials."""
    values = [value for one in trials if one.state == "finished" and (value := one.objective(name)) is not None]
    return (max if direction == "max" else min)(values, default=None)
