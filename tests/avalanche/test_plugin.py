"""The plugin in strategies of Avalanche itself: small real data, heads that grow and heads that do not."""

import copy
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, split_online_stream, with_classes_timeline
from avalanche.benchmarks.scenarios.task_aware import with_task_labels
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.logging import BaseLogger
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from avalanche.models.dynamic_modules import avalanche_model_adaptation
from avalanche.training.plugins import EvaluationPlugin, EWCPlugin, ReplayPlugin
from avalanche.training.supervised import DER, ER_ACE, Naive
from avalanche.training.supervised.lamaml_v2 import LaMAML
from sklearn.datasets import load_digits
from streamkd_baselines.confidence import ConfidenceGate, ConfidenceOptions
from streamkd_baselines.hedge import Hedge, HedgeOptions
from streamkd_baselines.shared import PerClassGate, ScalarGate, SharedOptions
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import streamkd
from streamkd.avalanche.comparison import EarlierSelves
from streamkd.avalanche.copies import grown
from streamkd.avalanche.plugin import MatchGateDistillation
from streamkd.errors import ConfigError, StateConflict, StateError
from streamkd.gates.gate import FixedGate, FixedOptions
from streamkd.gates.likelihood import LikelihoodGate, LikelihoodOptions
from streamkd.gates.per_sample import PerSampleGate, PerSampleOptions
from streamkd.students.foreign import Foreign

pytestmark = pytest.mark.filterwarnings("ignore")  # Avalanche warns of itself


class Net(nn.Module):
    """A small network over 8×8 digits; the head grows with the experiences, or is ten wide from the start."""

    def __init__(self, grows: bool = False, batch_norm: bool = False) -> None:
        super().__init__()
        middle: list[nn.Module] = [nn.BatchNorm1d(32)] if batch_norm else []
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), *middle, nn.ReLU())
        self.head: nn.Module = IncrementalClassifier(32) if grows else nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class HeadsByTask(MultiTaskModule):
    """One head for each task label."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())
        self.head = MultiHeadClassifier(32, masking=False)

    def forward(self, x: Tensor, task_labels: Tensor) -> Tensor:
        return self.head(self.body(x), task_labels)


def experiences(tasks: int = 3, each: int = 40, task_labels: bool = False) -> Any:
    """Digits by two classes a task."""
    x, y = load_digits(return_X_y=True)
    parts = []
    for task in range(tasks):
        rows = np.flatnonzero((y == 2 * task) | (y == 2 * task + 1))[:each]
        inputs, labels = torch.tensor(x[rows] / 8 - 1).float(), torch.tensor(y[rows])
        named = DataAttribute(labels.tolist(), "targets")
        told = DataAttribute([task * task_labels] * len(rows), "targets_task_labels", use_in_getitem=True)
        parts.append(AvalancheDataset([TensorDataset(inputs, labels)], data_attributes=[named, told]))
    told_classes = with_classes_timeline(benchmark_from_datasets(train=parts))
    return (with_task_labels(told_classes) if task_labels else told_classes).train_stream


def common(model: nn.Module, plugins: Sequence[Any], rate: float = 0.005) -> dict[str, Any]:
    return {
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters(), rate),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": 8,
        "plugins": list(plugins),
        "evaluator": EvaluationPlugin(loggers=[BaseLogger()]),
    }


def replay(plugin: Any, model: nn.Module) -> Any:
    return Naive(**common(model, [ReplayPlugin(30, batch_size_mem=8), plugin]))


def er_ace(plugin: Any, model: nn.Module) -> Any:
    return ER_ACE(**common(model, [plugin]), mem_size=30, batch_size_mem=8)


def ewc(plugin: Any, model: nn.Module) -> Any:
    return Naive(**common(model, [EWCPlugin(10.0), plugin]))


def der(plugin: Any, model: nn.Module) -> Any:
    return DER(**common(model, [plugin]), mem_size=30, batch_size_mem=8)


def naive(plugin: Any, model: nn.Module) -> Any:
    return Naive(**common(model, [plugin] if plugin else []))


HOSTS: dict[str, Callable[..., Any]] = {"naive": naive, "replay": replay, "er-ace": er_ace, "ewc": ewc, "der": der}


class Losses(MatchGateDistillation):
    """Keeps what it added in each step, and how many rows it was about."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.added: list[float] = []
        self.rows: list[int] = []
        self.advantages: list[float] = []

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        before = float(strategy.loss.detach())
        super().before_backward(strategy, **kwargs)
        self.added.append(float(strategy.loss.detach()) - before)
        self.advantages.append(self.advantage)

    def _note(self, step: Any, taken: Any) -> None:
        super()._note(step, taken)
        self.rows.append(taken.fresh)


