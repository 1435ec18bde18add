"""Whether a candidate may be published: pure checks, each a reason from a closed set or ``None``.

Called by the publisher before a version is written; a candidate that is refused changes nothing.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Literal

import torch

Refusal = Literal["keys", "types", "shapes", "not_finite", "canary", "regression"]
logger = logging.getLogger(__name__)


def refusal(
    candidate: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    canary: Callable[[], torch.Tensor],
    accuracy: float | None,
    served_accuracy: float | None,
    tolerance: float,
) -> Refusal | None:
    """The first reason against a candidate, or ``None``.

    Args:
        candidate: its weights by name.
        expected: those of the network that it is a copy of.
        canary: its probabilities [n, classes] on a few records.
        accuracy: its accuracy on held-out records; ``served_accuracy`` that of the served version on the same.
        tolerance: the largest drop that is still published.
    """
    return (
        against_weights(candidate, expected)
        or against_canary(canary)
        or against_accuracy(accuracy, served_accuracy, tolerance)
    )


def against_weights(candidate: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> Refusal | None:
    """Other names, element types or shapes than expected, or a number that is not finite."""
    if candidate.keys() != expected.keys():
        return "keys"
    if any(candidate[name].dtype != expected[name].dtype for name in expected):
        return "types"
    if any(candidate[name].shape != expected[name].shape for name in expected):
        return "shapes"
    finite = all(bool(torch.isfinite(t).all()) for t in candidate.values() if t.is_floating_point() or t.is_complex())
    return None if finite else "not_finite"


def against_canary(predict: Callable[[], torch.Tensor]) -> Refusal | None:
    """A candidate that fails on the canary records, or answers them with what are no probabilities."""
    try:
        return against_answers(predict())
    except Exception as fault:  # a student may be a stranger's code: it must not stop the learner
        logger.warning("the candidate failed on the canary records: %r", fault)
        return "canary"


def against_answers(probabilities: torch.Tensor) -> Refusal | None:
    """Probabilities on the canary records that are none: no rows, not finite, negative, or not summing to 1."""
    if probabilities.dim() != 2 or not probabilities.numel():
        return "canary"
    sums = probabilities.sum(dim=1)
    fine = bool(torch.isfinite(probabilities).all()) and bool((probabilities >= 0).all())
    return None if fine and torch.allclose(sums, torch.ones_like(sums), atol=1e-3) else "canary"


def against_accuracy(accuracy: float | None, served_accuracy: float | None, tolerance: float) -> Refusal | None:
    """A held-out accuracy that falls by more than ``tolerance`` below that of the served version."""
    if accuracy is None or served_accuracy is None:
        return None
    return "regression" if accuracy < served_accuracy - tolerance else None
