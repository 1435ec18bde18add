"""``streamkd bench speed``: records per second of our whole learner, of a bare loop and of Avalanche's online replay.

All three in one process, on the same 30,000 records, one thread, taking turns so that a machine that slows down
slows all of them; the figures are medians over the turns and ratios of the same turn.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from streamkd import config as configuration
from streamkd.bench import bare, book, peers, streams
from streamkd.plugins import Registry

SHAPE = bare.Shape(
    batch=10,
    replay=10,  # as many as arrive: what Avalanche's ReplayPlugin does unless told otherwise
    memory=500,
    classes=10,
    learning_rate=0.05,
    decay=0.99,
    hard=0.5,
    temperature=2.0,
    gain=1 / 255 / 0.3530,
    bias=-0.2860 / 0.3530,
)
HIDDEN = (256, 256)
TURNS = 3  # of ours and the bare loop; Avalanche's replay takes minutes and gets one


def measure(
    records: int = 30_000,
    replay: int = SHAPE.replay,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Time the three, with so many replayed records a step on every side, and return figures by name."""
    shape = dataclasses.replace(SHAPE, replay=replay)
    torch.set_num_threads(1)
    registry = Registry.load()
    config = configuration.from_tree(tree(records, shape), registry)
    x, y = arrays(config, registry)
    total = records * (2 * TURNS + 1)
    rows = []
    for turn in range(TURNS):
        ours = _ours(config, registry)
        progress((2 * turn + 1) * records, total)
        plain = bare.samples_per_second(x, y, network(x.shape[1]), shape, seed=0)
        progress((2 * turn + 2) * records, total)
        rows.append({"turn": turn, "streamkd": ours, "bare_loop": plain, "ratio": ours / plain})
    theirs = peers.online_replay(
        x.float() / 255,
        y,
        network(x.shape[1]),
        task_records=6_000,
        batch=SHAPE.batch,
        replay=replay,
        memory=SHAPE.memory,
        learning_rate=SHAPE.learning_rate,
    )
    progress(total, total)
    ours = statistics.median(row["streamkd"] for row in rows)
    figures = {
        "samples_per_second": ours,
        "bare_loop_samples_per_second": statistics.median(row["bare_loop"] for row in rows),
        "avalanche_replay_samples_per_second": theirs,
        "ratio_to_bare_loop": statistics.median(row["ratio"] for row in rows),
        "ratio_to_avalanche_replay": ours / theirs,
        "records": records,
        "replayed_per_step": replay,
    }
    return book.result("speed", rows, figures=figures)


def tree(records: int, shape: bare.Shape = SHAPE) -> dict[str, Any]:
    """The configuration that is timed: the gate fixed, one moving average, a reservoir."""
    return {
        "name": "speed",
        "device": "cpu",
        "stream": {
            "source": {
                "name": "replay",
                "dataset": "fashion-mnist",
                "classes_per_task": 2,
                "per_class": 3_000,
                "limit": records,
            },
            "batch": {"size": SHAPE.batch},
        },
        "student": {"name": "mlp", "hidden": list(HIDDEN)},
        "optimizer": {"name": "sgd", "learning_rate": SHAPE.learning_rate, "start": 1.0},
        "memory": {"size": SHAPE.memory, "holdout_ratio": 0.0, "replay": shape.replay, "policy": "reservoir"},
        "vicinal": {"rows": 0},
        "teachers": [{"name": "ema", "decay": SHAPE.decay}],
        "gate": {"name": "fixed", "hard": SHAPE.hard},
        "losses": [{"name": "match-gate", "temperature": SHAPE.temperature}],
    }


def network(features: int) -> nn.Module:
    """The same multi-layer perceptron for every side; ten outputs from the start."""
    torch.manual_seed(0)
    widths = [features, *HIDDEN, SHAPE.classes]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def arrays(config: configuration.Config, registry: Registry) -> tuple[torch.Tensor, torch.Tensor]:
    """The stream's records x [n, features] and columns y [n], for the sides that do not read streams."""
    train = streams.arrays(config, registry).train
    return torch.cat([part.x.flatten(1) for part in train]), torch.cat([part.y for part in train])


def _ours(config: configuration.Config, registry: Registry) -> float:
    """The whole learner, from the source to the update, everything counted but opening the source."""
    learner = streams.learner_of(config, registry)
    begun = time.perf_counter()
    while learner.advance():
        pass
    seconds = time.perf_counter() - begun
    learner.source.close()
    return learner.records / seconds
