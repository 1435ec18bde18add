"""Phase 2 from a configuration, and streams that begin from what it learned."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from baselines import REGISTRY
from click.testing import CliRunner
from streamkd_baselines.hedge import Hedge
from streamkd_baselines.learned_optimizer import LearnedOptimizer

from streamkd import config as configuration
from streamkd import wiring
from streamkd.cli import cli
from streamkd.errors import ConfigError, StateConflict, StateError
from streamkd.learner import Learner
from streamkd.meta import artefact
from streamkd.pretraining.gate import Phase2, meta_train, phase_of
from streamkd.state.tree import pack, unpack
from streamkd.wiring import open_source, schema_of

QUICK = Phase2(episodes=3, start_episodes=4, records=30, horizon=2)
LEARNED: dict[str, Any] = {"adapt": {"every": 5, "on_task_steps": 3, "optimizer": "learned"}}


def _config(**changes: Any) -> configuration.Config:
    """Digits by two, small parts."""
    source = {"name": "replay", "dataset": "digits", "classes_per_task": 2, "limit": 200, "per_class": 40}
    tree = {
        "stream": {"source": source},
        "student": {"name": "mlp", "hidden": [16]},
        "memory": {"size": 60, "replay": 20},
        "teachers": toys.TEACHERS,
        "adapt": {"every": 5, "on_task_steps": 3},
        "device": "cpu",
    }
    return configuration.from_tree({**tree, **changes}, REGISTRY)


def _learner(config: configuration.Config, batches: int | None = None) -> Learner:
    schema = schema_of(config, REGISTRY)
    source, _ = open_source(config, REGISTRY, schema)
    return _run(Learner(config, REGISTRY, source, schema), batches)


def _run(one: Learner, batches: int | None = None) -> Learner:
    done = 0
    while (batches is None or done < batches) and one.advance():
        done += 1
    return one


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artefact with every part."""
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("begun")
    meta_train(_config(**LEARNED), REGISTRY, out, QUICK)
    return out


def test_the_seed_decides(begun: Path, tmp_path: Path) -> None:
    """The same configuration learns the same artefact, which says what it was trained on."""
    again = meta_train(_config(**LEARNED), REGISTRY, tmp_path, QUICK)
    assert again.digest == artefact.read(begun).digest
    assert again.trained_on["tasks"] == ["0", "1", "2"]
    assert again.trained_on["phase"]["start_episodes"] == 4


def test_a_stream_begins_from_it(begun: Path) -> None:
    """Gate, anchor, body, head rows, rates and the gate's optimiser are the artefact's before the first step."""
    found = artefact.read(begun)
    one = _learner(_config(meta=str(begun), **LEARNED))
    learner = Learner(one.config, REGISTRY, one.source, one.schema)
    learner.labels.learn([3, 1, 4])
    learner._start()
    step, adapter = learner.step, learner.adapter
    assert adapter is not None
    weights = step.student.state_dict()
    for name, value in found.start.items():
        assert torch.equal(weights[name], value.expand_as(weights[name])), name
    gate = dict(adapter.gate.state_dict())
    assert all(torch.equal(gate[name], value) for name, value in found.gate_weights.items())
    assert all(torch.equal(p, origin) for p, origin in zip(adapter.parameters, adapter.origin, strict=True))
    assert isinstance(adapter.optimizer, LearnedOptimizer)
    rule = adapter.optimizer.rule
    assert not rule.training
    assert all(torch.equal(value, found.gate_optimizer[name]) for name, value in rule.state_dict().items())
    assert rule.out.weight.abs().sum() > 0


def test_stopping_and_resuming_ends_in_the_same_bits(begun: Path) -> None:
    """With an artefact too, a learner that was stopped ends where one that never was ends."""
    config = _config(meta=str(begun), **LEARNED)
    whole, first = _learner(config), _learner(config, 13)
    second = _learner(config, 0)
    second.restore(unpack(pack(first.state())), first.offsets, config)
    _run(second)
    for one, other in ((whole.student, second.student), (whole.served, second.served)):
        mine, theirs = one.state_dict(), other.state_dict()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_state_remembers_what_it_began_from(begun: Path, tmp_path: Path) -> None:
    """The directory may go; another artefact, or none, is refused."""
    moved = tmp_path / "begun"
    artefact.write(moved, artefact.read(begun))
    config = _config(meta=str(moved), **LEARNED)
    first = _learner(config, 5)
    tree = unpack(pack(first.state()))
    other = _config(meta=str(tmp_path / "other"), **LEARNED)
    artefact.write(tmp_path / "other", artefact.Artefact(start={"body.head.bias": torch.ones(1)}))
    for changed in (other, _config(**LEARNED)):
        with pytest.raises(StateConflict, match="began from"):
            _learner(changed, 0).restore(tree, first.offsets, config)
    for file in moved.iterdir():
        file.unlink()
    moved.rmdir()
    resumed = _learner(config, 0)
    resumed.restore(tree, first.offsets, config)
    assert resumed.records == first.records


