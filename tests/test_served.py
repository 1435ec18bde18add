"""What is served with an analytic teacher in the pool: chosen on held-out records, published, resumed."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mistakes.selectors import Even

from streamkd import config as configuration
from streamkd.analytic.ensemble import SHARES
from streamkd.analytic.teacher import AnalyticOptions, AnalyticTeacher
from streamkd.errors import ConfigError, PluginError
from streamkd.hookspecs import Kind, hookimpl
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.records import InputColumn, RecordSchema
from streamkd.run import run_seed
from streamkd.serve.predictions.follower import VersionFollower, load_version
from streamkd.serve.predictions.predictor import Predictor
from streamkd.serve.processes.publisher import Publisher
from streamkd.state.directory import StateDirectory
from streamkd.state.tree import pack, unpack
from streamkd.state.versions import VersionStore
from streamkd.students.networks import LoadedVersion, MlpOptions, at_rest, build, write_published
from streamkd.teachers.served import Served
from streamkd.teachers.teacher import TeacherContext
from streamkd.telemetry import Recorder
from streamkd.wiring import open_source, schema_of

REGISTRY = Registry.load()
TEACHERS = [{"name": "ema"}, {"name": "memory"}, {"name": "analytic", "channels": 8, "dense": 64}, {"name": "snapshot"}]


def config_of(**changes: Any) -> configuration.Config:
    source = {"name": "replay", "dataset": "digits", "classes_per_task": 2, "limit": 500}
    base = {
        "stream": {"source": source},
        "student": {"name": "mlp", "hidden": [16]},
        "memory": {"size": 80, "replay": 20},
        "adapt": {"every": 10, "on_task_steps": 1},
        "teachers": TEACHERS,
        "device": "cpu",
    }
    return configuration.from_tree({**base, **changes}, REGISTRY)


def learner(config: configuration.Config, registry: Registry = REGISTRY) -> Learner:
    schema = schema_of(config, registry)
    source, _ = open_source(config, registry, schema)
    return Learner(config, registry, source, schema)


def with_even() -> Registry:
    """A plugin's selector among what is installed: the mean of what all say."""
    registry, kind = Registry.load(), Kind("even", Even)
    registry.register(SimpleNamespace(streamkd_selectors=hookimpl(lambda: [kind])), "even")
    return registry


def version_of(one: Learner, folder: Path, registry: Registry = REGISTRY) -> LoadedVersion:
    """What is published of it, read from its files."""
    directory = StateDirectory(folder)
    directory.create()
    with directory.lock():
        version = Publisher(directory, one.config, registry, Recorder()).publish(one)
        assert version is not None
        versions = VersionStore(directory)
        loaded = load_version(versions, version, registry)
        versions.close()
    return loaded


def run(one: Learner, batches: int = 1_000) -> Learner:
    while batches and one.advance():
        batches -= 1
    return one


def inputs(one: Learner) -> torch.Tensor:
    ring = one.step.memory.replayed
    assert ring.x is not None
    return ring.x[: ring.filled]


@pytest.mark.parametrize("model", ["auto", "ensemble", "ema", "student"])
def test_the_configuration_says_what_is_served(model: str) -> None:
    """``auto`` the mixture of everybody, ``ensemble`` two, ``ema`` the average, ``student`` the student."""
    one = run(learner(config_of(publish={"model": model})), 30)
    served, average = one.served, one.step.pool.average
    assert average is not None
    if model in ("ema", "student"):
        assert served is (average.student if model == "ema" else one.student)
        return
    assert isinstance(served, Served)
    assert one.served is served
    if model == "ensemble":
        assert served.how["share"] in SHARES
    else:
        assert 0 < sum(served.how["weights"]) <= 1 + 1e-9
        assert {"analytic", "average"} <= set(served.names)
        assert len(served.how["exponents"]) == len(served.names)


def test_before_anything_is_known_of_anybody_student_and_average_are_served() -> None:
    """With the first records there is no solution yet."""
    one = run(learner(config_of()), 2)
    served = one.served
    assert isinstance(served, Served)
    assert set(served.names) == {"student", "average"}


def test_an_ensemble_needs_an_analytic_teacher() -> None:
    """``publish.model: ensemble`` without the teacher is refused, with the way out."""
    with pytest.raises(ConfigError, match="analytic"):
        config_of(publish={"model": "ensemble"}, teachers=[{"name": "ema"}])


@pytest.mark.parametrize("stop", [26, *(pytest.param(stop, marks=pytest.mark.soak) for stop in (5, 41))])
def test_stopping_and_resuming_serves_the_same_bits(stop: int) -> None:
    """A learner restored from its state serves what one that was never stopped serves, looked at on the way or not."""
    whole = run(learner(config_of()))
    stopped = run(learner(config_of()), stop)
    stopped.measure()
    resumed = learner(config_of())
    resumed.restore(unpack(pack(stopped.state())), dict(stopped.offsets), stopped.config)
    run(resumed)
    one, other = whole.served, resumed.served
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(one.state_dict()[name], other.state_dict()[name]) for name in one.state_dict())
    assert torch.equal(one(inputs(whole)), other(inputs(whole)))


