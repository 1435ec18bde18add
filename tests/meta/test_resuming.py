"""A learner whose adaptations look back at earlier steps goes on from a checkpoint as if it had never stopped."""

from typing import Any

import pytest
import torch

from streamkd import config as configuration
from streamkd.inspection import weights_sha256
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.state.tree import pack, unpack
from streamkd.wiring import open_source, schema_of

REGISTRY = Registry.load()


def learner(adapt: dict[str, Any]) -> Learner:
    """Three tasks of two digits; the head grows in the middle of what an adaptation looks back at."""
    source = {"name": "replay", "dataset": "digits", "classes_per_task": 2, "limit": 300}
    tree = {
        "stream": {"source": source},
        "student": {"name": "mlp", "hidden": [16]},
        "teachers": [{"name": "ema"}, {"name": "memory"}, {"name": "snapshot"}],
        "memory": {"size": 60, "replay": 20},
        "optimizer": {"clip_norm": 1.0},
        "adapt": {"every": 2, "on_task_steps": 3, **adapt},
        "device": "cpu",
    }
    config = configuration.from_tree(tree, REGISTRY)
    schema = schema_of(config, REGISTRY)
    source_, _ = open_source(config, REGISTRY, schema)
    return Learner(config, REGISTRY, source_, schema)


def finished(one: Learner, batches: int = 10_000) -> Learner:
    while batches and one.advance():
        batches -= 1
    return one


@pytest.mark.parametrize("stop", [7, 16])
@pytest.mark.parametrize("adapt", [{"engine": "prequential"}, {"horizon": 4}], ids=str)
def test_stopping_and_resuming_ends_in_the_same_bits(adapt: dict[str, Any], stop: int) -> None:
    """Student and gate after a restart equal those of a run without one."""
    whole, stopped = finished(learner(adapt)), finished(learner(adapt), stop)
    resumed = learner(adapt)
    resumed.restore(unpack(pack(stopped.state())), dict(stopped.offsets), stopped.config)
    finished(resumed)
    for part in ("student", "gate"):
        one, other = (getattr(each.step, part).state_dict() for each in (whole, resumed))
        assert weights_sha256(one) == weights_sha256(other)
    assert whole.adapter is not None
    assert whole.adapter.adaptations == resumed.adapter.adaptations > 10
    assert all(torch.isfinite(p).all() for p in whole.adapter.parameters)


def test_a_checkpoint_of_before_gates_were_told_otherwise_restores() -> None:
    """Kept steps may hold evidence that no gate sees any more, and lack what gates see now."""
    stopped = finished(learner({"horizon": 4}), 12)
    state = unpack(pack(stopped.state()))
    kept = [tree["evidence"] for tree in _evidence_in(state)]
    assert kept
    for evidence in kept:
        evidence |= {"remembered": evidence.pop("met") > 0, "repetition": 0.5}
    resumed = learner({"horizon": 4})
    resumed.restore(state, dict(stopped.offsets), stopped.config)
    finished(resumed)
    assert resumed.adapter is not None
    assert resumed.adapter.adaptations > 10


def _evidence_in(tree: Any) -> list[dict[str, Any]]:
    """All parts of a state that hold evidence."""
    if isinstance(tree, dict):
        inner = [found for value in tree.values() for found in _evidence_in(value)]
        return [tree, *inner] if "evidence" in tree else inner
    return [found for value in tree for found in _evidence_in(value)] if isinstance(tree, list) else []
