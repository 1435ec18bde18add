"""The learner as a whole: what it learns, that stopping changes nothing, and what it refuses."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from baselines import REGISTRY

from streamkd import config as configuration
from streamkd.errors import ConfigError, SourceError, StateConflict
from streamkd.inspection import weights_sha256
from streamkd.learner import Learner
from streamkd.learner.resuming import FORM
from streamkd.state import segments
from streamkd.state import tree as state_tree
from streamkd.state.checkpoint import CheckpointStore
from streamkd.state.directory import StateDirectory
from streamkd.state.tree import Parts, pack, unpack
from streamkd.teachers.teacher import copy_of
from streamkd.wiring import open_source, schema_of

RECORDS = 200


def tree(**changes: Any) -> dict[str, Any]:
    """Three tasks of two digits, the last cut short, small parts; top-level keys can be replaced."""
    source = {"name": "replay", "dataset": "digits", "classes_per_task": 2, "per_class": 40, "limit": RECORDS}
    base = {
        "stream": {"source": source},
        "student": {"name": "mlp", "hidden": [16]},
        "memory": {"size": 60, "replay": 20},
        "teachers": toys.TEACHERS,
        "adapt": {"every": 5, "on_task_steps": 3},
        "device": "cpu",
    }
    return {**base, **changes}


def learner(changes: dict[str, Any] | None = None, **more: Any) -> Learner:
    config = configuration.from_tree(tree(**(changes or {})), REGISTRY)
    schema = schema_of(config, REGISTRY)
    source, _ = open_source(config, REGISTRY, schema)
    return Learner(config, REGISTRY, source, schema, **more)


def weights(one: Learner) -> list[str]:
    """Hashes of everything that was learned: student, average, gate."""
    step = one.step
    average = step.pool.average
    assert average is not None
    return [weights_sha256(part.state_dict()) for part in (step.student, average.student, step.gate)]  # type: ignore[attr-defined]


def run(one: Learner, batches: int | None = None) -> Learner:
    done = 0
    while (batches is None or done < batches) and one.advance():
        done += 1
    return one


def bits(parts: Parts) -> dict[str, Any]:
    """All that a state holds: its document, and each tensor and row in bytes."""
    rows = {f"{key}/{name}": t for key, stored in parts.rows.items() for name, t in stored.columns.items()}
    tensors = {
        key: (t.dtype, t.shape, t.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b"")
        for key, t in (parts.tensors | rows).items()
    }
    return {"document": parts.document, "tables": parts.tables, **tensors}


@functools.cache
def whole() -> Learner:
    """One that was never stopped; to be looked at alone."""
    return run(learner())


def test_it_learns_the_stream_better_than_chance() -> None:
    """After one pass over 400 digits of three tasks the student knows most of what it has just seen."""
    source = {"name": "replay", "dataset": "digits", "classes_per_task": 2, "limit": 400}
    one = run(learner({"stream": {"source": source}}))
    accuracy = one.prequential.student.overall
    assert one.records == 400
    assert accuracy is not None
    assert accuracy > 0.5


def test_a_seed_and_a_configuration_give_one_result() -> None:
    """Two learners of one configuration end in the same bits; another seed does not."""
    second, other = run(learner()), run(learner({"seed": 1}))
    assert weights(whole()) == weights(second)
    assert weights(whole()) != weights(other)


def test_it_learns_the_same_where_avalanche_looks_on() -> None:
    """With a metric and a plugin of Avalanche it ends in the bits of a learner without, and its metric is told."""
    from avalanche.core import SupervisedPlugin
    from avalanche.evaluation.metrics import accuracy_metrics

    plain = run(learner(), 10)
    seen = run(
        learner(avalanche_plugins=[SupervisedPlugin()], avalanche_metrics=[accuracy_metrics(minibatch=True)]), 10
    )
    assert weights(seen) == weights(plain)
    told = [labels[0] for family, labels, _ in seen.recorder.drain() if family == "avalanche_metric"]
    assert [name.split("/")[0] for name in told] == ["Top1_Acc_MB"]


def test_where_avalanche_cannot_be_imported_steps_are_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once; whoever asks for Avalanche's plugins there is refused."""
    plain = run(learner(), 10)
    monkeypatch.setitem(sys.modules, "streamkd.avalanche.strategy", None)
    monkeypatch.delattr("streamkd.avalanche.strategy")
    assert weights(run(learner(), 10)) == weights(plain)
    assert caplog.text.count("without Avalanche") == 1
    with pytest.raises(ConfigError, match="Avalanche cannot be imported"):
        learner(avalanche_plugins=[object()])