def test_an_ensemble_is_published_followed_and_rolled_back_to(tmp_path: Path) -> None:
    """The published version answers what the learner serves, bit for bit, and stays so while the learner goes on."""
    one = run(learner(config_of(publish={"model": "ensemble"})), 35)
    directory = StateDirectory(tmp_path)
    directory.create()
    with directory.lock():
        publisher = Publisher(directory, one.config, REGISTRY, Recorder())
        version = publisher.publish(one)
        assert version is not None
        x = inputs(one)[:9].clone()
        with torch.no_grad():
            wanted = torch.softmax(one.served(x), 1).numpy()
        run(one, 10)
        later = publisher.publish(one)
        assert later is not None
        versions = VersionStore(directory)
        loaded = load_version(versions, version, REGISTRY)
        assert isinstance(loaded.student, Served)
        assert np.array_equal(loaded.predict(x.numpy()), wanted)
        predictor = Predictor(64, 64, Recorder())
        predictor.swap(loaded)
        follower = VersionFollower(directory, REGISTRY, predictor, Recorder())
        try:
            assert np.array_equal(follower.get(version).predict(x.numpy()), wanted)
            again = follower.rollback(version)
            assert np.array_equal(follower.get(again).predict(x.numpy()), wanted)
        finally:
            follower.close()
            predictor.close()
            versions.close()


@pytest.mark.parametrize("columns", [(), ("image",)])
def test_features_of_a_frozen_network_are_published_with_the_version(tmp_path: Path, columns: tuple[str, ...]) -> None:
    """A version answers as the learner did where the network's own file is gone; ridge regression like the rest."""
    network = tmp_path / "network"
    network.mkdir()
    trained = run(learner(config_of(teachers=[{"name": "ema"}])), 20)
    about = {"student": {"name": "mlp", "options": {"hidden": [16]}}, "schema": trained.schema.model_dump(mode="json")}
    write_published(network, trained.student, {**about, "classes": trained.labels.labels, "seed": 0})
    analytic = {"name": "analytic", "method": "ridge", "features": str(network), "columns": columns}
    if not columns:
        analytic.pop("columns")
    one = run(learner(config_of(publish={"model": "ensemble"}, teachers=[{"name": "ema"}, analytic])), 35)
    directory = StateDirectory(tmp_path / "state")
    directory.create()
    with directory.lock():
        version = Publisher(directory, one.config, REGISTRY, Recorder()).publish(one)
        assert version is not None
        shutil.rmtree(network)
        versions = VersionStore(directory)
        loaded = load_version(versions, version, REGISTRY)
        versions.close()
    x = inputs(one)[:9].clone()
    with torch.no_grad():
        assert np.array_equal(loaded.predict(x.numpy()), torch.softmax(one.served(x), 1).numpy())


