"""SharedWeights: one learned number per source, or per source and class, through growth and restarts."""

import copy
import dataclasses
from typing import Any

import oracles
import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st
from streamkd_baselines.hedge import Hedge, HedgeOptions
from streamkd_baselines.shared import PerClassGate, ScalarGate, SharedOptions, SharedWeights

from streamkd.gates.gate import GateInputs
from streamkd.replay.vicinal import VicinalRows
from streamkd.students import optimizers

seeds = st.integers(0, 10_000)
kinds = pytest.mark.parametrize("kind", [ScalarGate, PerClassGate], ids=["scalar", "per-class"])


def gate_of(kind: type[Any], teachers: int = 3, classes: int = 4, floor: float = 0.3, seed: int = 0) -> SharedWeights:
    """A gate that has learned something of so many teachers and classes."""
    gate = kind(SharedOptions(floor=floor)).double()
    gate.names = [f"t{k}" for k in range(teachers)]
    columns = classes if gate.by_class else 1
    g = torch.Generator().manual_seed(seed)
    gate.table.data = torch.randn(1 + teachers, columns, generator=g, dtype=torch.float64)
    return gate


def seen(seed: int, teachers: int = 3, classes: int = 4) -> GateInputs:
    return toys.evidence(toys.lesson(seed, teachers=teachers, classes=classes))


def softmax_over_sources(gate: SharedWeights, evidence: GateInputs) -> list[list[float]]:
    """w_0 = floor + (1 - floor)·σ_0 of the hard label and the teachers heard, who share the rest by σ."""
    rows = []
    for i, label in enumerate(evidence.labels.tolist()):
        column = label if gate.by_class else 0
        a = gate.table.detach()[:, column].tolist()
        sigma = oracles.softmax(a, [True, *evidence.heard[i].tolist()])
        w0 = gate.floor + (1 - gate.floor) * sigma[0] if evidence.heard[i].any() else 1.0
        theirs = sum(sigma[1:])
        rows.append([w0, *((1 - w0) * s / theirs if theirs else 0.0 for s in sigma[1:])])
    return rows


@kinds
@given(seeds, st.sampled_from([0.0, 0.3, 1.0]))
def test_sources_weigh_by_the_softmax_of_their_numbers(kind: type[Any], seed: int, floor: float) -> None:
    """Over the hard label and the teachers heard, squeezed above the floor."""
    evidence, gate = seen(seed), gate_of(kind, floor=floor, seed=seed)
    wanted = torch.tensor(softmax_over_sources(gate, evidence), dtype=torch.float64)
    torch.testing.assert_close(gate(evidence), wanted, rtol=1e-9, atol=1e-9)


@kinds
def test_at_first_every_source_is_alike(kind: type[Any]) -> None:
    """Zero for all: 1 / (1 + teachers) each, above a floor of 0."""
    parts = toys.lesson(0)
    parts["known"][:] = parts["heard"][:] = True
    weights = kind(SharedOptions(floor=0.0)).double()(toys.evidence(parts))
    torch.testing.assert_close(weights, torch.full((5, 4), 0.25, dtype=torch.float64))