@pytest.mark.parametrize("changes", [{}, {"detectors": [{"name": "page-hinkley"}, {"name": "two-sample"}]}])
def test_a_restored_learner_would_save_what_it_was_restored_from(changes: dict[str, Any]) -> None:
    """Bit for bit: also evidence that is gathered anew so soon that the weights would hardly tell."""
    stopped = run(learner(changes), 17)
    parts = pack(stopped.state())
    resumed = learner(changes)
    resumed.restore(unpack(parts), dict(stopped.offsets), stopped.config)
    assert bits(pack(resumed.state())) == bits(parts)


@pytest.mark.parametrize("stop", [1, 10, *(pytest.param(stop, marks=pytest.mark.soak) for stop in (0, 7, 17))])
def test_stopping_and_resuming_ends_in_the_same_bits(stop: int) -> None:
    """A learner restored from a checkpoint's tree ends where one that was never stopped ends, wherever it stopped."""
    stopped = run(learner(), stop)
    stopped.measure()  # what the clock asks for must not reach the weights
    parts = pack(stopped.state())
    resumed = learner()
    resumed.restore(unpack(parts), dict(stopped.offsets), stopped.config)
    run(resumed)
    assert weights(resumed) == weights(whole())
    assert resumed.records == whole().records
    assert resumed.tasks.names == whole().tasks.names


