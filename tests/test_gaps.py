"""A learner on a table with gaps, categories and times: counted, and the same bits wherever it was stopped."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import toys

from streamkd import config as configuration
from streamkd.learner.learner import Learner
from streamkd.plugins import Registry
from streamkd.telemetry import Recorder
from streamkd.wiring import open_source, schema_of


def learner(folder: Path, recorder: Recorder | None = None) -> Learner:
    """Over 300 records of a file, a tenth of each column missing."""
    r = np.random.default_rng(0)
    gone = r.random((300, 3)) < 0.1
    moments = (r.integers(0, 10**9, 300) * 1_000_000).astype("datetime64[us]")
    table = {
        "number": pa.array(r.normal(5, 2, 300), mask=gone[:, 0]),
        "name": pa.array(r.choice(["a", "b", "new"], 300), mask=gone[:, 1]),
        "at": pa.array(moments, mask=gone[:, 2]),
        "label": pa.array(gone[:, 0].astype(int)),
    }
    pq.write_table(pa.table(table), folder / "table.parquet")
    inputs = [
        {"name": "number", "fit": 100, "missing": "fill"},
        {"name": "name", "kind": "category", "shape": [6], "values": ["a", "b"], "missing": "fill"},
        {"name": "at", "kind": "time", "parts": ["hour", "age"], "fit": 100, "missing": "fill"},
    ]
    source = {"name": "replay", "path": str(folder / "table.parquet"), "order": "given", "test_ratio": 0.0}
    tree = {
        "device": "cpu",
        "stream": {"source": source, "records": {"inputs": inputs}},
        "detectors": [],
        "memory": {"size": 100},
        "teachers": toys.TEACHERS,
        "student": {"name": "mlp", "hidden": [8]},
    }
    registry = Registry.load()
    config = configuration.from_tree(tree, registry)
    schema = schema_of(config, registry)
    opened, _ = open_source(config, registry, schema)
    return Learner(config, registry, opened, schema, recorder=recorder)


def test_gaps_are_counted_by_column(tmp_path: Path) -> None:
    """As many as the file has."""
    recorder = Recorder()
    one = learner(tmp_path, recorder)
    while one.advance():
        pass
    counted: dict[str, float] = {}
    for family, labels, amount in recorder.drain():
        if family == "gaps_filled_total":
            counted[labels[0]] = counted.get(labels[0], 0) + float(amount)
    table = pq.read_table(tmp_path / "table.parquet")
    assert counted == {name: table[name].null_count for name in ("number", "name", "at")}


def test_it_goes_on_from_a_checkpoint_to_the_same_bits(tmp_path: Path) -> None:
    """Stopped while the scaling is still being fitted, and after: weights and statistics end equal."""
    whole = learner(tmp_path)
    while whole.advance():
        pass
    for batches in (5, 20):
        first, second = learner(tmp_path), learner(tmp_path)
        for _ in range(batches):
            first.advance()
        second.restore(first.state(), first.offsets, first.config)
        while second.advance():
            pass
        state, wanted = second.student.state_dict(), whole.student.state_dict()
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[name], wanted[name]) for name in wanted)
        assert second.prequential.student.overall == whole.prequential.student.overall