@kinds
def test_the_gradient_is_the_derivative(kind: type[Any]) -> None:
    """Of every weight, by every number."""
    gate, evidence = gate_of(kind), seen(2)

    def weights(table: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(gate, {"table": table}, (evidence,))

    assert torch.autograd.gradcheck(weights, (gate.table.detach().clone().requires_grad_(),))


@kinds
def test_a_new_teacher_begins_at_the_mean_of_the_others(kind: type[Any]) -> None:
    """The others keep their numbers."""
    gate = gate_of(kind, teachers=2)
    before = gate.table.detach().clone()
    gate(seen(1, teachers=4))
    assert gate.names == ["t0", "t1", "t2", "t3"]
    assert torch.equal(gate.table[:3], before)
    for row in (3, 4):
        torch.testing.assert_close(gate.table[row], before[1:].mean(0))


def test_a_new_class_begins_at_each_sources_mean() -> None:
    """The classes so far keep their numbers."""
    gate = gate_of(PerClassGate, classes=2)
    before = gate.table.detach().clone()
    gate(seen(1, classes=4))
    assert torch.equal(gate.table[:, :2], before)
    torch.testing.assert_close(gate.table[:, 2:], before.mean(1, keepdim=True).expand(-1, 2))


@kinds
def test_a_row_goes_from_who_left_to_who_comes(kind: type[Any]) -> None:
    """However many teachers pass through the pool, there are never more rows than were there at once."""
    gate, evidence = gate_of(kind), seen(1)
    before = gate.table.detach().clone()
    for number in range(10):
        names = ("t0", f"snapshot-{number}", "t2")
        gate(dataclasses.replace(evidence, teachers=names))
        assert gate.table.shape[0] == 4
    assert gate.names == ["t0", "snapshot-9", "t2"]
    assert torch.equal(gate.table[[0, 1, 3]], before[[0, 1, 3]])


@kinds
def test_a_gate_that_has_grown_goes_round_bitwise(kind: type[Any]) -> None:
    """A fresh gate takes a table of any size, with the names of its rows."""
    gate, other = gate_of(kind, teachers=5), kind(SharedOptions()).double()
    other.load_state_dict(copy.deepcopy(gate.state_dict()))
    assert torch.equal(other(seen(3, teachers=4)), gate(seen(3, teachers=4)))
    assert other.names == gate.names


def grown(step: Any, number: int) -> None:
    """What happens around a step: tasks end, and a class comes."""
    if number % 8 == 7:
        step.pool.end_task(step.student)
    if number == 12:
        step.student.grow(4, step.optimizer)
        step.pool.grow([0, 1, 2, 3])


@kinds
def test_the_adapter_follows_a_gate_that_grows(kind: type[Any]) -> None:
    """Snapshots come and classes too, while the numbers are adapted at every step."""
    gate = kind(SharedOptions())
    adapter = toys.adapter_of(gate, every=1)
    step = toys.make_step(gate=gate, adapter=adapter)
    for number, (x, y) in enumerate(toys.batches(24)):
        grown(step, number)
        assert toys.train(step, x, y).isfinite()
    assert len(gate.names) >= 4
    assert gate.table.shape[1] == (4 if gate.by_class else 1)
    assert adapter.adaptations > 20


class Several:
    """Gates to adapt over several steps: by what a step is weighed with, the step's own or that of its one term."""

    @staticmethod
    def per_class() -> torch.nn.Module:
        return PerClassGate(SharedOptions())

    @staticmethod
    def hedge() -> torch.nn.Module:
        return Hedge(HedgeOptions(gate={"name": "per-class"}))


@pytest.mark.parametrize("own", [False, True], ids=["of-the-step", "of-a-term"])
@pytest.mark.parametrize("make", [Several.per_class, Several.hedge], ids=["per-class", "hedge"])
@pytest.mark.parametrize("engine", ["auto", "prequential", "maml"])
def test_steps_from_before_a_class_came_are_looked_at(engine: Any, make: Any, own: bool) -> None:
    """Over three steps, rows without label among them, while the label space grows in between."""
    gate = make()
    adapter = toys.adapter_of(gate, every=1, horizon=3, engine=engine)
    step = toys.make_step(gate=None if own else gate, adapter=adapter)
    if own:
        step.terms = (dataclasses.replace(step.terms[0], gate=gate),)
        step._own_gates = True
    step.vicinal = VicinalRows(4, 0, seed=0, weight=1.0)
    for number, (x, y) in enumerate(toys.batches(20)):
        grown(step, number)
        y[::4] = -1
        assert toys.train(step, x, y).isfinite()
    assert adapter.adaptations > 14
    [table] = adapter.parameters
    assert table.shape[1] == 4
    assert table.isfinite().all()
    assert all(part.training for part in gate.modules())


@given(seeds)
def test_evidence_of_fewer_classes_is_read_in_their_columns(seed: int) -> None:
    """A wider table weighs it as the table of its classes alone would, with label and without."""
    evidence = seen(seed, classes=3)
    labels = evidence.labels.clone()
    labels[::2] = -1
    evidence = dataclasses.replace(evidence, labels=labels, heard=evidence.known.any(2))
    wide, narrow = gate_of(PerClassGate, classes=5), gate_of(PerClassGate, classes=5)
    narrow.table.data = narrow.table.data[:, :3]
    assert torch.equal(wide(evidence), narrow(evidence))
    assert wide.table.shape == (4, 5)


@kinds
def test_looking_back_takes_no_row(kind: type[Any]) -> None:
    """In evaluation mode a teacher that has lost its row stands at the others' mean, and whoever has it keeps it."""
    gate, evidence = gate_of(kind), seen(1)
    evidence = dataclasses.replace(evidence, heard=torch.ones_like(evidence.heard))
    gate(dataclasses.replace(evidence, teachers=("t0", "new", "t2")))
    with torch.no_grad():
        gate.table[2] = 5.0
    before, names = gate.table.detach().clone(), list(gate.names)
    weights = gate.eval()(evidence)
    assert torch.equal(gate.table, before)
    assert gate.names == names == ["t0", "new", "t2"]
    gate.table.data[2] = (before[1] + before[3]) / 2
    gate.names[1] = "t1"
    torch.testing.assert_close(weights, gate(evidence))


@kinds
def test_a_horizon_leaves_a_newcomer_its_number(kind: type[Any]) -> None:
    """An adaptation over steps that knew a snapshot which has left takes no row from the one that came in its place."""
    gate = kind(SharedOptions())
    step = toys.make_step(gate=gate, adapter=toys.adapter_of(gate, every=1, horizon=3), limit=3, snapshots=1)
    for number, (x, y) in enumerate(toys.batches(40)):
        if number % 8 == 7:
            for snapshot in step.pool._mine():
                step.pool._drop(snapshot)
            step.pool.end_task(step.student)
        toys.train(step, x, y)
        if number % 8 == 7 and number > 8:
            row = 1 + gate.names.index(step.pool.keys[-1])
            gate.table.data[row] = 3.0
        elif number % 8 == 1 and number > 16:
            assert gate.names[row - 1] == step.pool.keys[-1] == f"snapshot-{number // 8 - 1}"
            assert float((gate.table.detach()[row] - 3).abs().max()) < 0.3


@kinds
def test_a_stream_begins_with_what_holds_for_it(kind: type[Any]) -> None:
    """The mean over the classes of the hard label and of the teachers that it has; every class begins there."""
    gate = gate_of(kind, teachers=4)
    before = gate.table.detach().clone()
    gate.begin_stream(["t0", "t3", "elsewhere"])
    assert gate.names == ["t0", "t3"]
    torch.testing.assert_close(gate.table.detach(), before[[0, 1, 4]].mean(1, keepdim=True))
    gate.begin_stream(["t0", "t3"])
    began = gate.table.detach().clone()
    gate(dataclasses.replace(seen(1, teachers=2, classes=5), teachers=("t0", "t3")))
    torch.testing.assert_close(gate.table.detach(), began.expand(-1, 5 if gate.by_class else 1))


@kinds
def test_a_restart_after_growth_changes_no_bit(kind: type[Any]) -> None:
    """Gate and adapter put back into fresh ones go on as if nothing had been."""
    gate = kind(SharedOptions())
    step = toys.make_step(gate=gate, adapter=toys.adapter_of(gate, every=1))
    for number, (x, y) in enumerate(toys.batches(16)):
        grown(step, number)
        toys.train(step, x, y)
    twin, fresh = copy.deepcopy(step), kind(SharedOptions())
    twin.gate, twin.adapter = fresh, toys.adapter_of(fresh, every=1)
    fresh.load_state_dict(copy.deepcopy(gate.state_dict()))
    twin.adapter.attach(twin)
    twin.adapter.load_state_dict(copy.deepcopy(step.adapter.state_dict()))
    for number, (x, y) in enumerate(toys.batches(8, seed=1), start=16):
        for each in (step, twin):
            grown(each, number)
        assert torch.equal(toys.train(step, x, y), toys.train(twin, x, y))
    assert torch.equal(gate.table, fresh.table)


def test_moments_and_origin_follow_in_place_growth() -> None:
    """Moments are padded with 0, the origin with what the new part holds now; the old parts stay."""
    parameter = torch.nn.Parameter(torch.ones(2, 1))
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    parameter.sum().backward()
    optimizer.step()
    moments = {k: v.clone() for k, v in optimizer.state[parameter].items()}
    parameter.data = torch.full((3, 2), 7.0)
    parameter.grad = None
    [origin] = optimizers.follow(optimizer, [parameter], [torch.ones(2, 1)])
    assert torch.equal(origin, torch.tensor([[1.0, 7], [1, 7], [7, 7]]))
    for name in ("exp_avg", "exp_avg_sq"):
        grown = optimizer.state[parameter][name]
        assert torch.equal(grown[:2, :1], moments[name])
        assert float(grown.sum()) == pytest.approx(float(moments[name].sum()))
    parameter.sum().backward()
    optimizer.step()


@kinds
def test_numbers_move_from_a_bad_teacher_to_a_good_one(kind: type[Any]) -> None:
    """A table that says who costs the outer loss lowers their number, and nothing else needs to be known."""
    gate, evidence = gate_of(kind, floor=0.0), seen(4)
    optimizer = torch.optim.SGD(gate.parameters(), lr=1.0)
    price = torch.tensor([0.0, 1.0, -1.0, 0.0], dtype=torch.float64)
    before = gate(evidence)
    for _ in range(50):
        optimizer.zero_grad()
        (gate(evidence) * price).sum().backward()
        optimizer.step()
    after, both = gate(evidence), evidence.heard[:, 0] & evidence.heard[:, 1]
    assert both.any()
    assert (after[both, 1] < before[both, 1]).all()
    assert (after[both, 2] > before[both, 2]).all()
