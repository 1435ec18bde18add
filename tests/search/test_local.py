"""The local engine with real child processes, in which trials crash, hang, take too much memory and give NaN."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from streamkd.errors import ConfigError
from streamkd.plugins import Registry
from streamkd.search import driver, sharing
from streamkd.search.ledger import TrialRecord
from streamkd.search.local import LocalEngine, devices_of, slots_of
from streamkd.search.outcome import Outcome
from streamkd.search.settings import Settings

sys.path.append(str(Path(__file__).parent))  # children look there too
import stand_ins
from stand_ins import DEEDS, GOOD, SPACE


class Given:
    """A sampler's place: each trial has the deed that its number says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *deeds: str) -> None:
        def propose(space: Any, settings: Any, directions: Any, number: int, trials: Any) -> Any:
            return {stand_ins.RATE: 0.01, stand_ins.DEED: 100 + DEEDS.index(deeds[number - 1])}

        monkeypatch.setattr("streamkd.search.sampling.propose", propose)
        self.trials = len(deeds) + 1


def search(out: Path, **settings: Any) -> Outcome:
    """A search of stand-ins on the local engine."""
    registry = Registry.load()
    space = settings.pop("space", SPACE)
    given = {"engine": "local", "concurrency": 2, "scheduler": "none", "seeds": (100,), **settings}
    return driver.tune(
        stand_ins.config(), registry, space, Settings(**given), out, {"local": LocalEngine}, make=stand_ins.StandIn
    )


def test_whatever_a_trial_does_to_its_process_hurts_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segfault, an exit, an error, NaN, a sleep and a loop without end, a kill, too much memory: each is named; the
    others finish, in fresh processes where need be.
    """
    deeds = ("segfault", "nan", "sleep", "nothing", "memory", "exit", "raise", "killed", "spin", "nothing")
    given = Given(monkeypatch, *deeds)
    found = search(tmp_path / "s", trials=given.trials, hang_seconds=2.0, memory_bytes=8 << 30, concurrency=3)
    kinds = {DEEDS[one.values[stand_ins.DEED] - 100]: one for one in found.trials[1:]}
    reasons = {
        "segfault": "crash: the process ended by SIGSEGV",
        "exit": "crash: the process ended with exit code 3",
        "raise": "error: ValueError: a stand-in's own error",
        "nan": "nan: the loss is nan",
        "sleep": "hang: learned nothing for",
        "spin": "hang: learned nothing for",
        "killed": "memory: ",
        "memory": "memory: ",
    }
    for deed, reason in reasons.items():
        assert kinds[deed].state == "failed", deed
        assert kinds[deed].reason.startswith(reason), kinds[deed].reason
        assert len(kinds[deed].readings) == 1  # what it had read before is kept
    assert [one.number for one in found.trials if one.state == "finished"] == [0, 4, 10]
    assert found.states == {"finished": 3, "failed": 8}


def test_children_are_used_again_and_none_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six trials in two slots run in two processes, which are gone at the end."""
    given = Given(monkeypatch, *["nothing"] * 5)
    found = search(tmp_path / "s", trials=given.trials)
    workers = {one.worker for one in found.trials}
    assert len(workers) <= 2
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(int(worker.rpartition(":")[2]), 0)


def test_low_trials_are_pruned_at_a_rung(tmp_path: Path) -> None:
    """With halving some trials end at a sixteenth or a quarter of the stream; the default configuration never does."""
    found = search(tmp_path / "s", trials=16, scheduler="asha", sampler="random", space=GOOD, concurrency=1)
    pruned = [one for one in found.trials if one.state == "pruned"]
    rungs = Settings().rung_records(found.total)
    assert pruned
    assert {one.records for one in pruned} <= set(rungs)
    assert found.trials[0].state == "finished"
    assert found.records < found.whole


def test_population_based_training_is_rays() -> None:
    """The local engine refuses it, and says where it is to be had."""
    with pytest.raises(ConfigError, match="--engine ray"):
        LocalEngine(Settings(engine="local", scheduler="pbt"))


@pytest.mark.parametrize(
    ("gpus", "devices", "slots"),
    [
        (0.25, ("0",), ["0"] * 4),
        (0.5, ("2", "3"), ["2", "2", "3", "3"]),
        (0.3, ("0",), ["0"] * 3),
        (1, ("0", "1"), ["0", "1"]),
        (2, ("0", "1", "2"), ["0,1"]),
        (0, ("0",), []),
    ],
)
def test_gpus_are_shared_out(gpus: float, devices: tuple[str, ...], slots: list[str]) -> None:
    """A fraction puts several trials on a GPU, never more than fit; more than one gives each trial its own."""
    assert devices_of(gpus, devices) == slots


def test_a_gpu_that_is_not_there_is_said() -> None:
    """Asking for a GPU where there is none is an error in words."""
    with pytest.raises(ConfigError, match="found 0"):
        devices_of(0.25, ())


@pytest.mark.parametrize(
    ("settings", "cpus", "gpu_slots", "slots"),
    [
        ({}, 2, 0, 2),
        ({"cpus_per_trial": 2.0}, 2, 0, 1),
        ({"cpus_per_trial": 4.0}, 2, 0, 1),
        ({"concurrency": 5}, 2, 0, 5),
        ({"gpus_per_trial": 0.25}, 16, 4, 4),
        ({"gpus_per_trial": 0.25, "concurrency": 9}, 16, 4, 4),
    ],
)
def test_as_many_trials_run_as_fit(settings: dict[str, Any], cpus: int, gpu_slots: int, slots: int) -> None:
    """As many as the CPUs take, or were asked for, and never more than the GPUs take."""
    assert slots_of(Settings(**settings), cpus, gpu_slots) == slots


def test_recordings_are_mapped_whole(tmp_path: Path) -> None:
    """What a child reads is what the driver wrote, and its columns lie in the mapped file, not in memory of its own."""
    rows = pa.record_batch({"x": pa.array(np.arange(100_000)), "y": pa.array(["a", "b"] * 50_000)})
    sharing.write({100: rows, 101: rows.slice(10, 20)}, tmp_path / "recordings")
    before = pa.total_allocated_bytes()
    read = sharing.read(tmp_path / "recordings")
    assert read[100].equals(rows)
    assert read[101].equals(rows.slice(10, 20))
    assert pa.total_allocated_bytes() - before < 10_000


def test_the_worker_of_a_record_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger names the process that ran a trial, its seconds and every milestone."""
    found = search(tmp_path / "s", trials=Given(monkeypatch).trials)
    (one,) = found.trials
    assert isinstance(one, TrialRecord)
    assert one.worker.startswith(os.uname().nodename)
    assert [reading["records"] for reading in one.readings] == list(Settings(scheduler="none").milestones(found.total))
    assert 0 < one.seconds < 60
