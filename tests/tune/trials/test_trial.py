"""Trials: stopped, saved, cloned under other rates, and never otherwise than one that ran through."""

import json
import pickle
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch

from streamkd import config as configuration
from streamkd.errors import TrialFailed
from streamkd.plugins import Registry
from streamkd.replay.table import StoredRows
from streamkd.run import run_seed
from streamkd.tune.trials.objective import OBJECTIVES
from streamkd.tune.trials.recording import Recording, record
from streamkd.tune.trials.trial import Trial, TrialReading

REGISTRY = Registry.load()
SOURCE = {"name": "replay", "dataset": "digits", "classes_per_task": 5, "per_class": 30}
TREE: dict[str, Any] = {
    "stream": {"source": SOURCE},
    "student": {"name": "mlp", "hidden": [16]},
    "memory": {"size": 60},
    "vicinal": {"rows": 10},
    "adapt": {"every": 3},
    "teachers": [{"name": "ema"}, {"name": "memory"}, {"name": "snapshot"}],
    "device": "cpu",
}
EVERY = ("accuracy", "final-accuracy", "forgetting", "student-accuracy")


def config_of(**changes: Any) -> configuration.Config:
    """The small stream's configuration with ``section.key`` (dots as ``__``) or whole sections changed."""
    tree = json.loads(json.dumps(TREE))
    for path, value in changes.items():
        *sections, key = path.split("__")
        node = tree
        for section in sections:
            node = node[int(section)] if isinstance(node, list) else node.setdefault(section, {})
        node[key] = value
    return configuration.from_tree(tree, REGISTRY)


@pytest.fixture(scope="module")
def recordings() -> dict[int, Recording]:
    return {seed: record(config_of(), REGISTRY, seed) for seed in (100, 101)}


@pytest.fixture(scope="module")
def one(recordings: dict[int, Recording]) -> dict[int, Recording]:
    """One seed is enough where seeds are not the matter."""
    return {100: recordings[100]}


def trial_of(recordings: dict[int, Recording], *objectives: str, **changes: Any) -> Trial:
    return Trial(config_of(**changes), REGISTRY, recordings, objectives or ("accuracy",))


def state(trial: Trial) -> Any:
    """What the learners of all seeds are, and what was measured of them."""
    return {seed: (one._learner.state(), [*map(asdict, one._points)]) for seed, one in trial._runs.items()}


