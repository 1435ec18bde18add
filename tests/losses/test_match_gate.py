"""The match-gate loss against its oracle, its gradient formula, its limits and its worst inputs."""

import oracles
import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st

from streamkd.losses.match_gate import (
    LossInputs,
    MatchGate,
    MatchGateOptions,
    fused_target,
    match_gate,
    soft_answers,
    soft_of,
    source_losses,
)

seeds = st.integers(0, 10_000)
temperatures = st.sampled_from([0.5, 1.0, 2.0, 7.0])


def loss_of(parts: dict, temperature: float) -> torch.Tensor:
    return MatchGate(MatchGateOptions(temperature=temperature))(toys.lesson_of(parts))


@given(seeds, temperatures, st.integers(0, 4))
def test_match_gate_is_the_slow_formula(seed: int, temperature: float, teachers: int) -> None:
    """The loss equals the oracle's, sample by sample, in float64."""
    parts = toys.lesson(seed, teachers=teachers)
    wanted = oracles.match_gate(*(parts[k] for k in ("logits", "labels", "answers", "known", "weights")), temperature)
    torch.testing.assert_close(
        loss_of(parts, temperature), torch.tensor(wanted, dtype=torch.float64), rtol=1e-10, atol=1e-10
    )


@given(seeds, temperatures)
def test_gradient_is_the_documented_formula(seed: int, temperature: float) -> None:
    """dL/dz = w0·(s - e_y) + T·((1-w0)·s^T - Q)."""
    parts = toys.lesson(seed)
    z = parts["logits"].requires_grad_()
    loss_of(parts, temperature).sum().backward()
    w0 = parts["weights"][:, :1]
    target = fused_target(soft_of(toys.lesson_of(parts), temperature), parts["weights"])
    e = torch.nn.functional.one_hot(parts["labels"], z.shape[1])
    wanted = w0 * (torch.softmax(z, 1) - e) + temperature * ((1 - w0) * torch.softmax(z / temperature, 1) - target)
    torch.testing.assert_close(z.grad, wanted.detach(), rtol=1e-10, atol=1e-10)


@given(seeds, temperatures)
def test_fused_target_has_the_gradient_of_each_teachers_kl(seed: int, temperature: float) -> None:
    """One fused KL moves the student exactly as the weighted sum of the teachers' own KLs."""
    parts = toys.lesson(seed)
    z = parts["logits"].requires_grad_()
    (fused,) = torch.autograd.grad(loss_of(parts, temperature).sum(), z)
    apart = oracles.per_teacher(*(parts[k] for k in ("logits", "labels", "answers", "known", "weights")), temperature)
    torch.testing.assert_close(fused, torch.autograd.grad(apart, z)[0], rtol=1e-9, atol=1e-10)


def test_autograd_agrees_with_differences() -> None:
    """gradcheck, in the student's logits everywhere, in the weights where every class is known."""
    parts = toys.lesson(3, teachers=2)
    soft = soft_answers(parts["answers"], parts["known"], 2.0)
    z = parts["logits"].requires_grad_()
    assert torch.autograd.gradcheck(lambda z: match_gate(z, parts["labels"], soft, parts["weights"], 2.0), z)
    soft = soft_answers(parts["answers"], torch.ones_like(parts["known"]), 2.0)
    w = (parts["weights"] * 0.8 + 0.05).requires_grad_()
    assert torch.autograd.gradcheck(lambda z, w: match_gate(z, parts["labels"], soft, w, 2.0), (z, w))


@given(seeds)
def test_teachers_may_be_permuted(seed: int) -> None:
    """The order of the teachers does not matter."""
    parts = toys.lesson(seed)
    order = torch.randperm(3, generator=torch.Generator().manual_seed(seed))
    turned = {**parts, "answers": parts["answers"][:, order], "known": parts["known"][:, order]}
    turned["weights"] = torch.cat([parts["weights"][:, :1], parts["weights"][:, 1:][:, order]], 1)
    torch.testing.assert_close(loss_of(turned, 2.0), loss_of(parts, 2.0), rtol=1e-12, atol=1e-12)


@given(seeds)
def test_classes_may_be_permuted(seed: int) -> None:
    """Renaming the classes for everyone does not matter."""
    parts = toys.lesson(seed)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    turned = {k: parts[k][..., order] for k in ("logits", "answers", "known")}
    turned |= {"labels": order.argsort()[parts["labels"]], "weights": parts["weights"]}
    torch.testing.assert_close(loss_of(turned, 2.0), loss_of(parts, 2.0), rtol=1e-12, atol=1e-12)


