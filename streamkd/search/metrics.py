"""A search's figures for Prometheus: trials by state, the best objective, how long a trial takes.

Standing ─► Metrics ─► Exposition ─► /metrics while the search runs
"""

from collections import Counter
from typing import get_args

from streamkd.search import progress
from streamkd.search.driver import Standing
from streamkd.search.ledger import DONE, State, TrialRecord
from streamkd.telemetry import Exposition, Recorder


class Metrics:
    """Watches a search."""

    def __init__(self, exposition: Exposition) -> None:
        self._exposition = exposition
        self._recorder = Recorder()
        self._over: set[int] | None = None

    def __call__(self, standing: Standing) -> None:
        """Take down where the search stands."""
        states = Counter[str](one.state for one in standing.trials)
        states["waiting"] += standing.settings.trials - len(standing.trials)
        for state in get_args(State):
            self._recorder.set("tune_trials", states[state], state=state)
        for name in standing.directions:
            if (best := progress.best(standing, name)) is not None:
                self._recorder.set("tune_best_objective", best.objective(name) or 0.0, objective=name)
        self._observe([one for one in standing.trials if one.state in DONE])
        self._exposition.apply(self._recorder.drain())

    def _observe(self, over: list[TrialRecord]) -> None:
        """How long those took that are over by now; a search that goes on does not count those of before again."""
        before = {one.number for one in over} if self._over is None else self._over
        for one in over:
            if one.number not in before:
                self._recorder.observe("tune_trial_seconds", one.seconds)
        self._over = {one.number for one in over} | before
