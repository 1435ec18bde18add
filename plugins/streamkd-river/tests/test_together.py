"""River teachers in a learner: taught with the stream, heard by the gate, and resumed."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from streamkd_river import teacher as module

from streamkd import config as configuration
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.state.tree import pack, unpack
from streamkd.teachers import served
from streamkd.teachers.mixture import MixtureSelector
from streamkd.teachers.served import Served
from streamkd.teachers.teacher import copy_of
from streamkd.wiring import open_source, schema_of

RIVER: list[dict[str, Any]] = [
    {"name": "ema"},
    {"name": "river", "id": "tree", "model": "tree.HoeffdingAdaptiveTreeClassifier"},
    {"name": "river", "id": "bayes", "model": "naive_bayes.GaussianNB", "replayed": True},
]


@pytest.fixture(scope="module")
def registry() -> Registry:
    """With the plugin, installed or not."""
    found = Registry.load()
    if "river" not in found.names("teachers"):
        found.register(module, "river", "streamkd-river")
    return found


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 records of three columns, one rule."""
    path = tmp_path_factory.mktemp("table") / "table.parquet"
    columns = np.random.default_rng(0).random((3, 150))
    named = {f"c{number}": column for number, column in enumerate(columns)}
    pq.write_table(pa.table({**named, "label": (columns[0] > columns[1]).astype(int)}), path)
    return path


def learner(registry: Registry, table: Path) -> Learner:
    columns = [{"name": f"c{number}", "dtype": "float64"} for number in range(3)]
    tree = {
        "stream": {"source": {"name": "replay", "path": str(table)}, "records": {"inputs": columns}},
        "student": {"name": "mlp", "hidden": [8]},
        "memory": {"size": 30, "replay": 10},
        "teachers": RIVER,
        "device": "cpu",
    }
    config = configuration.from_tree(tree, registry)
    schema = schema_of(config, registry)
    source, _ = open_source(config, registry, schema)
    return Learner(config, registry, source, schema)


def run(one: Learner, steps: int = 1_000) -> Learner:
    for _ in range(steps):
        if not one.advance():
            break
    return one


def test_it_is_taught_and_heard(registry: Registry, table: Path) -> None:
    """Each step's rows are answered record by record, and the gate gives the teachers weight."""
    one = run(learner(registry, table), 9)
    pool = one.step.pool
    assert {key: len(answers) for key, answers in pool.prequential.items()} == {"tree": 10, "bayes": 10}
    assert pool.guard.strikes == {}
    assert one.gate_weights()["tree"] > 0
    tree, bayes = pool.teachers[1:]
    assert tree.known().sum() == bayes.known().sum() == len(one.labels.labels)


def test_stopped_and_resumed_it_is_as_if_never_stopped(registry: Registry, table: Path) -> None:
    """To the bit: the student's weights, and all that the trees have counted."""
    whole, stopped, resumed = run(learner(registry, table)), run(learner(registry, table), 9), learner(registry, table)
    resumed.restore(unpack(pack(stopped.state())), dict(stopped.offsets), stopped.config)
    run(resumed)
    assert resumed.records == whole.records
    for ours, theirs in zip(resumed.student.parameters(), whole.student.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(resumed.step.pool.teachers[1:], whole.step.pool.teachers[1:], strict=True):
        assert torch.equal(ours.state_dict()["model"]["words"], theirs.state_dict()["model"]["words"])


def test_what_is_served_may_hold_them(registry: Registry, table: Path, tmp_path: Path) -> None:
    """In a version they are files, and answer as they did when it was taken; what is learned then changes nothing."""
    one = run(learner(registry, table), 9)
    parts = one.step.pool.candidates(one.student, one.step.mixture.share.weights, {}).teachers
    assert set(parts) == {"tree", "bayes"}
    average, x = one.step.pool.average, one.step.recent.rows[0]
    model = Served(
        {"average": copy_of(average.student), **parts},
        MixtureSelector().combine,
        {"weights": [0.2, 0.5, 0.3], "exponents": [1.0, 1.0, 1.0]},
    )
    about = {"name": "mlp", "options": {"hidden": [8]}}, {"name": "auto", "options": {}}
    meta = {
        "schema": one.schema.model_dump(mode="json"),
        "classes": one.labels.labels,
        "seed": 0,
        "published_at": 0.0,
        "records": 90,
    }
    served.write(tmp_path, model, {**meta, "student": about[0], "served": about[1]})
    again, before = served.load(tmp_path, registry).student, model(x)
    run(one)
    assert torch.equal(model(x), before)
    assert torch.equal(again(x), before)
