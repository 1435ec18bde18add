"""What ends a trial on Ray, and what moves one on: halving beside the search's own rule, and a population."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import toy_trials
from toy_trials import RATE, TOTAL

from streamkd.scale.tune import RayEngine
from streamkd.search.driver import Standing
from streamkd.search.halving import Halving
from streamkd.search.ledger import TrialRecord
from streamkd.search.settings import Settings


def halving(settings: Settings, mode: str, before: Any = ()) -> Any:
    """Ray's scheduler as a search has it."""
    from streamkd.scale.population import Rungs

    return Rungs(settings, TOTAL, mode, before)


def asked(scheduler: Any, number: int, records: int, value: float) -> bool:
    """Whether a trial goes on from this reading."""
    from streamkd.scale.trainable import METRIC, TIME, told

    trial = SimpleNamespace(trial_id=str(number), config={"trial": told(TrialRecord(number, {}))})
    if trial.trial_id not in scheduler._trial_info:
        scheduler.on_trial_add(None, trial)
    return bool(scheduler.on_trial_result(None, trial, {TIME: records, METRIC: value}) == "CONTINUE")


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize(("reduction", "rungs"), [(3, 2), (2, 3), (4, 1)])
def test_both_engines_end_the_same_trials(mode: str, reduction: int, rungs: int) -> None:
    """Readings of 40 trials in any order, trial 0 among them: every verdict is that of ``search.halving``."""
    settings = Settings(reduction=reduction, rungs=rungs)
    steps = settings.milestones(TOTAL)
    rays, ours = halving(settings, mode), Halving(settings.rung_records(TOTAL), reduction, mode)
    dice, going = np.random.default_rng(5), dict.fromkeys(range(40), 0)
    verdicts = []
    while going:
        number = int(dice.choice(list(going)))
        records, value = steps[going[number]], float(dice.normal())
        verdicts.append(asked(rays, number, records, value))
        assert verdicts[-1] == ours.goes_on(number, records, value), (number, records)
        going[number] += 1
        if not verdicts[-1] or going[number] == len(steps) - 1:  # at the last one Ray asks nobody
            del going[number]
    assert {True, False} == set(verdicts)


def test_the_configuration_as_it_stands_is_never_ended() -> None:
    """Trial 0 goes on from the worst figure."""
    scheduler = halving(Settings(), "max")
    for number in (1, 2, 3):
        asked(scheduler, number, 100, 0.9)
    assert asked(scheduler, 0, 100, 0.0)
    assert not asked(scheduler, 4, 100, 0.0)


def test_what_earlier_runs_measured_counts() -> None:
    """A resumed search ends what it would have ended had it not been stopped."""
    readings = tuple({"records": at, "objectives": {"accuracy": 0.9}} for at in (100, 300))
    before = [TrialRecord(number, {}, "pruned", readings) for number in (1, 2, 3)]
    assert asked(halving(Settings(), "max"), 4, 100, 0.5)
    assert not asked(halving(Settings(), "max", before), 4, 100, 0.5)


def refuse_wrong_changes(trials: Mapping[int, TrialRecord]) -> None:
    """Every change is a step aside from what its parent had then, and what was read after it is the parent's stream
    under the changed rate.
    """
    for one in trials.values():
        read = {reading["records"]: reading["objectives"]["accuracy"] for reading in one.readings}
        for change in one.changes:
            at, parent = change["records"], trials[change["parent"]]
            rates = [parent.values[RATE], *[c["values"][RATE] for c in parent.changes if c["records"] < at]]
            aside = [min(rates[-1] + 0.089, 0.9), max(rates[-1] - 0.089, 0.01)]  # a tenth of the span
            assert pytest.approx(change["values"][RATE]) in aside
            gained = at * next(r["objectives"]["accuracy"] for r in parent.readings if r["records"] == at)
            following = min(records for records in read if records > at)
            assert following * read[following] == pytest.approx(gained + (following - at) * change["values"][RATE])
        assert one.parent == (one.changes[-1]["parent"] if one.changes else None)


@pytest.mark.usefixtures("ray_cluster")
def test_the_worst_go_on_from_the_best_with_other_rates(tmp_path: Path) -> None:
    """A population in a place that is a URI: low trials take over the state of high ones, their rates a step aside;
    numbers stay, changes and parents are right, and trial 0, the lowest, is left as it is.
    """
    rates = (0.05, 0.1, 0.2, 0.5, 0.6)
    search = toy_trials.search(f"file://{tmp_path}/s", rates, scheduler="pbt", concurrency=2)
    RayEngine(search.settings).run(search)
    trials = {one.number: one for one in search.job.ledger.trials()}
    assert [one.state for one in trials.values()] == ["finished"] * 5
    assert [one.values[RATE] for one in trials.values()] == list(rates)
    assert trials[0].changes == ()
    assert trials[0].objective("accuracy") == pytest.approx(0.05)
    assert trials[1].changes
    refuse_wrong_changes(trials)
    assert not (tmp_path / "s" / "ray").exists()


@pytest.mark.soak
@pytest.mark.usefixtures("ray_cluster")
def test_a_population_goes_on_from_its_saved_streams(tmp_path: Path) -> None:
    """Interrupted after a dozen readings and resumed: no trial that was saved begins again, and changes stay right."""
    rates = (0.3, 0.1, 0.5)
    first: dict[int, TrialRecord] = {}

    def interrupt(standing: Standing) -> None:
        if sum(one.records // 100 for one in standing.trials) >= 12 and standing.trials[0].state == "running":
            raise KeyboardInterrupt

    def note(standing: Standing) -> None:
        for one in standing.trials:
            if one.readings:
                first.setdefault(one.number, one)

    search = toy_trials.search(tmp_path / "s", rates, scheduler="pbt", concurrency=1, watches=[interrupt])
    with pytest.raises(KeyboardInterrupt):
        RayEngine(search.settings).run(search)
    search.leave()
    assert {one.state for one in search.job.ledger.trials()} == {"lost"}
    search = toy_trials.search(tmp_path / "s", rates, scheduler="pbt", concurrency=1, watches=[note])
    RayEngine(search.settings).run(search)
    trials = {one.number: one for one in search.job.ledger.trials()}
    assert [one.state for one in trials.values()] == ["finished"] * 3
    assert min(one.records for one in first.values()) >= 400
    assert [len(one.readings) for one in trials.values()] == [9] * 3
    refuse_wrong_changes(trials)
