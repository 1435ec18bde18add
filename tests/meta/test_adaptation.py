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

from streamkd.errors import ConfigError
from streamkd.gates.gate import GateInputs, imbalance, share, weights_of
from streamkd.learning.step import Step
from streamkd.learning.terms import Term
from streamkd.losses.match_gate import LossInputs, MatchGate, MatchGateOptions
from streamkd.meta import jacobian
from streamkd.meta.adaptation import GateAdapter
from streamkd.state import tree
from streamkd.teachers.answers import Answers
from streamkd.teachers.pool import Pool
from streamkd.teachers.snapshot import SnapshotTeacher
from streamkd.teachers.teacher import copy_of

ENGINES = ["forward", "finite-difference", "maml", "prequential"]
PLAIN = ("sgd", {"lr": 0.05})


def ready(adapter: GateAdapter, gate: nn.Module, **settings: Any) -> Step:
    """A step whose memory already holds something out."""
    step = toys.make_step(gate=gate, adapter=adapter, **settings)
    step.adapter = None
    for x, y in toys.batches(8, seed=5):
        toys.train(step, x, y)
    step.adapter = adapter
    return step


def gradient_of(gate: nn.Module) -> Tensor:
    """What the last adaptation left in the gate's parameters."""
    return torch.cat([p.grad.flatten() for p in gate.parameters()])


def test_adaptations_follow_the_schedule() -> None:
    """A burst when a task begins, then one every n steps."""
    adapter = toys.adapter_of(toys.scorer(), every=4, on_task_steps=3)
    first = [adapter.due(0) for _ in range(8)]
    second = [adapter.due(1) for _ in range(8)]
    assert first == [True, True, True, True, False, False, False, True]
    assert second == [True, True, True, True, False, False, False, True]


def test_every_zero_adapts_on_new_tasks_only() -> None:
    """`every: 0` leaves the burst alone, whether the task is new or comes back."""
    adapter = toys.adapter_of(toys.scorer(), every=0, on_task_steps=2)
    for task in (0, 1, 0):
        assert [adapter.due(task) for _ in range(10)] == [True, True] + [False] * 8


def test_a_gate_without_parameters_is_never_due() -> None:
    """There is nothing to adapt in a fixed gate."""
    adapter = toys.adapter_of(nn.Identity(), every=1)
    assert not any(adapter.due(task) for task in range(5))


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


