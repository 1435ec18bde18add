"""Which version is scored as records come: the one that users are answered by, pinned or newest, across restarts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from streamkd import config as configuration
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.serve.processes.publisher import Publisher, ScoredVersion
from streamkd.state.directory import StateDirectory
from streamkd.state.versions import VersionStore
from streamkd.teachers import served
from streamkd.telemetry import Recorder
from streamkd.wiring import open_source, schema_of

REGISTRY = Registry.load()


def learner() -> Learner:
    source = {"name": "replay", "dataset": "digits", "classes_per_task": 2, "per_class": 40}
    tree: dict[str, Any] = {
        "stream": {"source": source},
        "student": {"name": "mlp", "hidden": [16]},
        "memory": {"size": 60, "replay": 20},
        "device": "cpu",
    }
    config = configuration.from_tree(tree, REGISTRY)
    schema = schema_of(config, REGISTRY)
    return Learner(config, REGISTRY, open_source(config, REGISTRY, schema)[0], schema)


def run(one: Learner, batches: int) -> None:
    for _ in range(batches):
        assert one.advance()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[StateDirectory]:
    directory = StateDirectory(tmp_path)
    directory.create()
    with directory.lock():
        yield directory


def publisher(directory: StateDirectory, one: Learner) -> Publisher:
    return Publisher(directory, one.config, REGISTRY, Recorder())


def right(directory: StateDirectory, version: int, x: torch.Tensor, y: torch.Tensor) -> int:
    """How many of the rows a version has right, as its files have it."""
    versions = VersionStore(directory, read_only=True)
    loaded = served.load(versions.read(version), REGISTRY, version)
    versions.close()
    return int((torch.from_numpy(loaded.predict(x.numpy())).argmax(1) == y).sum())


def hits(one: Learner) -> int:
    found = one.prequential.version.measures
    return round((found.overall or 0.0) * found.records)


def scored(one: Learner) -> tuple[int, torch.Tensor, torch.Tensor]:
    """How many of what is remembered the learner counts as right for users, with these records."""
    ring = one.step.memory.replayed
    assert ring.x is not None
    x, y = ring.x[: ring.filled], ring.y[: ring.filled]
    before = hits(one)
    one.prequential.version.score(x, y)
    return hits(one) - before, x, y


def test_the_newest_version_is_scored_until_another_is_pinned(directory: StateDirectory) -> None:
    """A version of one task, pinned, has few records of the next right, and that is what is told."""
    one = learner()
    published = publisher(directory, one)
    scoring = ScoredVersion(published, REGISTRY)
    scoring.follow(one)
    assert (scoring.version, one.prequential.version.measures.records) == (None, 0)
    run(one, 8)
    first = published.publish(one)
    scoring.follow(one)
    assert scoring.version == first == 1
    run(one, 12)
    newest = published.publish(one)
    assert newest is not None
    scoring.follow(one)
    assert scoring.version == newest
    many, x, y = scored(one)
    assert many == right(directory, newest, x, y)
    pinned = published.versions.rollback(1)
    scoring.follow(one)
    assert scoring.version == pinned
    few, x, y = scored(one)
    assert few == right(directory, 1, x, y) < many
    published.versions.close()


def test_after_a_restart_the_version_is_read_from_its_files(directory: StateDirectory) -> None:
    """A new process scores what the old one published, before it publishes anything itself."""
    one = learner()
    run(one, 8)
    version = publisher(directory, one).publish(one)
    assert version is not None
    again = ScoredVersion(publisher(directory, one), REGISTRY)
    again.follow(one)
    assert again.version == version
    hits, x, y = scored(one)
    assert hits == right(directory, version, x, y)


def test_a_version_that_has_learned_what_comes_is_not_asked(directory: StateDirectory) -> None:
    """Killed after a version, before a checkpoint: its records come again, and are not scored by who learned them."""
    ahead = learner()
    run(ahead, 12)
    version = publisher(directory, ahead).publish(ahead)
    behind = learner()
    run(behind, 8)
    again = ScoredVersion(publisher(directory, behind), REGISTRY)
    again.follow(behind)
    run(behind, 4)
    assert behind.prequential.version.measures.accuracy is None
    again.follow(behind)
    assert again.version == version


def test_a_version_that_cannot_be_read_is_not_scored(
    directory: StateDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    """Its files are damaged: it is said once, and no figure is told in its name."""
    one = learner()
    run(one, 8)
    publisher(directory, one).publish(one)
    (directory.published / "1" / "model.safetensors").write_bytes(b"damaged")
    again = ScoredVersion(publisher(directory, one), REGISTRY)
    for _ in range(3):
        again.follow(one)
    assert again.version is None
    assert len([record for record in caplog.records if "version 1 is not scored" in record.message]) == 1
    run(one, 1)
    assert one.prequential.version.measures.accuracy is None
