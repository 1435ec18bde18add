"""Several seeds as one: means, sample deviations, and entries matched by what names them."""

import math

import numpy as np
import pytest

from streamkd.evaluate.seeds import merge, plain, spread


def test_numbers_become_means_with_deviations_beside() -> None:
    """The deviation is the sample's (n - 1), under the same key with _std."""
    merged = merge([{"a": 1.0, "b": {"c": 2.0}}, {"a": 3.0, "b": {"c": 2.0}}])
    assert merged == {"a": 2.0, "a_std": pytest.approx(math.sqrt(2)), "b": {"c": 2.0, "c_std": 0.0}}


def test_one_seed_has_deviation_zero() -> None:
    """The figures of a single seed are its own."""
    assert merge([{"a": 0.25, "n": 3}]) == {"a": 0.25, "a_std": 0.0, "n": 3, "n_std": 0.0}


def test_equal_integers_stay_integers() -> None:
    """A count that all seeds share does not become 5.0."""
    merged = merge([{"n": 5}, {"n": 5}])
    assert isinstance(merged["n"], int)


def test_matrices_are_averaged_cell_by_cell() -> None:
    """The mean and the deviation of each cell; a cell that no seed measured stays empty."""
    merged = merge([{"m": [[1.0, None], [0.0, 1.0]]}, {"m": [[0.0, None], [0.0, 1.0]]}])
    assert merged["m"] == [[0.5, None], [0.0, 1.0]]
    assert merged["m_std"] == [[pytest.approx(math.sqrt(0.5)), None], [0.0, 0.0]]


def test_entries_are_matched_by_name_and_not_by_place() -> None:
    """Two seeds that list their teachers in another order."""
    first = [{"teacher": "ema", "kl": 1.0}, {"teacher": "memory", "kl": 5.0}]
    second = [{"teacher": "memory", "kl": 7.0}, {"teacher": "ema", "kl": 3.0}]
    assert [(one["teacher"], one["kl"]) for one in merge([first, second])] == [("ema", 2.0), ("memory", 6.0)]


def test_a_teacher_that_one_seed_never_had_is_averaged_over_the_others() -> None:
    """It is kept."""
    merged = merge([[{"teacher": "ema", "kl": 1.0}], [{"teacher": "ema", "kl": 3.0}, {"teacher": "s", "kl": 4.0}]])
    assert [(one["teacher"], one["kl"]) for one in merged] == [("ema", 2.0), ("s", 4.0)]


def test_points_in_time_are_those_that_every_seed_has() -> None:
    """A line is the mean of all seeds throughout."""
    merged = merge([[{"record": 1, "x": 0.0}, {"record": 2, "x": 1.0}], [{"record": 2, "x": 3.0}]])
    assert [(one["record"], one["x"]) for one in merged] == [(2, 2.0)]


def test_names_of_teachers_are_not_mixed_with_deviations() -> None:
    """A map of weights by name keeps its names; deviations go into a map beside it."""
    merged = merge([{"weights": {"ema": 0.2}}, {"weights": {"ema": 0.4, "late_std": 0.1}}])
    assert merged["weights"] == {"ema": pytest.approx(0.3), "late_std": 0.1}
    assert set(merged["weights_std"]) == {"ema", "late_std"}


def test_texts_and_truths_are_kept_only_where_all_agree() -> None:
    """What differs between seeds has no mean."""
    assert merge([{"d": "x", "e": "x", "f": True}, {"d": "x", "e": "y", "f": True}]) == {"d": "x", "e": None, "f": True}


def test_lists_of_other_lengths_have_no_mean() -> None:
    """Forgetting per task of runs with another number of tasks cannot be averaged."""
    assert merge([[1.0, 2.0], [1.0]]) is None
    assert spread([[1.0, 2.0], [1.0]]) is None


def test_a_number_that_one_seed_lacks_has_no_mean() -> None:
    """The mean of the others would be read as that of all."""
    assert merge([{"a": 1.0, "m": [[1.0, 0.5]]}, {"a": None, "m": [[1.0, None]]}]) == {
        "a": None,
        "m": [[1.0, None]],
        "m_std": [[0.0, None]],
    }


def test_plain_values_are_json() -> None:
    """Arrays, numpy numbers, tuples and numbers that are not finite."""
    value = {"a": np.array([[1.0, np.nan]]), "b": np.float32(0.5), "c": (1, math.inf), 3: np.int64(4), "n": None}
    assert plain(value) == {"a": [[1.0, None]], "b": 0.5, "c": [1, None], "3": 4, "n": None}
