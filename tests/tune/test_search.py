"""The driver: killed and resumed, interrupted, out of time, with nothing that could run."""

import itertools
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from streamkd.errors import StateConflict, StateInUse, StreamkdError
from streamkd.tune import study
from streamkd.tune.controller import SearchStatus
from streamkd.tune.record import TrialRecord
from streamkd.tune.settings import Settings
from streamkd.tune.study import Study

sys.path.append(str(Path(__file__).parent))  # children look there too
import stand_ins
from drivers import drive, family, over, refuse_repeated, wait_for, works
from stand_ins import GOOD, SPACE, here, tune


@pytest.mark.timeout(300)  # the imports of a trial are made twice, beside whatever else runs
def test_a_killed_driver_goes_on_where_it_was(tmp_path: Path) -> None:
    """Killed with -9 in the middle: no child trains for nobody. Resumed: what was over is kept, the table is whole, and
    what was under way has its number and values again.
    """
    out = tmp_path / "s"
    process = drive(out, 6)
    wait_for(lambda: bool(over(out)) or process.poll() is not None)
    children = family(process.pid)
    process.kill()
    process.wait()
    before, left = over(out), {one.number: one.values for one in Study.open(out).trials()}
    assert before
    wait_for(lambda: not any(map(works, children)), 10)
    assert not any(map(works, children))
    assert drive(out, 6, "resume").wait(200) == 0
    after = over(out)
    refuse_repeated(before, after)
    assert sorted(after) == list(range(6))
    assert {number: after[number].values for number in left} == left
    assert (out / "best.yaml").exists()
    assert (out / "report.html").exists()


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(3))
def test_a_driver_killed_again_and_again_loses_nothing(tmp_path: Path, seed: int) -> None:
    """Killed at three random moments: no finished trial is run again, and the end is that of a search never killed."""
    dice, out = random.Random(seed), tmp_path / "s"
    before: dict[int, TrialRecord] = {}
    for turn in range(3):
        process = drive(out, 24, *(["resume"] if turn else []))
        wait_for(lambda: study.exists(out) or process.poll() is not None)  # noqa: B023
        time.sleep(dice.uniform(0.5, 8.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        after = over(out)
        refuse_repeated(before, after)
        before = after
    assert drive(out, 24, "resume").wait(200) == 0
    after = over(out)
    refuse_repeated(before, after)
    assert sorted(after) == list(range(24))
    assert drive(tmp_path / "whole", 24).wait(200) == 0
    whole = over(tmp_path / "whole")
    assert {n: one.values for n, one in after.items()} == {n: one.values for n, one in whole.items()}


def interrupt_at(number: int) -> Any:
    """A slot that is interrupted when so many trials have begun."""
    begun = itertools.count()

    def before(values: Any) -> None:
        if next(begun) == number:
            raise KeyboardInterrupt

    return here(before)


def test_an_interrupted_search_goes_on(tmp_path: Path) -> None:
    """Interrupted in its third trial: that one waits, the results are written, and --resume completes the search."""
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "s", interrupt_at(2))
    states = {one.number: one.state for one in Study.open(tmp_path / "s").trials()}
    assert states[0] == "finished"
    assert states[2] in ("running", "waiting")
    assert (tmp_path / "s" / "best.yaml").exists()
    found = tune(tmp_path / "s", resume=True)
    assert len(found.trials) == 6
    assert found.states.keys() <= {"finished", "pruned"}


def test_a_resumed_search_is_the_one_that_was_never_stopped(tmp_path: Path) -> None:
    """SlotStopped in a trial and resumed: the same trials with the same values, states and figures, by Optuna too."""
    whole = tune(tmp_path / "whole", sampler="optuna", trials=12)
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "s", interrupt_at(5), sampler="optuna", trials=12)
    found = tune(tmp_path / "s", resume=True, sampler="optuna", trials=12)
    assert [(a.values, a.state, a.records) for a in found.trials] == [
        (b.values, b.state, b.records) for b in whole.trials
    ]


def test_more_trials_can_be_asked_for_on_the_way(tmp_path: Path) -> None:
    """A finished search that is resumed with more trials runs those alone."""
    before = {one.number: one for one in tune(tmp_path / "s", trials=3).trials}
    after = {one.number: one for one in tune(tmp_path / "s", trials=5, resume=True).trials}
    refuse_repeated(before, after)
    assert sorted(after) == list(range(5))


def test_the_time_budget_ends_a_search(tmp_path: Path) -> None:
    """When the time is over no trial is begun, and what was run is written."""
    slow = here(lambda values: time.sleep(0.4))
    found = tune(tmp_path / "s", slow, trials=50, time_budget_seconds=1.0)
    assert 1 <= len(found.trials) <= 4
    assert (tmp_path / "s" / "best.yaml").exists()


def test_another_search_is_not_overwritten_or_mixed(tmp_path: Path) -> None:
    """A directory that is taken needs --resume; another configuration, space or seeds are refused with the key."""
    tune(tmp_path / "s", trials=2)
    with pytest.raises(StateInUse, match="--resume"):
        tune(tmp_path / "s")
    with pytest.raises(StateConflict, match=r"another config: memory\.size was 100, is 102"):
        tune(tmp_path / "s", resume=True, config=stand_ins.config(memory={"size": 102}))
    with pytest.raises(StateConflict, match="space"):
        tune(tmp_path / "s", resume=True, space=SPACE)
    with pytest.raises(StateConflict, match="seeds"):
        tune(tmp_path / "s", resume=True, seeds=(100, 101))


class Broken:
    """A trial that cannot be made."""

    def __init__(self, *parts: Any) -> None:
        raise RuntimeError("no such device")


def test_a_search_in_which_nothing_could_run_says_why(tmp_path: Path) -> None:
    """Where no trial gives a reading the error has the reasons, and no empty table stands for a success."""
    with pytest.raises(StreamkdError, match="3 × error: RuntimeError: no such device"):
        tune(tmp_path / "s", make=Broken, trials=3)


def test_low_trials_are_pruned_at_a_rung(tmp_path: Path) -> None:
    """With halving some trials end at a sixteenth or a quarter of the stream; the default configuration never does."""
    found = tune(tmp_path / "s", trials=16, space=GOOD)
    total = found.header["total"]
    pruned = [one for one in found.trials if one.state == "pruned"]
    assert pruned
    assert {one.records for one in pruned} <= {-(-total // 16), -(-total // 4)}
    assert found.trials[0].state == "finished"
    assert found.records < found.whole


def test_watches_are_told_of_every_move(tmp_path: Path) -> None:
    """Each begin and reading is told, in order, and the last word is what the journal has."""
    told: list[SearchStatus] = []
    found = tune(tmp_path / "s", trials=3, scheduler="none", watches=(told.append,))
    assert told[-1].trials == found.trials
    assert len(told) == 3 * (1 + len(Settings(scheduler="none").milestones(100))) + 1
    assert all(a.seconds <= b.seconds for a, b in itertools.pairwise(told))


def test_two_objectives_make_a_front(tmp_path: Path) -> None:
    """With two objectives the front is written beside best.yaml, its directions are the objectives' own, and every
    trial runs to its end.
    """
    found = tune(tmp_path / "s", objectives=("accuracy", "forgetting"), sampler="optuna", trials=8)
    assert found.front
    assert found.states == {"finished": 8}
    assert found.objectives == {"accuracy": "max", "forgetting": "min"}
    assert (tmp_path / "s" / "front.yaml").exists()
