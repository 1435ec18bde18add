"""Everything that learns, measures and serves does so on a GPU as on the CPU: on one that ``devices`` pretends, and on
a real one where the machine has it.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import devices
import numpy as np
import pytest
import torch
import toys
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from baselines import REGISTRY
from torch import nn

import streamkd
from streamkd import config as configuration
from streamkd.avalanche.strategy import dataset_of
from streamkd.errors import ConfigError
from streamkd.inspection import weights_sha256
from streamkd.learner import Learner
from streamkd.pretraining import teachers as pretraining
from streamkd.pretraining.gate import Phase2, meta_train
from streamkd.run import run_seed
from streamkd.serve.predictions.follower import load_version
from streamkd.serve.processes.publisher import Publisher
from streamkd.state.directory import StateDirectory
from streamkd.state.tree import pack, unpack
from streamkd.state.versions import VersionStore
from streamkd.telemetry import Recorder
from streamkd.tune.trials.objective import OBJECTIVES
from streamkd.tune.trials.recording import record
from streamkd.tune.trials.seed_run import SeedRun
from streamkd.wiring import device_of, open_source, schema_of


@pytest.fixture
def pretended() -> Iterator[None]:
    """A GPU that refuses what a real one would."""
    with devices.pretended():
        yield


SOURCE = {"name": "replay", "dataset": "digits", "classes_per_task": 1, "per_class": 60, "limit": 180}


def tree(device: str, **changes: Any) -> dict[str, Any]:
    """Three tasks of a digit each, small parts, an adaptation at every second step."""
    base = {
        "stream": {"source": SOURCE, "batch": {"size": 30}},
        "student": {"name": "mlp", "hidden": [12, 10]},
        "memory": {"size": 60, "replay": 20},
        "adapt": {"every": 2, "on_task_steps": 2, "query": 16},
        "vicinal": {"rows": 12},
        "teachers": [
            {"name": "ema"},
            {"name": "memory"},
            {"name": "analytic", "dense": 50, "channels": 2},
            {"name": "snapshot"},
        ],
        "device": device,
    }
    return {**base, **changes}


def learner(device: str, changes: dict[str, Any]) -> Learner:
    return learner_of(configuration.from_tree(tree(device, **changes), REGISTRY))


def learner_of(config: configuration.Config) -> Learner:
    schema = schema_of(config, REGISTRY)
    return Learner(config, REGISTRY, open_source(config, REGISTRY, schema)[0], schema)


def run(one: Learner, batches: int = 1 << 30) -> Learner:
    """So many steps, or to the end; none of its teachers failed and no engine gave way in silence."""
    while batches and one.advance():
        batches -= 1
    pool, adapter = one.step.pool, one.adapter
    assert {name: tally.failures for name, tally in pool.guard.tallies.items() if tally.failures} == {}
    assert adapter is not None
    assert adapter.lacking is None
    assert not adapter.faults
    return one


def learned(one: Learner) -> list[str]:
    """Hashes of student, average and gate."""
    step = one.step
    gate = {name: value for name, value in step.gate.state_dict().items() if not name.endswith("extra_state")}
    average = [step.pool.average.student.state_dict()] if step.pool.average else []
    return [weights_sha256(part) for part in (step.student.state_dict(), *average, gate) if part]


def resumed(one: Learner) -> Learner:
    """Another learner of the same configuration, restored from what a checkpoint would hold."""
    other = learner_of(one.config)
    other.restore(unpack(copy.deepcopy(pack(one.state()))), dict(one.offsets), one.config)
    return other


TWO_LAYERS = {"student": "body.hidden.0", "teacher": {"ema": "body.hidden.1"}}
SGD = {"name": "sgd", "learning_rate": 0.05, "clip_norm": None}
LEARNERS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "live teachers alone": {"teachers": [{"name": "ema"}], "gate": {"name": "fixed"}, "vicinal": {"rows": 0}},
    "likelihood, kd": {"gate": {"name": "likelihood"}, "losses": [{"name": "kd"}]},
    "scalar, literal, differences": {
        "gate": {"name": "scalar"},
        "losses": [{"name": "match-gate-literal"}],
        "adapt": {"every": 2, "engine": "finite-difference"},
    },
    "per-class, prequential": {
        "gate": {"name": "per-class"},
        "adapt": {"every": 2, "engine": "prequential", "horizon": 2},
    },
    "confidence, decoupled, unlabelled": {
        "gate": {"name": "confidence"},
        "losses": [{"name": "decoupled-kd", "gate": {"name": "per-sample"}}],
        "stream": {"source": {**SOURCE, "unlabelled": 0.3}, "batch": {"size": 30}, "unlabelled": "distil"},
    },
    "hedge, balance": {"gate": {"name": "hedge"}, "adapt": {"every": 2, "balance": 0.1}},
    "maml": {"adapt": {"every": 2, "engine": "maml"}, "optimizer": SGD},
    "hints, relations, ridge": {
        "losses": [
            {"name": "match-gate"},
            {"name": "feature", "weight": 0.1, **TWO_LAYERS},
            {"name": "relational", "weight": 0.1, **TWO_LAYERS},
        ],
        "teachers": [{"name": "ema"}, {"name": "analytic", "method": "ridge", "dense": 50}],
        "optimizer": {**SGD, "momentum": 0.9, "clip_norm": 1.0},
    },
    "convnet, attention": {
        "student": {"name": "convnet", "channels": [4, 4]},
        "losses": [
            {"name": "match-gate"},
            {"name": "attention", "student": "body.convolutions.0", "teacher": {"ema": "body.convolutions.0"}},
        ],
    },
}

LONG = ("live teachers alone", "likelihood, kd", "scalar, literal, differences", "maml")  # in `make soak` alone


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=pytest.mark.soak) if what in LONG else what for what in LEARNERS]
)
def test_a_gpu_learns_what_the_cpu_learns(what: str) -> None:
    """Under every gate, engine and loss, stopped in the middle and restored from tensors of the CPU, with teachers that
    come on the way: a learner on a GPU ends in what one ends in that never left the CPU.
    """
    stopped = run(learner("cuda", LEARNERS[what]), 3)
    assert learned(run(resumed(stopped))) == learned(run(learner("cpu", LEARNERS[what])))


@pytest.mark.usefixtures("pretended")
def test_a_run_on_a_gpu_reports_what_it_reports_on_the_cpu() -> None:
    """Student, served model and every teacher are tested there, and predictions timed."""
    configs = [configuration.from_tree(tree(device), REGISTRY) for device in ("cpu", "cuda")]
    here, there = (run_seed(config, REGISTRY) for config in configs)
    assert {teacher["teacher"] for teacher in there["fidelity"]} >= {"ema", "analytic", "snapshot-0"}
    assert [there[part] for part in ("student", "served", "fidelity", "history")] == [
        here[part] for part in ("student", "served", "fidelity", "history")
    ]


@pytest.mark.usefixtures("pretended")
def test_what_a_gpu_learned_is_served_from_files_on_the_cpu(tmp_path: Path) -> None:
    """A version is published, a second one measured against it; read again, it answers as the learner does."""
    one = run(learner("cuda", {"publish": {"model": "ensemble"}}), 5)
    directory = StateDirectory(tmp_path)
    directory.create()
    with directory.lock():
        publisher = Publisher(directory, one.config, REGISTRY, Recorder())
        assert [publisher.publish(one), publisher.publish(run(one, 1))] == [1, 2]
        versions = VersionStore(directory)
        loaded = load_version(versions, 2, REGISTRY)
    ring = one.step.memory.replayed
    assert ring.x is not None
    with torch.no_grad():
        wanted = torch.softmax(one.served(ring.x[:9]), 1)
    assert np.array_equal(loaded.predict(ring.x[:9].cpu().numpy()), wanted.cpu().numpy())


@pytest.mark.usefixtures("pretended")
def test_rows_from_the_vicinity_are_drawn_on_the_gpu() -> None:
    """Where they count, those that the CPU would draw are mixed, moved and answered there."""
    ones = [run(learner(device, {}), 3) for device in ("cpu", "cuda")]
    for one in ones:
        toys.spare(one.step, 1.0)
        assert run(one, 1).last.plan.origins["vicinal"] == 12
    assert learned(ones[0]) == learned(ones[1])


TWO_BY_TWO = {"stream": {"source": {**SOURCE, "classes_per_task": 2, "per_class": 25, "limit": 100}}}


@pytest.mark.usefixtures("pretended")
def test_phase_2_runs_on_a_gpu(tmp_path: Path) -> None:
    """Start, rates, gate and its optimiser are learned there, and a stream begins from them."""
    phase = Phase2(episodes=2, start_episodes=2, records=20)
    changes = {"adapt": {"every": 2, "optimizer": "learned"}}
    meta_train(configuration.from_tree(tree("cuda", **TWO_BY_TWO, **changes), REGISTRY), REGISTRY, tmp_path, phase)
    assert run(resumed(run(learner("cuda", {"meta": str(tmp_path), **changes}), 3)), 3).started


@pytest.mark.usefixtures("pretended")
def test_plain_modules_are_meta_trained_on_a_gpu() -> None:
    """``streamkd.meta_train`` with a model there takes batches and queries from the CPU."""
    torch.manual_seed(0)
    model, teacher = (nn.Linear(toys.FEATURES, 3).to("cuda") for _ in range(2))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    made = streamkd.meta_train(model, [teacher], optimizer, toys.batches(4), query=toys.batches(2, seed=1), every=2)
    assert made.adaptations == 2


@pytest.mark.usefixtures("pretended")
def test_teachers_are_trained_on_a_gpu_and_shared_from_files(tmp_path: Path) -> None:
    """One that was trained there on recorded data teaches a stream there, and hands its layers down."""
    pretraining.train(configuration.from_tree(tree("cuda", **TWO_BY_TWO), REGISTRY), REGISTRY, tmp_path, epochs=1)
    trained = {"name": "checkpoint", "path": str(tmp_path / "mlp")}
    assert run(learner("cuda", {"teachers": [{"name": "ema"}, trained], "share": {"teacher": trained["path"]}})).started


@pytest.mark.usefixtures("pretended")
def test_a_trial_of_a_search_runs_on_a_gpu() -> None:
    """It is measured at the stream's marks, and its predictions are timed."""
    config = configuration.from_tree(tree("cuda", **TWO_BY_TWO), REGISTRY)
    one = SeedRun(config, REGISTRY, record(config, REGISTRY, 100), [OBJECTIVES["latency"]])
    one.advance(1 << 30)
    assert one.curve().prediction_seconds > 0


