"""A search's figures for Prometheus, read over HTTP while it runs."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

from streamkd import telemetry
from streamkd.tune.controller import SearchStatus
from streamkd.tune.metrics import Metrics
from streamkd.tune.record import TrialRecord
from streamkd.tune.settings import Settings

sys.path.append(str(Path(__file__).parent))
from stand_ins import here, tune


def scraped(port: int) -> dict[str, float]:
    """The samples of streamkd_tune_*, by name and labels."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return {name: float(value) for name, value in re.findall(r"^streamkd_(tune_\S+) (\S+)$", text, re.M)}


def test_metrics_are_served_while_a_search_runs(tmp_path: Path) -> None:
    """When a trial begins /metrics has the states of all; at the end the best figure and the durations."""
    seen: list[dict[str, float]] = []
    exposition = telemetry.Exposition()
    with telemetry.served(exposition, 0) as port:
        found = tune(
            tmp_path / "s",
            here(lambda values: seen.append(scraped(port))),
            trials=4,
            scheduler="none",
            watches=(Metrics(exposition),),
        )
        end = scraped(port)
    states = [(one['tune_trials{state="waiting"}'], one['tune_trials{state="running"}']) for one in seen]
    assert states == [(3, 1), (2, 1), (1, 1), (0, 1)]
    assert end['tune_trials{state="finished"}'] == 4
    assert end['tune_best_objective{objective="accuracy"}'] == max(
        one.objective("accuracy") or 0 for one in found.trials
    )
    assert end["tune_trial_seconds_count"] == 4
    assert end["tune_trial_seconds_sum"] > 0


def test_a_search_that_goes_on_does_not_count_again() -> None:
    """Durations are those of trials that ended while this process watched."""
    exposition = telemetry.Exposition()
    metrics = Metrics(exposition)
    before = TrialRecord(0, {}, "finished", seconds=5.0)
    running = TrialRecord(1, {}, "running")
    for trials in ((before, running), (before, replace(running, state="finished", seconds=7.0))):
        metrics(SearchStatus(trials, Settings(trials=2), {"accuracy": "max"}, 100, 1.0))
    with telemetry.served(exposition, 0) as port:
        assert scraped(port)["tune_trial_seconds_sum"] == 7.0
