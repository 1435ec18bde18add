"""Accuracy on a stream of tasks: the matrix and what is read from it.

``R[i, j]`` is the accuracy on the test records of task j after training on task i (both from 0); a cell that
was not measured is NaN. Pure functions in float64; called by ``streamkd.evaluate.report`` and the benchmarks.
"""

import math

import numpy as np


def final_average(matrix: np.ndarray) -> float:
    """Mean accuracy over all tasks after the last: ``ACC = 1/T Σ_j R[T, j]`` (Lopez-Paz & Ranzato 2017, eq. 2)."""
    return _mean(_square(matrix)[-1])


def anytime_average(matrix: np.ndarray) -> float:
    """Mean over i of the mean accuracy on tasks 0..i after task i (Caccia et al. 2022, average anytime accuracy).

    With evaluation at task ends only; for one task it is ``final_average``.
    """
    square = _square(matrix)
    return _mean(np.array([_mean(square[i, : i + 1]) for i in range(len(square))]))


def forgetting_per_task(matrix: np.ndarray) -> np.ndarray:
    """``f_j = max_{l < T} R[l, j] - R[T, j]`` for each task j before the last [tasks - 1].

    Chaudhry et al. 2018 (Riemannian Walk), the forgetting measure. Negative where a task is better at the
    end than it ever was before; the last task has no past and no entry.
    """
    square = _square(matrix)
    past = np.where(np.isnan(square[:-1, :-1]), -np.inf, square[:-1, :-1])
    best = past.max(axis=0, initial=-np.inf)
    return np.where(np.isfinite(best), best - square[-1, :-1], np.nan)


def forgetting(matrix: np.ndarray) -> float:
    """Mean of ``forgetting_per_task``; NaN for one task, which can forget nothing (the same paper, F_T)."""
    return _mean(forgetting_per_task(matrix))


def backward_transfer(matrix: np.ndarray) -> float:
    """``BWT = 1/(T-1) Σ_{j<T} R[T, j] - R[j, j]``: negative is forgetting (Lopez-Paz & Ranzato 2017, eq. 3).

    NaN for one task.
    """
    square = _square(matrix)
    return _mean((square[-1] - np.diag(square))[:-1])


def forward_transfer(matrix: np.ndarray, baseline: np.ndarray) -> float:
    """``FWT = 1/(T-1) Σ_{j>0} R[j-1, j] - b[j]`` (Lopez-Paz & Ranzato 2017, eq. 4).

    Args:
        baseline: accuracy of the untrained student on each task [tasks].

    NaN for one task, or where the cells above the diagonal were not measured.
    """
    square = _square(matrix)
    if np.shape(baseline) != (len(square),):
        raise ValueError(f"needed a baseline of {len(square)} tasks, got shape {np.shape(baseline)}")
    return _mean(np.diag(square, 1) - np.asarray(baseline, np.float64)[1:])


def _square(matrix: np.ndarray) -> np.ndarray:
    square = np.asarray(matrix, np.float64)
    if square.ndim != 2 or square.shape[0] != square.shape[1] or not square.size:
        raise ValueError(f"needed a matrix [after task, on task], got shape {square.shape}")
    return square


def _mean(values: np.ndarray) -> float:
    """NaN where there is nothing to average, or where a cell that counts was not measured."""
    return float(np.mean(values)) if np.size(values) else math.nan
