"""The door to Avalanche: the arithmetic of a plain loop, resuming bit for bit, and Avalanche's parts at work in it.

The second half holds one regression test for each of Avalanche's traps that concern us.
"""

import copy
import functools
import gc
import io
from typing import Any

import pytest
import torch
import toys
from avalanche.benchmarks import benchmark_from_datasets, split_online_stream
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.logging import InteractiveLogger, TextLogger
from avalanche.training.plugins import EvaluationPlugin, EWCPlugin
from torch import Tensor, nn

from streamkd.avalanche.strategy import AtBoundaries, StreamStrategy, dataset_of, quiet_evaluator
from streamkd.learning.step import Step
from streamkd.losses.match_gate import match_gate, soft_answers
from streamkd.meta.adaptation import GateAdapter
from streamkd.replay.memory import Memory
from streamkd.students import optimizers
from streamkd.tasks.experience import TensorBatch

CPU = torch.device("cpu")


def strategy_of(step: Step, **settings: Any) -> StreamStrategy:
    return StreamStrategy(step=step, device=CPU, **settings)


def learn(strategy: StreamStrategy, count: int, *, seed: int = 0, task: int = 0, classes: int = 3) -> None:
    for x, y in toys.batches(count, seed=seed, classes=classes):
        strategy.learn(TensorBatch(x, y, task))