@given(seeds, seeds)
def test_a_batch_is_the_concatenation_of_its_parts(one: int, other: int) -> None:
    """No sample's loss depends on its neighbours."""
    a, b = toys.lesson(one), toys.lesson(other)
    joined = {k: torch.cat([a[k], b[k]]) for k in a}
    torch.testing.assert_close(
        loss_of(joined, 2.0), torch.cat([loss_of(a, 2.0), loss_of(b, 2.0)]), rtol=1e-12, atol=1e-12
    )


@given(seeds)
def test_masking_a_teacher_is_dropping_it(seed: int) -> None:
    """A teacher without weight that knows nothing is as good as absent."""
    parts = toys.lesson(seed)
    parts["known"][:, 1] = False
    parts["weights"][:, 2] = 0
    parts["weights"] /= parts["weights"].sum(1, keepdim=True)
    fewer = {**parts, "answers": parts["answers"][:, [0, 2]], "known": parts["known"][:, [0, 2]]}
    fewer["weights"] = parts["weights"][:, [0, 1, 3]]
    torch.testing.assert_close(loss_of(fewer, 2.0), loss_of(parts, 2.0), rtol=1e-12, atol=1e-12)


@given(seeds)
def test_masking_a_class_is_dropping_it_from_the_teacher(seed: int) -> None:
    """What a teacher says of a class that it does not know is never read."""
    parts = toys.lesson(seed)
    noisy = {**parts, "answers": torch.where(parts["known"], parts["answers"], torch.nan)}
    torch.testing.assert_close(loss_of(noisy, 2.0), loss_of(parts, 2.0), rtol=0, atol=0)


@given(seeds, temperatures)
def test_a_teacher_asks_nothing_about_what_it_does_not_know(seed: int, temperature: float) -> None:
    """Alone, it moves no logit of a class that it does not know, nor the student's mass on those that it knows; among
    these the gradient is that of the divergence of both renormalised there, times that mass.
    """
    parts = toys.lesson(seed, teachers=1)
    parts["known"][:] = torch.tensor([True, False, True, False])
    parts["weights"][:] = torch.tensor([0.0, 1.0])
    z = parts["logits"].requires_grad_()
    (slope,) = torch.autograd.grad(loss_of(parts, temperature).sum(), z)
    assert slope[:, [1, 3]].abs().max() < 1e-12
    assert slope.sum(1).abs().max() < 1e-12
    within = torch.log_softmax(z[:, [0, 2]] / temperature, 1)
    answers = torch.softmax(parts["answers"][:, 0, [0, 2]] / temperature, 1)
    alone = temperature**2 * torch.nn.functional.kl_div(within, answers, reduction="none").sum(1)
    mass = torch.softmax(z.detach() / temperature, 1)[:, [0, 2]].sum(1)
    (wanted,) = torch.autograd.grad((mass * alone).sum(), z)
    torch.testing.assert_close(slope, wanted, rtol=1e-9, atol=1e-10)


@given(seeds)
def test_a_student_that_is_sure_of_what_no_teacher_knows_is_no_trouble(seed: int) -> None:
    """In float32 its mass there may add up to more than 1: no target is below 0, loss and gradient are finite."""
    parts = {k: v.float() if v.is_floating_point() else v for k, v in toys.lesson(seed, batch=8, classes=10).items()}
    parts["known"][:] = torch.arange(10) < 5
    parts["logits"][:, 5:] += 60
    z = parts["logits"].requires_grad_()
    assert (soft_of(toys.lesson_of(parts), 2.0) >= 0).all()
    value = loss_of(parts, 2.0)
    (slope,) = torch.autograd.grad(value.sum(), z)
    assert value.isfinite().all()
    assert slope.isfinite().all()


@given(seeds, temperatures)
def test_soft_answers_sum_to_one_or_nothing(seed: int, temperature: float) -> None:
    """Rows sum to 1 where a teacher knows a class, else to 0, with no mass on classes that it does not know."""
    parts = toys.lesson(seed)
    soft = soft_answers(parts["answers"], parts["known"], temperature)
    torch.testing.assert_close(soft.sum(-1), parts["known"].any(-1).double(), rtol=1e-12, atol=1e-12)
    assert (soft[~parts["known"]] == 0).all()


def test_temperature_to_infinity_is_uniform_and_matches_logits() -> None:
    """T → ∞: answers become uniform, and T·(s^T - p^T) tends to the difference of centred logits / classes."""
    parts = toys.lesson(5, teachers=1)
    parts["known"][:] = True
    parts["weights"][:] = torch.tensor([0.0, 1.0])
    soft = soft_answers(parts["answers"], parts["known"], 1e6)
    torch.testing.assert_close(soft, torch.full_like(soft, 0.25), rtol=0, atol=1e-5)
    z = parts["logits"].requires_grad_()
    loss_of(parts, 1e4).sum().backward()
    apart = z.detach() - parts["answers"][:, 0]
    torch.testing.assert_close(z.grad, (apart - apart.mean(1, keepdim=True)) / 4, rtol=1e-3, atol=1e-3)


