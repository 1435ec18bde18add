"""Gates: rows that sum to 1 over any pool, the hard-label floor, and the prior that the scorer starts from."""

import dataclasses
import math

import oracles
import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from streamkd_baselines.confidence import ConfidenceGate, ConfidenceOptions
from streamkd_baselines.hedge import Hedge, HedgeOptions
from streamkd_baselines.shared import PerClassGate, ScalarGate, SharedOptions, SharedWeights

from streamkd.gates.gate import FixedGate, FixedOptions, Gate, GateInputs, Measured, at_labels, imbalance
from streamkd.gates.likelihood import LikelihoodGate, LikelihoodOptions
from streamkd.gates.per_sample import PerSampleGate, belief
from streamkd.gates.prior import GatePrior

seeds = st.integers(0, 10_000)


def learned(**options: float) -> PerSampleGate:
    """A scorer that is no longer at its prior."""
    gate = toys.scorer(**options)
    with torch.no_grad():
        for number, parameter in enumerate(gate.parameters()):
            g = torch.Generator().manual_seed(number)
            parameter.copy_(torch.randn(parameter.shape, generator=g))
    return gate


def stood(gate: SharedWeights) -> SharedWeights:
    """A gate whose sources no longer stand alike."""
    gate.names = [f"t{k}" for k in range(7)]
    gate.table.data = torch.randn(8, 4 if gate.by_class else 1, generator=torch.Generator().manual_seed(1))
    return gate


def hedge() -> Hedge:
    """A hedge that has learned, and prefers some policies."""
    gate = Hedge(HedgeOptions(floor=0.4))
    gate.adapted.load_state_dict(learned(floor=0.4).state_dict())
    gate.posterior.copy_(torch.tensor([0.4, 0.1, 0.2, 0.2, 0.1]))
    return gate


def gates() -> list[Gate]:
    """Every gate, built in or of streamkd-baselines, with 0.4 as the least weight of the hard label."""
    return [
        FixedGate(FixedOptions(hard=0.4, teachers={"t1": 3.0})),
        toys.scorer(floor=0.4),
        learned(floor=0.4),
        LikelihoodGate(LikelihoodOptions(floor=0.4)),
        ConfidenceGate(ConfidenceOptions(hard=0.4)),
        stood(ScalarGate(SharedOptions(floor=0.4))),
        stood(PerClassGate(SharedOptions(floor=0.4))),
        hedge(),
    ]


def seen(seed: int, teachers: int = 3, batch: int = 5) -> tuple[dict, GateInputs]:
    parts = toys.lesson(seed, teachers=teachers, batch=batch, dtype=torch.float32)
    return parts, toys.evidence(parts)


@given(seeds, st.integers(0, 6))
def test_rows_sum_to_one_above_the_floor(seed: int, teachers: int) -> None:
    """For any number of teachers, none included, each row sums to 1 and its hard label has at least the floor."""
    _, evidence = seen(seed, teachers)
    for gate in gates():
        weights = gate(evidence)
        assert weights.shape == (5, 1 + teachers)
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(1), torch.ones(5))
        assert (weights[:, 0] >= 0.4 - 1e-6).all()


@given(seeds)
def test_a_teacher_that_is_not_heard_has_no_weight(seed: int) -> None:
    """Weight is 0 where a teacher does not know the label; where nobody does, the label has it all."""
    parts, evidence = seen(seed)
    for gate in gates():
        weights = gate(evidence)
        assert (weights[:, 1:][~parts["heard"]] == 0).all()
        alone = weights[:, 0][~parts["heard"].any(1)]
        torch.testing.assert_close(alone, torch.ones_like(alone))  # a mixture of policies sums to 1 up to rounding