@pytest.mark.usefixtures("pretended")
@pytest.mark.filterwarnings("ignore")  # Avalanche warns of itself
@pytest.mark.parametrize("memory", [0, 30])
def test_the_plugin_teaches_a_strategy_on_a_gpu(memory: int) -> None:
    """In Avalanche's own strategy, over tasks, with a gate that adapts: what it weighs on the CPU it weighs there."""
    weights = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        plugin = streamkd.MatchGateDistillation(memory=memory, adapt_every=2)
        model = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        strategy = Naive(
            model=model,
            optimizer=optimizer,
            criterion=nn.CrossEntropyLoss(),
            plugins=[plugin],
            evaluator=EvaluationPlugin(loggers=[BaseLogger()]),
            train_mb_size=8,
            device=device,
        )
        for x, y in toys.batches(2, 32, classes=4):
            strategy.train(benchmark_from_datasets(train=[dataset_of(x, y)]).train_stream[0], eval_streams=[])
        weights.append(plugin.weights)
        assert plugin.snapshots
        assert bool(plugin.adaptations) == bool(memory)
    assert weights[0] == weights[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_real_gpu_learns_as_well_as_the_cpu() -> None:
    """What is served after two tasks of digits is right as often, but for a few in a hundred."""
    torch.use_deterministic_algorithms(False)  # cuBLAS would want a variable that is set before it starts
    source = {"name": "replay", "dataset": "digits", "classes_per_task": 5, "per_class": 60}
    configs = [configuration.from_tree({"stream": {"source": source}, "device": d}, REGISTRY) for d in ("cpu", "cuda")]
    here, there = (run_seed(config, REGISTRY)["served"]["accuracy"]["final_average"] for config in configs)
    assert there == pytest.approx(here, abs=0.05)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said() -> None:
    """``device: cuda`` on a machine without one names the way out; ``auto`` takes the CPU."""
    with pytest.raises(ConfigError, match="needed a GPU, this torch"):
        device_of("cuda")
    assert device_of("auto") == torch.device("cpu")
