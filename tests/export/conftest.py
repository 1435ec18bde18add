"""A table with every kind of column that a loader reads, and a state directory that has published."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamkd import config as configuration
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.records import RecordSchema
from streamkd.serve.processes.publisher import Publisher
from streamkd.state.checkpoint import CheckpointStore
from streamkd.state.directory import StateDirectory
from streamkd.telemetry import Recorder
from streamkd.wiring import open_source, schema_of

REGISTRY = Registry.load()
COLUMNS: list[dict[str, Any]] = [
    {"name": "number", "missing": "fill", "fit": 100},
    {"name": "whole", "dtype": "int64", "mean": 3.0, "std": 2.0},
    {"name": "list", "shape": (3,), "missing": "fill", "mean": (0.0, 1.0, 2.0), "std": (1.0, 2.0, 1.0)},
    {"name": "short", "shape": (4,), "pad": True},
    {"name": "colour", "kind": "category", "shape": (6,), "values": ("red", "green", "1"), "missing": "fill"},
    {"name": "code", "kind": "category", "shape": (8,)},
    {"name": "when", "kind": "time", "missing": "fill", "fit": 50,
     "parts": ("minute", "hour", "weekday", "day_of_month", "day_of_year", "age")},
    {"name": "second", "kind": "time", "epoch": "ns", "parts": ("hour",)},
]  # fmt: skip


@pytest.fixture(scope="session")
def table() -> tuple[RecordSchema, list[dict[str, Any]]]:
    """A schema, and 600 rows as they come from JSON: gaps, categories never seen, zones; ``y`` is their class."""
    draw = np.random.default_rng(0)
    schema = RecordSchema.model_validate({"inputs": COLUMNS})
    colours = ["red", "green", "violet", "ü", "", None, True, 1.0, 7]
    rows = []
    for place in range(600):
        number, whole = draw.normal(5, 3), int(draw.integers(0, 9))
        moment = datetime.fromtimestamp(int(draw.integers(0, 2**31)), UTC)
        rows.append(
            {
                "number": None if place % 5 == 0 else number,
                "whole": whole,
                "list": [None if draw.random() < 0.2 else float(draw.normal()) for _ in range(3)],
                "short": draw.normal(size=place % 6).tolist(),
                "colour": colours[place % len(colours)],
                "code": int(draw.integers(0, 40)),
                "when": ["", moment.isoformat(), moment.isoformat()[:10], moment.isoformat()[:19] + "-03:30"][
                    place % 4
                ],
                "second": int(draw.integers(0, 2**60)),
                "y": int((number > 5) ^ (whole > 3)),
            }
        )
    return schema, rows


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory of digits, with a checkpoint and a version of an ensemble."""
    tree: dict[str, Any] = {
        "stream": {"source": {"name": "replay", "dataset": "digits", "classes_per_task": 2, "per_class": 40}},
        "student": {"name": "mlp", "hidden": [128, 64]},
        "memory": {"size": 120, "replay": 20},
        "teachers": [{"name": "ema"}, {"name": "analytic", "channels": 8, "dense": 64}],
        "publish": {"model": "ensemble", "class_weights": {"3": 2.0}},
        "device": "cpu",
    }
    config = configuration.from_tree(tree, REGISTRY)
    schema = schema_of(config, REGISTRY)
    one = Learner(config, REGISTRY, open_source(config, REGISTRY, schema)[0], schema)
    while one.advance():
        pass
    directory = StateDirectory(tmp_path_factory.mktemp("state"))
    directory.create()
    with directory.lock():
        Publisher(directory, config, REGISTRY, Recorder()).publish(one)
        kept = {"config": configuration.dump(config), "environment": {}}
        CheckpointStore(directory).save(one.state(), offsets=dict(one.offsets), records=one.records, **kept)
    return directory.path