@pytest.mark.parametrize(
    ("engine", "kind"),
    [
        (engine, kind)
        for engine in ENGINES
        for kind in (PLAIN, ("adam", {"lr": 0.01}))
        if engine != "maml" or kind is PLAIN
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_only_the_gate_is_moved(engine: Any, kind: Any) -> None:
    """Student, running statistics and optimiser end bitwise as without adaptation."""
    torch.manual_seed(0)
    gate = toys.scorer()
    adapter = toys.adapter_of(gate, every=1, engine=engine)
    body = Noisy()
    step = ready(adapter, gate, student=toys.wrapped(body), optimizer=kind)
    twin = copy.deepcopy(step)
    twin.adapter = None
    batches = toys.batches(1 + (engine == "prequential"), seed=6)
    before = copy.deepcopy(gate.state_dict())
    for x, y in batches[:-1]:  # prequential adapts when the second batch comes
        toys.train(step, x, y)
        toys.train(twin, x, y)
    x, y = batches[-1]
    plan = step.begin(x, y, 0)
    logits = step.forward(plan)
    step.optimizer.zero_grad()
    step.loss(step.weigh(plan, logits)).backward()
    step.clip()
    step.optimizer.step()
    step.finish(plan, logits)
    toys.train(twin, x, y)
    assert not _equal(before, gate.state_dict())
    assert _equal(
        (step.student.state_dict(), step.optimizer.state_dict()),
        (twin.student.state_dict(), twin.optimizer.state_dict()),
    )


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


@pytest.mark.parametrize("engine", ENGINES)
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
    still = copy.deepcopy(step.student.state_dict())
    for x, y in toys.batches(60, seed=7):
        with torch.no_grad():
            weights = gate(step.evidence(plan := step.begin(x, y, 0), step.forward(plan)))
        shares.append((weights[:, 1] - weights[:, 2]).mean().item())
        toys.train(step, x, y)
        step.student.load_state_dict(still)  # the student stands still: only the gate can lower the outer loss
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
    step.adapter = adapter
    adapter.attach(step)
    for x, y in toys.batches(20, seed=11):
        toys.train(step, x, y)
    near = sum(float((p - o).detach().norm()) for p, o in zip(gate.parameters(), adapter.origin, strict=True))
    assert near < 0.9 * far


OPTIMIZERS = {
    "sgd": PLAIN,
    "momentum": ("sgd", {"lr": 0.05, "momentum": 0.9}),
    "nesterov": ("sgd", {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "adam": ("adam", {"lr": 0.01}),
    "adamw": ("adamw", {"lr": 0.01}),
}
CASES = [(name, engine, clip) for name in OPTIMIZERS for engine in ENGINES[:2] + ENGINES[3:] for clip in (None, 0.05)]


@pytest.mark.parametrize(("kind", "engine", "clip"), [*CASES, ("sgd", "maml", None)])
def test_the_gates_gradient_is_that_of_the_outer_loss(kind: str, engine: Any, clip: float | None) -> None:
    """dL_out/dφ through evidence, gate, weighted terms, clipping, optimiser and query, against double backward.

    To 1e-10 in float64 by `forward`, `prequential` and `maml` (which knows plain SGD), to 1e-3 in float32 by
    `finite-difference`.
    """
    gate = _opinionated()
    adapter = toys.adapter_of(gate, every=1, engine=engine, anchor=0.5, balance=0.3)
    adapter.origin = [o + 0.01 for o in adapter.origin]
    step = ready(adapter, gate, optimizer=OPTIMIZERS[kind], clip_norm=clip, temperature=3.0)
    step.terms = (Term(step.terms[0].loss, 0.7), Term(Spread(), 0.2))
    adapter.attach(step)
    wanted = _through_everything(exact(copy.deepcopy(step)), engine)
    if engine != "finite-difference":
        exact(step)
    for x, y in toys.batches(1 + (engine == "prequential"), seed=6):
        toys.train(step, x, y)
    assert adapter.adaptations == 1
    tolerance = 1e-3 if engine == "finite-difference" else 1e-10
    assert float((gradient_of(gate) - wanted).norm() / wanted.norm()) < tolerance


def _opinionated() -> nn.Module:
    """A scorer whose parameters all matter, and teachers that weigh enough for differences in float32."""
    gate = toys.scorer(hard=0.3, doubt=0.0, stale=1.0)
    with torch.no_grad():
        for number, p in enumerate(gate.parameters()):
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(number)))
    return gate


class ExactPool(Pool):
    """Answers in float64."""

    def answers(self, *args: Any) -> Answers:
        found = super().answers(*args)
        return Answers(found.logits.double(), found.known, found.complete)


class Exact(nn.Module):
    """In place of a normalisation that goes through float32."""

    fit = 0

    def forward(self, x: Tensor) -> Tensor:
        return x.double()


def exact(step: Step) -> Step:
    """The step in float64 from end to end."""
    for student in (step.student, step.pool.average.student):
        student.normalise = Exact()
        student.double()
    step.pool.__class__ = ExactPool
    for gate in (step.gate, *(term.gate for term in step.terms if term.gate is not None)):
        gate.double()
    for state in step.optimizer.state.values():
        state |= {k: v.double() for k, v in state.items() if isinstance(v, Tensor) and k != "step"}
    if step.adapter is not None:
        step.adapter.origin = [o.double() for o in step.adapter.origin]
    return step


class Spread:
    """A second term, that the gate does not weigh."""

    layers: tuple[str, ...] = ()
    teacher_layers: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    def __call__(self, lesson: LossInputs) -> Tensor:
        return lesson.logits.pow(2).mean(1)


def _through_everything(step: Any, engine: str) -> Tensor:
    """The same gradient by the long way: one step, differentiable in the gate's parameters, and its query."""
    adapter, gate = step.adapter, step.gate
    step.adapter = None
    batches = toys.batches(2, seed=6)
    x, y = batches[0]
    plan = step.begin(x, y, 0)
    logits = step.forward(plan)
    evidence = step.evidence(plan, logits)
    given = gate(evidence)
    masses = torch.ones(len(given), 1, dtype=given.dtype)
    masses[list(plan.offer.held.values())] = 0.0
    masses[len(masses) - plan.origins.get("vicinal", 0) :] = step.held_out.last.figures.error_reduction
    weights = given * masses * len(masses) / masses.sum()
    inner = step.loss(step.lesson(plan, logits, weights, evidence))
    grads = torch.autograd.grad(inner, step.parameters, create_graph=True)
    moved = oracles.optimizer_step(step.optimizer, step.parameters, oracles.clip(grads, step.clip_norm))
    names = [name for name, _ in step.student.named_parameters()]
    if engine == "prequential":
        rows, labels = batches[1]
    else:
        query = step.memory.query(adapter.query)
        rows, labels = query.x, query.y
    outer = nn.functional.cross_entropy(oracles.call(step.student, dict(zip(names, moved, strict=True)), rows), labels)
    parameters = list(gate.parameters())
    pull = sum(((p - o) ** 2).sum() for p, o in zip(parameters, adapter.origin, strict=True))
    total = outer + adapter.anchor * pull + adapter.balance * imbalance(given, evidence.heard)
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, parameters)])