@pytest.mark.parametrize("bound", [{"size": 60}, {"bytes": 20_000}])
def test_resuming_from_checkpoints_that_add_up_ends_in_the_same_bits(
    bound: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved every few steps, each time what was new, and killed twice: the bits of one that was never stopped."""
    monkeypatch.setattr(state_tree, "WHOLE_BYTES", 1_000)
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 2_000)
    changes, directory = {"memory": {**bound, "replay": 20}}, StateDirectory(tmp_path)
    whole = run(learner(changes))
    for _ in range(3):
        one = learner(changes)
        with directory.lock():
            store = CheckpointStore(directory)
            if (found := store.latest()) is not None:
                one.restore(found.tree, found.info.offsets, one.config)
            for steps in (2, 3, 1):
                run(one, steps)
                store.save(one.state(), offsets=one.offsets, records=one.records, config={}, environment={})
            run(one, 1)
            store.close()
    run(one)
    assert weights(one) == weights(whole)
    assert torch.equal(one.step.memory.replayed.y, whole.step.memory.replayed.y)


def permuted(detector: str) -> dict[str, Any]:
    """All digits, then all of them in another order of their pixels, and nobody says where: from record 800 on."""
    image = {"name": "image", "shape": [8, 8], "dtype": "uint8", "scale": 1 / 16}
    source = {"name": "replay", "dataset": "digits", "permuted": 2, "per_class": 80, "limit": 1_200}
    return {
        "stream": {"source": source, "records": {"inputs": [image]}},
        "teachers": [{"name": "ema"}, {"name": "memory"}],
        "adapt": {"every": 0, "on_task_steps": 1},
        "vicinal": {"rows": 0},
        "detectors": [{"name": detector}],
    }


@pytest.mark.parametrize("detector", ["adwin", "page-hinkley", "two-sample"])
def test_a_change_that_nobody_names_is_found(detector: str) -> None:
    """One boundary within 400 records, by errors as by inputs, though the learner was stopped and resumed before."""
    stopped = run(learner(permuted(detector)), 81)
    resumed = learner(permuted(detector))
    resumed.restore(unpack(pack(stopped.state())), dict(stopped.offsets), stopped.config)
    run(resumed)
    start, found = resumed.tasks.boundaries
    assert (start.detector, found.detector) == ("start", detector)
    assert 800 < found.record <= 1_200
    assert run(stopped).tasks.boundaries == [start, found]


def test_asking_what_is_served_reaches_no_weights() -> None:
    """A learner whose arriving records a served copy answers first ends in the bits of one that nobody asks."""
    asked = learner()
    while asked.advance():
        if asked.steps % 3 == 1:
            asked.prequential.version.take(copy_of(asked.served))
    assert weights(asked) == weights(whole())
    # all but the first batch, before which there was nothing to serve
    assert asked.prequential.version.measures.records == RECORDS - 10


def test_a_checkpoint_from_before_the_measures_is_taken() -> None:
    """They begin where the checkpoint was written."""
    one = run(learner(), 3)
    saved = one.state()
    del saved["measures"]
    again = learner()
    again.restore(unpack(pack(saved)), dict(one.offsets), one.config)
    assert (again.records, again.prequential.version.measures.records) == (30, 0)


def of_form_2(state: dict[str, Any]) -> dict[str, Any]:
    """As the form before today's kept it: `linear` in another shape."""
    state["learned"]["pool"]["teachers"] |= {"linear": {"weights": torch.zeros(3, 2, 4), "bias": torch.zeros(3, 2)}}
    return state | {"form": 2}


def of_form_1(state: dict[str, Any]) -> dict[str, Any]:
    """As the first form kept it: weights without exponents, and teachers of the present in another shape."""
    del state["form"]
    learned = state["learned"]
    learned["mixture"] = {"now": learned["mixture"]["now"]["share"], "share": learned["mixture"]["share"]["share"]}
    learned["contradiction"] = {"age": 0, "changed": False, "wrong": None}
    learned["pool"]["teachers"] |= {"forgetting": {"heads": [], "waiting": None}, "linear": {}}
    del learned["present"]
    return state


@pytest.mark.parametrize("older", [of_form_1, of_form_2])
def test_a_checkpoint_of_an_older_form_goes_on(
    older: Callable[[dict[str, Any]], dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    """Student, memory and offsets go on from it; what has no place in today's form begins anew, and that is said."""
    everyone = {"teachers": [{"name": name} for name in ("ema", "memory", "linear", "forgetting")]}
    one = run(learner(everyone), 12)
    again = learner(everyone)
    again.restore(unpack(pack(older(one.state()))), dict(one.offsets), one.config)
    assert weights(again) == weights(one)
    assert "begin anew" in caplog.text
    assert run(again).records == RECORDS


def test_a_checkpoint_of_a_form_to_come_is_refused() -> None:
    """Nobody reads half of what a newer version wrote."""
    one = run(learner(), 3)
    with pytest.raises(StateConflict, match=rf"(?s)form {FORM}, got {FORM + 1}.*upgrade"):
        learner().restore(one.state() | {"form": FORM + 1}, dict(one.offsets), one.config)


def test_a_checkpoint_that_does_not_fit_is_refused_once() -> None:
    """Another start would meet the same: so it is a conflict, which ends the server with words."""
    one = run(learner(), 3)
    state = one.state()
    del state["learned"]["memory"]["replayed"]
    with pytest.raises(StateConflict, match=r"(?s)after 30 records: needed .*KeyError.*begin elsewhere"):
        learner().restore(state, dict(one.offsets), one.config)


def test_resuming_with_another_optimiser_rate_is_taken() -> None:
    """Rates may change between runs: the resumed learner steps with the new one."""
    stopped = run(learner(), 10)
    resumed = learner({"optimizer": {"learning_rate": 0.01, "start": 1.0}})
    resumed.restore(unpack(pack(stopped.state())), dict(stopped.offsets), stopped.config)
    assert resumed.step.optimizer.param_groups[0]["lr"] == 0.01
    assert run(resumed).records == RECORDS


def test_a_memory_of_records_goes_on_in_bytes() -> None:
    """The bound may be another one at a restart, as it is where the configuration left it to the default."""
    stopped = run(learner({"memory": {"size": 20, "replay": 20}}), 10)
    resumed = learner({"memory": {"replay": 20}})
    resumed.restore(unpack(pack(stopped.state())), dict(stopped.offsets), stopped.config)
    assert len(resumed.step.memory) == len(stopped.step.memory) == 20
    assert run(resumed).records == RECORDS
    assert len(resumed.step.memory) > 80


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"student": {"name": "mlp", "hidden": [8]}}, "student"),
        ({"memory": {"size": 60, "replay": 20, "holdout_ratio": 0.5}}, "memory"),
        ({"seed": 5}, "seed"),
    ],
)
def test_what_may_not_change_is_refused_with_both_values(changes: dict[str, Any], where: str) -> None:
    """A changed student, memory or seed is a conflict that names both and the way out."""
    stopped = run(learner(), 3)
    with pytest.raises(StateConflict) as fault:
        learner(changes).restore(unpack(pack(stopped.state())), dict(stopped.offsets), stopped.config)
    assert fault.value.where == where
    assert "--state" in fault.value.fix