def test_it_is_bound_to_gate_student_and_optimiser(begun: Path) -> None:
    """A stream with another student, gate or optimiser of the gate is refused, with both."""
    for what, changes in (
        ("student", {"student": {"name": "mlp", "hidden": [8]}}),
        ("gate", {"gate": {"name": "per-sample", "hidden": 4}}),
        ("adapt.optimizer", {"adapt": {"optimizer": "adam"}}),
    ):
        with pytest.raises(ConfigError, match=f"the {what} of"):
            _learner(_config(meta=str(begun), **{**LEARNED, **changes}))


def test_a_state_goes_on_under_another_optimiser_of_the_gate() -> None:
    """Its moments are of no use to that one, which begins anew; the gate goes on."""
    first = _learner(_config(), 13)
    second = _learner(_config(**LEARNED), 0)
    second.restore(unpack(pack(first.state())), first.offsets, first.config)
    mine, theirs = first.step.gate.state_dict(), second.step.gate.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    _run(second, 7)
    assert second.adapter is not None
    assert second.adapter.adaptations > first.adapter.adaptations


def test_parts_that_were_not_learned_leave_the_stream_free(tmp_path: Path) -> None:
    """A gate alone goes with any student; a start alone with any gate."""
    gate = meta_train(_config(), REGISTRY, tmp_path / "gate", Phase2(episodes=2, student_start="none", records=20))
    assert gate.start == {}
    _learner(_config(meta=str(tmp_path / "gate"), student={"name": "mlp", "hidden": [8]}), 3)
    start = meta_train(
        _config(), REGISTRY, tmp_path / "start", Phase2(episodes=0, student_start="maml", start_episodes=2)
    )
    assert start.gate_weights == {}
    _learner(_config(meta=str(tmp_path / "start"), gate={"name": "fixed"}), 3)


HEDGE = {"name": "hedge", "gate": {"name": "scalar"}}
OWN = [{"name": "match-gate"}, {"name": "kd", "gate": {"name": "per-class"}}]
GATES: dict[str, dict[str, Any]] = {
    "scalar": {"gate": {"name": "scalar"}},
    "per-class": {"gate": {"name": "per-class"}},
    "hedge": {"gate": HEDGE},
    "hedge-per-class": {"gate": {"name": "hedge", "gate": {"name": "per-class"}}},
    "hedge-per-sample": {"gate": {"name": "hedge"}},
    "of-a-term": {"gate": {"name": "fixed"}, "losses": [{"name": "match-gate", "gate": {"name": "scalar"}}]},
    "several": {"gate": HEDGE, "losses": OWN},
}
DRIVES = [*((name, "adam") for name in GATES), *((name, "learned") for name in ("scalar", "per-class", "hedge"))]
SHORT = [("hedge-per-sample", "adam"), ("of-a-term", "adam"), ("several", "adam"), ("per-class", "learned")]


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [*SHORT, *(pytest.param(*each, marks=pytest.mark.soak) for each in DRIVES if each not in SHORT)],
)
def test_any_gate_with_parameters_is_learned_and_begun_from(name: str, optimizer: Any, tmp_path: Path) -> None:
    """Episodes of other labels and strangers leave what holds for another stream, which then begins from it."""
    changes = {**GATES[name], "adapt": {**LEARNED["adapt"], "optimizer": optimizer}}
    phase = Phase2(episodes=4, student_start="none", records=20, horizon=2)
    made = meta_train(_config(**changes), REGISTRY, tmp_path, phase)
    assert artefact.read(tmp_path).digest == made.digest
    for notes in made.gate_notes.values():
        assert set(notes["names"]) == {"ema", "memory", "analytic", "linear", "crossed", "forgetting"}
    for key, value in made.gate_weights.items():
        if key.endswith("table"):
            assert value.shape == (7, 1)
            assert value.abs().sum() > 0
    learner = _learner(_config(meta=str(tmp_path), **changes), 0)
    learner.labels.learn([3, 1, 4])
    learner._start()
    adapter = learner.adapter
    assert adapter is not None
    state = adapter.gate.state_dict()
    assert state.keys() == made.gate_state.keys()
    for key, value in made.gate_weights.items():
        assert torch.equal(state[key], value), key
    assert all(torch.equal(p, origin) for p, origin in zip(adapter.parameters, adapter.origin, strict=True))
    assert isinstance(adapter.optimizer, LearnedOptimizer) == (optimizer == "learned")
    whole = _learner(_config(meta=str(tmp_path), **changes), 12)
    assert whole.adapter is not None
    assert whole.adapter.adaptations > 0


