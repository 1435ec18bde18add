"""A state directory in words: what it says is what the checkpoint holds."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa

from streamkd import config as configuration
from streamkd import inspection
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.settings import LateLabels
from streamkd.state.checkpoint import CheckpointStore
from streamkd.state.directory import StateDirectory
from streamkd.state.environment import environment
from streamkd.streams.encoding.canonical import arrow_schema
from streamkd.streams.log.log import Entry, Log
from streamkd.streams.log.positions import Move
from streamkd.teachers.teacher import copy_of
from streamkd.wiring import open_source, schema_of

from .streams.ingest.test_labels import SCHEMA, predictions


def test_how_labels_stand_is_said(tmp_path: Path) -> None:
    """Joined, pending, waiting, early and unmatched ones, as the log of the stream counts them."""
    directory = StateDirectory(tmp_path / "state")
    directory.create()
    stream = {"source": {"name": "http"}, "records": {"inputs": [{"name": "x", "shape": [2]}]}, "labels": {}}
    stream["batch"] = {"size": 1}
    one = learner_of({"stream": stream, "student": {"name": "mlp", "hidden": [4]}, "device": "cpu"}, directory.log)
    with closing(Log(directory.log, SCHEMA, labels=LateLabels())) as log:
        log.append_many([Entry(predictions(("one", 1), ("two", 2)), kind="predictions")])
        keys = pa.record_batch({"prediction_id": ["one", "one", "two/7", "later"], "label": [1, 0, 1, 1]})
        log.append_many([Entry(keys, kind="labels")])
        assert one.advance()
    found = inspected(one, directory)
    unmatched = {"repeated": 1, "late": 0, "unknown": 1}
    counts = {"kept": 3, "joined": 1, "unlabelled": 0, "waiting": 1, "early": 1, "pending": 2}
    assert found["labels"] == {**counts, "unmatched": unmatched}
    words = inspection.in_words(found)
    assert "labels: 1 joined, of 3 predictions kept (2 have none yet, 0 had none in time); 1 waiting, 1 ever" in words


def test_what_was_seen_of_a_broker_and_what_can_be_gone_back_to_is_said(tmp_path: Path) -> None:
    """Where its partitions are in the log, and where they stood for the checkpoint; stretches that are skipped."""
    directory = StateDirectory(tmp_path / "state")
    directory.create()
    stream = {"source": {"name": "http"}, "records": {"inputs": [{"name": "x", "shape": [2]}]}, "batch": {"size": 1}}
    one = learner_of({"stream": stream, "student": {"name": "mlp", "hidden": [4]}, "device": "cpu"}, directory.log)
    row = pa.RecordBatch.from_pylist([{"x": [0.0, 1.0], "label": 1}], schema=arrow_schema(one.schema))
    with closing(Log(directory.log, one.schema)) as log:
        log.append_many([Entry(row, moves=[Move("orders/0", None, 1)]), Entry(row, moves=[Move("orders/0", 1, 9)])])
        assert one.advance()
    with closing(directory.connect()) as connection:
        connection.execute("INSERT INTO skips VALUES ('main/0', 1, 4, 0.0)")
    found = inspected(one, directory)
    assert found["positions"] == {"orders/0": 9}
    [kept] = found["checkpoints"]
    assert (kept["records"], kept["offsets"], kept["positions"]) == (1, {"main/0": 1}, {"orders/0": 1})
    words = inspection.in_words(found)
    assert "read of orders/0: all before 9\nnever learned: main/0 1 to 3\ncan go back to main/0 1" in words


def learner_of(tree: Mapping[str, Any], log: Path | None = None) -> Learner:
    registry = Registry.load()
    config = configuration.from_tree(tree, registry)
    schema = schema_of(config, registry)
    source, journal = open_source(config, registry, schema, log)
    return Learner(config, registry, source, schema, journal=journal)


def inspected(one: Learner, directory: StateDirectory) -> dict[str, Any]:
    """What is said of a learner's checkpoint."""
    with directory.lock():
        CheckpointStore(directory, 1).save(
            one.state(),
            offsets=one.offsets,
            records=one.records,
            config=configuration.dump(one.config),
            environment=environment(),
            dead_letters=[],
        )
        return inspection.inspect(directory.path)


def test_what_came_again_and_how_it_was_answered_is_said(tmp_path: Path) -> None:
    """Two passes over fifty records: a hundred were taken, and half of them had come before."""
    source = {"name": "replay", "dataset": "digits", "per_class": 5, "repeat": 2}
    tree = {"stream": {"source": source}, "student": {"name": "mlp", "hidden": [4]}, "memory": {"size": 20}}
    one = learner_of({**tree, "device": "cpu"})
    while one.advance():
        one.prequential.version.take(copy_of(one.served))
    directory = StateDirectory(tmp_path / "state")
    directory.create()
    found = inspected(one, directory)
    assert found["records_repeated"] == 50
    assert found["measures"]["all"] == one.prequential.version.measures.figures(one.labels.labels)["all"]
    assert "served on arrival: accuracy 0." in inspection.in_words(found)
    assert "100 records trained in 10 steps, 50 of them had come before;" in inspection.in_words(found)
