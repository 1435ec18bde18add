"""Trials: stopped, saved, cloned under other rates, and never otherwise than one that ran through."""

import json
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamkd import config as configuration
from streamkd.errors import ConfigError, StateConflict, StateError, TrialFailed
from streamkd.plugins import Registry
from streamkd.run import run_seed
from streamkd.search import running, spacefile
from streamkd.search.course import Reading
from streamkd.search.objective import OBJECTIVES
from streamkd.search.recording import Recording, record
from streamkd.search.trial import Trial

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
HALF = 120  # of 300 records, in the first of two tasks
TEMPERATURE = REGISTRY.options("losses", "match-gate", {}).model_dump()["temperature"]


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


@pytest.fixture(scope="module")
def saved(one: dict[int, Recording], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial within its first task, under the small stream's values."""
    folder = tmp_path_factory.mktemp("saved") / "state"
    trial = trial_of(one)
    trial.advance(HALF)
    trial.save(folder)
    return folder


def trial_of(recordings: dict[int, Recording], *objectives: str, **changes: Any) -> Trial:
    return Trial(config_of(**changes), REGISTRY, recordings, objectives or ("accuracy",))


def cloned(saved: Path, one: dict[int, Recording], **changes: Any) -> Trial:
    """The saved trial, to go on under other values."""
    trial = trial_of(one, **changes)
    trial.restore(saved)
    return trial


def learned(trial: Trial) -> dict[str, Any]:
    """What the learner of the only seed has learned."""
    return trial.state()["100"]["learner"]["learned"]


def parts_of(trial: Trial) -> Any:
    """The step of the only seed: what the rates are to take effect in."""
    return trial._passages[100]._learner.strategy.step


def same(a: Any, b: Any) -> bool:
    """Whether two trees are equal, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def figures(reading: Reading) -> dict[str, Any]:
    """A reading without what comes from the clock."""
    tree = asdict(reading)
    return {key: value for key, value in tree.items() if not key.endswith("seconds")}


def test_stopping_on_the_way_changes_nothing(recordings: dict[int, Recording]) -> None:
    """Stopped at odd places or never, a trial ends with the same state bit for bit, and the same figures."""
    through, stopped = (trial_of(recordings, "accuracy", "forgetting") for _ in range(2))
    for records in (7, 55, 150, 151, 290):
        assert records <= stopped.advance(records).records < records + 10
    ends = [figures(trial.advance(trial.total)) for trial in (through, stopped)]
    assert ends[0] == ends[1]
    assert same(through.state(), stopped.state())
    assert through.finished


def test_being_measured_more_often_changes_nothing_that_is_learned(one: dict[int, Recording]) -> None:
    """Every objective at once, with points within the tasks and timed predictions, or accuracy alone: one learner."""
    much, little = trial_of(one, *OBJECTIVES), trial_of(one)
    for records in (90, 150, 300):
        much.advance(records)
    little.advance(300)
    assert same(much.state()["100"]["learner"], little.state()["100"]["learner"])


def test_saved_and_restored_it_goes_on_as_if_nothing_had_been(recordings: dict[int, Recording], tmp_path: Path) -> None:
    """A trial of two seeds, saved within a task and restored elsewhere, ends bit for bit as one that ran on."""
    on, saved = (trial_of(recordings, "accuracy", "records-to-90") for _ in range(2))
    saved.advance(130)
    saved.save(tmp_path / "state")
    restored = trial_of(recordings, "accuracy", "records-to-90")
    restored.restore(tmp_path / "state")
    assert same(restored.state(), saved.state())
    assert restored.records == 130
    ends = [figures(trial.advance(trial.total)) for trial in (on, restored)]
    assert ends[0] == ends[1]
    assert same(on.state(), restored.state())


def test_a_finished_trial_is_restored_finished(one: dict[int, Recording], tmp_path: Path) -> None:
    """Its last task is closed once, and its figures stay."""
    trial = trial_of(one)
    reading = trial.advance(10_000)
    trial.save(tmp_path / "state")
    again = trial_of(one)
    again.restore(tmp_path / "state")
    assert again.finished
    assert figures(again.advance(10_000)) == figures(reading)


def test_a_trial_measures_what_a_run_would(one: dict[int, Recording]) -> None:
    """Its final accuracy is that of `run` over the same stream under the same seed, tested on the same records."""
    source = {**SOURCE, "validation_ratio": 0.2}
    config = config_of(stream={"source": source}).model_copy(update={"seed": 100})
    tested = run_seed(config, REGISTRY)["served"]["accuracy"]
    reading = trial_of(one, "final-accuracy").advance(10_000)
    assert reading.objectives["final-accuracy"] == pytest.approx(tested["final_average"], abs=1e-6)
    assert reading.accuracy == reading.objectives["final-accuracy"]


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
    """Stopped at a task's end that is no multiple of the batch, the figure is of the tasks that are over."""
    changes = {"stream": {"source": {**SOURCE, "classes_per_task": 2}, "batch": {"size": 7}}}
    recording = record(config_of(**changes), REGISTRY, 100)
    tried = Trial(config_of(**changes), REGISTRY, {100: recording}, ("accuracy",))
    reading = tried.advance(recording.marks[0])
    assert reading.records > recording.marks[0]
    assert [at for at, _ in reading.curve] == [recording.marks[0]]
    assert [*tried._passages[100].curve().points[-1].served] == [recording.tasks[0].name]


def test_seeds_advance_together_and_are_averaged(recordings: dict[int, Recording]) -> None:
    """Each seed has seen as many records; the figure is their mean; the reading is plain JSON."""
    trial = trial_of(recordings)
    reading = trial.advance(110)
    assert (trial.records, reading.records, reading.seeds) == (110, 110, [100, 101])
    assert reading.objectives["accuracy"] == pytest.approx(sum(reading.per_seed["accuracy"]) / 2)
    assert reading.per_seed["accuracy"][0] != reading.per_seed["accuracy"][1]
    assert not trial.finished
    assert json.loads(json.dumps(asdict(reading)))["records"] == 110
    assert [at for at, _ in trial.advance(trial.total).curve] == [150, 300]


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
    served = trial._passages[100]._learner.served
    with torch.no_grad():
        for parameter in served.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(TrialFailed) as raised:
        trial.advance(100)
    assert raised.value.reason == "nan"


def test_under_another_learning_rate_the_student_moves_by_it(saved: Path, one: dict[int, Recording]) -> None:
    """The optimiser's rate is the new one, settled as far as the old one was; next to none moves next to nothing."""
    still = cloned(saved, one, optimizer__learning_rate=1e-12)
    before = {name: t.clone() for name, t in learned(still)["student"].items()}
    still.advance(HALF + 30)
    for name, tensor in learned(still)["student"].items():
        torch.testing.assert_close(tensor, before[name], atol=1e-8, rtol=0)
    ratio = [
        parts_of(cloned(saved, one, optimizer__learning_rate=rate)).optimizer.param_groups[0]["lr"] / rate
        for rate in (0.001, 0.02)
    ]
    assert ratio[0] == pytest.approx(ratio[1])
    assert 1.0 < ratio[0] < 3.0


def test_under_another_adapt_rate_the_gate_moves_by_it(saved: Path, one: dict[int, Recording]) -> None:
    """With next to none the gate stays where it was saved; with the old one it moves on."""
    before = {name: t.clone() for name, t in learned(cloned(saved, one))["gate"].items()}
    still, moving = cloned(saved, one, adapt__learning_rate=1e-12), cloned(saved, one)
    for trial in (still, moving):
        assert same(learned(trial)["gate"], before)
        trial.advance(HALF + 30)
    for name, tensor in learned(still)["gate"].items():
        torch.testing.assert_close(tensor, before[name], atol=1e-8, rtol=0)
    assert not same(learned(moving)["gate"], before)


def test_under_another_temperature_the_loss_has_it(saved: Path, one: dict[int, Recording]) -> None:
    """The gate and its adapter go on as they were, the loss softens by the new temperature."""
    trial = cloned(saved, one, losses=[{"name": "match-gate", "temperature": 4.0}])
    assert parts_of(trial).terms[0].loss.temperature == 4.0
    assert same(learned(trial)["adapter"], learned(cloned(saved, one))["adapter"])


def test_a_temperature_that_is_adapted_is_moved_by_the_configuration_alone(
    one: dict[int, Recording], tmp_path: Path
) -> None:
    """Restored under the same one it goes on from where it had come; under another it is that."""
    adapting = {"adapt__temperature": True}
    trial = trial_of(one, **adapting)
    trial.advance(HALF)
    trial.save(tmp_path / "state")
    moved = parts_of(trial).terms[0].loss.temperature
    kept = cloned(tmp_path / "state", one, **adapting)
    other = cloned(tmp_path / "state", one, **adapting, losses=[{"name": "match-gate", "temperature": 4.0}])
    assert moved != TEMPERATURE
    assert parts_of(kept).terms[0].loss.temperature == pytest.approx(moved)
    assert parts_of(other).terms[0].loss.temperature == pytest.approx(4.0)


def test_under_another_floor_and_prior_the_gate_keeps_what_it_learned(saved: Path, one: dict[int, Recording]) -> None:
    """The hard label's weight in new rows obeys the new floor and the new prior; the scorer is the saved one."""
    high = cloned(saved, one, gate={"name": "per-sample", "floor": 0.9})
    low = cloned(saved, one, gate={"name": "per-sample", "floor": 0.0, "hard": 0.05, "doubt": 0.0})
    for trial in (high, low):
        assert same(learned(trial)["gate"], learned(cloned(saved, one))["gate"])
        trial.advance(HALF + 10)
    # a remembered label may count less than the floor, where labels look wrong
    hard = [trial._passages[100]._learner.last.weights[:10, 0] for trial in (high, low)]
    heard = [weights[(weights > 0) & (weights < 1)] for weights in hard]
    assert float(heard[0].min()) >= 0.9 - 1e-6
    assert float(heard[1].mean()) < 0.3


def test_under_another_replay_a_step_has_so_many_remembered_rows(saved: Path, one: dict[int, Recording]) -> None:
    """Ten fresh rows and five remembered ones, instead of as many as the memory gives."""
    trial = cloned(saved, one, memory__replay=5)
    trial.advance(HALF + 10)
    assert len(trial._passages[100]._learner.last.weights) == 15


def test_under_another_decay_the_average_follows_by_it(saved: Path, one: dict[int, Recording]) -> None:
    """With none the moving average is the student itself."""
    trial = cloned(saved, one, teachers__0__decay=0.0)
    trial.advance(HALF + 20)
    step = parts_of(trial)
    for ours, theirs in zip(step.pool.average.student.parameters(), step.student.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("student.hidden", {"student__hidden": [8]}),
        ("gate.hidden", {"gate": {"name": "per-sample", "hidden": 4}}),
        ("gate.name", {"gate": {"name": "fixed"}}),
        ("memory.size", {"memory__size": 50}),
        ("optimizer.name", {"optimizer": {"name": "adamw"}}),
        ("adapt.engine", {"adapt__engine": "finite-difference"}),
        ("teachers.2.limit", {"teachers__2__limit": 1}),
        ("losses.0.name", {"losses": [{"name": "kd"}]}),
        ("stream.batch.size", {"stream__batch": {"size": 20}}),
    ],
)
def test_what_a_running_stream_cannot_change_is_refused_by_name(
    saved: Path, one: dict[int, Recording], path: str, changes: dict[str, Any]
) -> None:
    """The path, and both values; the trial that was saved is unharmed."""
    with pytest.raises(StateConflict) as raised:
        cloned(saved, one, **changes)
    assert raised.value.where == path