HINTED: dict[str, Any] = {
    "student": {"name": "mlp", "hidden": [16, 12]},
    "losses": [
        {"name": "match-gate"},
        {
            "name": "feature",
            "weight": 0.1,
            "student": "body.hidden.0",
            "teacher": {"ema": "body.hidden.1"},
            "gate": {"name": "fixed", "hard": 0},
        },
        {"name": "relational", "weight": 0.1, "student": "body.hidden.1", "teacher": {"ema": "body.hidden.1"}},
        {"name": "decoupled-kd", "weight": 0.1, "labels": False, "gate": {"name": "per-sample"}},
    ],
}


def adapters(one: Learner) -> list[torch.Tensor]:
    return [p.detach().clone() for p in one.step.trained[len(one.step.parameters) :]]


def test_rehearsals_go_on_exactly_where_they_stopped() -> None:
    """Stopped and resumed between two batches that are each followed by two of them."""
    changes = {"stream": {**tree()["stream"], "batch": {"rehearsals": 2}}}
    one, stopped = run(learner(changes)), run(learner(changes), 7)
    resumed = learner(changes)
    resumed.restore(unpack(pack(stopped.state())), dict(stopped.offsets), stopped.config)
    run(resumed)
    assert weights(resumed) == weights(one)
    assert weights(one) != weights(whole())


def test_several_losses_go_on_exactly_where_they_stopped() -> None:
    """Adapters and their moments, and gates of single terms, are part of a checkpoint: stopping changes no bit."""
    whole, stopped = run(learner(HINTED)), run(learner(HINTED), 7)
    resumed = learner(HINTED)
    resumed.restore(unpack(pack(stopped.state())), dict(stopped.offsets), stopped.config)
    run(resumed)
    assert weights(resumed) == weights(whole)
    assert len(adapters(whole)) == 2
    assert all(torch.equal(a, b) for a, b in zip(adapters(resumed), adapters(whole), strict=True))


@pytest.mark.parametrize(("before", "after"), [("plain", "hinted"), ("hinted", "plain")])
def test_losses_may_change_between_runs(before: str, after: str) -> None:
    """The student keeps its weights and moments; adapters of new losses are fresh, those of old ones are forgotten."""
    plain = {"student": HINTED["student"]}
    kinds = {"plain": plain, "hinted": HINTED}
    stopped, resumed = run(learner(kinds[before]), 7), learner(kinds[after])
    resumed.restore(unpack(pack(stopped.state())), dict(stopped.offsets), stopped.config)
    old, new = (one.step for one in (stopped, resumed))
    for mine, its in zip(new.parameters, old.parameters, strict=True):
        assert torch.equal(new.optimizer.state[mine]["exp_avg"], old.optimizer.state[its]["exp_avg"])
    assert not any(p in new.optimizer.state for p in new.trained[len(new.parameters) :])
    run(resumed)
    assert resumed.records == RECORDS


def test_teachers_and_pool_may_change_between_runs() -> None:
    """A pool of another size and other teachers is taken over; what is still there keeps its state."""
    stopped = run(learner(), 15)
    changes = {"pool": {"limit": 3}, "teachers": [{"name": "ema"}, {"name": "snapshot"}]}
    resumed = learner(changes)
    resumed.restore(unpack(pack(stopped.state())), dict(stopped.offsets), stopped.config)
    run(resumed)
    assert "memory" not in resumed.step.pool.keys
    assert len(resumed.step.pool.keys) <= 3


