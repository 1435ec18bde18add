"""kd and decoupled-kd: oracles, limits, gradients, unknown classes, rows without label."""

import oracles
import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st
from streamkd_baselines.divergences import DecoupledKd, DecoupledKdOptions, Kd, KdOptions, decoupled

from streamkd.losses.match_gate import Gated, MatchGate, MatchGateOptions, soft_answers, source_losses

seeds = st.integers(0, 10_000)
temperatures = st.sampled_from([0.5, 1.0, 2.0, 7.0])
PARTS = ("logits", "labels", "answers", "known", "weights")


def kd(temperature: float = 2.0, labels: bool = True) -> Kd:
    return Kd(KdOptions(temperature=temperature, labels=labels))


def decoupled_kd(**options: float) -> DecoupledKd:
    return DecoupledKd(DecoupledKdOptions(**options))


@given(seeds, temperatures, st.integers(0, 4))
def test_kd_is_the_slow_formula(seed: int, temperature: float, teachers: int) -> None:
    """w0·CE + Σ_k w_k·T²·KL of each teacher, over the whole batch, in float64."""
    parts = toys.lesson(seed, teachers=teachers)
    wanted = oracles.per_teacher(*(parts[k] for k in PARTS), temperature)
    torch.testing.assert_close(kd(temperature)(toys.lesson_of(parts)).sum(), wanted, rtol=1e-9, atol=1e-10)


@given(seeds, temperatures)
def test_kd_moves_the_student_as_match_gate_does(seed: int, temperature: float) -> None:
    """One fused target or each teacher by itself: the gradient is the same, and kd's value is not smaller."""
    parts = toys.lesson(seed)
    z = parts["logits"].requires_grad_()
    fused = MatchGate(MatchGateOptions(temperature=temperature))(toys.lesson_of(parts))
    apart = kd(temperature)(toys.lesson_of(parts))
    slopes = [torch.autograd.grad(values.sum(), z)[0] for values in (fused, apart)]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-9, atol=1e-10)
    assert (apart >= fused - 1e-10).all()


@given(seeds, temperatures, st.integers(1, 4))
def test_decoupled_kd_is_the_slow_formula(seed: int, temperature: float, teachers: int) -> None:
    """Sample by sample, in float64, with classes and rows that teachers do not know."""
    parts = toys.lesson(seed, teachers=teachers)
    loss = decoupled_kd(temperature=temperature, target=0.7, others=3.0)
    wanted = oracles.decoupled_kd(*(parts[k] for k in PARTS), temperature, 0.7, 3.0)
    got = loss(toys.lesson_of(parts))
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-10)


@given(seeds, temperatures)
def test_the_two_parts_make_up_the_divergence(seed: int, temperature: float) -> None:
    """KL = TCKD + (1 - p_y)·NCKD (equation 6); neither part is negative."""
    parts = toys.lesson(seed)
    parts["known"][:] = True
    soft = soft_answers(parts["answers"], parts["known"], temperature)
    binary, sharing = decoupled(parts["logits"], parts["labels"], soft, temperature)
    label = soft.gather(2, parts["labels"].view(-1, 1, 1).expand(-1, 3, 1)).squeeze(2)
    whole = source_losses(parts["logits"], parts["labels"], soft, temperature)[:, 1:]
    torch.testing.assert_close(binary + (1 - label) * sharing, whole, rtol=1e-8, atol=1e-9)
    assert (binary >= -1e-12).all()
    assert (sharing >= -1e-12).all()


@pytest.mark.parametrize("loss", [kd(), kd(labels=False), decoupled_kd()], ids=["kd", "kd-alone", "decoupled"])
def test_the_table_is_the_slope_in_each_weight(loss: Gated) -> None:
    """``per_source`` under the weights is the loss, and has its gradient."""
    lesson = toys.lesson_of(toys.lesson(4))
    toys.check_per_source(loss, lesson)
    torch.testing.assert_close((lesson.weights * loss.per_source(lesson)).sum(1), loss(lesson))


@pytest.mark.parametrize("loss", [kd(), decoupled_kd()], ids=["kd", "decoupled"])
def test_autograd_agrees_with_differences(loss: Gated) -> None:
    """gradcheck in the student's logits, with classes that teachers do not know."""
    parts = toys.lesson(3)
    z = parts["logits"].requires_grad_()
    own = parts["logits"].detach().clone()
    assert torch.autograd.gradcheck(lambda z: loss(toys.lesson_of({**parts, "logits": z}, own_logits=own)), z)


def test_without_labels_the_hard_label_has_no_part() -> None:
    """``labels: false``: beside another loss, a sample that listens to its label alone teaches nothing."""
    parts = toys.lesson(1)
    parts["weights"][:] = torch.tensor([1.0, 0, 0, 0])
    for loss in (kd(labels=False), DecoupledKd(DecoupledKdOptions(labels=False))):
        assert (loss(toys.lesson_of(parts)) == 0).all()


@given(seeds)
def test_decoupled_kd_of_a_row_without_label_is_kd(seed: int) -> None:
    """Where there is no label to take apart, the whole divergence teaches."""
    parts = toys.lesson(seed)
    parts["labels"][:], parts["weights"][:, 0] = -1, 0
    lesson = toys.lesson_of(parts)
    torch.testing.assert_close(decoupled_kd(temperature=3.0)(lesson), kd(3.0)(lesson))


@pytest.mark.parametrize("loss", [kd(), decoupled_kd()], ids=["kd", "decoupled"])
def test_one_class_and_teachers_that_know_one_class_are_no_trouble(loss: Gated) -> None:
    """A student of one class has nothing to learn; a teacher of one class says nothing of the others."""
    parts = toys.lesson(1, classes=1)
    parts["known"][:] = True
    z = parts["logits"].requires_grad_()
    values = loss(toys.lesson_of(parts))
    values.sum().backward()
    torch.testing.assert_close(values, torch.zeros_like(values))
    assert z.grad.isfinite().all()
    parts = toys.lesson(1)
    parts["known"][:] = torch.nn.functional.one_hot(parts["labels"], 4).bool().unsqueeze(1)
    z = parts["logits"].requires_grad_()
    loss(toys.lesson_of(parts)).sum().backward()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("loss", [kd(), decoupled_kd()], ids=["kd", "decoupled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_stay_finite(loss: Gated, dtype: torch.dtype) -> None:
    """Logits of ±1e4, NaN where a teacher does not know, rows with and without label: finite values and slopes."""
    parts = toys.lesson(2, dtype=dtype)
    parts["labels"][0], parts["weights"][0, 0] = -1, 0
    z = (1e4 * parts["logits"].sign()).requires_grad_()
    answers = torch.where(parts["known"], 1e4 * parts["answers"].sign(), torch.nan)
    lesson = toys.lesson_of({**parts, "logits": z, "answers": answers})
    loss(lesson).sum().backward()
    assert loss(lesson).isfinite().all()
    assert z.grad.isfinite().all()
