"""The literal and the mixture reading: oracles, what they give the gate, and rows that they cannot read."""

import oracles
import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st
from streamkd_baselines.readings import Literal, LiteralOptions, Mixture, MixtureOptions

from streamkd.losses.match_gate import Gated

seeds = st.integers(0, 10_000)
literal, mixture = Literal(LiteralOptions()), Mixture(MixtureOptions())
PARTS = ("logits", "labels", "answers", "known", "weights")


@given(seeds, st.integers(0, 4))
def test_both_are_the_slow_formulas(seed: int, teachers: int) -> None:
    """Sample by sample, in float64."""
    parts = toys.lesson(seed, teachers=teachers)
    wanted = oracles.readings(*(parts[k] for k in PARTS))
    for loss, values in zip((literal, mixture), wanted, strict=True):
        got = loss(toys.lesson_of(parts))
        torch.testing.assert_close(got, torch.tensor(values, dtype=torch.float64), rtol=1e-10, atol=1e-10)


@given(seeds)
def test_the_literal_reading_teaches_labels_alone(seed: int) -> None:
    """Its gradient to the student is w0·(s - e_y): the teachers' part has none."""
    parts = toys.lesson(seed)
    z = parts["logits"].requires_grad_()
    (slope,) = torch.autograd.grad(literal(toys.lesson_of(parts)).sum(), z)
    e = torch.nn.functional.one_hot(parts["labels"], z.shape[1])
    wanted = parts["weights"][:, :1] * (torch.softmax(z, 1) - e)
    torch.testing.assert_close(slope, wanted.detach(), rtol=1e-10, atol=1e-10)


@given(seeds)
def test_the_mixture_lies_below_the_literal_reading(seed: int) -> None:
    """Jensen: -log Σ w·p ≤ -Σ w·log p where weights sum to 1; equal where one source has all the weight."""
    parts = toys.lesson(seed)
    lesson = toys.lesson_of(parts)
    assert (mixture(lesson) <= literal(lesson) + 1e-12).all()
    parts["weights"] = torch.zeros_like(parts["weights"])
    parts["weights"][:, 0] = 1
    torch.testing.assert_close(mixture(toys.lesson_of(parts)), literal(toys.lesson_of(parts)))


@given(seeds, seeds)
def test_the_mixture_is_convex_in_the_weights(one: int, other: int) -> None:
    """Its value halfway between two weightings is at most the mean of both."""
    parts, second = toys.lesson(one), torch.softmax(toys.lesson(other)["weights"], 1)
    second = second * (parts["weights"] > 0)
    second /= second.sum(1, keepdim=True)
    values = []
    for weights in (parts["weights"], second, (parts["weights"] + second) / 2):
        values.append(mixture(toys.lesson_of({**parts, "weights": weights})))
    assert (values[2] <= (values[0] + values[1]) / 2 + 1e-12).all()


@pytest.mark.parametrize("loss", [literal, mixture], ids=["literal", "mixture"])
def test_the_table_is_the_slope_in_each_weight(loss: Gated) -> None:
    """``per_source`` and ∂L/∂w have the same derivative by the student's logits, whatever reads it."""
    toys.check_per_source(loss, toys.lesson_of(toys.lesson(4)))


@pytest.mark.parametrize("loss", [literal, mixture], ids=["literal", "mixture"])
def test_autograd_agrees_with_differences(loss: Gated) -> None:
    """gradcheck in the student's logits."""
    parts = toys.lesson(3)
    z = parts["logits"].requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(toys.lesson_of({**parts, "logits": z})), z)


@pytest.mark.parametrize("loss", [literal, mixture], ids=["literal", "mixture"])
def test_a_row_without_label_teaches_nothing(loss: Gated) -> None:
    """It has no likelihood: value, table and gradient are 0, also where all its weights are."""
    parts = toys.lesson(5)
    parts["labels"][:2], parts["weights"][:2, 0] = -1, 0
    parts["weights"][0] = 0
    z = parts["logits"].requires_grad_()
    values = loss(toys.lesson_of(parts))
    assert (values[:2] == 0).all()
    assert (loss.per_source(toys.lesson_of(parts))[:2] == 0).all()
    values.sum().backward()
    assert (z.grad[:2] == 0).all()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("loss", [literal, mixture], ids=["literal", "mixture"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_and_answers_stay_finite(loss: Gated, dtype: torch.dtype) -> None:
    """Logits of ±1e4, and NaN where a teacher does not know, give finite values, slopes and tables."""
    parts = toys.lesson(2, dtype=dtype)
    z = (1e4 * parts["logits"].sign()).requires_grad_()
    answers = torch.where(parts["known"], 1e4 * parts["answers"].sign(), torch.nan)
    lesson = toys.lesson_of({**parts, "logits": z, "answers": answers})
    loss(lesson).sum().backward()
    assert loss(lesson).isfinite().all()
    assert loss.per_source(lesson).isfinite().all()
    assert z.grad.isfinite().all()
