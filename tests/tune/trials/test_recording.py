"""Recordings: one stream, shared by all trials without a copy."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from streamkd import config as configuration
from streamkd.errors import SourceError
from streamkd.plugins import Registry
from streamkd.tune.trials.recording import PARTITION, VALIDATED, record

REGISTRY = Registry.load()


def config_of(**source: Any) -> configuration.Config:
    tree = {"stream": {"source": {"name": "replay", "dataset": "digits", **source}}}
    return configuration.from_tree(tree, REGISTRY)


def test_a_read_is_a_view_of_the_recording() -> None:
    """Batches are slices: the same memory, at the same offset the same records, and none after the end."""
    recording = record(config_of(), REGISTRY, 100)
    source = recording.source()
    chunk = source.read(PARTITION, 40, 10)
    whole = recording.records.column("image").flatten().to_numpy()
    assert np.shares_memory(chunk.rows.column("image").flatten().to_numpy(), whole)
    assert chunk.rows.equals(recording.records.slice(40, 10))
    assert source.read(PARTITION, recording.total - 3, 10).next_offset == source.end(PARTITION) == recording.total


def test_marks_are_where_one_task_gives_way_to_another() -> None:
    """Tasks span the stream one after another, and every trial is measured at the end of each."""
    recording = record(config_of(classes_per_task=2), REGISTRY, 100)
    tasks = recording.records.column("task").to_pylist()
    for task in recording.tasks:
        assert set(tasks[task.begins : task.ends]) == {task.name}
    assert recording.marks == tuple(task.ends for task in recording.tasks)
    assert recording.marks[-1] == recording.total


def test_a_stream_of_one_task_is_measured_ten_times() -> None:
    """Without tasks the marks are even."""
    recording = record(config_of(), REGISTRY, 100)
    assert len(recording.marks) == 10
    assert np.ptp(np.diff(recording.marks)) <= 1


def test_without_a_task_column_a_task_spans_its_labels(tmp_path: Any) -> None:
    """A file cut into tasks by class, whose records do not say their task, has its spans by label."""
    table = pa.table({"x": np.arange(400.0), "label": np.arange(400) % 4})
    pa.parquet.write_table(table, tmp_path / "four.parquet")
    source = {"name": "replay", "path": str(tmp_path / "four.parquet"), "classes_per_task": 2}
    tree = {"stream": {"source": source, "records": {"inputs": [{"name": "x"}]}}}
    recording = record(configuration.from_tree(tree, REGISTRY), REGISTRY, 100)
    assert [(task.begins, task.ends) for task in recording.tasks] == [(0, 128), (128, 256)]
    assert recording.marks == (128, 256)


def test_validation_records_are_few_and_every_label_keeps_its_share() -> None:
    """At most about a thousand over all tasks, a fifth of them in each of five, labels alike."""
    tree = {"stream": {"source": {"name": "replay", "dataset": "mnist-5k", "permuted": 5}}}
    recording = record(configuration.from_tree(tree, REGISTRY), REGISTRY, 100)
    assert [task.rows.num_rows for task in recording.tasks] == [VALIDATED // 5] * 5
    assert (recording.validated, recording.held_out) == (VALIDATED, 4_000)
    for task in recording.tasks:
        assert np.ptp(np.bincount(task.rows.column("label").to_numpy())) <= 1


def test_a_stream_too_small_to_hold_anything_out_is_refused(tmp_path: Any) -> None:
    """Two records of each label leave no validation record."""
    pa.parquet.write_table(pa.table({"x": [1.0, 2.0, 3.0, 4.0], "label": [0, 1] * 2}), tmp_path / "tiny.parquet")
    source = {"name": "replay", "path": str(tmp_path / "tiny.parquet"), "test_ratio": 0}
    tree = {"stream": {"source": source, "records": {"inputs": [{"name": "x"}]}}}
    with pytest.raises(SourceError, match="0 to be measured by"):
        record(configuration.from_tree(tree, REGISTRY), REGISTRY, 100)