def equal(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


# The arithmetic


@pytest.mark.parametrize("kind", [("sgd", {"lr": 0.05, "momentum": 0.9}), ("adam", {"lr": 0.01})], ids=["sgd", "adam"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_learning_is_the_plain_loop(kind: Any, clip: float | None) -> None:
    """Bitwise: the strategy's weights are those of the same steps written out by hand, teacher and memory included."""
    strategy = strategy_of(toys.make_step(optimizer=kind, clip_norm=clip, snapshots=0, holdout_ratio=0.0))
    student, memory = toys.mlp(), Memory(40, 0.0, 8, 0)
    average = copy.deepcopy(student)
    optimizer = toys.optimizer_of(kind[0], list(student.parameters()), **kind[1])
    for t, (x, y) in enumerate(toys.batches(40)):
        strategy.learn(TensorBatch(x, y, 0))
        replayed = memory.sample(6)
        rows = x if replayed is None else torch.cat([x, replayed.x])
        labels = y if replayed is None else torch.cat([y, replayed.y])
        answers = torch.zeros(len(rows), 2, 3)
        known = torch.ones(len(rows), 2, 3, dtype=torch.bool)
        known[: len(y), 1] = False
        with torch.no_grad():
            answers[:, 0] = average(rows)
        if replayed is not None:
            answers[len(y) :, 1] = replayed.logits().float()
        share = torch.full((len(rows), 2), 0.5 / 2)
        share[: len(y)] = torch.tensor([0.5, 0.0])
        weights = torch.cat([torch.full((len(rows), 1), 0.5), share], 1)
        optimizer.zero_grad()
        logits = student(rows)
        loss = match_gate(logits, labels, soft_answers(answers, known, 2.0), weights, 2.0).mean()
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(student.parameters(), clip)
        optimizer.step()
        memory.insert(x, y, 0, logits[: len(y)].detach())
        decay = min(0.99, (1 + t) / (10 + t))
        with torch.no_grad():
            for ours, theirs in zip(average.parameters(), student.parameters(), strict=True):
                ours.lerp_(theirs, 1 - decay)
        assert float(strategy.taken.loss) == float(loss.detach())
    assert equal(strategy.step.student, student)
    assert equal(strategy.step.pool.average.student, average)


def test_a_report_says_what_happened() -> None:
    """Rows, loss, rows that were right before they were learned, and the gate's weights."""
    strategy = strategy_of(toys.make_step())
    learn(strategy, 3)
    x, y = toys.batches(1, seed=4)[0]
    given = strategy.model(x).argmax(1).tolist()
    taken = strategy.learn(TensorBatch(x, y, 0))
    labels, said = (column.tolist() for column in taken.answers())
    assert (taken.fresh, labels, said, taken.skipped) == (8, y.tolist(), given, False)
    assert taken.weights.shape == (8 + 6, 3)
    assert strategy.loss == taken.loss


# Resuming


class Run:
    """A whole learning state on a stream whose labels grow and whose tasks end, to stop and to restore."""

    def __init__(self, kind: Any, classes: int = 2) -> None:
        self.gate = toys.scorer()
        self.adapter: GateAdapter = toys.adapter_of(self.gate, every=3, on_task_steps=2)
        step = toys.make_step(
            classes=classes, optimizer=kind, gate=self.gate, adapter=self.adapter, snapshots=2, limit=4, clip_norm=1.0
        )
        self.strategy = strategy_of(step)
        self.at = 0

    def go(self, batches: int) -> None:
        stream = toys.batches(200, seed=3, classes=6)
        for _ in range(batches):
            task, within = divmod(self.at, 12)
            classes = min(2 + task, 6)
            step = self.strategy.step
            if within == 0 and self.at:
                step.pool.end_task(step.student)
                self.strategy.end_task(task - 1)
            if classes > step.student.classes:
                step.student.grow(classes, step.optimizer)
                step.pool.grow(range(classes))
            x, y = stream[self.at]
            self.strategy.learn(TensorBatch(x, y % classes, task))
            self.at += 1

    def state(self) -> dict[str, Any]:
        step = self.strategy.step
        return copy.deepcopy(
            {
                "classes": step.student.classes,
                "student": step.student.state_dict(),
                "optimizer": optimizers.state_of(step.optimizer),
                "memory": step.memory.state_dict(),
                "pool": step.pool.state_dict(),
                "held_out": step.held_out.state_dict(),
                "gate": self.gate.state_dict(),
                "adapter": self.adapter.state_dict(),
                "at": self.at,
            }
        )

    @classmethod
    def restored(cls, kind: Any, state: dict[str, Any]) -> "Run":
        run = cls(kind, state["classes"])
        step = run.strategy.step
        step.student.load_state_dict(state["student"])
        optimizers.restore(step.optimizer, state["optimizer"])
        step.memory.load_state_dict(state["memory"], CPU)
        step.pool.load_state_dict(state["pool"], toys.mlp, range(state["classes"]))
        step.held_out.load_state_dict(state["held_out"])
        run.gate.load_state_dict(state["gate"])
        run.adapter.load_state_dict(state["adapter"])
        run.at = state["at"]
        return run


KINDS: dict[str, Any] = {
    "sgd": ("sgd", {"lr": 0.05}),
    "nesterov": ("sgd", {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "adamw": ("adamw", {"lr": 0.01}),
}


@functools.cache
def never_stopped(name: str) -> Run:
    """60 steps; to be looked at alone."""
    whole = Run(KINDS[name])
    whole.go(60)
    return whole


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("stop", [12, 37, *(pytest.param(stop, marks=pytest.mark.soak) for stop in (1, 11, 13))])
def test_stopping_and_resuming_is_never_having_stopped(name: str, stop: int) -> None:
    """N steps, state, fresh objects, the rest: the weights of one run, bitwise, gate and teachers too."""
    whole, first = never_stopped(name), Run(KINDS[name])
    first.go(stop)
    second = Run.restored(KINDS[name], first.state())
    second.go(60 - stop)
    one, other = whole.strategy.step, second.strategy.step
    assert equal(one.student, other.student)
    assert equal(whole.gate, second.gate)
    assert one.pool.keys == other.pool.keys
    pair = [step.pool.state_dict()["teachers"] for step in (one, other)]
    for key, mine in pair[0].items():
        for name, tensor in mine.get("student", {}).items():
            assert torch.equal(tensor, pair[1][key]["student"][name])
    assert whole.adapter.adaptations == second.adapter.adaptations > 0


# Avalanche's parts


def test_a_stock_metric_and_a_logger_work() -> None:
    """Avalanche's accuracy over mini-batches and its text logger see every step."""
    text = io.StringIO()
    metrics = (accuracy_metrics(minibatch=True, epoch=True), loss_metrics(minibatch=True))
    evaluator = EvaluationPlugin(*metrics, loggers=[TextLogger(text)], collect_all=False)
    strategy = strategy_of(toys.make_step(replay=0), evaluator=evaluator)
    learn(strategy, 5)
    said = evaluator.get_last_metrics()
    accuracy = next(v for k, v in said.items() if k.startswith("Top1_Acc_MB"))
    loss = next(v for k, v in said.items() if k.startswith("Loss_MB"))
    labels, given = strategy.taken.answers()
    assert accuracy == (labels == given).mean()
    assert loss == pytest.approx(float(strategy.taken.loss))
    assert "Top1_Acc_Epoch" in text.getvalue()


def test_the_interactive_logger_works(capsys: pytest.CaptureFixture[str]) -> None:
    """Its progress bar asks the data loader for its length."""
    evaluator = EvaluationPlugin(accuracy_metrics(epoch=True), loggers=[InteractiveLogger()], collect_all=False)
    strategy = strategy_of(toys.make_step(), evaluator=evaluator)
    learn(strategy, 2)
    assert "Top1_Acc_Epoch" in capsys.readouterr().out


def test_our_logger_hands_numbers_to_its_sink() -> None:
    """What metrics say reaches the sink by name, as plain numbers."""
    seen: dict[str, float] = {}
    evaluator = quiet_evaluator(accuracy_metrics(minibatch=True), sink=seen.__setitem__)
    strategy = strategy_of(toys.make_step(), evaluator=evaluator)
    learn(strategy, 3)
    assert set(seen) == {"Top1_Acc_MB/train_phase/train_stream/Task000"}
    assert all(isinstance(v, float) for v in seen.values())


class Heard(SupervisedPlugin):
    """Writes down what it hears, with the clock's count of experiences."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[str, int]] = []
        for event in ("before_training_exp", "before_backward", "after_update", "after_training_exp"):
            setattr(self, event, self._note(event))

    def _note(self, event: str) -> Any:
        def note(strategy: Any, **kwargs: Any) -> None:
            self.heard.append((event, strategy.clock.train_exp_counter))

        return note


def test_plugins_hear_every_event_in_order() -> None:
    """A plain plugin sees an experience per batch."""
    plugin = Heard()
    strategy = strategy_of(toys.make_step(), plugins=[plugin])
    learn(strategy, 2)
    events = ["before_training_exp", "before_backward", "after_update", "after_training_exp"]
    assert plugin.heard == [(event, batch) for batch in range(2) for event in events]


def test_task_wise_plugins_hear_tasks() -> None:
    """Behind ``AtBoundaries`` an experience is a task, and the clock counts tasks."""
    plugin = Heard()
    strategy = strategy_of(toys.make_step(), plugins=[AtBoundaries(plugin)])
    learn(strategy, 2)
    strategy.end_task(0)
    learn(strategy, 1, task=1)
    step = ["before_backward", "after_update"]
    wanted = (
        [(e, 0) for e in 2 * step] + [("after_training_exp", 0), ("before_training_exp", 1)] + [(e, 1) for e in step]
    )
    assert plugin.heard == wanted
    assert strategy.clock.train_exp_counter == 3


@pytest.mark.parametrize("mode", [("online", 0.9), ("separate", None)], ids=["online", "separate"])
def test_ewc_holds_weights_at_boundaries(mode: Any) -> None:
    """Avalanche's EWC takes its importances when a task ends, and from then on its penalty holds the weights."""
    drift = {}
    for strength in (0.0, 12.0):
        ewc = EWCPlugin(strength, mode=mode[0], decay_factor=mode[1])
        strategy = strategy_of(toys.make_step(teachers=[], snapshots=0, replay=0), plugins=[AtBoundaries(ewc)])
        for task in range(2):
            learn(strategy, 10, seed=task, task=task)
            strategy.end_task(task)
        assert any(float(i.data.sum()) > 0 for i in ewc.importances[1].values())
        held = [p.detach().clone() for p in strategy.model.parameters()]
        for x, y in toys.batches(20, seed=9):
            strategy.learn(TensorBatch(x, (y + 1) % 3, 2))
        drift[strength] = sum(
            float((p.detach() - h).norm()) for p, h in zip(strategy.model.parameters(), held, strict=True)
        )
    assert drift[12.0] < 0.7 * drift[0.0]


def test_ewc_survives_a_growing_head() -> None:
    """New columns are free of the penalty."""
    strategy = strategy_of(
        toys.make_step(classes=2), plugins=[AtBoundaries(EWCPlugin(1.0, mode="online", decay_factor=0.9))]
    )
    learn(strategy, 5, classes=2)
    strategy.end_task(0)
    strategy.step.student.grow(4, strategy.optimizer)
    strategy.step.pool.grow(range(4))
    learn(strategy, 5, classes=4, task=1)
    strategy.end_task(1)
    learn(strategy, 5, classes=4, task=2)
    assert not strategy.taken.skipped


# Avalanche's own benchmarks


def benchmark(tasks: int = 3, rows: int = 150, per_task: int = 2) -> Any:
    """Class-incremental, from tensors: two new labels a task."""
    streams: dict[str, list[Any]] = {"train": [], "test": []}
    for name, datasets in streams.items():
        for task in range(tasks):
            x, y = toys.batches(1, batch=rows, classes=per_task * tasks, seed=task + 10 * (name == "test"))[0]
            mine = y // per_task == task
            datasets.append(as_classification_dataset(dataset_of(x[mine], y[mine])))
    return benchmark_from_datasets(**streams)


def test_avalanches_own_benchmark_trains_and_evaluates() -> None:
    """Its experiences are tasks: the head grows with them, snapshots are admitted, accuracy comes out of ``eval``."""
    evaluator = EvaluationPlugin(
        accuracy_metrics(epoch=True, experience=True, stream=True), loss_metrics(stream=True),
        loggers=[TextLogger(io.StringIO())], collect_all=False,
    )  # fmt: skip
    gate = toys.scorer()
    adapter = toys.adapter_of(gate, every=5)
    step = toys.make_step(classes=1, optimizer=("sgd", {"lr": 0.1}), size=100, gate=gate, adapter=adapter)
    strategy = strategy_of(step, evaluator=evaluator, train_mb_size=4)
    bench = benchmark()
    for experience in bench.train_stream:
        strategy.train(experience)
        seen = strategy.eval(bench.test_stream)
    assert strategy.step.student.classes == 6
    assert step.pool.keys == ("ema", "memory", "snapshot-0", "snapshot-1")
    assert adapter.adaptations > 0
    accuracy = next(v for k, v in seen.items() if k.startswith("Top1_Acc_Stream/eval"))
    loss = next(v for k, v in seen.items() if k.startswith("Loss_Stream/eval"))
    assert accuracy > 0.5
    assert 0 < loss < 30


def test_a_whole_stream_trains_in_one_call() -> None:
    """``train(stream)`` takes its experiences in order."""
    strategy = strategy_of(toys.make_step(classes=1), train_mb_size=8)
    strategy.train(benchmark().train_stream)
    assert strategy.step.student.classes == 6
    assert strategy.clock.train_exp_counter == 3


def test_an_online_stream_is_cut_into_tasks_where_it_shows_them() -> None:
    """Sub-experiences belong to their origin: three tasks, not thirty; where boundaries are hidden, one."""
    for shown, ended in ((True, 2), (False, 0)):
        step = toys.make_step(classes=1)
        strategy = strategy_of(step, train_mb_size=4)
        online = split_online_stream(benchmark().train_stream, experience_size=4, access_task_boundaries=shown)
        strategy.train(online)
        assert step.pool.taken == ended


# Avalanche's traps


def test_the_memory_pins_no_batch() -> None:
    """Trap 2: after many batches no tensor of an old batch is alive but what the memory owns."""
    strategy = strategy_of(toys.make_step(size=40, hidden=(4,)))
    x, y = toys.batches(1, batch=50_000)[0]
    big = x.untyped_storage().data_ptr()
    for start in range(0, 400, 8):
        strategy.learn(TensorBatch(x[start : start + 8], y[start : start + 8], 0))
    for ring in (strategy.step.memory.replayed, strategy.step.memory.holdout):
        assert ring.x.untyped_storage().data_ptr() != big
        assert ring.x.untyped_storage().nbytes() == ring.capacity * toys.FEATURES * 4


def test_experiences_are_not_kept() -> None:
    """Trap 3: no live tensor or experience is left behind per batch."""
    strategy = strategy_of(toys.make_step())
    learn(strategy, 30)
    gc.collect()
    before = _tensors()
    learn(strategy, 60, seed=1)
    gc.collect()
    assert _tensors() <= before + 5
    assert strategy.experience is None


def _tensors() -> int:
    return sum(issubclass(type(o), Tensor) for o in gc.get_objects())


def test_every_record_has_a_task_label() -> None:
    """Trap 6: plugins that read task labels find 0 for each row, fresh or replayed."""
    seen: list[list[int]] = []

    class Reads(SupervisedPlugin):
        def before_forward(self, strategy: Any, **kwargs: Any) -> None:
            seen.append(strategy.mb_task_id.tolist())
            assert strategy.experience.task_labels == [0]

    strategy = strategy_of(toys.make_step(), plugins=[Reads()])
    learn(strategy, 3)
    assert seen[-1] == [0] * (8 + 6)


def test_no_stream_is_read_ahead_of_training() -> None:
    """Trap 4: ``train(stream)`` takes experiences one by one, and looks at nothing for evaluation."""
    taken: list[int] = []
    experiences = list(benchmark().train_stream)

    class Lazy:
        def __iter__(self) -> Any:
            for number, experience in enumerate(experiences):
                taken.append(strategy.clock.train_exp_counter)
                assert number == strategy.clock.train_exp_counter
                yield experience

    strategy = strategy_of(toys.make_step(classes=1), train_mb_size=8)
    strategy.train(Lazy())
    assert taken == [0, 1, 2]


def test_evaluating_does_not_grow_the_head() -> None:
    """Trap 7: unseen labels are simply wrong; head, weights and optimiser stay bitwise as they are."""
    strategy = strategy_of(toys.make_step(classes=1, optimizer=("adam", {"lr": 0.01})), train_mb_size=8)
    bench = benchmark()
    strategy.train(bench.train_stream[0])
    before = copy.deepcopy((strategy.model.state_dict(), strategy.optimizer.state_dict()))
    strategy.eval(bench.test_stream)
    assert strategy.step.student.classes == 2
    assert all(torch.equal(v, strategy.model.state_dict()[k]) for k, v in before[0].items())
    assert str(before[1]) == str(strategy.optimizer.state_dict())


def test_growing_keeps_the_optimisers_state_through_avalanche() -> None:
    """Trap 7: moments of old rows survive a new task, the step count goes on, and no parameter is added."""
    strategy = strategy_of(toys.make_step(classes=1, optimizer=("adam", {"lr": 0.01})), train_mb_size=8)
    bench = benchmark()
    strategy.train(bench.train_stream[0])
    head = strategy.model.body.head.weight
    moment, steps = strategy.optimizer.state[head]["exp_avg"].clone(), float(strategy.optimizer.state[head]["step"])
    parameters = [id(p) for g in strategy.optimizer.param_groups for p in g["params"]]
    assert moment.abs().sum() > 0
    strategy.step.student.grow(4, strategy.optimizer)
    strategy.step.pool.grow(range(4))
    assert torch.equal(strategy.optimizer.state[head]["exp_avg"][:2], moment)
    strategy.train(bench.train_stream[1])
    assert float(strategy.optimizer.state[head]["step"]) > steps
    assert [id(p) for g in strategy.optimizer.param_groups for p in g["params"]] == parameters


def test_teachers_and_gate_are_outside_the_optimiser() -> None:
    """Trap 7: the student's optimiser holds the student's parameters, whatever else hangs on the strategy."""
    gate = toys.scorer()
    step = toys.make_step(gate=gate, adapter=toys.adapter_of(gate))
    strategy = strategy_of(step)
    learn(strategy, 3)
    strategy.train(benchmark(1).train_stream)
    held = {id(p) for g in strategy.optimizer.param_groups for p in g["params"]}
    assert held == {id(p) for p in step.student.parameters()} == {id(p) for p in strategy.model.parameters()}
    assert not held & {id(p) for p in gate.parameters()}
    assert not held & {id(p) for p in step.pool.average.student.parameters()}


def test_the_evaluator_keeps_no_values_for_ever() -> None:
    """Trap 8: the default evaluator collects nothing, with and without metrics."""
    for evaluator in (None, quiet_evaluator(accuracy_metrics(minibatch=True))):
        strategy = strategy_of(toys.make_step(), evaluator=evaluator)
        learn(strategy, 5)
        assert not strategy.evaluator.collect_all
        assert not strategy.evaluator.all_metric_results
        assert len(strategy.evaluator._metric_values) == 0
        assert len(strategy.evaluator.last_metric_results) <= 1


def test_a_loss_that_is_not_finite_is_skipped() -> None:
    """The step is reported as skipped; weights, teachers, memory and optimiser stay, and the next batch learns."""
    strategy = strategy_of(toys.make_step(optimizer=("adam", {"lr": 0.01})))
    learn(strategy, 5)
    step = strategy.step
    kept = copy.deepcopy((step.student.state_dict(), step.pool.average.student.state_dict()))
    moments, held = str(step.optimizer.state_dict()), len(step.memory)
    x, y = toys.batches(1, seed=7)[0]
    report = strategy.learn(TensorBatch(torch.full_like(x, torch.nan), y, 0))
    assert report.skipped
    assert all(torch.equal(v, step.student.state_dict()[k]) for k, v in kept[0].items())
    assert all(torch.equal(v, step.pool.average.student.state_dict()[k]) for k, v in kept[1].items())
    assert (str(step.optimizer.state_dict()), len(step.memory)) == (moments, held)
    assert not strategy.learn(TensorBatch(x, y, 0)).skipped


def test_a_gradient_that_is_not_finite_is_skipped() -> None:
    """A finite loss may have an infinite gradient: it does not reach the weights either."""

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(toys.FEATURES, 3)
            self.scale = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x) + self.scale.sqrt()

    strategy = strategy_of(toys.make_step(student=toys.wrapped(Root())))
    x, y = toys.batches(1)[0]
    assert strategy.learn(TensorBatch(x, y, 0)).skipped
    assert all(p.isfinite().all() for p in strategy.model.parameters())


class Spoilt(torch.autograd.Function):
    """The identity, whose gradient has one value at one place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: float) -> Tensor:
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        g = g.clone()
        g[0, 0] = ctx.value
        return g, None


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e25])
def test_one_bad_gradient_in_a_weight_skips_the_step(value: float) -> None:
    """Also where the biases' gradients are finite, or the square is not: Adam's moments would never be again."""

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(toys.FEATURES, 3)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, Spoilt.apply(self.head.weight, value), self.head.bias)

    strategy = strategy_of(toys.make_step(student=toys.wrapped(Body()), optimizer=("adam", {"lr": 0.01})))
    before = copy.deepcopy(strategy.model.state_dict())
    x, y = toys.batches(1)[0]
    assert strategy.learn(TensorBatch(x, y, 0)).skipped
    assert all(torch.equal(v, strategy.model.state_dict()[k]) for k, v in before.items())
    assert not strategy.optimizer.state


def test_a_skipped_step_leaves_running_statistics_alone() -> None:
    """A row that overflows in the student does not stay in the mean of a BatchNorm."""

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(toys.FEATURES)
            self.head = nn.Linear(toys.FEATURES, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(x))

    strategy = strategy_of(toys.make_step(student=toys.wrapped(Body())))
    learn(strategy, 3)
    x, y = toys.batches(1)[0]
    x[0] = torch.finfo(x.dtype).max
    assert strategy.learn(TensorBatch(x, y, 0)).skipped
    assert all(buffer.isfinite().all() for buffer in strategy.model.buffers())
    assert not strategy.learn(TensorBatch(*toys.batches(1)[0], 0)).skipped
