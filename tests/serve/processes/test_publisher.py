"""Candidates: nothing is published that lost its shape, its numbers, or what it knew."""

from collections.abc import Callable

import pytest
import torch

from streamkd.serve.processes.publisher import against_accuracy, against_canary, against_weights, refusal

OLD = {"body": torch.ones(4, 3), "head.weight": torch.ones(2, 4), "head.bias": torch.ones(2), "step": torch.tensor(1)}


def _with(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**OLD, **changes}


def test_weights_of_the_same_form_pass() -> None:
    """The same names, types and shapes with finite values are no reason."""
    assert against_weights(_with(body=torch.zeros(4, 3)), OLD) is None


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        ({"body": OLD["body"]}, "keys"),
        (_with(extra=torch.ones(1)), "keys"),
        ({}, "keys"),
        (_with(body=torch.ones(4, 3, dtype=torch.float64)), "types"),
        (_with(body=torch.ones(4, 5)), "shapes"),
        (_with(step=torch.ones(1, dtype=torch.int64)), "shapes"),
        (_with(body=torch.full((4, 3), torch.nan)), "not_finite"),
        (_with(body=torch.full((4, 3), -torch.inf)), "not_finite"),
    ],
)
def test_other_weights_are_refused_with_the_reason(candidate: dict[str, torch.Tensor], reason: str) -> None:
    """Missing or further names, other types, other shapes, NaN and infinity each have their reason."""
    assert against_weights(candidate, OLD) == reason


def test_every_kind_of_number_must_be_finite() -> None:
    """Also a complex buffer's imaginary part."""
    assert against_weights({"z": torch.tensor(complex(0, torch.nan))}, {"z": torch.tensor(1j)}) == "not_finite"


def _fail() -> torch.Tensor:
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


@pytest.mark.parametrize(
    ("predict", "reason"),
    [
        (lambda: torch.full((3, 2), 0.5), None),
        (lambda: torch.full((3, 2), torch.nan), "canary"),
        (lambda: torch.full((3, 2), 0.7), "canary"),
        (lambda: torch.tensor([[1.5, -0.5]]), "canary"),
        (lambda: torch.zeros(0, 2), "canary"),
        (lambda: torch.ones(3), "canary"),
        (_fail, "canary"),
    ],
)
def test_the_canary_must_be_answered_with_probabilities(
    predict: Callable[[], torch.Tensor], reason: str | None
) -> None:
    """NaN, sums other than 1, negative values, no rows, no classes or an exception refuse the candidate."""
    assert against_canary(predict) == reason


def test_a_loss_within_the_tolerance_passes() -> None:
    """Held-out accuracy may fall by as much as is allowed, and no more; unknown accuracy is no reason."""
    assert against_accuracy(0.80, 0.90, 0.15) is None
    assert against_accuracy(0.70, 0.90, 0.15) == "regression"
    assert against_accuracy(None, 0.9, 0.1) is None
    assert against_accuracy(0.9, None, 0.1) is None


def test_the_first_reason_is_given() -> None:
    """Weights come before the canary, the canary before the regression; a good candidate has none."""
    assert refusal({}, OLD, _fail, 0.1, 0.9, 0.1) == "keys"
    assert refusal(OLD, OLD, _fail, 0.1, 0.9, 0.1) == "canary"
    assert refusal(OLD, OLD, lambda: torch.full((1, 2), 0.5), 0.1, 0.9, 0.1) == "regression"
    assert refusal(OLD, OLD, lambda: torch.full((1, 2), 0.5), 0.9, 0.9, 0.1) is None