@given(seeds)
def test_permuting_the_teachers_permutes_their_weights(seed: int) -> None:
    """A gate knows no positions."""
    parts, evidence = seen(seed)
    order = torch.randperm(3, generator=torch.Generator().manual_seed(seed))
    turned = {**parts, **{k: parts[k][:, order] for k in ("answers", "known", "heard")}}
    moved = toys.evidence(turned, evidence.facts[order])
    names = tuple(f"t{k}" for k in order.tolist())
    moved = dataclasses.replace(moved, teachers=names, measure=lambda: Measured(evidence.credit[order]))
    for gate in gates():
        weights = gate(evidence)
        torch.testing.assert_close(gate(moved)[:, 1:], weights[:, 1:][:, order], rtol=1e-4, atol=1e-6)


@given(seeds)
def test_a_batch_is_the_concatenation_of_its_parts(seed: int) -> None:
    """A sample's weights do not depend on its neighbours."""
    parts, evidence = seen(seed)
    for gate in gates():
        rows = [gate(toys.evidence({k: v[i : i + 1] for k, v in parts.items()}, evidence.facts)) for i in range(5)]
        torch.testing.assert_close(gate(evidence), torch.cat(rows), rtol=1e-4, atol=1e-6)


@given(seeds)
def test_a_teacher_that_is_never_heard_changes_nothing(seed: int) -> None:
    """The scorer survives the pool's growth: an unheard newcomer leaves the others' weights as they are."""
    parts, evidence = seen(seed, 4)
    parts["heard"][:, 3] = parts["known"][:, 3] = False
    fewer = {**parts, **{k: parts[k][:, :3] for k in ("answers", "known", "heard")}}
    for gate in gates():
        torch.testing.assert_close(gate(toys.evidence(parts))[:, :4], gate(toys.evidence(fewer, evidence.facts[:3])))


@given(
    seeds,
    st.sampled_from([0.0, 0.6]),
    st.sampled_from([0.2, 0.5]),
    st.sampled_from([0.5, 2.0]),
    st.sampled_from([0.0, 0.6]),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from([0.0, 0.12, 0.4]),
)
def test_the_scorer_begins_at_the_documented_prior(
    seed: int, floor: float, hard: float, trust: float, slip: float, credit: float, noise: float
) -> None:
    """Shares by the label, drawn to chance, by held-out credit and by what teachers were worth on the newest records,
    stale ones less; a fixed weight for the label, more under doubt, and less the more often it was met where labels are
    wrong.
    """
    parts = toys.lesson(seed)
    gate = toys.scorer(floor=floor, hard=hard, trust=trust, slip=slip, credit=credit).double()
    evidence = toys.evidence(parts)
    measured = Measured(evidence.credit, noise)
    evidence = dataclasses.replace(
        evidence,
        measure=lambda: measured,
        met=torch.tensor([0, 1, 30, 60, 400]),
        stale=torch.arange(evidence.heard.shape[1]) > 0,
        present=3 * torch.rand(evidence.heard.shape[1], generator=torch.Generator().manual_seed(seed)).double() + 1e-3,
    )
    wanted = torch.tensor(oracles.gate_prior(evidence, gate.options), dtype=torch.float64)
    torch.testing.assert_close(gate(evidence), wanted, rtol=1e-9, atol=1e-9)


def test_belief_falls_with_the_label_noise_and_never_to_nothing() -> None:
    """Of labels known by heart: whole up to 0.05, a half at 0.175, and 0.04 from 0.29 on."""
    noise, met = (0.0, 0.05, 0.175, 0.29, 0.9), torch.full((1,), 200.0)
    assert [belief(part, met, GatePrior()).item() for part in noise] == pytest.approx([1.0, 1.0, 0.5, 0.04, 0.04])


def test_labels_that_were_met_a_few_times_are_needed_more() -> None:
    """Under noise a new label counts whole, one met thirty times half as much, one met sixty times next to nothing."""
    met = torch.tensor([0.0, 30.0, 60.0, 1000.0])
    assert belief(0.4, met, GatePrior()).tolist() == pytest.approx([1.0, 0.52, 0.04, 0.04])
    assert belief(0.0, met, GatePrior()).tolist() == [1.0] * 4


