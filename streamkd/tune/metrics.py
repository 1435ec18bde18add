"""A search's figures for Prometheus: trials by state, the best objective, how long a trial takes.

SearchStatus ─► Metrics ─► Exposition ─► /metrics while the search runs
"""

from collections import Counter
from typing import get_args

from streamkd.telemetry import Exposition, Recorder
from streamkd.tune.controller import SearchStatus
from streamkd.tune.record import DONE, State
from streamkd.tune.results.decision import highest


class Metrics:
    """Watches a search; what was over before, in one that goes on, is not counted again."""

    def __init__(self, exposition: Exposition) -> None:
        self._exposition, self._recorder = exposition, Recorder()
        self._over: set[int] | None = None

    def __call__(self, standing: SearchStatus) -> None:
        """Take down where the search stands."""
        states = Counter[str](one.state for one in standing.trials)
        states["waiting"] += standing.settings.trials - len(standing.trials)
        for state in get_args(State):
            self._recorder.set("tune_trials", states[state], state=state)
        for name, direction in standing.directions.items():
            if (best := highest(standing.trials, name, direction)) is not None:
                self._recorder.set("tune_best_objective", best.objective(name) or 0.0, objective=name)
        over = {one.number: one.seconds for one in standing.trials if one.state in DONE}
        for number in over.keys() - (over if self._over is None else self._over):
            self._recorder.observe("tune_trial_seconds", over[number])
        self._over = set(over)
        self._exposition.apply(self._recorder.drain())
