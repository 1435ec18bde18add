"""Candidates: nothing is published that lost its shape, its numbers, or what it knew."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from streamkd.state.candidate import check_canary, check_regression, refuse, validate

OLD = {"body": torch.ones(4, 3), "head.weight": torch.ones(2, 4), "head.bias": torch.ones(2), "step": torch.tensor(1)}


def _with(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**OLD, **{name.replace("__", "."): tensor for name, tensor in changes.items()}}


def test_equal_weights_pass() -> None:
    """The same names, types and shapes with finite values are no reason; nor is a first version."""
    assert validate(_with(body=torch.zeros(4, 3)), OLD) is None
    assert validate(OLD) is None


def test_a_head_may_grow() -> None:
    """More rows than before are a grown head."""
    assert validate(_with(head__weight=torch.ones(5, 4), head__bias=torch.ones(5)), OLD) is None


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        ({"body": OLD["body"]}, "keys"),
        (_with(extra=torch.ones(1)), "keys"),
        ({}, "keys"),
        (_with(body=torch.ones(4, 3, dtype=torch.float64)), "types"),
        (_with(body=torch.ones(4, 5)), "shapes"),
        (_with(head__bias=torch.ones(1)), "shapes"),
        (_with(step=torch.ones(1, dtype=torch.int64)), "shapes"),
        (_with(body=torch.full((4, 3), torch.nan)), "not_finite"),
        (_with(head__bias=torch.tensor([1.0, torch.inf])), "not_finite"),
    ],
)
def test_other_weights_are_refused_with_the_reason(candidate: dict[str, torch.Tensor], reason: str) -> None:
    """Missing or further names, other types, other or fewer rows, NaN and infinity each have their reason."""
    assert validate(candidate, OLD) == reason


def _fail() -> np.ndarray:
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


@pytest.mark.parametrize(
    ("predict", "reason"),
    [
        (lambda: np.full((3, 2), 0.5), None),
        (lambda: np.full((3, 4), 0.25), "canary"),
        (lambda: np.full((3, 2), np.nan), "canary"),
        (lambda: np.full((3, 2), 0.7), "canary"),
        (lambda: np.array([[1.5, -0.5]]), "canary"),
        (lambda: np.zeros((0, 2)), "canary"),
        (_fail, "canary"),
    ],
)
def test_the_canary_must_be_answered_with_probabilities(predict: Callable[[], Any], reason: str | None) -> None:
    """Wrong width, NaN, sums other than 1, negative values, no rows or an exception refuse the candidate."""
    assert check_canary(predict, 2) == reason


def test_a_loss_within_the_allowance_passes() -> None:
    """Held-out accuracy may fall by as much as is allowed, and no more; unknown accuracy is no reason."""
    assert check_regression(0.80, 0.90, 0.15) is None
    assert check_regression(0.70, 0.90, 0.15) == "regression"
    assert check_regression(None, 0.9, 0.1) is None
    assert check_regression(0.9, None, 0.1) is None


def test_the_first_reason_is_given() -> None:
    """Weights come before the canary, the canary before the regression."""
    asked = {"classes": 2, "accuracy": 0.1, "previous_accuracy": 0.9, "allowed_loss": 0.1}
    assert refuse({}, OLD, canary=_fail, **asked) == "keys"
    assert refuse(OLD, OLD, canary=_fail, **asked) == "canary"
    assert refuse(OLD, OLD, canary=lambda: np.full((1, 2), 0.5), **asked) == "regression"
