"""Meta-adaptation: when it happens, that it lowers the outer loss, and that it moves nothing but the gate."""

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import oracles
import pytest
import torch
import toys
from torch import Tensor, nn

from streamkd.distill.losses import Lesson
from streamkd.distill.step import Plan, Step, Term
from streamkd.distill.teachers import SnapshotTeacher, copy_of
from streamkd.meta.adapt import GateAdapter


def ready(adapter: GateAdapter, gate: nn.Module, **settings: Any) -> Step:
    """A step whose memory already holds something out."""
    step = toys.make_step(gate=gate, adapter=adapter, **settings)
    for x, y in toys.batches(8, seed=5):
        toys.train(step, x, y)
    return step


def test_adaptations_follow_the_schedule() -> None:
    """A burst when a task begins, then one every n steps."""
    adapter = toys.adapter_of(toys.scorer(), every=4, on_task_steps=3)
    first = [adapter.due() for _ in range(8)]
    adapter.new_task()
    second = [adapter.due() for _ in range(8)]
    assert first == [False, False, False, True, False, False, False, True]
    assert second == [True, True, True, True, False, False, False, True]


def test_every_zero_adapts_on_new_tasks_only() -> None:
    """`every: 0` leaves the burst alone."""
    adapter = toys.adapter_of(toys.scorer(), every=0, on_task_steps=2)
    assert not any(adapter.due() for _ in range(20))
    adapter.new_task()
    assert [adapter.due() for _ in range(3)] == [True, True, False]


def test_a_gate_without_parameters_is_never_due() -> None:
    """There is nothing to adapt in a fixed gate."""
    adapter = toys.adapter_of(nn.Identity(), every=1)
    adapter.new_task()
    assert not any(adapter.due() for _ in range(5))


def test_without_held_out_records_nothing_happens() -> None:
    """No query, no adaptation: the gate stays as it is."""
    gate = toys.scorer()
    adapter = toys.adapter_of(gate, every=1)
    before = copy.deepcopy(gate.state_dict())
    step = toys.make_step(gate=gate, adapter=adapter, holdout_ratio=0.0)
    for x, y in toys.batches(5):
        toys.train(step, x, y)
    assert adapter.adaptations == 0
    assert all(torch.equal(before[k], v) for k, v in gate.state_dict().items())


