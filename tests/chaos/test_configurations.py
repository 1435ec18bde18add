"""Configurations drawn by a seed: data of every kind, gates, losses, engines, detectors and limits in any combination.

Whatever is drawn learns to the end, and stopped and resumed to the same bits; no teacher fails; and the version that is
published of it answers what the learner would, from the student's columns alone.
"""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from baselines import REGISTRY

from streamkd import config as configuration
from streamkd.bench.drifting import Delayed
from streamkd.inspection import weights_sha256
from streamkd.learner import Learner
from streamkd.serve.predictions.follower import load_version
from streamkd.serve.processes.publisher import Publisher
from streamkd.state.directory import StateDirectory
from streamkd.state.tree import pack, unpack
from streamkd.state.versions import VersionStore
from streamkd.students.columns import Columns
from streamkd.students.networks import at_rest
from streamkd.telemetry import Recorder
from streamkd.wiring import open_source, schema_of

Tree = dict[str, Any]
RECORDS = 260
WORDS = np.array(["alpha", "beta", "gamma", "delta", "epsilon"])
COLUMNS: dict[str, Tree] = {
    "image": {"shape": [8, 8], "dtype": "uint8", "scale": 0.004},
    "channels": {"shape": [3, 8, 8], "dtype": "uint8", "scale": 0.004},
    "gaps": {"missing": "fill", "fit": 50, "follow": True},
    "large": {"dtype": "float64", "fit": 50},
    "word": {"kind": "category", "shape": [6], "values": ["alpha", "beta"], "missing": "fill"},
    "when": {"kind": "time"},
    "text": {"kind": "text", "shape": [64]},
    "list": {"shape": [5], "pad": True},
    "whole": {"dtype": "int64", "fit": 30},
    "half": {"shape": [3], "dtype": "float16"},
}
KINDS: dict[str, tuple[str, ...]] = {
    "images": ("image",),
    "channels first": ("channels",),
    "a table": ("gaps", "large", "word", "when", "whole"),
    "everything": ("image", "gaps", "word", "text"),
    "texts": ("text",),
    "some columns": ("gaps", "word", "half", "list", "image"),
    **{f"one column, {name}": (name,) for name in ("gaps", "word", "large", "half", "list", "whole")},
}
FEW = [[*KINDS].index(kind) for kind in ("a table", "some columns")]
"""Seeds of these kinds; the others are soak."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of two labels, and then of five, with every column there is."""
    drawn = np.random.default_rng(0)
    y = np.concatenate([drawn.integers(0, 2, RECORDS // 2), drawn.integers(0, 5, RECORDS - RECORDS // 2)])
    image = (drawn.random((RECORDS, 8, 8)) * 60 + y[:, None, None] * 30).astype("uint8")
    channels = np.stack([image, image // 2, 255 - image], 1)
    seen = drawn.random(RECORDS) > 0.2
    columns = {
        "label": [f"k{label}" for label in y],
        "partly": [None if place % 4 == 3 else int(label) for place, label in enumerate(y)],
        "producer": [f"p{place % 3}" for place in range(RECORDS)],
        "image": pa.FixedSizeListArray.from_arrays(image.reshape(-1), 64),
        "channels": pa.FixedSizeListArray.from_arrays(channels.reshape(-1), 192),
        "gaps": pa.array(y + drawn.normal(size=RECORDS), mask=~seen),
        "large": 1e6 * y + 1e5 * drawn.normal(size=RECORDS),
        "word": pa.array(WORDS[(y + (drawn.random(RECORDS) < 0.3)) % 5], mask=~seen),
        "when": pa.array(1_700_000_000 + 3_600 * np.arange(RECORDS) + 86_400 * y).cast(pa.timestamp("s")),
        "text": [" ".join(drawn.choice(["good", "bad", "red", WORDS[label]], 6)) for label in y],
        "list": pa.array([(drawn.normal(size=1 + label) + label).tolist() for label in y], pa.list_(pa.float32())),
        "whole": 1_000 * y + drawn.integers(0, 500, RECORDS),
        "half": pa.FixedSizeListArray.from_arrays(drawn.normal(size=3 * RECORDS).astype("float16"), 3),
    }
    path = tmp_path_factory.mktemp("drawn") / "records.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def drawn_tree(seed: int, path: Path) -> tuple[Tree, int]:
    """A configuration, and how many records its labels are late."""
    draw = random.Random(seed)
    kind = [*KINDS][seed % len(KINDS)]
    names = KINDS[kind]
    records: Tree = {"inputs": [{"name": name, **COLUMNS[name]} for name in names]}
    partly = draw.random() < 0.3
    records |= {"label": "partly"} if partly else {"label": "label", "label_type": "string"}
    if draw.random() < 0.3:
        records["producer"] = "producer"
    if kind == "some columns":
        records["student"] = draw.sample(names, draw.randint(1, len(names) - 1))
    optimizer = draw.choice(
        [
            {},
            {"name": "sgd", "learning_rate": 0.05},
            {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9},
            {"name": "adamw", "weight_decay": 0.01, "clip_norm": 1.0},
        ]
    )
    engines = ["auto", "forward", "prequential", "finite-difference"]
    engines += ["maml"] if optimizer == {"name": "sgd", "learning_rate": 0.05} else []
    source = {"name": "replay", "path": str(path), "order": draw.choice(["given", "seed"]), "test_ratio": 0}
    others = ["memory", "analytic", "snapshot", "last-label", "linear", "crossed", "forgetting"]
    tree = {
        "stream": {
            "source": source,
            "records": records,
            "unlabelled": "distil" if partly else "reject",
            "batch": {"size": draw.choice([1, 7, 10, 40]), "rehearsals": draw.choice([0, 0, 2])},
        },
        "detectors": [
            {"name": name}
            for name in draw.sample(["new-label", "adwin", "page-hinkley", "two-sample"], draw.randint(0, 3))
        ],
        "student": {"name": "convnet"}
        if len(names) == 1 and "image" in names and draw.random() < 0.5
        else {"name": "mlp", "hidden": draw.choice([[], [8], [16, 8]])},
        "optimizer": optimizer,
        "memory": draw.choice(
            [
                {},
                {"size": 40},
                {"size": 60, "holdout_ratio": 0.0},
                {"bytes": 20_000},
                {"replay": 0},
                {"size": 50, "policy": "reservoir"},
            ]
        ),
        "gate": {"name": draw.choice(REGISTRY.names("gates"))},
        "adapt": draw.choice([{}, {"every": 0, "on_task_steps": 0}, {"every": 3, "engine": draw.choice(engines)}]),
        "losses": draw.choice(
            [[{"name": "match-gate"}], [{"name": "match-gate"}, {"name": "decoupled-kd", "weight": 0.5}]]
        ),
        "publish": {
            "model": draw.choice(["auto", "auto", "ema", "student"]),
            "class_weights": draw.choice([None, None, "balanced"]),
        },
        "device": "cpu",
        "seed": seed,
    }
    if draw.random() < 0.3:
        tree["vicinal"] = {"rows": 0}
    if draw.random() < 0.5:
        chosen = [{"name": "ema"}, *({"name": name} for name in draw.sample(others, draw.randint(0, 6)))]
        tree["teachers"] = [*chosen, {"name": "linear", "id": "other", "rates": [0.1], "bins": 0}]
    return tree, draw.choice([0, 0, 13, 60])


def made(tree: Tree, delay: int) -> Learner:
    config = configuration.from_tree(tree, REGISTRY)
    schema = schema_of(config, REGISTRY)
    source, _ = open_source(config, REGISTRY, schema)
    return Learner(config, REGISTRY, Delayed(source, delay) if delay else source, schema)


def learn(one: Learner, steps: int = -1) -> int:
    """Up to so many steps, or to the end; how many it were."""
    taken = 0
    while taken != steps and one.advance():
        taken += 1
    return taken


@pytest.mark.parametrize("seed", [pytest.param(n, marks=() if n in FEW else pytest.mark.soak) for n in range(252)])
def test_whatever_is_configured_holds(seed: int, data: Path, tmp_path: Path) -> None:
    """Resumed to the same bits, no teacher off, and a version that answers as the learner does."""
    tree, delay = drawn_tree(seed, data)
    whole, stopped, resumed = (made(tree, delay) for _ in range(3))
    steps = learn(whole)
    learn(stopped, 1 + seed % (steps - 1))
    resumed.restore(unpack(pack(stopped.state())), dict(stopped.offsets), stopped.config)
    learn(resumed)
    assert dict(whole.offsets) == dict(resumed.offsets) == {"replay/0": RECORDS}
    assert weights_sha256(resumed.student.state_dict()) == weights_sha256(whole.student.state_dict())
    assert resumed.step.mixture.share.weights == whole.step.mixture.share.weights
    assert not whole.step.pool.guard.strikes
    whole.measure()
    directory = StateDirectory(tmp_path)
    directory.create()
    with directory.lock():
        version = Publisher(directory, whole.config, REGISTRY, Recorder()).publish(whole)
        assert version is not None
        versions = VersionStore(directory)
        loaded = load_version(versions, version, REGISTRY)
        versions.close()
    x = whole.step.memory.replayed.x
    assert x is not None
    with torch.no_grad(), at_rest(whole.served) as served:
        expected = torch.softmax(served(x[:9]), 1).numpy()
    brought = Columns(whole.schema, whole.schema.student)(x[:9])
    np.testing.assert_allclose(loaded.predict(brought.numpy()), expected, atol=1e-6)