def test_stale_answers_together_count_a_quarter_of_one_that_is_given_now() -> None:
    """However many snapshots a pool keeps, alike as they are, the average has four fifths."""
    for count in (2, 6):
        parts = toys.lesson(6, teachers=count)
        parts["known"][:] = parts["heard"][:] = True
        parts["answers"][:] = parts["answers"][:, :1].clone()
        credit = torch.full((count, parts["logits"].shape[1]), -0.5, dtype=torch.float64)
        evidence = dataclasses.replace(
            toys.evidence(parts), measure=lambda c=credit: Measured(c), stale=torch.arange(count) > 0
        )
        weights = toys.scorer().double()(evidence)
        torch.testing.assert_close(weights[:, 1] / weights[:, 1:].sum(1), torch.full((5,), 0.8, dtype=torch.float64))


def test_wrong_labels_are_believed_less_where_they_are_met_again() -> None:
    """Under noise the label of a row met often loses most of its weight, that of a new one keeps its own."""
    parts = toys.lesson(4)
    parts["known"][:] = parts["heard"][:] = True
    credit = torch.full((parts["answers"].shape[1], parts["logits"].shape[1]), -0.2, dtype=torch.float64)
    plain = dataclasses.replace(toys.evidence(parts), measure=lambda: Measured(credit))
    noisy = dataclasses.replace(plain, measure=lambda: Measured(credit, 0.3), met=torch.tensor([0, 0, 60, 60, 100]))
    gate = toys.scorer().double()
    before, after = gate(plain)[:, 0], gate(noisy)[:, 0]
    torch.testing.assert_close(after[:2], before[:2])
    assert (after[2:] < 0.2 * before[2:]).all()


def test_where_the_teachers_know_little_the_label_counts_for_more() -> None:
    """A pool that gives the labels of a class a tenth leaves nine tenths to them; one that knows them leaves half."""
    parts = toys.lesson(4)
    parts["known"][:] = parts["heard"][:] = True
    classes = parts["logits"].shape[1]
    for known, wanted in ((0.01, 0.98), (0.1, 0.9), (0.3, 0.7), (0.5, 0.5), (0.9, 0.5)):
        credit = torch.full((parts["answers"].shape[1], classes), math.log(known), dtype=torch.float64)
        evidence = dataclasses.replace(toys.evidence(parts), measure=lambda c=credit: Measured(c))
        weights = toys.scorer().double()(evidence)
        torch.testing.assert_close(weights[:, 0], torch.full((5,), wanted, dtype=torch.float64))


def test_a_gate_gives_no_gradient_to_the_student() -> None:
    """The inputs carry no graph, and a gate's gradients end at its own parameters."""
    step = toys.make_step(gate=learned())
    x, y = toys.batches(1)[0]
    plan = step.begin(x, y, 0)
    evidence = step.evidence(plan, step.forward(plan))
    assert not evidence.logits.requires_grad
    learned()(evidence)[:, 0].sum().backward()
    assert all(p.grad is None for p in step.student.parameters())


@given(seeds)
def test_gradients_are_finite_where_no_teacher_is_heard(seed: int) -> None:
    """Rows without a teacher do not poison the gate's gradient."""
    parts, _ = seen(seed)
    parts["heard"][:2] = parts["known"][:2] = False
    gate = learned()
    (gate(toys.evidence(parts)) * torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))).sum().backward()
    assert all(p.grad.isfinite().all() for p in gate.parameters())


@pytest.mark.parametrize("value", [1e4, -1e4, 6e4])
def test_extreme_answers_give_finite_weights(value: float) -> None:
    """Logits as large as float16 holds leave weights that sum to 1."""
    parts, _ = seen(1)
    parts["answers"] = value * parts["answers"].sign()
    parts["logits"] = -value * parts["logits"].sign()
    for gate in gates():
        torch.testing.assert_close(gate(toys.evidence(parts)).sum(1), torch.ones(5))


