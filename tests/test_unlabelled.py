"""Learning from records without label: what they teach, and all that they never enter."""

from typing import Any

import pytest
import torch
import toys

from streamkd import config as configuration
from streamkd.errors import ConfigError
from streamkd.hookspecs import Options
from streamkd.inspection import weights_sha256
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.records import Records
from streamkd.run import run_seed
from streamkd.state.tree import pack, unpack
from streamkd.tasks.labels import LabelSpace
from streamkd.teachers.recall import RecallTeacher
from streamkd.wiring import open_source, schema_of

REGISTRY = Registry.load()


def tree(how: str = "distil", **source: Any) -> dict[str, Any]:
    """Digits in tasks of two, a share of the labels gone."""
    named = {"name": "replay", "dataset": "digits", "classes_per_task": 2, "unlabelled": 0.5, "limit": 300, **source}
    return {
        "stream": {"source": named, "unlabelled": how},
        "student": {"name": "mlp", "hidden": [16]},
        "memory": {"size": 60, "replay": 20},
        "teachers": toys.TEACHERS,
        "adapt": {"every": 5, "on_task_steps": 3},
        "device": "cpu",
    }


def learner(changes: dict[str, Any] | None = None) -> Learner:
    config = configuration.from_tree(tree() if changes is None else changes, REGISTRY)
    schema = schema_of(config, REGISTRY)
    source, _ = open_source(config, REGISTRY, schema)
    return Learner(config, REGISTRY, source, schema)


def run(one: Learner, batches: int | None = None) -> Learner:
    done = 0
    while (batches is None or done < batches) and one.advance():
        done += 1
    return one


def labels_of(one: Learner) -> list[Any]:
    """Every label of the stream that it reads, in order."""
    return one.source.read(one.source.partitions[0], 0, 10_000).rows.column("label").to_pylist()


def counted(one: Learner, family: str) -> float:
    return sum(amount for name, _, amount in one.recorder.drain() if name == family)


def test_every_record_is_trained_and_only_labelled_ones_are_scored() -> None:
    """All count as trained; those without label are counted apart, and are no part of the prequential accuracy."""
    one = run(learner())
    labels = labels_of(one)
    assert one.records == len(labels) == 300
    assert counted(one, "records_unlabelled_total") == labels.count(None) > 100
    assert one.prequential.student.records == 300 - labels.count(None)


def test_they_enter_neither_labels_nor_memory() -> None:
    """No class of their own, no remembered or held-out record without label."""
    one = run(learner())
    assert None not in one.labels.labels
    memory = one.step.memory
    for ring in (memory.replayed, memory.holdout):
        assert (ring.y[: ring.filled] >= 0).all()
        assert -1 not in ring.policy.seen


def test_they_are_told_to_no_detector_of_new_labels() -> None:
    """The boundaries of a stream with labels gone name the same classes: none begins at a record without label."""
    one = run(learner())
    labels = labels_of(one)
    for boundary in one.tasks.boundaries[1:]:
        batch = labels[boundary.record : boundary.record + 10]
        assert any(label is not None for label in batch)


@pytest.mark.parametrize("stop", [7, *(pytest.param(stop, marks=pytest.mark.soak) for stop in (1, 20))])
def test_stopping_and_resuming_ends_in_the_same_bits(stop: int) -> None:
    """With labels missing as without."""
    whole, stopped = run(learner()), run(learner(), stop)
    resumed = learner()
    resumed.restore(unpack(pack(stopped.state())), dict(stopped.offsets), stopped.config)
    run(resumed)
    weights = [weights_sha256(one.student.state_dict()) for one in (resumed, whole)]
    assert weights[0] == weights[1]
    names = whole.labels.labels
    assert resumed.prequential.student.figures(names) == whole.prequential.student.figures(names)


def test_before_any_label_is_known_they_are_passed_over() -> None:
    """A stream that has no label yet has no class to teach: its records count, its offsets go on, nothing starts."""
    one = run(learner(tree(unlabelled=1.0)))
    assert not one.started
    assert counted(one, "records_unlabelled_total") == 300
    assert list(one.offsets.values()) == [300]


def test_a_stream_that_rejects_them_refuses_each_with_its_reason() -> None:
    """The default: dead letters, and only labelled records are trained."""
    one = run(learner(tree("reject")))
    labels = labels_of(one)
    reasons = [reject.reason for letters in one.dead for reject in letters.rejects]
    assert reasons == ["missing_label"] * labels.count(None)
    assert one.records == 300 - labels.count(None)