def trained(host: str, plugin: Any, model: nn.Module | None = None, tasks: int = 3, each: int = 40) -> Any:
    torch.manual_seed(0)
    strategy = HOSTS[host](plugin, model or Net())
    for experience in experiences(tasks, each):
        strategy.train(experience, eval_streams=[])
    return strategy


@pytest.mark.parametrize("grows", [False, True], ids=["fixed head", "growing head"])
@pytest.mark.parametrize("host", HOSTS)
def test_it_teaches_in_any_strategy(host: str, grows: bool) -> None:
    """In each strategy a finite term joins the loss where teachers know better; finished tasks leave copies."""
    if host == "der" and grows:
        pytest.skip("Avalanche's DER compares logits with remembered ones, whose number may not grow")
    plugin = Losses(snapshots=2)
    strategy = trained(host, plugin, Net(grows))
    assert np.isfinite(plugin.added).all()
    assert min(plugin.added) >= -1e-6
    assert all((a > 1e-6) <= (b > 0) for a, b in zip(plugin.added, plugin.advantages, strict=True))
    assert [s.key for s in plugin.snapshots] == ["snapshot-0", "snapshot-1"]
    x = experiences(1)[0].dataset[0][0].unsqueeze(0)
    with torch.no_grad():
        assert plugin.average(x).shape == strategy.model.eval()(x).shape
    assert all(p.isfinite().all() for p in strategy.model.parameters())


def test_it_says_when_and_how_much_it_has_helped(caplog: pytest.LogCaptureFixture) -> None:
    """Of each task the steps, those in which teachers were heard, and what they spared; the log says the same."""
    plugin = Losses(memory=60)
    with caplog.at_level("INFO", "streamkd.avalanche.plugin"):
        trained("naive", plugin)
    assert len(plugin.helped) == 3
    assert sum(task.steps for task in plugin.helped) == len(plugin.advantages)
    assert sum(task.heard for task in plugin.helped) == sum(a > 0 for a in plugin.advantages) > 0
    total = sum(task.steps * task.advantage for task in plugin.helped)
    assert total == pytest.approx(sum(plugin.advantages))
    assert (
        f"task 2: the teachers were heard in {plugin.helped[2].heard} of {plugin.helped[2].steps} steps" in caplog.text
    )


def test_it_is_offered_by_the_package() -> None:
    """``streamkd.MatchGateDistillation`` is the plugin; a name that there is not is an AttributeError."""
    assert streamkd.MatchGateDistillation is MatchGateDistillation
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = streamkd.Nothing


TUTORIAL = (Path(__file__).parents[2] / "docs/tutorials/from-avalanche.md").read_text("utf-8")