def test_the_scorer_listens_to_the_better_teacher() -> None:
    """Before anything is learned, who gives the label more probability has more weight; without slip by far."""
    parts, _ = seen(2, teachers=2)
    parts["known"][:] = parts["heard"][:] = True
    right = torch.nn.functional.one_hot(parts["labels"], 4).float()
    parts["answers"] = torch.stack([5 * right, -5 * right], 1)
    evidence = dataclasses.replace(toys.evidence(parts), measure=None)
    for slip, times in ((0.0, 400), (0.6, 3)):
        weights = toys.scorer(slip=slip)(evidence)
        assert (weights[:, 1] > times * weights[:, 2]).all()


def test_fixed_weights_are_those_of_the_configuration() -> None:
    """Teachers share what the hard label leaves, by their relative weights among those heard."""
    parts, _ = seen(3, teachers=2)
    parts["heard"] = torch.tensor([[True, True], [True, False], [False, True], [False, False], [True, True]])
    weights = FixedGate(FixedOptions(hard=0.2, teachers={"t0": 3.0}))(toys.evidence(parts))
    wanted = torch.tensor([[0.2, 0.6, 0.2], [0.2, 0.8, 0], [0.2, 0, 0.8], [1, 0, 0], [0.2, 0.6, 0.2]])
    torch.testing.assert_close(weights, wanted)


def test_a_fixed_weight_of_zero_for_all_leaves_the_label() -> None:
    """Teachers that the configuration silences leave everything to the hard label."""
    parts, _ = seen(3, teachers=1)
    weights = FixedGate(FixedOptions(hard=0.2, teachers={"t0": 0.0}))(toys.evidence(parts))
    assert (weights[:, 0] == 1).all()


def test_teachers_that_are_not_named_have_the_weight_of_others() -> None:
    """``others: 0`` hears only those that are named, whoever joins the pool later."""
    parts, _ = seen(3, teachers=3)
    parts["heard"] = torch.ones(5, 3, dtype=torch.bool)
    weights = FixedGate(FixedOptions(hard=0.2, teachers={"t1": 1.0}, others=0.0))(toys.evidence(parts))
    torch.testing.assert_close(weights, torch.tensor([[0.2, 0, 0.8, 0]]).expand(len(weights), -1))


@pytest.mark.parametrize("options", [{"hard": 1.1}, {"hard": -0.1}, {"teachers": {"ema": -1.0}}])
def test_impossible_fixed_weights_are_refused(options: dict) -> None:
    """A weight below 0, or a hard label above 1, is a mistake of the configuration."""
    with pytest.raises(ValidationError):
        FixedOptions(**options)


def test_two_scorers_begin_equal_and_leave_the_global_generator_alone() -> None:
    """A gate's first weights depend on nothing outside it."""
    before = torch.random.get_rng_state()
    one, other = toys.scorer(), toys.scorer()
    assert torch.equal(torch.random.get_rng_state(), before)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def without_labels(parts: dict, rows: slice) -> GateInputs:
    """The evidence where those rows came without label: whoever knows a class is heard."""
    labels = parts["labels"].clone()
    labels[rows] = -1
    heard = torch.where((labels < 0).unsqueeze(1), parts["known"].any(2), parts["heard"])
    return toys.evidence({**parts, "labels": labels, "heard": heard})


@given(seeds)
def test_a_row_without_label_listens_to_teachers_alone(seed: int) -> None:
    """Its hard label has no weight and the teachers that answer have it all; the other rows do not notice."""
    parts, evidence = seen(seed)
    silent = without_labels(parts, slice(0, 3))
    answered = silent.heard.any(1)
    for gate in gates():
        weights = gate(silent)
        assert (weights[:3, 0] == 0).all()
        torch.testing.assert_close(weights.sum(1), torch.where(silent.labelled | answered, 1.0, 0.0))
        assert (weights[:, 1:][~silent.heard] == 0).all()
        torch.testing.assert_close(weights[3:], gate(evidence)[3:])


