"""Whether a candidate may be published: each check gives a reason from a closed set, or ``None``.

    weights like the ones before? ─► finite? ─► answers a canary batch? ─► no regression on the held-out records?

Pure functions; the learner calls ``refuse`` before ``streamkd.state.publish``. The reasons are values of a
metric's label.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Reason = Literal["keys", "shapes", "types", "not_finite", "canary", "regression", "storage"]
logger = logging.getLogger(__name__)


def refuse(
    candidate: Mapping[str, Tensor],
    previous: Mapping[str, Tensor] | None,
    *,
    canary: Callable[[], np.ndarray],
    classes: int,
    accuracy: float | None,
    previous_accuracy: float | None,
    allowed_loss: float,
) -> Reason | None:
    """The first reason against publishing a candidate, or ``None``.

    Args:
        candidate, previous: weights by name; ``previous`` is ``None`` for the first version.
        canary: predicts a fixed batch with the candidate: probabilities [records, classes].
        accuracy, previous_accuracy: of both on the same held-out records; ``None`` where there are none.
        allowed_loss: how much lower the candidate's may be.
    """
    return (
        validate(candidate, previous)
        or check_canary(canary, classes)
        or check_regression(accuracy, previous_accuracy, allowed_loss)
    )


def validate(candidate: Mapping[str, Tensor], previous: Mapping[str, Tensor] | None = None) -> Reason | None:
    """Weights: the names, types and shapes of the version before, and finite.

    A tensor may have more rows than before (a head that grew by a class), never fewer.
    """
    if previous is not None:
        if candidate.keys() != previous.keys():
            return "keys"
        if any(candidate[name].dtype != old.dtype for name, old in previous.items()):
            return "types"
        if not all(_grew(candidate[name], old) for name, old in previous.items()):
            return "shapes"
    if not candidate:
        return "keys"
    if not all(bool(torch.isfinite(tensor).all()) for tensor in candidate.values()):
        return "not_finite"
    return None


def check_canary(predict: Callable[[], np.ndarray], classes: int) -> Reason | None:
    """Predictions of a fixed batch: finite probabilities for every class that sum to 1."""
    try:
        rows = np.asarray(predict(), np.float64)
    except Exception as fault:  # a student may be a stranger's code: it must not stop the learner
        logger.warning("the candidate failed on the canary batch: %r", fault)
        return "canary"
    fits = rows.ndim == 2 and rows.shape[0] > 0 and rows.shape[1] == classes
    if not fits or not np.isfinite(rows).all() or (rows < 0).any() or (np.abs(rows.sum(axis=1) - 1) > 1e-3).any():
        return "canary"
    return None


def check_regression(accuracy: float | None, previous: float | None, allowed_loss: float) -> Reason | None:
    """Held-out accuracy of the candidate against the version before, on the same records."""
    if accuracy is None or previous is None:
        return None
    return None if accuracy >= previous - allowed_loss else "regression"


def _grew(new: Tensor, old: Tensor) -> bool:
    if new.shape == old.shape:
        return True
    return new.dim() == old.dim() > 0 and new.shape[0] > old.shape[0] and new.shape[1:] == old.shape[1:]