def test_boundaries_are_told_before_the_task_is_learned() -> None:
    """When a task ends, the caller sees the learner as it was before the first batch of the next."""
    seen: list[tuple[str, int]] = []
    one = learner(on_task_end=lambda task: seen.append((task, one.records)))
    run(one)
    ends = [boundary.record for boundary in one.tasks.boundaries[1:]]
    assert [record for _, record in seen] == ends
    assert [task for task, _ in seen] == one.tasks.names[: len(seen)]


def test_a_change_within_a_named_task_is_a_boundary_and_does_not_end_it() -> None:
    """Teachers and gate are told as at any boundary, tests and plugins that go by tasks are not; it counts no task."""
    changes = {"detectors": [{"name": "task-column"}, {"name": "adwin", "minimum": 0}]}
    seen: list[str] = []
    one = run(learner(changes | {"adapt": {"every": 0}}, on_task_end=seen.append), 6)
    assert one.adapter is not None
    before, pool = one.adapter.adaptations, one.step.pool
    for _ in range(5):  # as after 160 records on which the student was always wrong
        one.tasks.score(np.ones(32, dtype=bool))
    one.advance()
    assert [(b.detector, b.task) for b in one.tasks.boundaries] == [("task-column", "0"), ("adwin", "0")]
    assert (one.adapter.adaptations, pool.ages["ema"], seen) == (before + 1, 1, [])


def test_observers_that_raise_are_off_after_three_strikes() -> None:
    """A raising observer is counted, switched off, and changes nothing."""
    from streamkd.observe import Observers

    class Broken:
        def on_step(self, record: int, loss: float, accuracy: float) -> None:
            raise RuntimeError("no")

    one = learner()
    one.observers = Observers([("broken", Broken())])
    run(one)
    assert one.observers.strikes.errors == {("broken", "on_step"): 3}
    assert weights(one) == weights(whole())


def test_bad_rows_in_a_row_stop_the_source(tmp_path: Any) -> None:
    """A file of rows that cannot be learned stops with the last reason instead of being drained."""
    import pyarrow as pa
    import pyarrow.parquet

    table = pa.table({"x": [float("nan")] * 50, "label": [1, 2] * 25})
    pa.parquet.write_table(table, tmp_path / "bad.parquet")
    records = {"inputs": [{"name": "x"}], "label": "label"}
    source = {"name": "replay", "path": str(tmp_path / "bad.parquet"), "test_ratio": 0.0}
    stream = {"source": source, "records": records, "limits": {"bad_in_a_row": 20}}
    with pytest.raises(SourceError, match="not_finite"):
        run(learner({"stream": stream}))


