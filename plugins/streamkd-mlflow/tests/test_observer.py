"""What reaches MLflow, and what a store that is away, slow or broken costs: a warning."""

import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from streamkd_mlflow import observer
from streamkd_mlflow.observer import MlflowObserver, MlflowOptions

import streamkd
from streamkd import config, testing
from streamkd.api import Boundary
from streamkd.plugins import Registry
from streamkd.run import run_seed
from streamkd.students import networks

STREAM = {"source": {"name": "replay", "dataset": "digits", "limit": 50, "classes_per_task": 2, "test_limit": 10}}
Runs = Callable[[str], list[Any]]
# MLflow 3.17 before SQLAlchemy 2.1
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


def points(uri: str, run: Any, name: str) -> list[tuple[int, float]]:
    from mlflow.tracking import MlflowClient

    return [(point.step, point.value) for point in MlflowClient(uri, uri).get_metric_history(run.info.run_id, name)]


def observing(uri: str, experiment: str, **options: Any) -> MlflowObserver:
    return MlflowObserver(MlflowOptions(uri=uri, experiment=experiment, **options))


@pytest.fixture
def registry() -> Registry:
    """All that is installed, and this."""
    found = Registry.load()
    if "mlflow" not in found.names("observers"):
        found.register(observer, "mlflow")
    return found


def test_it_keeps_its_contract(uri: str, registry: Registry) -> None:
    """Every event with its arguments, nothing drawn."""
    testing.check_observer(registry.kind("observers", "mlflow"), {"uri": uri})


def test_a_stream_is_a_run(uri: str, runs: Runs, registry: Registry) -> None:
    """Its configuration as parameters, means of loss and accuracy, tasks; over when the stream is."""
    observers = [{"name": "mlflow", "uri": uri, "experiment": "stream"}]
    tree = {"name": "mine", "stream": STREAM, "memory": {"replay": 7}, "vicinal": {"rows": 0}, "teachers": ["ema"]}
    run_seed(config.from_tree({**tree, "device": "cpu", "observers": observers}, registry), registry)
    [run] = runs("stream")
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    assert run.data.params["memory.replay"] == "7"
    assert points(uri, run, "loss")[-1][0] == 50
    assert 0 <= points(uri, run, "accuracy")[-1][1] <= 1
    assert points(uri, run, "boundary")


def test_what_goes_on_in_a_directory_is_one_run(uri: str, runs: Runs, tmp_path: Path) -> None:
    """Stopped and started again it is the same run; one that the store lost is made anew."""
    from mlflow.tracking import MlflowClient

    for record in (10, 20):
        watching = observing(uri, "resumed")
        watching.on_start({"name": "mine"}, tmp_path)
        watching.on_step(record, 0.5, 0.25)
        watching.on_stop()
    [run] = runs("resumed")
    assert points(uri, run, "accuracy") == [(10, 0.25), (20, 0.25)]
    MlflowClient(uri, uri).delete_run(run.info.run_id)
    watching = observing(uri, "resumed")
    watching.on_start({"name": "mine"}, tmp_path)
    watching.on_stop()
    assert [each.info.run_id for each in runs("resumed")] != [run.info.run_id]


def test_steps_become_means_and_gaps_are_none(uri: str, runs: Runs) -> None:
    """A loss or accuracy that is not a number is not in the mean; without any there is no point."""
    watching = observing(uri, "means")
    for record, loss, right in ((10, 1.0, float("nan")), (20, float("inf"), float("nan")), (30, 2.0, float("nan"))):
        watching.on_step(record, loss, right)
    watching.on_start({"name": "mine"}, None)
    watching.on_stop()
    [run] = runs("means")
    assert points(uri, run, "loss") == [(30, 1.5)]
    assert "accuracy" not in run.data.metrics


def test_a_published_version_is_a_version_of_the_model(uri: str, runs: Runs, tmp_path: Path) -> None:
    """The newest with its files, from which it answers as it did; one whose files are gone is left out."""
    from mlflow.tracking import MlflowClient

    registry = Registry.load(["students"])
    schema = streamkd.records.RecordSchema(inputs=(streamkd.records.InputColumn(name="x", shape=(4,)),))
    kind = registry.kind("students", "mlp")
    student = networks.build(kind, kind.options(hidden=(3,)), schema, 2, 0)
    (tmp_path / "published" / "7").mkdir(parents=True)
    about = {"student": {"name": "mlp", "options": {"hidden": [3]}}, "schema": schema.model_dump(mode="json")}
    about |= {"classes": ["a", "b"], "seed": 0, "records": 10, "published_at": 0.0}
    networks.write_published(tmp_path / "published" / "7", student, about)
    watching = observing(uri, "versions", model="mine")
    watching.on_start({"name": "mine"}, tmp_path)
    watching.on_published(6, 5)
    watching.on_published(7, 10)
    watching.on_stop()
    [run] = runs("versions")
    assert points(uri, run, "version") == [(5, 6), (10, 7)]
    [version] = MlflowClient(uri, uri).search_model_versions("name = 'mine'")
    assert version.tags == {"streamkd.version": "7"}
    files = MlflowClient(uri, uri).download_artifacts(run.info.run_id, "versions/7", str(tmp_path))
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(networks.load_published(Path(files), registry).student(x), student(x))


def test_a_store_that_is_away_costs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """One, however often it is tried; no step waits, and neither does the end for longer than it may."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    watching = observing(f"http://127.0.0.1:{port}", "away", every_seconds=0.05)
    with caplog.at_level(logging.WARNING, "streamkd_mlflow"):
        watching.on_start({"name": "mine"}, None)
        begun = time.perf_counter()
        for record in range(2_000):
            watching.on_step(record, 0.5, 0.5)
        assert (time.perf_counter() - begun) / 2_000 < 1e-4
        until = time.monotonic() + 20
        while not caplog.records and time.monotonic() < until:
            time.sleep(0.05)
        watching.on_stop()
    told = [record.message for record in caplog.records if record.name.startswith("streamkd_mlflow")]
    assert len([each for each in told if f"http://127.0.0.1:{port} takes nothing" in each]) == 1


def test_a_store_that_never_answers_is_left_at_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It takes the connection and says nothing: the learner stops all the same."""
    monkeypatch.setattr(observer, "LAST_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        watching = observing(f"http://127.0.0.1:{silent.getsockname()[1]}", "silent")
        watching.on_start({"name": "mine"}, None)
        watching.on_step(10, 0.5, 0.5)
        begun = time.monotonic()
        watching.on_stop()
        assert time.monotonic() - begun < 2
    assert "what it has not taken yet is lost" in caplog.text


def test_what_was_not_taken_is_written_when_the_store_is_back(
    uri: str, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points wait, in their order, and the oldest are let go where there are too many."""
    watching = observing(uri, "back", every_seconds=0.05)
    add, failures = observer.Store.add, iter([OSError("gone"), OSError("gone")])

    def failing(self: Any, batch: Any) -> None:
        for fault in failures:
            raise fault
        add(self, batch)

    monkeypatch.setattr(observer.Store, "add", failing)
    for record in range(observer.POINTS + 5):
        watching.on_boundary(Boundary(record, str(record), "new-label"))
    watching.on_start({"name": "mine"}, None)
    until = time.monotonic() + 60
    while watching._points and time.monotonic() < until:
        time.sleep(0.05)
    watching.on_stop()
    [run] = runs("back")
    found = points(uri, run, "boundary")
    assert [record for record, _ in found] == list(range(5, observer.POINTS + 5))
