"""The hedge: Hedge over policies that one table prices, and what it leaves to the inner gate."""

import copy
import math

import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from streamkd_baselines.hedge import POLICIES, Hedge, HedgeOptions
from streamkd_baselines.shared import PerClassGate, ScalarGate, SharedWeights

from streamkd.gates.gate import GateInputs, Hedging
from streamkd.gates.likelihood import LikelihoodGate, LikelihoodOptions
from streamkd.gates.per_sample import PerSampleGate

seeds = st.integers(0, 10_000)


def hedge(**options: object) -> Hedge:
    """In float64, with an inner gate that has moved away from where it began."""
    gate = Hedge(HedgeOptions(**options)).double()
    with torch.no_grad():
        for number, parameter in enumerate(gate.adapted.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)).double())
    return gate


def seen(seed: int) -> GateInputs:
    return toys.evidence(toys.lesson(seed))


def table_of(seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def policies(gate: Hedge, evidence: GateInputs) -> list[list[list[float]]]:
    """The weights of each policy, uniform and hard-only by hand."""
    uniform, label = [], []
    for heard, row in zip(evidence.heard.tolist(), evidence.labels.tolist(), strict=True):
        assert row >= 0
        count = sum(heard)
        w0 = max(gate.floor, 1 / (1 + count)) if count else 1.0
        uniform.append([w0, *((1 - w0) / count if h else 0.0 for h in heard)])
        label.append([1.0, *(0.0 for _ in heard)])
    likelihood = LikelihoodGate(LikelihoodOptions(floor=gate.floor))
    learned = [g(evidence).tolist() for g in (gate.adapted, gate.frozen, likelihood)]
    return [*learned, uniform, label]


def fixed_share(gate: Hedge, lessons: list[tuple[GateInputs, torch.Tensor]]) -> list[float]:
    """Fixed share by its definition, one policy at a time."""
    count = len(POLICIES)
    posterior, spread = [1 / count] * count, 0.0
    for number, (evidence, table) in enumerate(lessons, start=1):
        prices = [
            sum(a * w for r, s in zip(table.tolist(), weights, strict=True) for a, w in zip(r, s, strict=True)) / 5
            for weights in policies(gate, evidence)
        ]
        mean = sum(prices) / count
        step = max(1 - gate.memory, 1 / number)
        spread += step * (sum((p - mean) ** 2 for p in prices) / count - spread)
        grown = [q * math.exp(-gate.rate * p / math.sqrt(spread)) for q, p in zip(posterior, prices, strict=True)]
        posterior = [(1 - gate.share) * q / sum(grown) + gate.share / count for q in grown]
    return posterior


@given(seeds)
def test_the_posterior_is_fixed_share_hedge_on_prices(seed: int) -> None:
    """π ← (1 - α)·π·exp(-rate·price/scale)/Z + α/P with price = Σ A·w / batch, scale the running root mean square."""
    gate = hedge(rate=0.7, share=0.05, memory=0.8)
    lessons = [(seen(seed + k), table_of(seed + k)) for k in range(7)]
    for evidence, table in lessons:
        gate.feedback(evidence, table)
    torch.testing.assert_close(gate.posterior.tolist(), fixed_share(gate, lessons), rtol=1e-7, atol=1e-9)


@given(seeds)
def test_weights_are_the_policies_mixed_by_the_posterior(seed: int) -> None:
    """Σ_p π_p·w^p."""
    gate, evidence = hedge(), seen(seed)
    gate.posterior.copy_(torch.softmax(torch.randn(5, generator=torch.Generator().manual_seed(seed)), 0))
    every = torch.tensor(policies(gate, evidence), dtype=torch.float64)
    torch.testing.assert_close(gate(evidence), (gate.posterior.view(-1, 1, 1) * every).sum(0), rtol=1e-7, atol=1e-9)


def test_the_unit_of_prices_does_not_matter() -> None:
    """Tables a million times larger lead to the same posterior."""
    one, other = hedge(), hedge()
    for k in range(10):
        one.feedback(seen(k), table_of(k))
        other.feedback(seen(k), table_of(k, scale=1e6))
    torch.testing.assert_close(one.posterior, other.posterior)


@pytest.mark.parametrize("best", range(5), ids=POLICIES)
def test_the_posterior_goes_to_the_policy_that_is_cheapest(best: int) -> None:
    """And, when another becomes the cheapest, to that one: no policy falls below its share."""
    gate = hedge()
    evidence = seen(1)
    every = torch.tensor(policies(gate, evidence), dtype=torch.float64)
    for winner in (best, (best + 1) % 5):
        mean = every.mean(0)
        # along this table no weights cost as little as the winner's, for it is its own distance from the mean
        table = -(every[winner] - mean) + 0.0
        cheapest = int((table * every).sum((1, 2)).argmin())
        for _ in range(400):
            gate.feedback(evidence, table)
        assert int(gate.posterior.argmax()) == cheapest
        assert float(gate.posterior.max()) > 0.4
        assert float(gate.posterior.min()) >= gate.share / len(POLICIES) - 1e-9


def test_the_inner_gate_learns_as_if_it_ruled() -> None:
    """The gradient is the adapted policy's own, whatever its place in the posterior; no other part has one."""
    gate, evidence, table = hedge(), seen(3), table_of(3)
    gate.posterior.copy_(torch.tensor([0.004, 0.004, 0.004, 0.004, 0.984]))
    (gate(evidence) * table).sum().backward()
    alone = copy.deepcopy(gate.adapted)
    alone.zero_grad()
    (alone(evidence) * table).sum().backward()
    for mine, theirs in zip(gate.adapted.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    assert not any(p.requires_grad for p in gate.frozen.parameters())


def test_the_frozen_policy_is_the_inner_gate_as_it_began() -> None:
    """Adapting moves the one, not the other; ``freeze`` lets the other follow."""
    gate, evidence = Hedge(HedgeOptions()).double(), seen(2)
    assert torch.equal(gate.adapted(evidence), gate.frozen(evidence))
    began = gate.frozen(evidence)
    with torch.no_grad():
        for parameter in gate.adapted.parameters():
            parameter.add_(0.5)
    assert torch.equal(gate.frozen(evidence), began)
    gate.freeze()
    assert torch.equal(gate.frozen(evidence), gate.adapted(evidence))
    assert not any(p.requires_grad for p in gate.frozen.parameters())


@pytest.mark.parametrize("name", ["per-sample", "per-class", "scalar"])
def test_a_stream_begins_with_the_gate_that_was_learned(name: str) -> None:
    """Both inner gates are what the adapted one had become, and no policy has been priced."""
    gate, evidence = hedge(gate={"name": name}), seen(2)
    for k in range(5):
        gate.feedback(seen(k), table_of(k))
    gate(evidence)
    with torch.no_grad():
        for parameter in gate.adapted.parameters():
            parameter.add_(torch.arange(parameter.numel()).view_as(parameter) / 10)
    alone = copy.deepcopy(gate.adapted)
    if isinstance(alone, SharedWeights):
        alone.begin_stream(evidence.teachers)
    gate.begin_stream(evidence.teachers)
    assert torch.equal(gate.frozen(evidence), alone(evidence))
    assert torch.equal(gate.adapted(evidence), alone(evidence))
    assert gate.odds() == pytest.approx(dict.fromkeys(POLICIES, 0.2))
    assert (float(gate.spread), int(gate.settled)) == (0.0, 0)
    assert not any(p.requires_grad for p in gate.frozen.parameters())


def test_a_table_of_zeros_moves_nothing() -> None:
    """Where no source asks anything, nothing was measured: the prices' spread stays as well."""
    gate = hedge()
    gate.feedback(seen(0), table_of(0))
    before = {name: value.clone() for name, value in gate.state_dict().items()}
    gate.feedback(seen(1), torch.zeros_like(table_of(1)))
    assert all(torch.equal(before[name], value) for name, value in gate.state_dict().items())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_table_that_is_not_finite_moves_nothing(bad: float) -> None:
    """Posterior and scale stay as they are."""
    gate = hedge()
    gate.feedback(seen(1), table_of(1))
    before = copy.deepcopy(gate.state_dict())
    gate.feedback(seen(2), table_of(2).index_fill(0, torch.tensor([0]), bad))
    assert torch.equal(before["posterior"], gate.posterior)
    assert torch.equal(before["spread"], gate.spread)


def test_equal_prices_move_nothing() -> None:
    """A table of zeros, or a pool without teachers, leaves the posterior even."""
    gate = hedge()
    gate.feedback(seen(1), torch.zeros(5, 4, dtype=torch.float64))
    torch.testing.assert_close(gate.posterior, torch.full((5,), 0.2, dtype=torch.float64))
    gate.feedback(toys.evidence(toys.lesson(1, teachers=0)), table_of(1)[:, :1])
    torch.testing.assert_close(gate.posterior, torch.full((5,), 0.2, dtype=torch.float64))


@pytest.mark.parametrize("name", ["per-sample", "per-class", "scalar"])
def test_the_adapter_settles_it_and_a_restart_changes_no_bit(name: str) -> None:
    """In a real step each adaptation prices the policies; put back, hedge and adapter go on in the same bits."""
    gate = Hedge(HedgeOptions(gate={"name": name}))
    step = toys.make_step(gate=gate, adapter=toys.adapter_of(gate, every=1))
    for number, (x, y) in enumerate(toys.batches(16)):
        if number % 8 == 7:
            step.pool.end_task(step.student)
        toys.train(step, x, y)
    assert int(gate.settled) == step.adapter.adaptations > 10
    assert sum(gate.odds().values()) == pytest.approx(1)
    assert len(set(gate.odds().values())) > 1
    twin, fresh = copy.deepcopy(step), Hedge(HedgeOptions(gate={"name": name}))
    twin.gate, twin.adapter = fresh, toys.adapter_of(fresh, every=1)
    twin.adapter.attach(twin)
    fresh.load_state_dict(copy.deepcopy(gate.state_dict()))
    twin.adapter.load_state_dict(copy.deepcopy(step.adapter.state_dict()))
    for x, y in toys.batches(6, seed=1):
        assert torch.equal(toys.train(step, x, y), toys.train(twin, x, y))
    assert torch.equal(gate.posterior, fresh.posterior)


def test_its_inner_gate_is_the_one_that_the_options_name() -> None:
    """With its own options, and the hedge's floor where it says none."""
    assert isinstance(Hedge(HedgeOptions(gate={"name": "scalar"})).adapted, ScalarGate)
    assert isinstance(Hedge(HedgeOptions(gate={"name": "per-class"})).adapted, PerClassGate)
    inner = Hedge(HedgeOptions(floor=0.2, gate={"name": "per-sample", "trust": 3.0})).adapted
    assert isinstance(inner, PerSampleGate)
    assert (inner.options.floor, inner.options.trust) == (0.2, 3.0)


@pytest.mark.parametrize(
    "gate", [{"name": "fixed"}, {}, {"name": "scalar", "surprise": 1}, {"name": "scalar", "floor": 2}]
)
def test_an_inner_gate_that_cannot_be_is_refused(gate: dict) -> None:
    """One that learns nothing, none, options that it does not have: said when the configuration is read."""
    with pytest.raises(ValidationError):
        HedgeOptions(gate=gate)


def test_it_is_priced_and_others_are_not() -> None:
    """The adapter knows by the protocol whom to tell of prices."""
    assert isinstance(Hedge(HedgeOptions()), Hedging)
    assert not isinstance(toys.scorer(), Hedging)