def test_a_loss_that_is_not_finite_is_skipped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step whose loss is NaN leaves the weights alone and goes on."""
    one = run(learner(), 5)
    before = weights(one)
    real = one.step.loss
    monkeypatch.setattr(one.step, "loss", lambda lesson: real(lesson) * torch.nan)
    run(one, 1)
    assert weights(one)[0] == before[0]
    assert ["train_steps_skipped_total", ["not_finite"], 1.0] in one.recorder.drain()


def test_labels_have_a_limit_and_refused_records_are_kept(tmp_path: Any) -> None:
    """Records of more labels than the limit, and bad ones, are dead letters with their offset; others are learned."""
    import pyarrow as pa
    import pyarrow.parquet

    from streamkd.state.checkpoint import CheckpointStore
    from streamkd.state.directory import StateDirectory
    from streamkd.streams.log.dead_letters import DeadLetters

    labels = [0, 1, 2, 0, 99, 1, 77, 2, 1, 0] * 3 + list(range(1_000, 1_010)) + [0] * 10
    numbers = [float(label % 7) if at != 8 else float("nan") for at, label in enumerate(labels)]
    pa.parquet.write_table(pa.table({"x": numbers, "label": labels}), tmp_path / "ids.parquet")
    source = {"name": "replay", "path": str(tmp_path / "ids.parquet"), "test_ratio": 0.0, "order": "given"}
    stream = {"source": source, "records": {"inputs": [{"name": "x"}]}, "limits": {"labels": 4}}
    one = run(learner({"stream": stream}))
    assert one.labels.labels == [0, 1, 2, 99]
    assert one.records == 50 - 14
    directory = StateDirectory(tmp_path / "state")
    with directory.lock():
        CheckpointStore(directory).save(
            one.state(), offsets=one.offsets, records=one.records, config={}, environment={}, dead_letters=one.dead
        )
    kept = [(letter.offset, letter.reason) for letter in DeadLetters(directory.connect()).list()]
    surplus = [(at, "too_many_labels") for at in (6, 16, 26, *range(30, 40))]
    assert sorted(kept) == sorted([*surplus, (8, "not_finite")])


def repeating(passes: int) -> dict[str, Any]:
    return {"stream": {"source": {"name": "replay", "dataset": "digits", "per_class": 20, "repeat": passes}}}


def test_repeats_stopped_and_resumed_end_in_the_same_bits() -> None:
    """What came before is in the checkpoint: a learner stopped in its second pass ends as one that was not."""
    whole, stopped, resumed = run(learner(repeating(3))), run(learner(repeating(3)), 31), learner(repeating(3))
    resumed.restore(unpack(pack(stopped.state())), dict(stopped.offsets), stopped.config)
    assert weights(run(resumed)) == weights(whole)
    memories = [part.step.memory for part in (resumed, whole)]
    assert str(memories[0].state_dict()) == str(memories[1].state_dict())
    assert memories[0].duplicates.repeats == 2 * 200


def test_labels_that_come_later_score_what_was_answered_then(tmp_path: Any) -> None:
    """Right as often as the answers that users had, whatever the model knows by now; a checkpoint holds it."""
    labels = np.arange(60) % 3
    answers = np.where(np.arange(60) % 4 == 0, labels, (labels + 1) % 3)
    config = configuration.from_tree(late_tree(), REGISTRY)
    schema = schema_of(config, REGISTRY)
    keep_and_label(tmp_path / "log.sqlite", schema, labels, answers)
    source, journal = open_source(config, REGISTRY, schema, tmp_path / "log.sqlite")
    one = Learner(config, REGISTRY, source, schema, journal=journal)
    run(one, 3)
    two = Learner(config, REGISTRY, source, schema, journal=journal)
    two.restore(unpack(pack(one.state())), one.offsets, config)
    for each in (one, two):
        run(each, 3)
        assert (each.prequential.delayed.overall, each.prequential.delayed.records, each.records) == (0.25, 60, 60)
    source.close()


def late_tree() -> dict[str, Any]:
    records = {"inputs": [{"name": "x", "shape": [2]}]}
    return tree(stream={"source": {"name": "http"}, "records": records, "labels": {}, "batch": {"size": 10}})


def keep_and_label(path: Any, schema: Any, labels: np.ndarray, answers: np.ndarray) -> None:
    """A log of records whose labels came after these answers."""
    import pyarrow as pa

    from streamkd.settings import LateLabels
    from streamkd.streams.log.log import Entry, Log
    from streamkd.streams.log.predictions import KeptRequest, kept_schema, with_requests

    count = len(labels)
    x = pa.FixedSizeListArray.from_arrays(pa.array(np.eye(3, 2, dtype=np.float32)[labels].ravel()), 2)
    columns = [
        x,
        pa.array(answers),
        pa.array([0.5] * count, pa.float32()),
        pa.array([0] * count, pa.timestamp("us", "UTC")),
    ]
    rows = pa.RecordBatch.from_arrays(columns, schema=kept_schema(schema))
    given = pa.record_batch({"prediction_id": [f"p/{n}" for n in range(count)], "label": labels})
    log = Log(path, schema, labels=LateLabels())
    kept = Entry(with_requests(rows, [KeptRequest("p", count, 1)]), kind="predictions")
    log.append_many([kept, Entry(given, kind="labels")])
    log.close()