def test_every_path_that_the_default_space_calls_mutable_can_change(saved: Path, one: dict[int, Recording]) -> None:
    """PBT moves nothing that a restored trial would refuse."""
    space = spacefile.load(None, config_of(), REGISTRY)
    values = space.values_of(config_of(), REGISTRY)
    moved = space.perturb(values, np.random.default_rng(0), space.mutable())
    changed = space.apply(config_of(), moved, REGISTRY)
    assert space.mutable()
    assert len(list(running.changed(config_of(), changed, REGISTRY))) >= len(space.mutable()) / 2
    trial = Trial(changed, REGISTRY, one)
    trial.restore(saved)
    assert trial.advance(HALF + 20).records == HALF + 20


def test_options_that_are_written_out_are_no_change() -> None:
    """A default and the same value in the file are one configuration."""
    written = config_of(gate={"name": "per-sample", "floor": 0.3, "hidden": 16})
    assert not list(running.changed(config_of(), written, REGISTRY))


def test_a_trial_of_other_seeds_or_objectives_is_refused(saved: Path, recordings: dict[int, Recording]) -> None:
    """What was measured of one would be taken for the other's."""
    with pytest.raises(StateConflict, match="seeds"):
        trial_of(recordings).restore(saved)
    with pytest.raises(StateConflict, match="objectives"):
        trial_of({100: recordings[100]}, "forgetting").restore(saved)


def test_a_damaged_state_is_refused(saved: Path, one: dict[int, Recording], tmp_path: Path) -> None:
    """An empty folder, and one with a byte changed, hold no trial."""
    trial = trial_of(one)
    trial.advance(20)
    trial.save(tmp_path / "state")
    tensors = tmp_path / "state" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"?")
    for folder in (tmp_path, tmp_path / "state"):
        with pytest.raises(StateError, match="no saved trial"):
            trial_of(one).restore(folder)


def test_a_trial_of_another_stream_is_refused(one: dict[int, Recording]) -> None:
    """Values that would change the records do not go unnoticed."""
    with pytest.raises(ConfigError, match="recording"):
        trial_of(one, stream={"source": {**SOURCE, "per_class": 10}})


def test_validation_is_small_beside_training(one: dict[int, Recording]) -> None:
    """Nine stops and the marks of the stream: what is measured takes less than what is learned."""
    trial = trial_of(one)
    for part in range(1, 10):
        reading = trial.advance(300 * part // 9)
    assert 0 < reading.validation_seconds < reading.seconds / 2
