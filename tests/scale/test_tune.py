"""The engine on a real Ray: the same search as elsewhere, whatever its trials do."""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toy_trials
from toy_trials import ERROR, KILL, MEMORY, NAN, SEGFAULT, SLEEP, WAIT, Gathering, Looking, Shared, Slow

from streamkd.errors import ConfigError, StreamkdError
from streamkd.scale.cluster import Cluster
from streamkd.scale.tune import RayEngine
from streamkd.search.course import steps
from streamkd.search.ledger import Ledger, TrialRecord


def run(place: Path | str, *rates: float, **settings: Any) -> list[TrialRecord]:
    """The trials of a search on Ray, as the ledger has them afterwards."""
    search = toy_trials.search(place, rates, **settings)
    RayEngine(search.settings).run(search)
    return search.job.ledger.trials()


def inline(place: Path, *rates: float, **settings: Any) -> list[TrialRecord]:
    """The same search here, a trial after another."""
    search = toy_trials.search(place, rates, **settings)
    while (record := search.next()) is not None:
        for record in steps(search.job, search.recordings, record):  # noqa: B020
            if not search.told(record):
                record = replace(record, state="pruned")
                break
        search.ended(record)
    return search.job.ledger.trials()


def told(trials: list[TrialRecord]) -> list[Any]:
    """What of the trials does not depend on when and where they ran."""
    return [(one.number, one.values, one.state, one.reason, one.readings) for one in trials]


ASKED: dict[str, Any] = {"trials": 14, "scheduler": "asha", "sampler": "optuna", "concurrency": 1}


@pytest.fixture(scope="module")
def place(ray_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that ran on Ray, one trial at a time, with halving and Optuna's proposals."""
    run(place := tmp_path_factory.mktemp("searches") / "s", make=Shared, **ASKED)
    return place


def test_a_search_on_ray_is_the_search_that_it_is_elsewhere(place: Path, tmp_path: Path) -> None:
    """The ledger is that of the same search without Ray: numbers, values, readings, states, reasons."""
    there, here = Ledger.open(place).trials(), inline(tmp_path / "inline", **ASKED)
    assert told(there) == told(here)
    assert {one.state for one in there} == {"finished", "pruned"}


def test_one_process_serves_one_trial_after_another(place: Path) -> None:
    """Fourteen trials, finished and pruned, one at a time: one worker."""
    assert len({one.worker for one in Ledger.open(place).trials()}) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_recordings_lie_in_memory_once(place: Path) -> None:
    """Trials read their records where the object store has them: mapped, not copied; else each would have failed."""
    assert {one.reason for one in Ledger.open(place).trials()} == {""}


def test_nothing_of_ray_is_left_in_the_directory(place: Path) -> None:
    """A search that is complete has its ledger alone."""
    assert sorted(one.name for one in place.iterdir()) == ["search.json", "trials"]


@pytest.mark.timeout(300)  # seven processes are begun anew
@pytest.mark.usefixtures("ray_cluster")
def test_whatever_a_trial_does_to_its_process_hurts_it_alone(tmp_path: Path) -> None:
    """A segfault, a sleep, one that holds the interpreter, NaN, too much memory, an error and a kill: each is named,
    what it had read before is kept, and the others finish.
    """
    rates = (0.1, SEGFAULT, WAIT, SLEEP, NAN, MEMORY, ERROR, KILL, 0.2)
    trials = run(tmp_path / "s", *rates, concurrency=2, hang_seconds=2.0, memory_bytes=2 << 30)
    assert [one.number for one in trials if one.state == "finished"] == [0, 8]
    reasons = {one.values[toy_trials.RATE]: one.reason for one in trials}
    assert reasons[SEGFAULT] == "crash: the process of the trial ended by SIGSEGV"
    assert reasons[WAIT] == "hang: learned nothing for 2 s"
    assert reasons[SLEEP] == "hang: held its process for 7 s"
    assert reasons[NAN] == "nan: the loss is nan"
    assert reasons[MEMORY] == "memory: MemoryError"
    assert (
        reasons[KILL] == "crash: the process of the trial ended without a word, as it does when the system frees memory"
    )
    assert reasons[ERROR] == "error: ValueError: no such thing"
    assert [one.records for one in trials[1:8]] == [200] * 7


@pytest.mark.usefixtures("ray_cluster")
def test_four_trials_share_a_gpu_and_a_fifth_waits(tmp_path: Path) -> None:
    """Trials of a quarter of the one GPU run four at once and never five, where CPUs would do for eight."""
    trials = run(tmp_path / "s", *[0.1] * 6, make=Gathering, cpus_per_trial=0.5, gpus_per_trial=0.25)
    assert [one.state for one in trials] == ["finished"] * 6
    marks = [mark.read_text().split() for mark in Path(os.environ["TOYS"]).iterdir()]
    spans = [(float(began), float(ended)) for began, ended in marks]
    assert len(spans) == 6
    assert max(sum(began <= moment < ended for began, ended in spans) for moment, _ in spans) == 4


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("gpus", "seen"), [(0.25, "'0'"), (0.0, "''")])
def test_a_trial_sees_the_gpus_that_it_asked_for(tmp_path: Path, gpus: float, seen: str) -> None:
    """One of a quarter sees the first GPU; one that asked for none sees none, whatever the machine has."""
    (trial,) = run(tmp_path / "s", 0.1, make=Looking, gpus_per_trial=gpus)
    assert trial.reason == f"nan: sees {seen}"


def test_a_trial_that_fits_nowhere_is_said(ray_cluster: Cluster, tmp_path: Path) -> None:
    """More CPUs or GPUs than there are is an error at once, with what there is; no trial is begun."""
    too_much: list[dict[str, Any]] = [{"cpus_per_trial": 100.0}, {"gpus_per_trial": 2.0}]
    for asked in too_much:
        search = toy_trials.search(tmp_path / str(asked), [0.1], **asked)
        with pytest.raises(StreamkdError, match=r"needed .* on one machine for each trial, got 4 CPUs, 1 GPUs"):
            RayEngine(search.settings).run(search)
        assert [one.state for one in search.job.ledger.trials()] == ["waiting"]


@pytest.mark.usefixtures("ray_cluster")
def test_when_the_time_is_over_running_trials_are_left(tmp_path: Path) -> None:
    """Trials in the middle are neither ended nor failed, nothing is begun, the engine lets go within seconds, and Ray
    leaves nothing.
    """
    begun = time.monotonic()
    trials = run(tmp_path / "s", *[0.1] * 8, make=Slow, concurrency=1, time_budget_seconds=5.0)
    assert time.monotonic() - begun < 12.0
    assert trials[-1].state == "waiting"
    assert not (tmp_path / "s" / "ray").exists()
    assert {one.state for one in trials} <= {"finished", "running", "waiting"}


def test_a_population_needs_something_that_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A space of sizes alone is refused before Ray starts."""
    search = toy_trials.search(tmp_path / "s", [0.1], scheduler="pbt")
    monkeypatch.setattr(type(search.job.space), "mutable", lambda self: ())
    with pytest.raises(ConfigError, match="needed a path that can change in a running stream"):
        RayEngine(search.settings).run(search)
