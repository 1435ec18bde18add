"""Teachers from recorded data, and streams that are taught by them, share their layers, and resume bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from streamkd import config as configuration
from streamkd import run as runs
from streamkd.cli import cli
from streamkd.errors import ConfigError, StateConflict, StateError
from streamkd.inspection import weights_sha256
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.pretraining import teachers as pretraining
from streamkd.records import InputColumn, RecordSchema
from streamkd.state.tree import pack, unpack
from streamkd.students import networks
from streamkd.wiring import open_source, schema_of

REGISTRY = Registry.load()
SCHEMA = RecordSchema(inputs=(InputColumn(name="x", shape=(2,)),))
CENTRES = np.random.default_rng(5).normal(size=(4, 8)).astype(np.float32) * 3


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes in two tasks; `clear` tells them apart, of `noisy` little is left."""
    g = np.random.default_rng(0)
    labels = np.concatenate([g.permutation(np.repeat([0, 1], 60)), g.permutation(np.repeat([2, 3], 60))])
    clear = CENTRES[labels] + g.normal(size=(240, 8)).astype(np.float32)
    noisy = CENTRES[labels][:, :4] + 4 * g.normal(size=(240, 4)).astype(np.float32)
    columns = {name: pa.array(list(values)) for name, values in (("clear", clear), ("noisy", noisy))}
    path = tmp_path_factory.mktemp("records") / "two.parquet"
    tasks = pa.array(["first task"] * 120 + ["second"] * 120)
    pq.write_table(pa.table({**columns, "label": pa.array(labels), "task": tasks}), path)
    return path


def config(path: Path, **changes: Any) -> configuration.Config:
    inputs = [{"name": "clear", "shape": [8]}, {"name": "noisy", "shape": [4], "fit": 50}]
    base = {
        "name": "two",
        "stream": {
            "source": {"name": "replay", "path": str(path), "test_ratio": 0.2},
            "records": {"inputs": inputs, "student": ["noisy"], "task": "task"},
        },
        "student": {"name": "mlp", "hidden": [8]},
        "memory": {"size": 40, "replay": 10},
        "adapt": {"every": 5, "on_task_steps": 2},
        "device": "cpu",
    }
    return configuration.from_tree({**base, **changes}, REGISTRY)


