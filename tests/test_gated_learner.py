"""A learner under each gate: it learns, and stopping changes nothing."""

from typing import Any

import pytest
import toys
from baselines import REGISTRY

from streamkd import config as configuration
from streamkd.inspection import weights_sha256
from streamkd.learner import Learner
from streamkd.state.tree import pack, unpack
from streamkd.wiring import open_source, schema_of

GATES = [{"name": name} for name in ("likelihood", "confidence", "scalar", "per-class", "hedge")]
GATES.append({"name": "hedge", "gate": {"name": "per-class"}})
LONG = ("confidence", "scalar", "hedge")  # in `make soak` alone


def learner(gate: dict[str, Any]) -> Learner:
    """Tasks of two digits, so that labels come and snapshots are taken on the way."""
    tree = {
        "stream": {"source": {"name": "replay", "dataset": "digits", "classes_per_task": 2, "limit": 400}},
        "student": {"name": "mlp", "hidden": [16]},
        "memory": {"size": 60, "replay": 20},
        "teachers": toys.TEACHERS,
        "adapt": {"every": 3, "on_task_steps": 3},
        "gate": gate,
        "device": "cpu",
    }
    config = configuration.from_tree(tree, REGISTRY)
    schema = schema_of(config, REGISTRY)
    return Learner(config, REGISTRY, open_source(config, REGISTRY, schema)[0], schema)


def _id(gate: dict[str, Any]) -> str:
    return "-".join([gate["name"], *gate.get("gate", {}).values()])


def hashes(one: Learner) -> list[str]:
    step = one.step
    gate = {name: value for name, value in step.gate.state_dict().items() if not name.endswith("extra_state")}
    return [weights_sha256(step.student.state_dict()), *([weights_sha256(gate)] if gate else [])]


@pytest.mark.parametrize(
    "gate", [pytest.param(gate, id=_id(gate), marks=[pytest.mark.soak] if _id(gate) in LONG else []) for gate in GATES]
)
def test_stop_resume_go_on_is_never_stopped(gate: dict[str, Any]) -> None:
    """After a checkpoint in the middle, with labels and snapshots on both sides of it, the end is the same bits."""
    whole = learner(gate)
    while whole.advance():
        pass
    first = learner(gate)
    for _ in range(23):
        first.advance()
    second = learner(gate)
    second.restore(unpack(pack(first.state())), first.offsets, first.config)
    while second.advance():
        pass
    assert hashes(second) == hashes(whole)
    assert whole.prequential.student.overall is not None
    assert whole.prequential.student.overall > 0.4
