"""The driver: killed and resumed, interrupted, out of time, with nothing that could run."""

import itertools
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from streamkd.errors import ConfigError, StateConflict, StateInUse, StreamkdError
from streamkd.search import driver
from streamkd.search.driver import Standing
from streamkd.search.ledger import Ledger, TrialRecord
from streamkd.search.settings import Settings

sys.path.append(str(Path(__file__).parent))
import stand_ins
from inline import REGISTRY, Inline, tune
from stand_ins import GOOD, SPACE

HERE = Path(__file__).parent


def drive(out: Path, trials: int, *resume: str) -> subprocess.Popen[bytes]:
    """A search in a process of its own, on the local engine."""
    return subprocess.Popen([sys.executable, str(HERE / "drive.py"), str(out), str(trials), *resume])


def over(out: Path) -> dict[int, TrialRecord]:
    """The trials that are over, as the ledger has them."""
    if not (out / "search.json").exists():
        return {}
    return {one.number: one for one in Ledger.open(out).trials() if one.state in ("finished", "pruned", "failed")}


def killed(out: Path, trials: int, seconds: float, *resume: str) -> dict[int, TrialRecord]:
    """What was over when the driver was killed so long after its first trial began."""
    process = drive(out, trials, *resume)
    wait_for(lambda: (out / "trials").exists() or process.poll() is not None)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return over(out)


def wait_for(what: Callable[[], bool], seconds: float = 60.0) -> None:
    """Until it is so, or so long."""
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.1)


def runs(pid: int) -> bool:
    """Whether a process is at work: one that has ended may wait for somebody to take note of it."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def refuse_repeated(before: dict[int, TrialRecord], after: dict[int, TrialRecord]) -> None:
    """Every trial that was over is as it was: same process, same readings, same begin."""
    for number, one in before.items():
        assert after[number] == one


def test_a_killed_driver_goes_on_where_it_was(tmp_path: Path) -> None:
    """Killed with -9 in the middle: no child trains for nobody. Resumed: what was over is kept, the table is whole."""
    out = tmp_path / "s"
    process = drive(out, 6)
    wait_for(lambda: bool(over(out)))
    process.kill()
    process.wait()
    before = over(out)
    workers = {int(one.worker.rpartition(":")[2]) for one in Ledger.open(out).trials() if one.worker}
    wait_for(lambda: not any(map(runs, workers)), 10)
    assert workers
    assert not any(map(runs, workers))
    assert drive(out, 6, "resume").wait(100) == 0
    after = over(out)
    refuse_repeated(before, after)
    assert sorted(after) == list(range(6))
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
        after = killed(out, 24, dice.uniform(0.5, 8.0), *(["resume"] if turn else []))
        refuse_repeated(before, after)
        before = after
    assert drive(out, 24, "resume").wait(200) == 0
    after = over(out)
    refuse_repeated(before, after)
    assert sorted(after) == list(range(24))
    assert drive(tmp_path / "whole", 24).wait(200) == 0
    whole = over(tmp_path / "whole")
    assert {n: one.values for n, one in after.items()} == {n: one.values for n, one in whole.items()}


def test_ctrl_c_ends_well(tmp_path: Path) -> None:
    """Interrupted in its third trial: that one is lost, the results are written, and --resume completes the search."""

    def interrupt(record: TrialRecord) -> None:
        if record.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "s", lambda settings: Inline(settings, interrupt))
    states = [one.state for one in Ledger.open(tmp_path / "s").trials()]
    assert states[0] == "finished"
    assert states[2] == "lost"
    assert (tmp_path / "s" / "best.yaml").exists()
    found = tune(tmp_path / "s", resume=True)
    assert len(found.trials) == 6
    assert not {"lost", "running", "waiting"} & found.states.keys()


def test_a_trial_that_was_just_begun_is_not_left_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted when a trial is in the ledger and nowhere else, it is marked as lost like all others."""
    write = Ledger.write

    def interrupted(self: Ledger, record: TrialRecord) -> None:
        write(self, record)
        if record.number == 2 and record.state == "running":
            monkeypatch.setattr(Ledger, "write", write)
            raise KeyboardInterrupt

    monkeypatch.setattr(Ledger, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "s")
    assert Ledger.open(tmp_path / "s").trials()[2].state == "lost"


def test_a_resumed_search_is_the_one_that_was_never_stopped(tmp_path: Path) -> None:
    """Stopped between trials and resumed: the same trials with the same values, states and figures, by Optuna too."""

    def stop(record: TrialRecord) -> None:
        if record.number == 5:
            raise KeyboardInterrupt

    whole = tune(tmp_path / "whole", sampler="optuna", trials=12)
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "s", lambda settings: Inline(settings, stop), sampler="optuna", trials=12)
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
    found = tune(
        tmp_path / "s",
        lambda settings: Inline(settings, lambda record: time.sleep(0.4)),
        trials=50,
        time_budget_seconds=1.0,
    )
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


def test_a_search_in_which_nothing_could_run_says_why(tmp_path: Path) -> None:
    """Where no trial gives a reading the error has the reasons, and no empty table stands for a success."""

    def broken(*parts: Any) -> Any:
        raise RuntimeError("no such device")

    with pytest.raises(StreamkdError, match="3 × error: RuntimeError: no such device"):
        tune(tmp_path / "s", make=broken, trials=3)
    with pytest.raises(StreamkdError, match="none was begun"):
        tune(tmp_path / "t", type("Idle", (), {"__init__": lambda self, s: None, "run": lambda self, search: None}))


def test_an_engine_that_there_is_not_is_named(tmp_path: Path) -> None:
    """The engines that there are are listed, and nothing is written."""
    with pytest.raises(ConfigError, match="inline"):
        driver.tune(stand_ins.config(), REGISTRY, GOOD, Settings(), tmp_path / "s", {"inline": Inline})
    assert not (tmp_path / "s").exists()


def test_watches_are_told_of_every_move(tmp_path: Path) -> None:
    """Each begin, reading and end is told, in order, and the last word is what the ledger has."""
    told: list[Standing] = []
    found = tune(tmp_path / "s", trials=3, scheduler="none", watches=(told.append,))
    assert told[-1].trials == found.trials
    assert len(told) == 3 * (1 + 9 + 1)
    assert all(a.seconds <= b.seconds for a, b in itertools.pairwise(told))


def test_two_objectives_make_a_front(tmp_path: Path) -> None:
    """With two objectives the front is written beside best.yaml, and its directions are the objectives' own."""
    found = tune(tmp_path / "s", objectives=("accuracy", "forgetting"), sampler="optuna", trials=8)
    assert found.front
    assert json.loads((tmp_path / "s" / "search.json").read_text())["objectives"] == {
        "accuracy": "max",
        "forgetting": "min",
    }
    assert (tmp_path / "s" / "front.yaml").exists()