@pytest.fixture(scope="module")
def teachers(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mlp` reads what the student reads, `clear/mlp` the other column, `each/...` a task each."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("teachers")
    pretraining.train(config(records), REGISTRY, out, epochs=3)
    pretraining.train(config(records), REGISTRY, out / "clear", columns=["clear"], epochs=60, batch=8)
    pretraining.train(config(records), REGISTRY, out / "each", tasks="each", epochs=2)
    return out


def learner(chosen: configuration.Config) -> Learner:
    schema = schema_of(chosen, REGISTRY)
    source, _ = open_source(chosen, REGISTRY, schema)
    return Learner(chosen, REGISTRY, source, schema)


def advance(one: Learner, batches: int = 1_000) -> Learner:
    for _ in range(batches):
        if not one.advance():
            break
    return one


def read(folder: Path) -> tuple[networks.Student, Any, dict[str, Any]]:
    return networks.read_model(folder / "model.safetensors", folder / "model.json", REGISTRY)


def test_a_teacher_reads_the_columns_that_it_was_trained_on(teachers: Path) -> None:
    """By default those of the student; with `columns` others, which tell the classes apart here."""
    student, schema, about = read(teachers / "mlp")
    _, other, clear = read(teachers / "clear" / "mlp")
    assert [column.name for column in schema.inputs] == ["noisy"]
    assert int(student.normalise.count) == 50
    assert [column.name for column in other.inputs] == ["clear"]
    assert clear["training"]["validation_accuracy"] > 0.9 > about["training"]["validation_accuracy"]
    assert about["records"] == 192


def test_each_task_gets_a_teacher_of_its_classes(teachers: Path) -> None:
    """Named after the task in letters that a path takes, and knowing its labels alone."""
    found = {folder.name: sorted(read(folder)[2]["classes"]) for folder in (teachers / "each").iterdir()}
    assert sorted(found.values()) == [[0, 1], [2, 3]]
    assert all(name.startswith("mlp-") and " " not in name for name in found)


def test_training_again_gives_the_same_bits(records: Path, tmp_path: Path) -> None:
    """The seed and the configuration decide the weights."""
    for folder in ("a", "b"):
        pretraining.train(config(records), REGISTRY, tmp_path / folder, epochs=2)
    first, second = (read(tmp_path / folder / "mlp")[0].state_dict() for folder in ("a", "b"))
    assert weights_sha256(first) == weights_sha256(second)


def test_the_best_epoch_stays() -> None:
    """Of all epochs the student keeps the one with the least validation loss, and stops when none is better."""
    schema = RecordSchema.model_validate({"inputs": [{"name": "x", "shape": [8]}]})
    kind = REGISTRY.kind("students", "mlp")
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (60,), generator=g)
    x = torch.randn(60, 8, generator=g)  # nothing to be learned: every epoch makes it worse on the others

    def fitted(epochs: int) -> tuple[dict[str, Any], networks.Student]:
        student = networks.build(kind, kind.options(hidden=(64,)), schema, 2, 0)
        optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
        return pretraining.fit(student, optimizer, x, y, epochs, 8, seed=0), student

    long, student = fitted(50)
    short, same = fitted(long["epochs"])
    assert long["epochs"] + pretraining.PATIENCE < 50
    assert long["validation_nll"] == short["validation_nll"]
    assert weights_sha256(student.state_dict()) == weights_sha256(same.state_dict())


def test_validation_records_are_of_every_label_and_never_trained_on() -> None:
    """A tenth of each label, at least one where it has two; both parts are disjoint and make up all rows."""
    y = torch.tensor([0] * 50 + [1] * 3 + [2])
    ours, theirs = pretraining._halves(y, torch.Generator().manual_seed(0))
    assert y[theirs].bincount(minlength=3).tolist() == [5, 1, 0]
    assert sorted([*ours.tolist(), *theirs.tolist()]) == list(range(len(y)))


def test_without_validation_records_no_accuracy_is_told() -> None:
    """One record of each label: that of the records which it was trained on is no held-out accuracy."""
    student = networks.build(REGISTRY.kind("students", "mlp"), networks.MlpOptions(hidden=(4,)), SCHEMA, 3, 0)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    found = pretraining.fit(student, optimizer, torch.zeros(3, 2), torch.arange(3), 2, 2, 0)
    assert found == {"epochs": 2, "validation_records": 0, "validation_accuracy": None, "validation_nll": None}


def test_records_that_teach_nobody_are_counted(tmp_path: Path) -> None:
    """Of ten records one is damaged and one has no label: eight are learned, and the command says so."""
    x = [[float(row), 1.0] for row in range(10)]
    table = pa.table({"x": [None, *x[1:]], "label": pa.array([0, None, *([0, 1] * 4)])})
    pq.write_table(table, tmp_path / "ten.parquet")
    tree = {
        "stream": {
            "source": {"name": "replay", "path": str(tmp_path / "ten.parquet"), "test_ratio": 0},
            "records": {"inputs": [{"name": "x", "shape": [2]}]},
        },
        "student": {"name": "mlp", "hidden": [4]},
        "device": "cpu",
    }
    (done,) = pretraining.train(configuration.from_tree(tree, REGISTRY), REGISTRY, tmp_path / "out", epochs=1)
    assert (done.records, done.left_out) == (8, 2)


def test_what_cannot_be_trained_on_is_refused(records: Path, tmp_path: Path) -> None:
    """A stream without end, a pushed one, unknown columns, records without tasks, a folder that is there."""
    (tmp_path / "mlp").mkdir()
    with pytest.raises(StateError, match="there already"):
        pretraining.train(config(records), REGISTRY, tmp_path)
    with pytest.raises(ConfigError, match="no input column"):
        pretraining.train(config(records), REGISTRY, tmp_path, columns=["colour"])
    stream = config(records).stream.model_dump()
    endless = {**stream, "source": {**stream["source"], "repeat": True}}
    with pytest.raises(ConfigError, match="never ends"):
        pretraining.train(config(records, stream=endless), REGISTRY, tmp_path)
    with pytest.raises(ConfigError, match="nothing is recorded"):
        pretraining.train(config(records, stream={**stream, "source": {"name": "flight"}}), REGISTRY, tmp_path)
    untold = {**stream, "records": {**stream["records"], "task": None}}
    with pytest.raises(ConfigError, match="no task"):
        pretraining.train(config(records, stream=untold), REGISTRY, tmp_path / "x", tasks="each")


def pool(teachers: Path) -> list[dict[str, Any]]:
    """The usual teachers and one that reads the other column."""
    outside = {"name": "checkpoint", "id": "clear", "path": str(teachers / "clear" / "mlp")}
    return [{"name": "ema"}, {"name": "memory"}, outside, {"name": "snapshot"}]


def test_a_teacher_of_another_modality_teaches_a_run(records: Path, teachers: Path, tmp_path: Path) -> None:
    """The student reads one column, its teacher another that it never sees; the report shows both."""
    report = runs.run(config(records, teachers=pool(teachers)), REGISTRY, tmp_path, [0])
    [clear] = [row for row in report["per_seed"][0]["fidelity"] if row["teacher"] == "clear"]
    assert 0 <= clear["agreement"] <= 1
    assert any(point["weights"].get("clear") for point in report["per_seed"][0]["gate"]["weights"])


def test_a_teacher_that_knows_no_label_of_the_stream_hurts_nobody(
    records: Path, teachers: Path, tmp_path: Path
) -> None:
    """It is never heard, and a run with it is reported all the same."""
    stranger = {"name": "checkpoint", "path": str(teachers / "clear" / "mlp"), "classes": [70, 71, 72, 73]}
    report = runs.run(config(records, teachers=[{"name": "ema"}, stranger]), REGISTRY, tmp_path, [0])
    assert {row["teacher"] for row in report["per_seed"][0]["fidelity"]} == {"ema"}


@pytest.mark.parametrize("shared", [None, {"teacher": "TEACHERS/mlp"}, {"teacher": "near", "frozen": True}])
def test_stopping_and_resuming_ends_in_the_same_bits(
    records: Path, teachers: Path, shared: dict[str, Any] | None
) -> None:
    """Also with a teacher from outside, with inherited layers, and with frozen ones."""
    near = {"name": "checkpoint", "id": "near", "path": str(teachers / "mlp")}
    if shared:
        shared = {**shared, "teacher": shared["teacher"].replace("TEACHERS", str(teachers))}
    chosen = config(records, share=shared, teachers=[*pool(teachers), near])
    whole = advance(learner(chosen))
    stopped = advance(learner(chosen), 11)
    resumed = learner(chosen)
    resumed.restore(unpack(pack(stopped.state())), dict(stopped.offsets), chosen)
    advance(resumed)
    assert weights_sha256(resumed.student.state_dict()) == weights_sha256(whole.student.state_dict())
    if shared and shared.get("frozen"):
        hidden = read(teachers / "mlp")[0].body.hidden[0].weight
        assert torch.equal(whole.student.body.hidden[0].weight, hidden)


def test_sharing_may_not_change_between_runs(records: Path, teachers: Path) -> None:
    """What the student began with is part of what it is."""
    stopped = advance(learner(config(records)), 3)
    changed = learner(config(records, share={"teacher": str(teachers / "mlp")}))
    with pytest.raises(StateConflict, match="share"):
        changed.restore(unpack(pack(stopped.state())), dict(stopped.offsets), stopped.config)


def test_a_teacher_without_a_network_cannot_be_shared(records: Path) -> None:
    """A moving average of the student is nothing to begin with."""
    with pytest.raises(ConfigError, match="'ema' has no network"):
        advance(learner(config(records, share={"teacher": "ema"})), 1)


def test_the_command_trains_and_says_how_to_use_it(records: Path, tmp_path: Path) -> None:
    """`streamkd teachers train` prints the held-out accuracy and a line for the configuration that loads."""
    import yaml

    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(configuration.dump(config(records))))
    arguments = ["teachers", "train", str(file), "--out", str(tmp_path / "out"), "--epochs", "1"]
    result = CliRunner().invoke(cli, [*arguments, "--student", "mlp", "--columns", "clear,noisy"])
    assert result.exit_code == 0, result.output
    assert "held-out accuracy" in result.output
    [line] = [line for line in result.output.splitlines() if line.startswith("use: ")]
    choice = yaml.safe_load(line.removeprefix("use: ").replace("..., ", ""))["teachers"][0]
    advance(learner(config(records, teachers=[choice])), 2)
