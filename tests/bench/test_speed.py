"""The speed benchmark compares like with like, and writes what the documents quote."""

import dataclasses

import pytest
import torch

from streamkd import config as configuration
from streamkd.bench import bare, speed
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.wiring import open_source, schema_of

REGISTRY = Registry.load()


def _fashion() -> None:
    from streamkd.errors import SourceError
    from streamkd.streams.replay import datasets

    try:
        datasets.load("fashion-mnist")
    except SourceError as fault:
        pytest.skip(f"needs Fashion-MNIST: {fault.fix}")


def test_the_bare_loop_has_the_same_arithmetic() -> None:
    """Without replay (whose draws differ) both sides end in the same weights but for rounding."""
    _fashion()
    # the student brings its own normalisation; without decay the average is the student of the step before
    shape = dataclasses.replace(speed.SHAPE, replay=0, gain=1.0, bias=0.0, decay=0.0)
    tree = speed.tree(200)
    tree["memory"]["replay"] = 0
    tree["teachers"] = [{"name": "ema", "decay": 0.0}]
    config = configuration.from_tree(tree, REGISTRY)
    schema = schema_of(config, REGISTRY)
    source, _ = open_source(config, REGISTRY, schema)
    learner = Learner(config, REGISTRY, source, schema)
    x, y = speed.arrays(config, REGISTRY)
    while learner.advance():
        pass
    network = learner.fresh_student(len(learner.labels))
    bare.samples_per_second(x.reshape(-1, 28, 28), y, network, shape, seed=0)
    ours, theirs = learner.student.body.hidden[0].weight, network.body.hidden[0].weight  # type: ignore[index,union-attr]
    assert len(learner.labels) == 2
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_figures_have_their_names() -> None:
    """A small run gives every figure that the documents quote, as positive numbers."""
    _fashion()
    result = speed.measure(300)
    assert result["schema"] == 1
    assert {"ratio_to_bare_loop", "ratio_to_avalanche_replay", "samples_per_second"} <= set(result["figures"])
    assert result["figures"]["ratio_of_defaults_to_replay_loop"] < result["figures"]["ratio_to_bare_loop"]
    assert all(value > 0 for value in result["figures"].values())
