"""``streamkd bench speed``: records per second of our whole learner, of a bare loop and of Avalanche's online replay.

All three in one process, on the same 30,000 records, one thread, taking turns so that a machine that slows down
slows all of them; the figures are medians over the turns and ratios of the same turn. These are of a configuration with
a bare loop's arithmetic. What the defaults take is told too, beside a plain loop that replays as many rows as they do.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from streamkd import config as configuration
from streamkd.bench import bare, book, peers, plain_replay, streams
from streamkd.cores import compute_on
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
DEFAULTS = 3_000  # records on which the defaults are timed; they take milliseconds each
TURNS = 3  # of ours and the bare loop; Avalanche's replay takes minutes and gets one


def measure(
    records: int = 30_000,
    replay: int = SHAPE.replay,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Time the three, with so many replayed records a step on every side, and return figures by name."""
    shape = dataclasses.replace(SHAPE, replay=replay)
    compute_on(1)
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
    rows += _defaults(min(records, DEFAULTS), registry)
    progress(total, total)
    ours = _median(rows, "streamkd")
    figures = {
        "samples_per_second": ours,
        "bare_loop_samples_per_second": _median(rows, "bare_loop"),
        "avalanche_replay_samples_per_second": theirs,
        "ratio_to_bare_loop": _median(rows, "ratio"),
        "ratio_to_avalanche_replay": ours / theirs,
        "defaults_samples_per_second": _median(rows, "defaults"),
        "replay_loop_samples_per_second": _median(rows, "replay_loop"),
        "ratio_of_defaults_to_replay_loop": _median(rows, "defaults_ratio"),
        "records": records,
        "replayed_per_step": replay,
    }
    return book.result("speed", rows, figures=figures)


def _median(rows: Sequence[dict[str, float]], name: str) -> float:
    """Over the turns that have it."""
    return statistics.median(row[name] for row in rows if name in row)


def _defaults(records: int, registry: Registry) -> list[dict[str, float]]:
    """Turns of the learner with its defaults and of experience replay in a plain loop, records per second."""
    made = tree(records)
    config = configuration.from_tree({name: made[name] for name in ("device", "stream", "student")}, registry)
    x, y = arrays(config, registry)
    inputs, rows = x.float() * SHAPE.gain + SHAPE.bias, []
    for turn in range(TURNS):
        ours, loop = _ours(config, registry), network(x.shape[1])
        adam = torch.optim.Adam(loop.parameters(), lr=0.001)
        how = {"batch": SHAPE.batch, "replay": config.memory.replay, "memory": SHAPE.memory, "seed": 0}
        plain = len(y) / plain_replay.train("replay", inputs, y, loop, adam, **how).seconds
        rows.append({"turn": turn, "defaults": ours, "replay_loop": plain, "defaults_ratio": ours / plain})
    return rows


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