def same(a: Any, b: Any) -> bool:
    """Whether two trees are equal, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch.Tensor) and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.is_floating_point())
        )
    if isinstance(a, StoredRows):
        return isinstance(b, StoredRows) and same(dict(a.columns), dict(b.columns))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def figures(reading: TrialReading) -> dict[str, Any]:
    """A reading without what comes from the clock."""
    tree = asdict(reading)
    return {key: value for key, value in tree.items() if not key.endswith("seconds")}


def test_stopping_on_the_way_changes_nothing(recordings: dict[int, Recording]) -> None:
    """SlotStopped at odd places or never, a trial ends with the same state bit for bit, and the same figures."""
    through, stopped = (trial_of(recordings, "accuracy", "forgetting") for _ in range(2))
    for records in (7, 55, 150, 151, 290):
        assert records <= stopped.advance(records).records < records + 10
    ends = [figures(trial.advance(10_000)) for trial in (through, stopped)]
    assert ends[0] == ends[1]
    assert same(state(through), state(stopped))
    assert through.records == stopped.records == 300


def test_being_measured_more_often_changes_nothing_that_is_learned(one: dict[int, Recording]) -> None:
    """Every objective at once, with points within the tasks and timed predictions, or accuracy alone: one learner."""
    much, little = trial_of(one, *OBJECTIVES), trial_of(one)
    for records in (90, 150, 300):
        much.advance(records)
    little.advance(300)
    assert same(much._runs[100]._learner.state(), little._runs[100]._learner.state())


def test_a_trial_measures_what_a_run_would(one: dict[int, Recording]) -> None:
    """Its final accuracy is that of `run` over the same stream under the same seed, tested on the same records."""
    source = {**SOURCE, "validation_ratio": 0.2}
    config = config_of(stream={"source": source}).model_copy(update={"seed": 100})
    tested = run_seed(config, REGISTRY)["served"]["accuracy"]
    reading = trial_of(one, "final-accuracy").advance(10_000)
    assert reading.objectives["final-accuracy"] == pytest.approx(tested["final_average"], abs=1e-6)


@pytest.mark.parametrize("batch", [7, 10, 16])
def test_task_by_task_a_trial_measures_what_a_run_measures(batch: int) -> None:
    """Whether tasks are multiples of the batch or not: accuracy at their ends, and at the end, is that of `run`."""
    changes: dict[str, Any] = {"stream": {"source": {**SOURCE, "classes_per_task": 2}, "batch": {"size": batch}}}
    changes["teachers"] = [{"name": "ema"}, {"name": "analytic", "channels": 4, "dense": 32}, {"name": "snapshot"}]
    tried = Trial(config_of(**changes), REGISTRY, {100: record(config_of(**changes), REGISTRY, 100)}, EVERY)
    reading = tried.advance(10_000)
    changes["stream"]["source"]["validation_ratio"] = 0.2
    tested = run_seed(config_of(**changes).model_copy(update={"seed": 100}), REGISTRY)
    found = reading.objectives
    assert found["accuracy"] == pytest.approx(tested["served"]["accuracy"]["anytime_average"], abs=1e-6)
    assert found["student-accuracy"] == pytest.approx(tested["student"]["accuracy"]["anytime_average"], abs=1e-6)
    assert found["final-accuracy"] == pytest.approx(tested["served"]["accuracy"]["final_average"], abs=1e-6)
    assert found["forgetting"] == pytest.approx(tested["served"]["forgetting"]["average"], abs=1e-6)


def test_a_new_task_does_not_count_before_it_has_been_learned() -> None:
    """SlotStopped at a task's end that is no multiple of the batch, the figure is of the tasks that are over."""
    changes = {"stream": {"source": {**SOURCE, "classes_per_task": 2}, "batch": {"size": 7}}}
    recording = record(config_of(**changes), REGISTRY, 100)
    tried = Trial(config_of(**changes), REGISTRY, {100: recording}, ("accuracy",))
    reading = tried.advance(recording.marks[0])
    assert reading.records > recording.marks[0]
    assert [at for at, _ in reading.curve] == [recording.marks[0]]
    assert [*tried._runs[100].curve().points[-1].served] == [recording.tasks[0].name]


def test_seeds_advance_together_and_are_averaged(recordings: dict[int, Recording]) -> None:
    """Each seed has seen as many records; the figure is their mean; the reading is plain JSON."""
    trial = trial_of(recordings)
    reading = trial.advance(110)
    assert (trial.records, reading.records, len(reading.per_seed["accuracy"])) == (110, 110, 2)
    assert reading.objectives["accuracy"] == pytest.approx(sum(reading.per_seed["accuracy"]) / 2)
    assert reading.per_seed["accuracy"][0] != reading.per_seed["accuracy"][1]
    assert json.loads(json.dumps(asdict(reading)))["records"] == 110
    assert [at for at, _ in trial.advance(300).curve] == [150, 300]


def test_a_rate_that_diverges_fails_the_trial(one: dict[int, Recording]) -> None:
    """A loss that is not finite ends the trial with its reason, which survives being sent between processes."""
    trial = trial_of(one, optimizer={"name": "sgd", "learning_rate": 1e20})
    with pytest.raises(TrialFailed, match="seed 100") as raised:
        trial.advance(300)
    assert pickle.loads(pickle.dumps(raised.value)).reason == "nan"


def test_a_served_model_that_answers_nan_fails_the_trial(one: dict[int, Recording]) -> None:
    """Weights gone without a loss that said so show when the trial is measured, not as one class for ever."""
    trial = trial_of(one)
    trial.advance(100)
    served = trial._runs[100]._learner.served
    with torch.no_grad():
        for parameter in served.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(TrialFailed) as raised:
        trial.advance(100)
    assert raised.value.reason == "nan"


def test_validation_is_small_beside_training(one: dict[int, Recording]) -> None:
    """Nine stops and the marks of the stream: what is measured takes less than what is learned."""
    trial = trial_of(one)
    for part in range(1, 10):
        reading = trial.advance(300 * part // 9)
    assert 0 < trial._runs[100].validation_seconds < reading.seconds / 2


def test_it_is_heard_as_long_as_it_learns(one: dict[int, Recording]) -> None:
    """A beat a batch: whoever waits for the trial can tell a long milestone from one that hangs."""
    beats: list[None] = []
    trial = Trial(config_of(), REGISTRY, one, beat=lambda: beats.append(None))
    trial.advance(100)
    assert len(beats) == 10