def test_a_table_that_is_not_finite_moves_nothing() -> None:
    """A student whose loss is finite and whose slopes are not leaves the gate as it is."""
    gate = toys.scorer()
    adapter = toys.adapter_of(gate, every=1)
    step = ready(adapter, gate)
    before = copy.deepcopy(gate.state_dict())
    x, y = toys.batches(1, seed=6)[0]
    x[0] = torch.nan
    plan = step.begin(x, y, 0)  # `take` would not come as far as the adapter
    step.loss(step.weigh(plan, logits := step.forward(plan))).backward()
    step.clip()
    step.finish(plan, logits)
    assert _equal(before, gate.state_dict())
    assert adapter.adaptations == 0
    assert adapter.faults == {"not_finite": 1}


def test_a_gradient_of_the_gate_that_is_not_finite_moves_nothing() -> None:
    """Tables may be finite and the gate's own slope not: it neither moves nor meets the optimiser's moments."""
    gate = toys.scorer()
    adapter = toys.adapter_of(gate, every=1)
    step = ready(adapter, gate)
    before = copy.deepcopy(gate.state_dict())
    spoil = next(gate.parameters()).register_hook(lambda g: torch.full_like(g, torch.nan))
    toys.train(step, *toys.batches(1, seed=6)[0])
    assert _equal(before, gate.state_dict())
    assert (adapter.adaptations, adapter.faults) == (0, {"not_finite": 1})
    spoil.remove()
    toys.train(step, *toys.batches(1, seed=7)[0])
    assert adapter.adaptations == 1
    assert all(p.isfinite().all() for p in gate.parameters())


class Passing(RuntimeError):
    """A fault of the device that does not come again."""


