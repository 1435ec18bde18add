"""Asynchronous successive halving beside Ray's own scheduler."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from streamkd.search.halving import Halving
from streamkd.search.settings import Settings


@pytest.mark.parametrize("direction", ["max", "min"])
@pytest.mark.parametrize(("reduction", "rungs"), [(3, 2), (2, 3), (4, 1)])
def test_it_ends_the_trials_that_rays_scheduler_ends(direction: str, reduction: int, rungs: int) -> None:
    """Readings of 40 trials in any order: every verdict is that of Ray's ASHAScheduler on the same readings."""
    async_hyperband = pytest.importorskip("ray.tune.schedulers.async_hyperband")
    settings, total = Settings(reduction=reduction, rungs=rungs), 3_600
    steps, places = settings.milestones(total), settings.rung_records(total)
    ours = Halving(places, reduction, direction)
    theirs = async_hyperband._Bracket(places[0], places[-1], reduction, 0)
    assert sorted(records for records, _ in theirs._rungs) == list(places)
    rng = np.random.default_rng(5)
    going = dict.fromkeys(range(1, 41), 0)  # trial 0 is ours alone
    verdicts = []
    while going:
        number = int(rng.choice(list(going)))
        records, value = steps[going[number]], float(rng.normal())
        mine = ours.goes_on(number, records, value)
        reward = value if direction == "max" else -value
        their_word = theirs.on_result(SimpleNamespace(trial_id=str(number)), records, reward)
        verdicts.append(mine)
        assert mine == (their_word == "CONTINUE"), (number, records)
        going[number] += 1
        if not mine or going[number] == len(steps):
            del going[number]
    assert True in verdicts
    assert False in verdicts


def test_the_configuration_as_it_stands_is_never_ended() -> None:
    """Trial 0 goes on from the worst figure, and from none."""
    halving = Halving((100, 300), 3)
    for number in (1, 2, 3):
        halving.goes_on(number, 100, 0.9)
    assert halving.goes_on(0, 100, 0.0)
    assert halving.goes_on(0, 300, None)
    assert not halving.goes_on(4, 100, 0.0)


def test_a_trial_without_a_figure_does_not_go_on() -> None:
    """What cannot be compared is ended, and moves nobody's bar."""
    halving = Halving((100,), 3)
    assert not halving.goes_on(1, 100, None)
    assert halving.goes_on(2, 100, 0.1)


def test_between_rungs_everybody_goes_on() -> None:
    """Only the first reading at or past a rung is judged."""
    halving = Halving((100, 300), 3)
    assert halving.goes_on(1, 100, 0.9)
    assert halving.goes_on(1, 200, 0.0)
    assert not halving.goes_on(2, 100, 0.5)
    assert halving.goes_on(3, 50, 0.0)


@pytest.mark.parametrize("total", [1, 2, 7, 9, 10, 3_200, 3_201])
def test_milestones_rise_to_the_end_and_hold_the_rungs(total: int) -> None:
    """However short the stream: milestones rise, end at its end, and the rungs are among them, below the end."""
    settings = Settings()
    steps, rungs = settings.milestones(total), settings.rung_records(total)
    assert list(steps) == sorted(set(steps))
    assert steps[-1] == total
    assert len(steps) <= 16
    assert set(rungs) <= set(steps[:-1])
    if total >= 16:
        assert rungs == (math.ceil(total / 16), math.ceil(total / 4))