def test_the_hedges_frozen_policy_is_the_gate_that_was_learned(tmp_path: Path) -> None:
    """And the stream begins with an even posterior, whatever the episodes, or an artefact's own, had come to."""
    config = _config(gate={"name": "hedge"})
    made = meta_train(config, REGISTRY, tmp_path, Phase2(episodes=3, student_start="none", records=20, horizon=2))
    untrained = wiring.make(REGISTRY, "gate", "gates", config.gate)
    assert any(not torch.equal(made.gate_weights[f"0.{name}"], p) for name, p in untrained.named_parameters())
    settled = {"0.posterior": torch.tensor([0.9, 0.025, 0.025, 0.025, 0.025]), "0.settled": torch.tensor(7.0)}
    before = {key: value for key, value in untrained.state_dict(prefix="0.").items() if key.startswith("0.frozen")}
    artefact.write(tmp_path, replace(made, gate_weights={**made.gate_weights, **before, **settled}))
    learner = _learner(_config(gate={"name": "hedge"}, meta=str(tmp_path)), 0)
    learner.labels.learn([3, 1])
    learner._start()
    gate = learner.step.gate
    assert isinstance(gate, Hedge)
    for mine, learned in zip(gate.frozen.parameters(), gate.adapted.parameters(), strict=True):
        assert torch.equal(mine, learned)
    for name, parameter in gate.adapted.named_parameters():
        assert torch.equal(parameter, made.gate_weights[f"0.adapted.{name}"])
    assert list(gate.odds().values()) == pytest.approx([0.2] * 5)
    assert int(gate.settled) == 0


def test_a_learner_that_began_from_a_standing_gate_resumes_in_the_same_bits(tmp_path: Path) -> None:
    """The table's rows go by name through the artefact and through the checkpoint."""
    phase = Phase2(episodes=2, student_start="none", records=20, horizon=2)
    meta_train(_config(**GATES["per-class"], **LEARNED), REGISTRY, tmp_path, phase)
    config = _config(meta=str(tmp_path), **GATES["per-class"], **LEARNED)
    whole, first = _learner(config, 20), _learner(config, 13)
    second = _learner(config, 0)
    second.restore(unpack(pack(first.state())), first.offsets, config)
    _run(second, 7)
    for one, other in ((whole.step.gate, second.step.gate), (whole.student, second.student)):
        mine, theirs = one.state_dict(), other.state_dict()
        for name, value in mine.items():
            assert torch.equal(value, theirs[name]) if isinstance(value, torch.Tensor) else value == theirs[name]


def test_the_command(tmp_path: Path) -> None:
    """`streamkd meta-train` writes the folder and says how it went; a bad value is refused in words."""
    path = tmp_path / "c.yaml"
    path.write_text("stream: {source: {name: replay, dataset: digits, classes_per_task: 2, per_class: 20}}\n")
    args = ["meta-train", str(path), "--out", str(tmp_path / "out"), "--set", "student={name: mlp, hidden: [8]}"]
    done = CliRunner().invoke(cli, [*args, "--episodes", "1", "--start-episodes", "2", "--records", "20"])
    assert done.exit_code == 0, done.output
    assert "start losses" in done.output
    assert (tmp_path / "out" / artefact.DOCUMENT).exists()
    again = CliRunner().invoke(cli, args)  # a state may have begun from what lies there
    assert again.exit_code != 0
    assert isinstance(again.exception, StateError)
    with pytest.raises(ConfigError, match="greater than 0"):
        phase_of({"tasks": 0})


def test_a_pushed_stream_is_refused(tmp_path: Path) -> None:
    """Nothing is recorded where records are pushed."""
    pushed = _config(
        stream={"source": {"name": "flight"}, "records": {"inputs": [{"name": "x", "shape": [4]}], "label": "y"}}
    )
    with pytest.raises(ConfigError, match="pushed"):
        meta_train(pushed, REGISTRY, tmp_path, QUICK)