@given(seeds, temperatures)
def test_divergence_is_never_negative(seed: int, temperature: float) -> None:
    """KL has its arguments the right way round and its logarithms in place: it is at least 0."""
    parts = toys.lesson(seed)
    parts["weights"][:, 0] = 0
    parts["weights"] = torch.nan_to_num(parts["weights"] / parts["weights"].sum(1, keepdim=True))
    assert (loss_of(parts, temperature) >= -1e-12).all()


def test_divergence_of_equals_is_zero() -> None:
    """A student that says what its one teacher says has nothing to learn from it."""
    parts = toys.lesson(1, teachers=1)
    parts["known"][:] = True
    parts["weights"][:] = torch.tensor([0.0, 1.0])
    parts["answers"] = parts["logits"].unsqueeze(1)
    torch.testing.assert_close(loss_of(parts, 2.0), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_extreme_logits_stay_finite(dtype: torch.dtype, temperature: float) -> None:
    """Logits of ±1e4 in student and teachers give a finite loss and gradient."""
    parts = toys.lesson(2, dtype=dtype)
    z = (1e4 * parts["logits"].sign()).requires_grad_()
    loss = loss_of({**parts, "logits": z, "answers": 1e4 * parts["answers"].sign()}, temperature)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert z.grad.isfinite().all()


def test_a_teacher_that_knows_nothing_teaches_nothing() -> None:
    """With all the weight on the hard label the loss is cross entropy, whatever the teachers' numbers are."""
    parts = toys.lesson(4)
    parts["known"][:] = False
    parts["answers"][:] = torch.nan
    parts["weights"][:] = torch.tensor([1.0, 0, 0, 0])
    wanted = torch.nn.functional.cross_entropy(parts["logits"], parts["labels"], reduction="none")
    torch.testing.assert_close(loss_of(parts, 2.0), wanted)


@given(seeds, temperatures)
def test_source_losses_price_each_source_alone(seed: int, temperature: float) -> None:
    """Column k is the match-gate loss with all the weight on source k."""
    parts = toys.lesson(seed)
    soft = soft_answers(parts["answers"], parts["known"], temperature)
    table = source_losses(parts["logits"], parts["labels"], soft, temperature)
    for source in range(4):
        weights = torch.zeros_like(parts["weights"])
        weights[:, source] = 1
        alone = match_gate(parts["logits"], parts["labels"], soft, weights, temperature)
        torch.testing.assert_close(table[:, source], alone, rtol=1e-10, atol=1e-10)


@given(seeds, temperatures)
def test_the_table_is_the_slope_in_each_weight(seed: int, temperature: float) -> None:
    """``per_source`` has the derivative of ∂L/∂w, and under the weights the gradient of the fused loss."""
    parts, loss = toys.lesson(seed), MatchGate(MatchGateOptions(temperature=temperature))
    toys.check_per_source(loss, toys.lesson_of(parts))
    z = parts["logits"].requires_grad_()
    lesson = toys.lesson_of(parts)
    apart = (lesson.weights * loss.per_source(lesson)).sum()
    slopes = [torch.autograd.grad(total, z)[0] for total in (loss(lesson).sum(), apart)]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-9, atol=1e-10)


@given(seeds)
def test_a_row_without_label_learns_from_teachers_alone(seed: int) -> None:
    """Its cross entropy is 0; its divergence is that of a row with a label; without any teacher it teaches nothing."""
    parts = toys.lesson(seed)
    parts["weights"][:, 0] = 0
    labelled = loss_of(parts, 2.0)
    parts["labels"][:] = -1
    torch.testing.assert_close(loss_of(parts, 2.0), labelled, rtol=1e-12, atol=1e-12)
    soft = soft_answers(parts["answers"], parts["known"], 2.0)
    assert (source_losses(parts["logits"], parts["labels"], soft, 2.0)[:, 0] == 0).all()
    parts["weights"][:] = 0
    z = parts["logits"].requires_grad_()
    (slope,) = torch.autograd.grad(loss_of(parts, 2.0).sum(), z)
    assert (slope == 0).all()


def test_the_loss_of_a_lesson_is_the_formula_with_its_temperature() -> None:
    """``MatchGate`` hands the lesson's parts and its own temperature to the formula."""
    parts = toys.lesson(6)
    loss = MatchGate(MatchGateOptions(temperature=3.0))
    lesson = LossInputs(*(parts[k] for k in ("logits", "labels", "answers", "known", "weights")), fresh=2)
    assert torch.equal(loss(lesson), loss_of(parts, 3.0))