class Noisy(nn.Module):
    """BatchNorm and a spare layer that no output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.norm, self.head = nn.Linear(toys.FEATURES, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.spare = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.hidden(x))))


@pytest.mark.parametrize("engine", ["forward", "finite-difference"])
@pytest.mark.parametrize("kind", [("sgd", {"lr": 0.05, "momentum": 0.9}), ("adam", {"lr": 0.01})], ids=["sgd", "adam"])
def test_the_student_is_untouched(engine: Any, kind: Any) -> None:
    """Parameters, running statistics, gradients and optimiser state are bitwise the same after adapting the gate."""
    torch.manual_seed(0)
    gate = toys.scorer()
    adapter = toys.adapter_of(gate, every=1, engine=engine)
    step = ready(adapter, gate, student=toys.wrapped(Noisy()), optimizer=kind)
    x, y = toys.batches(1, seed=6)[0]
    plan = step.begin(x, y, 0)
    logits = step.forward(plan)
    before = copy.deepcopy((step.student.state_dict(), step.optimizer.state_dict()))
    grads = [None if p.grad is None else p.grad.clone() for p in step.parameters]
    gate_before = copy.deepcopy(gate.state_dict())
    adapter.adapt(step, plan, logits)
    assert _equal(before, (step.student.state_dict(), step.optimizer.state_dict()))
    assert _equal(grads, [p.grad for p in step.parameters])
    assert not _equal(gate_before, gate.state_dict())
    step.loss(step.weigh(plan, logits)).backward()  # the student's own step reuses the same forward pass


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


class Permuted(SnapshotTeacher):
    """A good teacher whose classes are turned by one: it is sure, and wrong."""

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x).roll(1, 1)


@pytest.mark.parametrize("engine", ["forward", "finite-difference"])
def test_weights_move_from_a_bad_teacher_to_a_good_one(engine: Any) -> None:
    """With one teacher that is right and one that is wrong, adapting lowers the outer loss and shifts the weight.

    The gate's prior is switched off (trust 0), so that nothing but the outer loss tells the two apart.
    """
    expert = _expert()
    good, bad = SnapshotTeacher("good", copy_of(expert)), Permuted("bad", copy_of(expert))
    for teacher in (good, bad):
        teacher.fresh = True
    gate = toys.scorer(trust=0.0, floor=0.0)
    adapter = toys.adapter_of(gate, every=1, engine=engine, learning_rate=0.05, query=64, anchor=0.0)
    step = toys.make_step(
        gate=gate, adapter=adapter, teachers=[good, bad], snapshots=0, size=200, replay=0, holdout_ratio=0.5
    )
    shares = []
    for x, y in toys.batches(60, seed=7):
        plan = step.begin(x, y, 0)
        logits = step.forward(plan)
        lesson = step.weigh(plan, logits)
        shares.append((lesson.weights[:, 1] - lesson.weights[:, 2]).mean().item())
        step.finish(plan, logits)  # the student stands still: only the gate can lower the outer loss
    assert abs(shares[0]) < 1e-6
    assert shares[-1] > 0.3
    assert _after_a_step(step, gate) < _after_a_step(step, toys.scorer(trust=0.0, floor=0.0)) - 0.005


def _after_a_step(step: Step, gate: nn.Module) -> float:
    """Mean outer loss on all held-out records after one real step under that gate."""
    losses = []
    for x, y in toys.batches(8, seed=10):
        twin = copy.deepcopy(step)
        twin.gate, twin.adapter = gate, None
        toys.train(twin, x, y)
        held = twin.memory.holdout
        with torch.no_grad():
            z = twin.student(held.x[: held.filled])
            losses.append(float(nn.functional.cross_entropy(z, held.y[: held.filled])))
    return sum(losses) / len(losses)


def _expert() -> Any:
    step = toys.make_step(teachers=[], snapshots=0, optimizer=("sgd", {"lr": 0.2}))
    for x, y in toys.batches(80, seed=8):
        toys.train(step, x, y)
    x, y = toys.batches(1, batch=200, seed=9)[0]
    assert (step.student(x).argmax(1) == y).float().mean() > 0.9
    return step.student


def test_the_anchor_pulls_back() -> None:
    """Without an outer slope the gate's parameters return to where they began."""
    gate = toys.scorer()
    adapter = toys.adapter_of(gate, every=1, anchor=1e6, learning_rate=0.001)
    step = ready(toys.adapter_of(toys.scorer(), every=0), gate)
    with torch.no_grad():
        for p in gate.parameters():
            p.add_(0.1)
    far = sum(float((p - o).detach().norm()) for p, o in zip(gate.parameters(), adapter.origin, strict=True))
    for x, y in toys.batches(20, seed=11):
        plan = step.begin(x, y, 0)
        adapter.adapt(step, plan, step.forward(plan))
    near = sum(float((p - o).detach().norm()) for p, o in zip(gate.parameters(), adapter.origin, strict=True))
    assert near < 0.9 * far


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("engine", ["forward", "finite-difference"])
@pytest.mark.parametrize("kind", [("sgd", {"lr": 0.05, "momentum": 0.9}), ("adam", {"lr": 0.01})], ids=["sgd", "adam"])
def test_the_gates_gradient_is_that_of_the_outer_loss(kind: Any, engine: Any, clip: float | None) -> None:
    """dL_out/dφ through evidence, gate, weighted terms, clipping, optimiser and query, against double backward."""
    gate = toys.scorer()
    with torch.no_grad():
        for number, p in enumerate(gate.parameters()):
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(number)))
    adapter = toys.adapter_of(gate, every=0, engine=engine, anchor=0.5)
    adapter.origin = [o + 0.01 for o in adapter.origin]
    step = ready(adapter, gate, optimizer=kind, clip_norm=clip, temperature=3.0)
    step.terms = (Term(step.terms[0].loss, 0.7), Term(Spread(), 0.2))
    x, y = toys.batches(1, seed=6)[0]
    plan = step.begin(x, y, 0)
    logits = step.forward(plan)
    wanted = _through_everything(copy.deepcopy(step), adapter, gate, plan)
    adapter.adapt(step, plan, logits)
    got = torch.cat([p.grad.flatten() for p in gate.parameters()])
    assert float((got - wanted).norm() / wanted.norm()) < 2e-3