def test_the_tutorials_three_lines_run() -> None:
    """They are a strategy that learns."""
    block, _ = re.findall(r"```python\n(.*?)```", TUTORIAL, re.S)
    model = Net(grows=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    place = {"Naive": Naive, "model": model, "optimizer": optimizer, "criterion": nn.CrossEntropyLoss()}
    exec(block, place)
    for experience in experiences(2):
        place["strategy"].train(experience, eval_streams=[])  # type: ignore[attr-defined]
    assert place["teach"].weights["average"] >= 0  # type: ignore[attr-defined]


def test_the_tutorials_script_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """The script prints what the page says, about: taught, the network knows twice as much as the last two digits."""
    _, script = re.findall(r"```python\n(.*?)```", TUTORIAL, re.S)
    exec(compile(script, "digits.py", "exec"), {})
    said = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert said.keys() == {"alone", "taught"}
    assert float(said["alone"]) < 0.25
    assert float(said["taught"]) > 0.4


def test_the_term_is_the_oracles() -> None:
    """What is added is weight · mean Σ_k w_k·T²·KL(p_k ‖ s), written out in float64 for one teacher and w = 1/2."""
    heard: list[tuple[Tensor, Tensor, Tensor]] = []

    class Watches(Losses):
        def _note(self, step: Any, taken: Any) -> None:
            super()._note(step, taken)
            heard.append((taken.logits.detach(), taken.plan.answers.logits, taken.plan.answers.known))

    plugin = Watches(0.7, 3.0, gate=FixedGate(FixedOptions(hard=0.5)), snapshots=0)
    trained("naive", plugin, tasks=2)
    assert max(plugin.advantages) > 0
    for added, share, (logits, answers, known) in list(zip(plugin.added, plugin.advantages, heard, strict=True))[2:]:
        said = answers[:, 0].double().masked_fill(~known[:, 0], -torch.inf)
        s = torch.log_softmax(logits.double() / 3, 1)
        mass = (s.exp() * known[:, 0]).sum(1, keepdim=True)
        p = torch.where(known[:, 0], torch.softmax(said / 3, 1) * mass, s.exp())
        kl = (torch.xlogy(p, p) - p * s).sum(1)
        spoke = torch.tensor([True] * len(kl))
        assert (
            added == pytest.approx(float(0.7 * share * (0.5 * 9 * kl * spoke).mean()), rel=1e-4, abs=1e-6)
            or added < 1e-6
        )


def test_weight_zero_changes_nothing() -> None:
    """With weight 0 and no memory the strategy ends in the weights that it has without the plugin."""
    with_plugin, without = (trained("naive", p).model for p in (MatchGateDistillation(0.0), None))
    for ours, theirs in zip(with_plugin.parameters(), without.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_rows_that_er_ace_replays_are_taught_too() -> None:
    """ER-ACE keeps its replayed rows apart: from the second task on they are among the rows of the term."""
    plugin = Losses()
    trained("er-ace", plugin, tasks=2)
    assert plugin.rows[0] == 8
    assert plugin.rows[-1] == 16


def test_a_teacher_is_heard_only_on_classes_that_it_was_trained_on() -> None:
    """A copy from the end of the first task knows its two classes; the average all that were trained."""
    plugin = MatchGateDistillation()
    trained("replay", plugin)
    assert plugin.snapshots[0].known().nonzero().flatten().tolist() == [0, 1]
    assert plugin._step.pool.average.known().nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert set(plugin.weights) == {"hard", "average", "snapshot-0", "snapshot-1"}
    assert sum(plugin.weights.values()) == pytest.approx(1.0)


def test_its_own_memory_keeps_an_otherwise_naive_strategy_from_forgetting() -> None:
    """With a memory the first task is still known at the end; without any it is forgotten."""
    first = experiences(1)[0].dataset
    x, y = torch.stack([row[0] for row in first]), torch.tensor([row[1] for row in first])

    def known(plugin: Any) -> float:
        model = trained("naive", plugin, each=150).model.eval()
        return float((model(x).argmax(1) == y).float().mean())

    assert known(MatchGateDistillation(memory=60, replay=16)) > 0.8
    assert known(MatchGateDistillation()) < 0.7


def test_the_gate_is_adapted_to_the_held_out_part() -> None:
    """Every ``adapt_every`` steps the gate moves, once there are held-out records; without memory never."""
    plugin = MatchGateDistillation(memory=60, adapt_every=2)
    before = copy.deepcopy(plugin.gate.state_dict())
    trained("naive", plugin, Net(grows=True), each=120)
    assert plugin.adaptations >= 5
    assert any(not torch.equal(before[name], value) for name, value in plugin.gate.state_dict().items())
    alone = MatchGateDistillation()
    trained("naive", alone)
    assert alone.adaptations == 0
    assert all(p.grad is None for p in alone.gate.parameters())


GATES: dict[str, Callable[[], nn.Module]] = {
    "scalar": lambda: ScalarGate(SharedOptions()),
    "per-class": lambda: PerClassGate(SharedOptions()),
    "per-sample": lambda: PerSampleGate(PerSampleOptions()),
    "fixed": lambda: FixedGate(FixedOptions()),
    "likelihood": lambda: LikelihoodGate(LikelihoodOptions()),
    "confidence": lambda: ConfidenceGate(ConfidenceOptions()),
    "hedge": lambda: Hedge(HedgeOptions()),
}


@pytest.mark.parametrize("name", GATES)
def test_every_gate_follows_the_teachers_that_come(name: str) -> None:
    """With a memory each gate teaches over tasks, while its table and the model's head grow."""
    plugin = Losses(gate=GATES[name](), memory=60, adapt_every=2)
    trained("naive", plugin, Net(grows=True), each=60)
    assert np.isfinite(plugin.added).all()
    assert set(plugin.weights) == {"hard", "average", "snapshot-0", "snapshot-1", "memory"}
    assert bool(plugin.adaptations) == (name not in ("fixed", "likelihood", "confidence"))


def test_the_hedge_is_settled_or_refused() -> None:
    """With held-out records its posterior moves; without any it could not, and is an error at construction."""
    gate = Hedge(HedgeOptions())
    trained("naive", MatchGateDistillation(gate=gate, memory=60, adapt_every=2), each=120)
    assert max(gate.odds().values()) > 0.202
    for lacking in ({}, {"memory": 60, "holdout_ratio": 0.0}, {"memory": 60, "adapt_every": 0}):
        with pytest.raises(ConfigError, match=r"Hedge needed held-out records[\s\S]*fix: "):
            MatchGateDistillation(gate=Hedge(HedgeOptions()), **lacking)  # type: ignore[arg-type]


def test_gates_have_credit_without_memory() -> None:
    """What teachers say of rows before a step is their credit: of a class that just came the average has little."""
    plugin = MatchGateDistillation(gate=LikelihoodGate(LikelihoodOptions()))
    trained("replay", plugin, tasks=2)
    credit = plugin._step.pool.comparison.measured().credit[0]
    assert credit.isfinite().all()
    assert credit[:2].mean() > credit[2:4].mean()


def test_rows_are_offered_to_the_memory_once() -> None:
    """In later epochs the same rows come again: they are in the memory once, replayed or held out."""
    plugin = MatchGateDistillation(memory=100)
    strategy = naive(plugin, Net())
    strategy.train_epochs = 3
    strategy.train(experiences(1), eval_streams=[])
    assert len(plugin.memory) == 40
    kept = [ring.x[: ring.filled] for ring in (plugin.memory.replayed, plugin.memory.holdout)]
    assert len(torch.cat(kept).unique(dim=0)) == 40


def test_a_strategy_that_learns_fast_is_left_alone() -> None:
    """Beside replay, where the average lags behind the model, the plugin with defaults costs next to nothing."""
    x, y = load_digits(return_X_y=True)
    inputs, labels = torch.tensor(x / 8 - 1).float(), torch.tensor(y)

    def accuracy(plugins: Sequence[Any]) -> float:
        torch.manual_seed(100)
        model = Net()
        strategy = Naive(**common(model, [ReplayPlugin(200, batch_size_mem=60), *plugins], rate=0.001))
        for experience in experiences(5, 140):
            strategy.train(experience, eval_streams=[])
        return float((model.eval()(inputs).argmax(1) == labels).float().mean())

    assert accuracy([MatchGateDistillation()]) > accuracy([]) - 0.04


def test_a_strategy_without_before_backward_is_refused() -> None:
    """LaMAML would never ask the teachers: its first step with the plugin is an error that says so."""

    class Told(Net):
        def forward(self, x: Tensor, task_labels: Tensor | None = None) -> Tensor:
            return super().forward(x)

    settings = common(Told(), [MatchGateDistillation()])
    with pytest.raises(ConfigError, match=r"calls before_backward, got LaMAML[\s\S]*fix: "):
        LaMAML(**settings).train(experiences(1), eval_streams=[])


def test_an_optimiser_without_a_closed_form_is_refused() -> None:
    """Where the gate is to be adapted the optimiser is SGD, Adam or AdamW; else the error names what to do."""
    plugin = MatchGateDistillation(memory=60, adapt_every=1)
    model = Net()
    strategy = Naive(**(common(model, [plugin]) | {"optimizer": torch.optim.Rprop(model.parameters())}))
    with pytest.raises(ConfigError, match="needs SGD, Adam or AdamW, got Rprop"):
        strategy.train(experiences(1), eval_streams=[])


def test_heads_by_task_and_batch_normalisation() -> None:
    """A head for each task label, and running statistics, which an adaptation leaves alone."""
    torch.manual_seed(0)
    plugin = Losses(memory=40, adapt_every=2)
    strategy = Naive(**common(HeadsByTask(), [plugin]))
    for experience in experiences(task_labels=True):
        strategy.train(experience, eval_streams=[])
    assert np.isfinite(plugin.added).all()
    model = trained("naive", Losses(memory=40, adapt_every=2), Net(grows=True, batch_norm=True)).model
    assert all(buffer.isfinite().all() for buffer in model.buffers())
    # the model's own forward passes alone are counted: one of the mini-batch, one of the memory once it holds rows
    assert int(model.body[2].num_batches_tracked) <= 2 * 15


def test_an_online_stream_leaves_a_copy_for_each_task() -> None:
    """Cut into mini-experiences that show the tasks, a copy is taken between two tasks; where they do not, none."""
    for shown, copies in ((True, 1), (False, 0)):
        plugin = MatchGateDistillation()
        torch.manual_seed(0)
        strategy = naive(plugin, Net())
        online = split_online_stream(experiences(2), experience_size=8, access_task_boundaries=shown)
        for experience in online:
            strategy.train(experience, eval_streams=[])
        assert len(plugin.snapshots) == copies


def test_no_copy_is_too_bad_to_be_kept() -> None:
    """One that takes both of its classes for the other joins all the same: each step says whom to listen to."""
    plugin = MatchGateDistillation(memory=60, decay=0.5)
    strategy = trained("naive", plugin, tasks=1, each=120)
    head = plugin.average.head
    with torch.no_grad():
        for parameter in head.parameters():  # type: ignore[union-attr]
            parameter[:2] = parameter[:2].flip(0)
    strategy.train(experiences(2)[1], eval_streams=[])
    assert [s.key for s in plugin.snapshots] == ["snapshot-0"]


def test_the_least_listened_to_copy_goes() -> None:
    """When one copy is too many, the one with the smallest weight since the last task leaves."""
    plugin = MatchGateDistillation(snapshots=2)
    strategy = trained("replay", plugin)
    pool = plugin._step.pool
    pool.listened = {"snapshot-0": 1.0, "snapshot-1": 0.5}
    strategy.train(experiences(1)[0], eval_streams=[])
    assert [s.key for s in plugin.snapshots] == ["snapshot-0", "snapshot-2"]
    assert [pool.ages[s.key] for s in plugin.snapshots] == [2, 0]


@pytest.mark.parametrize("wrong", [{"weight": -1}, {"temperature": 0}, {"decay": 1.0}, {"memory": -3}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    """Options out of their range are an error that names the plugin."""
    with pytest.raises(ConfigError, match="MatchGateDistillation"):
        MatchGateDistillation(**wrong)  # type: ignore[arg-type]


def test_the_average_keeps_what_it_knew_when_the_network_grows() -> None:
    """Old rows of a grown head stay the average's, new ones begin as the network's; what was trained goes along."""
    small, large = nn.Linear(4, 2), nn.Linear(4, 5)
    average = grown(Foreign(small, torch.tensor([True, False])), Foreign(large, torch.ones(5, dtype=torch.bool)))
    assert torch.equal(average.body.weight[:2], small.weight)
    assert torch.equal(average.body.weight[2:], large.weight[2:])
    assert average.known().tolist() == [True, False, True, True, True]


def same(one: Any, other: Any) -> bool:
    """Whether two states are alike, bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and bool(torch.eq(one, other).logical_or(one != one).all())
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or one != one


def saved(strategy: Any, plugin: MatchGateDistillation) -> dict[str, Any]:
    """All that a loop keeps, through a file."""
    file = io.BytesIO()
    parts = {"model": strategy.model, "optimizer": strategy.optimizer, "plugin": plugin}
    torch.save({name: part.state_dict() for name, part in parts.items()} | {"chance": torch.get_rng_state()}, file)
    file.seek(0)
    return dict(torch.load(file, weights_only=True))


def resumed(state: dict[str, Any], model: nn.Module, plugin: MatchGateDistillation, seen: int, by_task: bool) -> Any:
    """A fresh loop that has met so many experiences, from that state."""
    for experience in experiences(seen, task_labels=by_task):
        avalanche_model_adaptation(model, experience)
    model.load_state_dict(state["model"])
    strategy = Naive(**common(model, [plugin]))
    strategy.optimizer.load_state_dict(state["optimizer"])
    strategy.optimized_param_id = dict(model.named_parameters())  # or Avalanche empties a fresh strategy's optimiser
    plugin.load_state_dict(state["plugin"])
    torch.set_rng_state(state["chance"])
    return strategy


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], MatchGateDistillation]]] = {
    "fixed head": (Net, lambda: MatchGateDistillation(memory=60, adapt_every=2, seed=3)),
    "growing head": (lambda: Net(grows=True, batch_norm=True), lambda: MatchGateDistillation(memory=60, adapt_every=2)),
    "heads by task": (HeadsByTask, lambda: MatchGateDistillation(memory=60, snapshots=1)),
    "no memory": (Net, MatchGateDistillation),
    "hedge": (Net, lambda: MatchGateDistillation(gate=Hedge(HedgeOptions()), memory=60, adapt_every=2)),
}


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The teachers are heard in every step, however little they know after so few."""
    measured = EarlierSelves.advantage
    monkeypatch.setattr(EarlierSelves, "advantage", lambda *args, **named: max(0.3, measured(*args, **named)))


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("name", CASES)
def test_it_goes_on_as_if_it_had_never_stopped(name: str) -> None:
    """Saved and loaded after the first and the second experience, model and plugin end as those of an unbroken loop."""
    model, plugin = CASES[name]
    by_task, ends = name == "heads by task", []
    for stops in (False, True):
        torch.manual_seed(0)
        teach = plugin()
        strategy = Naive(**common(model(), [teach]))
        for number, experience in enumerate(experiences(3, task_labels=by_task)):
            if stops and number:
                state, teach = saved(strategy, teach), plugin()
                strategy = resumed(state, model(), teach, number, by_task)
                assert same(teach.state_dict(), state["plugin"])
            strategy.train(experience, eval_streams=[])
        ends.append(saved(strategy, teach))
    unbroken, broken = ends
    assert unbroken["plugin"]["learned"]["pool"]["snapshots"]
    assert unbroken["plugin"]["weights"]["average"] > 0
    assert same(unbroken, broken)


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    """Of a plugin with a memory of 20 after one experience."""
    teach = MatchGateDistillation(memory=20)
    strategy = Naive(**common(Net(), [teach]))
    strategy.train(experiences(1), eval_streams=[])
    return saved(strategy, teach)


def test_what_was_saved_does_not_move_on(state: dict[str, Any]) -> None:
    """A state that was given, and one that was loaded, stay as they are while the plugin learns."""
    before, teach = copy.deepcopy(state["plugin"]), MatchGateDistillation(memory=20)
    strategy = resumed(state, Net(), teach, 1, by_task=False)
    given = teach.state_dict()
    strategy.train(experiences(2)[1], eval_streams=[])
    assert same(state["plugin"], before)
    assert same(given, before)
    assert not same(teach.state_dict(), before)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"memory": 30}, "needed memory=20, got 30"),
        ({"memory": 20, "snapshots": 2}, "needed snapshots=4, got 2"),
        ({"memory": 20, "gate": Hedge(HedgeOptions())}, "needed gate=PerSampleGate, got Hedge"),
        ({"memory": 20, "gate": PerSampleGate(PerSampleOptions(hidden=3))}, "the gate was another one"),
    ],
)
def test_a_plugin_that_was_made_otherwise_is_refused(state: dict[str, Any], options: Any, told: str) -> None:
    """What the state needs, and what this plugin has, with a way out."""
    with pytest.raises(StateConflict, match=rf"load_state_dict: {told}[\s\S]*fix: "):
        MatchGateDistillation(**options).load_state_dict(state["plugin"])


@pytest.mark.parametrize("wrong", [None, {}, {"form": 2}, {"model": {}}, nn.Linear(1, 1).state_dict()])
def test_what_is_no_state_is_refused(wrong: Any) -> None:
    """A state of something else, or of a newer form, is named."""
    with pytest.raises(StateError, match=r"needed what state_dict\(\) of a plugin gives, got [\s\S]*fix: "):
        MatchGateDistillation().load_state_dict(wrong)


def test_a_plugin_that_was_trained_is_refused(state: dict[str, Any]) -> None:
    """It has learned something already, which a state does not undo."""
    teach = MatchGateDistillation(memory=20)
    Naive(**common(Net(), [teach])).train(experiences(1), eval_streams=[])
    with pytest.raises(StateConflict, match="needed a plugin that was not trained"):
        teach.load_state_dict(state["plugin"])


def test_another_model_is_refused(state: dict[str, Any]) -> None:
    """Where the teachers were copies of another model, the first tensor that does not fit is named."""
    teach = MatchGateDistillation(memory=20)
    teach.load_state_dict(state["plugin"])
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(StateConflict, match=r"Sequential: needed the module of the state[\s\S]*is missing here"):
        Naive(**common(model, [teach])).train(experiences(1), eval_streams=[])
