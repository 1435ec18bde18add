"""Everything that learns, measures and serves does so on a GPU as on the CPU: on one that ``devices`` pretends, and on
a real one where the machine has it.
"""

import copy
from collections.abc import Iterator
from typing import Any

import devices
import pytest
import torch

from streamkd import config as configuration
from streamkd.inspection import weights_sha256
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.state.tree import pack, unpack
from streamkd.wiring import open_source, schema_of

REGISTRY = Registry.load()


@pytest.fixture
def pretended() -> Iterator[None]:
    """A GPU that refuses what a real one would."""
    with devices.pretended():
        yield


def tree(device: str, **changes: Any) -> dict[str, Any]:
    """Three tasks of a digit each, small parts, an adaptation at every second step."""
    source = {"name": "replay", "dataset": "digits", "classes_per_task": 1, "limit": 320}
    base = {
        "stream": {"source": source, "batch": {"size": 32}},
        "student": {"name": "mlp", "hidden": [12, 10]},
        "memory": {"size": 60, "replay": 20},
        "adapt": {"every": 2, "on_task_steps": 2, "query": 16},
        "vicinity": {"rows": 12},
        "device": device,
    }
    return {**base, **changes}


def learner(device: str, changes: dict[str, Any] | None = None) -> Learner:
    config = configuration.from_tree(tree(device, **(changes or {})), REGISTRY)
    schema = schema_of(config, REGISTRY)
    return Learner(config, REGISTRY, open_source(config, REGISTRY, schema)[0], schema)


def run(one: Learner, batches: int = 1 << 30) -> Learner:
    """So many steps, or to the end; none of its teachers failed and no engine gave way in silence."""
    while batches and one.advance():
        batches -= 1
    pool, adapter = one.strategy.step.pool, one.adapter
    assert {name: tally.failures for name, tally in pool.questions.tallies.items() if tally.failures} == {}
    assert adapter is not None
    assert not adapter.refused
    return one


def learned(one: Learner) -> list[str]:
    """Hashes of student, average and gate."""
    step = one.strategy.step
    gate = {name: value for name, value in step.gate.state_dict().items() if not name.endswith("extra_state")}
    average = [step.pool.average.student.state_dict()] if step.pool.average else []
    return [weights_sha256(part) for part in (step.student.state_dict(), *average, gate) if part]


TWO_LAYERS = {"student": "body.hidden.0", "teacher": {"ema": "body.hidden.1"}}
LEARNERS: dict[str, dict[str, Any]] = {
    "defaults": {},
    **{f"gate {name}": {"gate": {"name": name}} for name in ("fixed", "likelihood", "scalar", "per-class")},
    **{f"gate {name}": {"gate": {"name": name}} for name in ("per-sample", "confidence", "arbiter")},
    "arbiter over per-class": {"gate": {"name": "arbiter", "gate": {"name": "per-class"}}},
    **{f"engine {name}": {"adapt": {"every": 1, "engine": name}} for name in ("forward", "finite-difference")},
    "engine maml": {
        "adapt": {"every": 1, "engine": "maml", "horizon": 2},
        "optimizer": {"name": "sgd", "learning_rate": 0.05, "clip_norm": None},
    },
    "engine prequential": {"adapt": {"every": 1, "engine": "prequential", "horizon": 2}},
    "learned temperature": {"adapt": {"every": 1, "temperature": True, "balance": 0.1}},
    "sgd with momentum": {"optimizer": {"name": "sgd", "momentum": 0.9, "learning_rate": 0.05}},
    "live teachers alone": {"teachers": [{"name": "ema"}]},
    "ridge": {"teachers": [{"name": "ema"}, {"name": "analytic", "method": "ridge"}]},
    "kd": {"losses": [{"name": "kd"}]},
    "decoupled": {"losses": [{"name": "decoupled-kd", "gate": {"name": "per-sample"}}]},
    "literal": {"losses": [{"name": "match-gate-literal"}]},
    "hints": {"losses": [{"name": "match-gate"}, {"name": "feature", "weight": 0.1, **TWO_LAYERS}]},
    "relations": {"losses": [{"name": "match-gate"}, {"name": "relational", "weight": 0.1, **TWO_LAYERS}]},
    "convnet": {"student": {"name": "convnet"}},
}


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("what", LEARNERS)
def test_a_learner_on_a_gpu_learns_what_it_learns_on_the_cpu(what: str) -> None:
    """Every gate, engine, loss and teacher keeps to one device, and computes the same there."""
    assert learned(run(learner("cuda", LEARNERS[what]))) == learned(run(learner("cpu", LEARNERS[what])))


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("what", LEARNERS)
def test_a_checkpoint_comes_back_to_the_gpu(what: str) -> None:
    """A learner restored from files, whose tensors are on the CPU, goes on where one that never stopped ends."""
    stopped = run(learner("cuda", LEARNERS[what]), 6)
    resumed = learner("cuda", LEARNERS[what])
    resumed.restore(unpack(copy.deepcopy(pack(stopped.state()))), dict(stopped.offsets), stopped.config)
    assert learned(run(resumed)) == learned(run(stopped))
