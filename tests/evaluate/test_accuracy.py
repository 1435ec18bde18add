"""Accuracy on a stream of tasks: every figure against its definition, written out as a loop."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkd.evaluate.accuracy import (
    anytime_average,
    backward_transfer,
    final_average,
    forgetting,
    forgetting_per_task,
    forward_transfer,
)

_MATRICES = st.integers(1, 6).flatmap(
    lambda tasks: st.lists(
        st.lists(st.floats(0, 1), min_size=tasks, max_size=tasks), min_size=tasks, max_size=tasks
    ).map(np.array)
)


def _loop_forgetting(matrix: np.ndarray) -> list[float]:
    """Chaudhry et al. 2018: f_j = max over l before the last of a[l][j], minus a[last][j]."""
    last = len(matrix) - 1
    return [max(matrix[k][j] for k in range(last)) - matrix[last][j] for j in range(last)]


@settings(deadline=None, derandomize=True)
@given(_MATRICES)
def test_every_figure_is_its_definition(matrix: np.ndarray) -> None:
    """On any matrix the functions equal loops that read like the papers' formulas."""
    tasks = len(matrix)
    assert final_average(matrix) == pytest.approx(sum(matrix[-1][j] for j in range(tasks)) / tasks, abs=1e-12)
    steps = [sum(matrix[i][j] for j in range(i + 1)) / (i + 1) for i in range(tasks)]
    assert anytime_average(matrix) == pytest.approx(sum(steps) / tasks, abs=1e-12)
    if tasks == 1:
        assert math.isnan(forgetting(matrix))
        assert math.isnan(backward_transfer(matrix))
        return
    lost = _loop_forgetting(matrix)
    assert forgetting_per_task(matrix).tolist() == pytest.approx(lost, abs=1e-12)
    assert forgetting(matrix) == pytest.approx(sum(lost) / (tasks - 1), abs=1e-12)
    back = sum(matrix[-1][j] - matrix[j][j] for j in range(tasks - 1)) / (tasks - 1)
    assert backward_transfer(matrix) == pytest.approx(back, abs=1e-12)
    baseline = matrix[0] / 2
    ahead = sum(matrix[j - 1][j] - baseline[j] for j in range(1, tasks)) / (tasks - 1)
    assert forward_transfer(matrix, baseline) == pytest.approx(ahead, abs=1e-12)


def test_a_worked_example() -> None:
    """Three tasks by hand."""
    matrix = np.array([[0.9, 0.2, 0.1], [0.7, 0.8, 0.3], [0.5, 0.6, 1.0]])
    assert final_average(matrix) == pytest.approx(0.7)
    assert anytime_average(matrix) == pytest.approx((0.9 + 0.75 + 0.7) / 3)
    assert forgetting_per_task(matrix).tolist() == pytest.approx([0.4, 0.2])
    assert backward_transfer(matrix) == pytest.approx((-0.4 - 0.2) / 2)
    assert forward_transfer(matrix, np.full(3, 0.1)) == pytest.approx((0.1 + 0.2) / 2)


def test_forgetting_is_minus_backward_transfer_where_tasks_only_get_worse() -> None:
    """If each task is best right after it was learned, the two measures agree up to the sign."""
    matrix = np.array([[0.9, 0.0, 0.0], [0.8, 0.9, 0.0], [0.7, 0.8, 0.9]])
    assert forgetting(matrix) == pytest.approx(-backward_transfer(matrix))


def test_cells_that_were_not_measured_above_the_diagonal_do_not_matter() -> None:
    """A lower triangular matrix gives the same forgetting as one with zeros above, and no forward transfer."""
    full = np.tril(np.array([[0.9, 0, 0], [0.7, 0.8, 0], [0.5, 0.6, 1.0]]))
    half = np.where(np.tri(3, dtype=bool), full, np.nan)
    assert forgetting(half) == pytest.approx(forgetting(full))
    assert anytime_average(half) == pytest.approx(anytime_average(full))
    assert math.isnan(forward_transfer(half, np.zeros(3)))


def test_a_missing_cell_that_counts_makes_the_figure_unknown() -> None:
    """The mean is not taken over what happens to be there."""
    assert math.isnan(final_average(np.array([[0.9, 0.1], [np.nan, 0.8]])))


@pytest.mark.parametrize("matrix", [np.zeros((2, 3)), np.zeros(3), np.zeros((0, 0))])
def test_what_is_no_square_matrix_is_refused(matrix: np.ndarray) -> None:
    """The error names the shape."""
    with pytest.raises(ValueError, match="needed a matrix"):
        final_average(matrix)


def test_a_baseline_of_other_length_is_refused() -> None:
    """One accuracy per task is needed."""
    with pytest.raises(ValueError, match="baseline of 2 tasks"):
        forward_transfer(np.ones((2, 2)), np.ones(3))