@pytest.mark.parametrize(
    ("fault", "reason", "adaptations"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "memory", 2),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "memory", 2),
        (Passing("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "forward", 3),
        (NotImplementedError("of a stranger's layer"), "forward", 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_passing_fault_does_not_switch_the_engine(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Exception, reason: str, adaptations: int
) -> None:
    """Without memory the adaptation is left out, after another fault its tables are differences once; said, counted."""
    gate = toys.scorer()
    adapter = toys.adapter_of(gate, every=1)
    step = ready(adapter, gate)
    forward, calls = jacobian.forward, []

    def failing(*arguments: Any) -> jacobian.ForwardMode:
        calls.append(arguments)
        if len(calls) == 1:
            raise fault
        return forward(*arguments)

    monkeypatch.setattr(jacobian, "forward", failing)
    for x, y in toys.batches(3, seed=6):
        toys.train(step, x, y)
    assert len(calls) == 3
    assert (adapter.adaptations, adapter.faults) == (adaptations, {reason: 1})
    assert adapter.engine_in_use == "forward"
    assert str(fault)[:20] in caplog.text


class Doubled(torch.autograd.Function):
    """An operator without forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * g


class SyntheticTeacher(nn.Module):
    """A student's body with that operator."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(toys.FEATURES, 3)

    def forward(self, x: Tensor) -> Tensor:
        return Doubled.apply(self.head(x))


def test_an_operator_without_forward_mode_switches_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """The tables come from differences from then on, also after a restart; the log and the engine in use say it."""
    gate = toys.scorer()
    adapter = toys.adapter_of(gate, every=1)
    step = ready(adapter, gate, student=toys.wrapped(SyntheticTeacher()))
    toys.train(step, *toys.batches(1, seed=6)[0])
    assert adapter.adaptations == 1
    assert adapter.engine_in_use == "finite-difference"
    assert "finite differences from now on: You must implement the jvp function" in caplog.text
    again = toys.adapter_of(toys.scorer(), every=1)
    again.load_state_dict(copy.deepcopy(adapter.state_dict()))
    assert again.engine_in_use == "finite-difference"


def test_a_switch_of_before_is_tried_again() -> None:
    """Older checkpoints do not say why they switched: it may have been a fault that passed."""
    adapter = toys.adapter_of(toys.scorer())
    state = copy.deepcopy(adapter.state_dict())
    del state["lacking"]
    adapter.load_state_dict({**state, "refused": True})
    assert adapter.engine_in_use == "forward"


@pytest.mark.parametrize("settings", [{}, {"engine": "prequential"}, {"horizon": 3}], ids=str)
@pytest.mark.parametrize("kind", [("sgd", {"lr": 0.05, "momentum": 0.9}), ("adam", {"lr": 0.01})], ids=["sgd", "adam"])
def test_state_goes_round_bitwise(settings: dict, kind: Any) -> None:
    """What is restored, through the checkpoint's own tree, adapts to the same bits as what was never stopped."""
    gate = toys.scorer()
    adapter = toys.adapter_of(gate, every=3, on_task_steps=2, **settings)
    step = ready(adapter, gate, optimizer=kind, clip_norm=1.0)
    for x, y in toys.batches(4, seed=12):
        toys.train(step, x, y)
    twin = copy.deepcopy(step)
    twin.adapter = toys.adapter_of(twin.gate, every=3, on_task_steps=2, **settings)
    twin.adapter.attach(twin)
    twin.adapter.load_state_dict(tree.unpack(tree.pack(copy.deepcopy(adapter.state_dict()))))
    for x, y in toys.batches(7, seed=6):
        for one in (step, twin):
            toys.train(one, x, y)
    assert adapter.adaptations > 3
    assert _equal(adapter.state_dict(), twin.adapter.state_dict())
    assert _equal(step.gate.state_dict(), twin.gate.state_dict())


def test_moments_of_a_temperature_are_left_behind() -> None:
    """Older checkpoints may have them behind those of the gate, which are taken."""
    gate = toys.scorer()
    adapter = toys.adapter_of(gate, every=1)
    step = ready(adapter, gate)
    for x, y in toys.batches(3, seed=6):
        toys.train(step, x, y)
    state = copy.deepcopy(adapter.state_dict())
    moment = {"step": torch.tensor(3.0), "exp_avg": torch.tensor(0.1), "exp_avg_sq": torch.tensor(0.1)}
    older = {**state, "optimizer": {**state["optimizer"], str(len(adapter.parameters)): moment}, "temperature": moment}
    restored = toys.adapter_of(toys.scorer(), every=1)
    restored.load_state_dict(older)
    assert _equal(restored.state_dict(), adapter.state_dict())


def test_a_changed_engine_is_taken_after_a_restart() -> None:
    """The engine is the configuration's, not the checkpoint's."""
    old = toys.adapter_of(toys.scorer(), engine="finite-difference")
    new = toys.adapter_of(toys.scorer(), engine="forward")
    new.load_state_dict(copy.deepcopy(old.state_dict()))
    assert new.engine == "forward"


def test_several_inner_steps_are_one_sum() -> None:
    """`horizon` n: the gradient is that of a query after n steps, each with the gate's weights at its own rows."""
    results = []
    for engine, first_order in (("forward", False), ("maml", True), ("maml", False)):
        gate = _opinionated()
        settings = {
            "engine": engine,
            "horizon": 4,
            "first_order": first_order,
            "every": 4,
            "on_task_steps": 0,
            "anchor": 0.0,
        }
        adapter = toys.adapter_of(gate, **settings)
        step = exact(ready(adapter, gate))
        for x, y in toys.batches(4, seed=6):
            toys.train(step, x, y)
        assert adapter.adaptations == 1
        results.append(gradient_of(gate))
    summed, first, second = results
    torch.testing.assert_close(summed, first, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(first, second, rtol=1e-6)
    assert float(torch.cosine_similarity(first, second, dim=0)) > 0.99


@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize("engine", ["auto", "prequential", "maml"])
def test_a_head_that_grows_between_two_steps_is_no_obstacle(engine: Any, horizon: int) -> None:
    """A batch of a class that the steps before it did not know is query for them all the same."""
    gate = toys.scorer()
    adapter = toys.adapter_of(gate, every=1, engine=engine, horizon=horizon)
    step = ready(adapter, gate, optimizer=("sgd", {"lr": 0.05}) if engine == "maml" else ("adam", {"lr": 0.01}))
    for number, (x, y) in enumerate(toys.batches(8, seed=6)):
        if number in (3, 6):
            step.student.grow(step.student.classes + 1, step.optimizer)
            step.pool.grow(range(step.student.classes))
            y[0] = step.student.classes - 1
        toys.train(step, x, y)
    assert adapter.adaptations == 8 - (engine == "prequential")


def test_each_gate_is_adapted_by_its_own_table() -> None:
    """A term with a gate of its own moves that gate, and by the gradient of the outer loss."""
    gates = [_opinionated() for _ in range(2)]
    found = []
    for engine in ("forward", "maml"):
        shared, own = (copy.deepcopy(gate) for gate in gates)
        both = nn.ModuleList([shared, own])
        adapter = toys.adapter_of(both, every=1, engine=engine, anchor=0.0)
        step = ready(adapter, shared)
        other = MatchGate(MatchGateOptions(temperature=1.0))
        step.terms = (Term(step.terms[0].loss, 0.7), Term(other, 0.4, own))
        step._own_gates = True
        adapter.attach(exact(step))
        x, y = toys.batches(1, seed=6)[0]
        toys.train(step, x, y)
        found.append([gradient_of(shared), gradient_of(own)])
    for forward, unrolled in zip(*found, strict=True):
        torch.testing.assert_close(forward, unrolled, rtol=1e-9, atol=1e-14)
    assert float(found[0][1].norm()) > 0


class Shouting:
    """A gated loss of a plugin's kind: the sources' squared distance, no closed form known."""

    layers: tuple[str, ...] = ("body.hidden.0",)
    teacher_layers: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    def __call__(self, lesson: LossInputs) -> Tensor:
        return (lesson.weights * self.per_source(lesson)).sum(1)

    def per_source(self, lesson: LossInputs) -> Tensor:
        hard = lesson.features["body.hidden.0"].pow(2).mean(1, keepdim=True)
        apart = (lesson.logits.unsqueeze(1) - lesson.answers).pow(2).mean(2)
        return torch.cat([hard, apart], 1)


@pytest.mark.parametrize("engine", ["forward", "finite-difference"])
def test_any_gated_loss_has_a_table(engine: Any) -> None:
    """Through ``per_source``, features of the student included, the gate's gradient is that of the unroll."""
    found = []
    for kind in (engine, "maml"):
        gate = _opinionated()
        adapter = toys.adapter_of(gate, every=1, engine=kind, anchor=0.0)
        step = ready(adapter, gate)
        step.terms, step._student_layers = (Term(Shouting(), 1.0),), Shouting.layers
        adapter.attach(exact(step))
        x, y = toys.batches(1, seed=6)[0]
        toys.train(step, x, y)
        found.append(gradient_of(gate))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10 if engine == "forward" else 1e-3, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "clip"),
    [
        (("sgd", {"lr": 0.1, "momentum": 0.9}), None),
        (("sgd", {"lr": 0.1, "weight_decay": 0.1}), None),
        (("adam", {"lr": 0.1}), None),
        (PLAIN, 1.0),
    ],
    ids=["momentum", "decay", "adam", "clipped"],
)
def test_maml_refuses_all_but_plain_sgd(kind: Any, clip: float | None) -> None:
    """At the start, with what it got and the way out."""
    gate = toys.scorer()
    with pytest.raises(ConfigError, match="plain SGD"):
        toys.make_step(gate=gate, adapter=toys.adapter_of(gate, engine="maml"), optimizer=kind, clip_norm=clip)


class Growing(nn.Module):
    """One logit per teacher, more as the pool grows; and it keeps the prices that it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(0))
        self.settled: list[Tensor] = []

    def forward(self, evidence: GateInputs) -> Tensor:
        more = len(evidence.teachers) - len(self.logits)
        if more > 0:
            self.logits.data = torch.cat([self.logits.data, torch.full((more,), 0.1)])
        shares = share(self.logits[: len(evidence.teachers)].expand(len(evidence.labels), -1), evidence.heard)
        return weights_of(torch.full((len(shares),), 0.5), shares, evidence.heard, evidence.labelled)

    def feedback(self, evidence: GateInputs, table: Tensor) -> None:
        self.settled.append(table)


def test_a_gate_that_grows_stays_anchored_where_each_part_began() -> None:
    """New entries of a parameter get an origin and moments of their own, the old ones keep theirs."""
    gate = Growing()
    adapter = toys.adapter_of(gate, every=1)
    step = ready(adapter, gate)
    for x, y in toys.batches(3, seed=6):
        toys.train(step, x, y)
    before = adapter.origin[0].clone()
    step.pool.end_task(step.student)
    for x, y in toys.batches(3, seed=13):
        toys.train(step, x, y, task=1)
    assert len(adapter.origin[0]) == len(gate.logits) == len(before) + 1
    assert torch.equal(adapter.origin[0][:-1], before)
    assert float(adapter.origin[0][-1]) == pytest.approx(0.1)
    assert adapter.optimizer.state[gate.logits]["exp_avg"].shape == gate.logits.shape


def test_a_priced_gate_is_told_each_table() -> None:
    """Once an adaptation, the table of the newest step, whose rows it has weighed."""
    gate = Growing()
    adapter = toys.adapter_of(gate, every=2, on_task_steps=0, horizon=2)
    step = ready(adapter, gate)
    for x, y in toys.batches(4, seed=6):
        toys.train(step, x, y)
    assert len(gate.settled) == adapter.adaptations == 2
    assert gate.settled[0].shape == (14, 3)


def test_rows_without_label_pull_at_teachers_alone() -> None:
    """Their column of the hard label is 0, and the gate adapts on."""
    gate = Growing()
    adapter = toys.adapter_of(gate, every=1)
    step = ready(adapter, gate)
    x, y = toys.batches(1, seed=6)[0]
    y[:5] = -1
    toys.train(step, x, y)
    assert adapter.adaptations == 1
    assert not gate.settled[0][:5, 0].any()
    assert gate.settled[0][5:8, 0].any()


def test_upkeep_is_counted() -> None:
    """Copies for the trajectory, adaptations and the weighing of each step all take time that is told."""
    gate = toys.scorer()
    adapter = toys.adapter_of(gate, every=1)
    step = ready(adapter, gate)
    weighing, seconds = step.weighing_seconds, adapter.seconds
    x, y = toys.batches(1, seed=6)[0]
    toys.train(step, x, y)
    assert step.weighing_seconds > weighing
    assert adapter.seconds > seconds


@pytest.mark.parametrize("engine", ["forward", "maml"])
def test_a_row_that_the_step_counts_less_pulls_less(engine: Any) -> None:
    """Rows from the vicinity enter with their mass, and so they do in the gate's gradient."""
    gate = _opinionated()
    adapter = toys.adapter_of(gate, every=1, engine=engine, anchor=0.0)
    step = ready(adapter, gate)
    toys.vicinal(step, 4)
    toys.spare(step, 0.4)
    adapter.attach(exact(step))
    wanted = _through_everything(copy.deepcopy(step), engine)
    toys.train(step, *toys.batches(1, seed=6)[0])
    assert step.held_out.last.figures.error_reduction == 0.4
    assert float((gradient_of(gate) - wanted).norm() / wanted.norm()) < 1e-8