def test_a_batch_without_any_label_learns_from_the_teachers() -> None:
    """It moves the student towards them, and nothing else: neither memory nor the teachers' own records change."""
    step = toys.make_step()
    for x, y in toys.batches(20):
        toys.train(step, x, y)
    before = {"weights": weights_sha256(step.student.state_dict()), "seen": dict(step.memory.replayed.policy.seen)}
    x, _ = toys.batches(1, seed=9)[0]
    loss = toys.train(step, x, torch.full((len(x),), -1))
    assert loss.isfinite()
    assert weights_sha256(step.student.state_dict()) != before["weights"]
    assert step.memory.replayed.policy.seen == before["seen"]


@pytest.mark.parametrize("gate", ["fixed", "per-sample"])
def test_a_record_without_label_listens_to_teachers_alone(gate: str) -> None:
    """No weight for a label that is not there; the teachers' weights sum to 1, or to 0 where none answers."""
    step = toys.make_step(gate=toys.scorer() if gate == "per-sample" else None, holdout_ratio=0.0)
    for x, y in toys.batches(10):
        toys.train(step, x, y)
    x, y = toys.batches(1, seed=9)[0]
    y[::2] = -1
    plan = step.begin(x, y, 0)
    weights = step.weigh(plan, step.forward(plan)).weights[: plan.fresh]
    assert (weights[::2, 0] == 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(len(x)))
    alone = toys.make_step(teachers=[], snapshots=0)
    plan = alone.begin(x, y, 0)
    assert (alone.weigh(plan, alone.forward(plan)).weights[::2] == 0).all()


def test_the_gate_is_adapted_with_them_in_the_batch() -> None:
    """Adaptation goes on over batches with labels missing, and stays finite."""
    gate = toys.scorer()
    step = toys.make_step(gate=gate, adapter=toys.adapter_of(gate))
    for x, y in toys.batches(40):
        y[1::2] = -1
        assert toys.train(step, x, y).isfinite()
    assert step.adapter.adaptations > 10
    assert all(p.isfinite().all() for p in gate.parameters())


def test_observing_teachers_do_not_see_them() -> None:
    """``observe`` gets labelled rows alone, and is not called without any."""
    seen: list[torch.Tensor] = []

    class Watching(RecallTeacher):
        def observe(self, x: torch.Tensor, y: torch.Tensor) -> None:
            seen.append(y)

        def end_task(self) -> None: ...

    step = toys.make_step(holdout_ratio=0.0, teachers=[Watching(Options(), toys.context_of("w", toys.mlp()))])
    x, y = toys.batches(1)[0]
    y[::2] = -1
    toys.train(step, x, y)
    toys.train(step, x, torch.full_like(y, -1))
    assert [part.tolist() for part in seen] == [y[1::2].tolist()]


def test_the_label_space_has_no_place_for_none() -> None:
    """A missing label adds no class, and its column is -1."""
    space = LabelSpace()
    assert space.learn([None, "b", None, "a"]) == ["b", "a"]
    assert space.indices(["a", None, "b"]) == [1, -1, 0]


def test_what_has_no_label_is_left_out_where_labels_are_needed() -> None:
    """``labelled`` keeps the others in order; records that all have one are given back as they are."""
    inputs, offsets = torch.zeros(3, 2).numpy(), torch.arange(3).numpy()
    records = Records(inputs, [1, None, 2], ["a", "b", "c"], offsets)
    kept = records.labelled()
    assert (kept.labels, kept.tasks, kept.offsets.tolist()) == ([1, 2], ["a", "c"], [0, 2])
    assert kept.labelled() is kept


def test_the_choice_is_made_in_one_place() -> None:
    """``stream.records`` may not say it: the error names where to write it."""
    records = {"inputs": [{"name": "x"}], "unlabelled": True}
    with pytest.raises(ConfigError, match="write unlabelled: distil in stream"):
        configuration.from_tree({"stream": {"source": {"name": "flight"}, "records": records}})


@pytest.mark.soak
def test_distilling_them_ends_better_than_refusing_them() -> None:
    """Where four of five labels are gone the student knows more in the end if its teachers speak for them."""
    gained: list[float] = []
    for seed in (100, 101, 102, 103):
        final: dict[str, float] = {}
        for how in ("reject", "distil"):
            changes = tree(how, unlabelled=0.8, limit=None, test="rest", per_class=115) | {
                "student": {"name": "mlp", "hidden": [100, 100]},
                "memory": {"size": 200},
                "teachers": [{"name": "ema"}, {"name": "memory"}, {"name": "snapshot"}, {"name": "analytic"}],
                "vicinal": {},
                "adapt": {},
                "seed": seed,
            }
            report = run_seed(configuration.from_tree(changes, REGISTRY), REGISTRY)
            final[how] = report["student"]["accuracy"]["final_average"]
        gained.append(final["distil"] - final["reject"])
    assert sum(gained) / len(gained) > 0.01
