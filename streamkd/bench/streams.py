"""The streams of ``streamkd bench learning``, and their records as tensors for the sides that do not read streams.

The same definitions as in ``streams/`` of the repository (a test compares them), so that the benchmark runs wherever
streamkd is installed. Each has a second form to choose hyperparameters by: fewer records of each class train, the
others of the training half test, and the seeds are 100 and up, so nothing is chosen on what is reported.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from streamkd import config as configuration
from streamkd.config import Config
from streamkd.errors import SourceError
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.records import Label, RecordSchema
from streamkd.streams.encoding import codec
from streamkd.streams.replay import datasets
from streamkd.students.networks import at_rest
from streamkd.wiring import open_source, schema_of

DATA = ("data", str(Path.home() / "data"))
Tree = dict[str, Any]


def _replay(memory: int, hidden: Sequence[int], **source: Any) -> Tree:
    return {
        "stream": {"source": {"name": "replay", **source}, "batch": {"size": 10}},
        "memory": {"size": memory},
        "student": {"name": "mlp", "hidden": list(hidden)},
    }


STREAMS: dict[str, Tree] = {
    "split-fashion-mnist": _replay(500, (256, 256), dataset="fashion-mnist", classes_per_task=2, per_class=3000),
    "split-mnist-5k": _replay(200, (100, 100), dataset="mnist-5k", classes_per_task=2),
    "permuted-mnist-5k": _replay(200, (100, 100), dataset="mnist-5k", permuted=5),
    "rotated-fashion-mnist": _replay(
        500, (256, 256), dataset="fashion-mnist", per_class=600, rotated=[0, 30, 60, 90, 120]
    ),
    "digits": _replay(200, (100, 100), dataset="digits", classes_per_task=2),
    # 77 intents of bank customers by eleven: hashed n-grams (``text`` columns) are the frozen embedding. One of a
    # pretrained encoder would come as a Parquet file with a column of vectors in place of ``text``
    "split-banking77": _replay(770, (256,), path="banking77-train.parquet", classes_per_task=11),
}
FEATURES = 2048  # of a hashed text
BATCH = 512  # test records per forward pass
PER_CLASS = {"mnist-5k": 320, "digits": 115, "banking77-train.parquet": 70}  # train where the rest tests


def tree(name: str, chosen_on: bool = False) -> Tree:
    """The configuration of a stream with all defaults of ours; ``chosen_on``: its form to choose hyperparameters by.

    Raises:
        SourceError: the stream's file is not on this machine.
    """
    found = STREAMS[name]
    source = dict(found["stream"]["source"])
    made = {"name": name, "device": "cpu", **found, "stream": {**found["stream"], "source": source}}
    if chosen_on:
        key = source.get("dataset") or source["path"]
        source |= {"test": "rest", "per_class": source.get("per_class") or PER_CLASS[key]}
    if "path" in source:
        train = _file(source["path"])
        source["path"] = str(train)
        if not chosen_on:
            source["test_path"] = str(train.with_name(train.name.replace("-train", "-test")))
        text = {"name": "text", "kind": "text", "shape": [FEATURES]}
        made["stream"]["records"] = {"inputs": [text], "label": "label", "label_type": "string", "task": "task"}
    return made


def available() -> tuple[str, ...]:
    """The streams whose data is on this machine."""
    return tuple(name for name in STREAMS if there(name))


def there(name: str) -> bool:
    """Whether a stream's data is on this machine."""
    try:
        source = tree(name)["stream"]["source"]
        if "dataset" in source:
            datasets.load(source["dataset"])
    except SourceError:
        return False
    return True


def _file(name: str) -> Path:
    roots = [root for root in (os.environ.get("STREAMKD_DATA"), *DATA) if root]
    for root in roots:
        if (Path(root) / name).exists():
            return (Path(root) / name).resolve()
    raise SourceError(f"{name} is in none of {', '.join(roots)}", where=name, fix="set STREAMKD_DATA to its folder")


@dataclass(frozen=True)
class StreamPart:
    """Records of one task: x [n, *shape] as the stream has it, y [n] columns by arrival."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Arrays:
    """A whole stream in memory: what trains and what tests, task by task, and its labels by arrival."""

    train: tuple[StreamPart, ...]
    test: tuple[StreamPart, ...]
    labels: tuple[Label | None, ...]
    schema: RecordSchema


def arrays(config: Config, registry: Registry) -> Arrays:
    """Read the stream of a configuration, under its seed, in its order."""
    schema = schema_of(config, registry)
    source, _ = open_source(config, registry, schema)
    partition = source.partitions[0]
    records, _ = codec.encode(source.read(partition, 0, source.end(partition) or 0).rows, schema, 0)
    tests = [codec.encode(rows, schema, 0)[0] for rows in source.tests().values() if rows.num_rows]
    source.close()
    labels = tuple(dict.fromkeys(records.labels))
    column = {label: number for number, label in enumerate(labels)}
    inputs = torch.tensor(records.inputs)
    y = torch.tensor([column[label] for label in records.labels])
    tasks = np.array(records.tasks if records.tasks is not None else [0] * len(y)).astype(str)
    places = [torch.tensor(np.flatnonzero(tasks == task)) for task in dict.fromkeys(tasks.tolist())]
    tested = [
        StreamPart(torch.tensor(t.inputs), torch.tensor([column.get(label, -1) for label in t.labels])) for t in tests
    ]
    return Arrays(tuple(StreamPart(inputs[at], y[at]) for at in places), tuple(tested), labels, schema)


@torch.no_grad()
def accuracy(model: nn.Module, part: StreamPart) -> float:
    """The part of the records that a model has right."""
    with at_rest(model) as ready:
        pairs = zip(part.x.split(BATCH), part.y.split(BATCH), strict=True)
        return sum(int((ready(x).argmax(1) == y).sum()) for x, y in pairs) / len(part.y)


def learner_of(config: Config, registry: Registry) -> Learner:
    """A learner at the beginning of the stream of a configuration."""
    schema = schema_of(config, registry)
    source, _ = open_source(config, registry, schema)
    return Learner(config, registry, source, schema)


def merged(tree: Mapping[str, Any], change: Mapping[str, Any]) -> Tree:
    """The tree with the changes in their places."""
    both = {key: merged(tree[key], value) for key, value in change.items() if isinstance(tree.get(key), dict)}
    return {**tree, **change, **both}


def config_of(made: Tree, registry: Registry, seed: int) -> Config:
    """A tree as a checked configuration under a seed."""
    return configuration.from_tree({**made, "seed": seed}, registry)