def test_features_of_columns_that_requests_lack_teach_and_are_not_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the student reads less than the analytic teacher, the average is served, and a line of the log says so."""
    schema = RecordSchema(inputs=(InputColumn(name="a", shape=(2,)), InputColumn(name="b", shape=(4,))), student=("a",))
    other = build(REGISTRY.kind("students", "mlp"), MlpOptions(hidden=(5,)), schema.only(["b"]), 2, 0)
    about = {
        "student": {"name": "mlp", "options": {"hidden": [5]}},
        "schema": schema.only(["b"]).model_dump(mode="json"),
    }
    write_published(tmp_path, other, {**about, "classes": [0, 1], "seed": 0})
    student = build(REGISTRY.kind("students", "mlp"), MlpOptions(hidden=(5,)), schema, 2, 0)
    context = TeacherContext("far", student, schema, [0, 1], torch.device("cpu"), REGISTRY)
    assert not AnalyticTeacher(AnalyticOptions(features=tmp_path), context).served
    assert "teacher far reads columns that requests do not bring" in caplog.text
    assert AnalyticTeacher(AnalyticOptions(), context).served


def test_a_run_reports_the_ensemble_as_served() -> None:
    """Served accuracy is the ensemble's: well above the student's on a short stream; its cost counts both parts."""
    result = run_seed(
        config_of(stream={"source": {"name": "replay", "dataset": "digits", "classes_per_task": 2}}), REGISTRY
    )
    student, served = (result[name]["accuracy"]["final_average"] for name in ("student", "served"))
    assert served > max(student, 0.9)
    assert result["efficiency"]["parameters"] > 10 * (8 * 16 + 64)
    assert {"analytic"} <= {row["teacher"] for row in result["fidelity"]}


def test_a_plugin_serves_a_mixture_of_several_parts(tmp_path: Path) -> None:
    """Student, average and two analytic teachers, by a rule that a plugin brings: a version has all, to the same bits.

    Where the plugin is not installed the version is refused, with its name.
    """
    registry = with_even()
    teachers = [*TEACHERS, {"name": "analytic", "id": "ridge", "method": "ridge", "channels": 8, "dense": 32}]
    tree = configuration.dump(config_of(teachers=teachers)) | {"publish": {"model": "even"}}
    config = configuration.from_tree(tree, registry)
    one = run(learner(config, registry), 35)
    assert isinstance(one.served, Served)
    assert one.served.names == ("student", "analytic", "ridge", "average")
    directory = StateDirectory(tmp_path)
    directory.create()
    with directory.lock():
        version = Publisher(directory, config, registry, Recorder()).publish(one)
        assert version is not None
        versions = VersionStore(directory)
        loaded = load_version(versions, version, registry)
        x = inputs(one)[:9].clone()
        with torch.no_grad():
            assert np.array_equal(loaded.predict(x.numpy()), torch.softmax(one.served(x), 1).numpy())
        with pytest.raises(PluginError, match="no selector 'even'"):
            load_version(versions, version, REGISTRY)
        versions.close()


def test_a_version_of_some_columns_answers_as_the_learner_does(tmp_path: Path) -> None:
    """Where a student reads some columns of the stream, every part of what is served reads the same ones: in a learner
    of whole records, in a version of what requests bring.
    """
    drawn = np.random.default_rng(0)
    y = drawn.integers(0, 2, 1_100)
    x = {
        name: (drawn.normal(size=len(y)) + y * shift).astype("float32")
        for name, shift in (("a", 0), ("b", 1), ("c", 2))
    }
    pq.write_table(pa.table({**x, "label": y}), tmp_path / "rows.parquet")
    registry = with_even()
    records = {"inputs": [{"name": name} for name in x], "label": "label", "student": ["c", "b"]}
    tree = {
        "stream": {
            "source": {"name": "replay", "path": str(tmp_path / "rows.parquet"), "order": "given", "test_ratio": 0},
            "records": records,
            "batch": {"size": 40},
        },
        "teachers": [
            *TEACHERS,
            *({"name": name} for name in ("last-label", "linear", "crossed", "forgetting")),
            {"name": "former", "every": 200},
        ],
        "student": {"name": "mlp", "hidden": [8]},
        "publish": {"model": "even"},
        "device": "cpu",
    }
    one = run(learner(configuration.from_tree(tree, registry), registry))
    one.measure()
    assert isinstance(one.served, Served)
    assert {"student", "average", "analytic", "linear", "crossed", "forgetting", "former-0"} <= set(one.served.names)
    loaded = version_of(one, tmp_path / "state", registry)
    whole = torch.from_numpy(np.stack([*x.values()], 1)[:9])
    with torch.no_grad():
        assert np.array_equal(loaded.predict(whole[:, [2, 1]].numpy()), torch.softmax(one.served(whole), 1).numpy())


@pytest.mark.parametrize("model", ["auto", "ensemble", "student"])
def test_class_weights_are_in_what_is_served(model: str, tmp_path: Path) -> None:
    """Each class's probability counts so many times, in the learner and in a version that is read from its files."""
    weights = {0: 9.0, 3: 0.5}
    plain = run(learner(config_of(publish={"model": model})), 30)
    weighed = run(learner(config_of(publish={"model": model, "class_weights": weights})), 30)
    x, labels = inputs(plain), plain.labels.labels
    factors = torch.tensor([weights.get(label, 1.0) for label in labels]).double()
    expected = torch.softmax(answers(plain, x).double(), 1) * factors
    found = torch.softmax(answers(weighed, x).double(), 1)
    torch.testing.assert_close(found, expected / expected.sum(1, keepdim=True), atol=1e-6, rtol=1e-5)
    loaded = version_of(weighed, tmp_path)
    torch.testing.assert_close(torch.from_numpy(loaded.predict(x.numpy())).double(), found, atol=1e-6, rtol=1e-5)


def test_balanced_weights_go_on_from_a_checkpoint() -> None:
    """Stopped and resumed, the same counts and the same answers as one that was never stopped."""
    config = config_of(publish={"class_weights": "balanced"})
    whole, stopped, resumed = run(learner(config)), run(learner(config), 20), learner(config)
    resumed.restore(unpack(pack(stopped.state())), dict(stopped.offsets), config)
    run(resumed)
    assert torch.equal(answers(resumed, inputs(whole)), answers(whole, inputs(whole)))
    assert resumed.prequential.mixture.figures(range(10)) == whole.prequential.mixture.figures(range(10))


def answers(one: Learner, x: torch.Tensor) -> torch.Tensor:
    """What is served says."""
    with torch.no_grad(), at_rest(one.served) as served:
        return served(x)


def test_a_weight_of_nothing_is_refused() -> None:
    """A class that counts nothing would never be answered."""
    with pytest.raises(ConfigError, match=r"publish\.class_weights"):
        config_of(publish={"class_weights": {0: 0}})