class Spread:
    """A second term, that the gate does not weigh."""

    layers: tuple[str, ...] = ()
    teacher_layers: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    def __call__(self, lesson: Lesson) -> Tensor:
        return lesson.logits.pow(2).mean(1)


def _through_everything(step: Step, adapter: GateAdapter, gate: nn.Module, plan: Plan) -> Tensor:
    """The same gradient by the long way."""
    logits = step.forward(plan)
    inner = step.loss(step.lesson(plan, logits, gate(step.evidence(plan, logits))))
    grads = torch.autograd.grad(inner, step.parameters, create_graph=True)
    moved = oracles.optimizer_step(step.optimizer, step.parameters, oracles.clip(grads, step.clip_norm))
    names = [name for name, _ in step.student.named_parameters()]
    query = step.memory.query(adapter.query)
    outer = nn.functional.cross_entropy(
        oracles.call(step.student, dict(zip(names, moved, strict=True)), query.x), query.y
    )
    parameters = list(gate.parameters())
    pull = sum(((p - o) ** 2).sum() for p, o in zip(parameters, adapter.origin, strict=True))
    return torch.cat([g.flatten() for g in torch.autograd.grad(outer + adapter.anchor * pull, parameters)])


def test_a_table_that_is_not_finite_moves_nothing() -> None:
    """NaN in the student's logits leaves the gate as it is."""
    gate = toys.scorer()
    adapter = toys.adapter_of(gate, every=0)
    step = ready(adapter, gate)
    before = copy.deepcopy(gate.state_dict())
    x, y = toys.batches(1, seed=6)[0]
    x[0] = torch.nan
    plan = step.begin(x, y, 0)
    adapter.adapt(step, plan, step.forward(plan))
    assert _equal(before, gate.state_dict())
    assert adapter.adaptations == 0


def test_state_goes_round_bitwise() -> None:
    """A restored adapter and gate adapt to the same bits, burst and schedule included."""
    gate = toys.scorer()
    adapter = toys.adapter_of(gate, every=3, on_task_steps=2)
    step = ready(adapter, gate)
    adapter.new_task()
    adapter.due()
    other_gate = toys.scorer()
    other = toys.adapter_of(other_gate, every=3, on_task_steps=2)
    other_gate.load_state_dict(copy.deepcopy(gate.state_dict()))
    other.load_state_dict(copy.deepcopy(adapter.state_dict()))
    assert [adapter.due() for _ in range(7)] == [other.due() for _ in range(7)]
    x, y = toys.batches(1, seed=6)[0]
    twin = copy.deepcopy(step)
    for one, its_gate, its_step in ((adapter, gate, step), (other, other_gate, twin)):
        its_step.gate = its_gate
        plan = its_step.begin(x, y, 0)
        one.adapt(its_step, plan, its_step.forward(plan))
    assert _equal(adapter.state_dict(), other.state_dict())
    assert _equal(gate.state_dict(), other_gate.state_dict())


def test_a_changed_engine_is_taken_after_a_restart() -> None:
    """The engine is the configuration's, not the checkpoint's."""
    old = toys.adapter_of(toys.scorer(), engine="finite-difference")
    new = toys.adapter_of(toys.scorer(), engine="forward")
    new.load_state_dict(copy.deepcopy(old.state_dict()))
    assert new.engine == "forward"