@given(seeds)
def test_without_a_label_a_value_is_its_mean_under_the_teacher(seed: int) -> None:
    """At a label the value itself; without one Σ_c p_k(c)·value over the classes that the teacher knows."""
    parts = toys.lesson(seed)
    silent = without_labels(parts, slice(0, 2))
    values = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    got = at_labels(values, silent)
    for i in range(5):
        for k in range(3):
            if not silent.heard[i, k]:
                continue
            p = oracles.softmax(parts["answers"][i, k].tolist(), parts["known"][i, k].tolist())
            label = int(parts["labels"][i])
            wanted = sum(q * v for q, v in zip(p, values[i, k].tolist(), strict=True)) if i < 2 else values[i, k, label]
            assert float(got[i, k]) == pytest.approx(float(wanted), abs=1e-9)


def test_a_complete_lesson_with_rows_without_label_is_weighed_row_by_row() -> None:
    """The fixed gate's one row for all is not taken where some rows have no label."""
    parts, _ = seen(1)
    parts["known"][:] = parts["heard"][:] = True
    gate = FixedGate(FixedOptions(hard=0.4))
    full = dataclasses.replace(toys.evidence(parts), complete=True)
    assert (gate(full)[:, 0] == 0.4).all()
    some = dataclasses.replace(full, labels=torch.tensor([-1, 1, 1, 1, -1]))
    torch.testing.assert_close(gate(some)[:, 0], torch.tensor([0, 0.4, 0.4, 0.4, 0]))


def uneven(weights: torch.Tensor, heard: torch.Tensor) -> float:
    """KL(m ‖ u) of the teachers' mean parts, one number at a time."""
    given, teachers = weights[:, 1:].tolist(), heard.shape[1]
    total = sum(map(sum, given))
    even = [[float(h) / max(sum(row), 1) for h in row] for row in heard.tolist()]
    m = [sum(row[k] for row in given) / total for k in range(teachers)]
    u = [sum(e[k] * sum(row) for e, row in zip(even, given, strict=True)) / total for k in range(teachers)]
    return sum(a * math.log(a / b) for a, b in zip(m, u, strict=True) if a > 0)


@given(seeds)
def test_imbalance_is_the_divergence_from_even_shares(seed: int) -> None:
    """KL of the batch's mean parts to those of even shares; the order of teachers does not matter."""
    parts = toys.lesson(seed)
    weights, heard = parts["weights"], parts["heard"]
    if not heard.any():
        return
    got = float(imbalance(weights, heard))
    assert got == pytest.approx(uneven(weights, heard), abs=1e-9)
    order = torch.tensor([2, 0, 1])
    turned = torch.cat([weights[:, :1], weights[:, 1:][:, order]], 1)
    assert float(imbalance(turned, heard[:, order])) == pytest.approx(got, abs=1e-12)


def test_even_shares_are_balanced_and_one_teacher_for_all_is_not() -> None:
    """0 where each row is shared evenly, whatever the hard label has; log K where one of K teachers has all."""
    heard = torch.ones(4, 3, dtype=torch.bool)
    hard = torch.tensor([[0.3], [0.9], [0.5], [0.0]])
    assert float(imbalance(torch.cat([hard, (1 - hard) / 3 * heard], 1), heard)) == pytest.approx(0, abs=1e-6)
    one = torch.cat([hard, 1 - hard, torch.zeros(4, 2)], 1)
    assert float(imbalance(one, heard)) == pytest.approx(math.log(3), rel=1e-5)


@given(seeds, st.integers(0, 4))
def test_imbalance_has_a_finite_gradient(seed: int, teachers: int) -> None:
    """Teachers that nobody hears, and rows or batches without any, poison nothing; descending it evens the shares."""
    parts, evidence = seen(seed, teachers)
    gate = learned()
    value = imbalance(gate(evidence), parts["heard"])
    value.backward()
    assert value.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in gate.parameters())


def test_descending_imbalance_lifts_the_teacher_that_is_not_listened_to() -> None:
    """Its gradient points from the favourite to the neglected."""
    heard = torch.ones(4, 2, dtype=torch.bool)
    weights = torch.tensor([[0.3, 0.69, 0.01]]).expand(4, -1).clone().requires_grad_()
    imbalance(weights, heard).backward()
    assert (weights.grad[:, 2] < weights.grad[:, 1]).all()
