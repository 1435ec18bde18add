"""Prequential figures: accuracy, kappa against the last label, recovery after a change."""

import numpy as np
import pytest

from streamkd.bench import prequential
from streamkd.bench.prequential import Recovery


def test_no_change_says_the_newest_label_that_is_known() -> None:
    """Without delay the label before, with a delay of two the one three before, and nothing until then."""
    y = np.array([3, 1, 2, 5, 4])
    assert prequential.no_change(y).tolist() == [-1, 3, 1, 2, 5]
    assert prequential.no_change(y, 2).tolist() == [-1, -1, -1, 3, 1]
    assert prequential.no_change(y, 9).tolist() == [-1] * 5


@pytest.mark.parametrize("delay", [0, 3])
def test_kappa_is_zero_for_the_last_label_and_one_for_the_truth(delay: int) -> None:
    """In between it is the part of no-change's mistakes that are spared."""
    y = np.random.default_rng(0).integers(0, 2, 400)
    last = prequential.no_change(y, delay)
    assert prequential.temporal_kappa(last, y, delay) == 0
    assert prequential.temporal_kappa(y, y, delay) == 1
    wrong = np.flatnonzero(last != y)
    half = last.copy()
    half[wrong[::2]] = y[wrong[::2]]
    assert prequential.temporal_kappa(half, y, delay) == pytest.approx(len(wrong[::2]) / len(wrong))


def test_a_silent_prediction_is_a_wrong_one() -> None:
    """Who says nothing of a record has not been right about it."""
    assert prequential.accuracy(np.array([-1, 0, 1, -1]), np.array([0, 0, 1, 1])) == 0.5


def test_recovery_counts_records_until_the_former_accuracy_is_back() -> None:
    """Right until the change, then wrong for 300 records: a window of a hundred is 95 % right 95 records later."""
    y, concepts = np.ones(4_000, int), np.repeat([0, 1], 2_000)
    predicted = y.copy()
    predicted[2_000:2_300] = 0
    assert prequential.recoveries(predicted, y, concepts) == [Recovery(2_000, 395, reached=True, again=False)]


def test_recovery_is_measured_by_what_was_there_before() -> None:
    """Who was right on half of the former concept has recovered with nearly half, and at once who never suffers."""
    y, concepts = np.ones(4_000, int), np.repeat([0, 1], 2_000)
    predicted = np.tile([0, 1], 2_000)
    (found,) = prequential.recoveries(predicted, y, concepts)
    assert (found.records, found.reached) == (prequential.WINDOW, True)


def test_a_concept_that_ends_first_counts_whole() -> None:
    """Never right again: all of its records. A concept that comes again is told apart."""
    y, concepts = np.ones(3_000, int), np.repeat([0, 1, 0], 1_000)
    predicted = y.copy()
    predicted[1_000:2_000] = 0
    found = prequential.recoveries(predicted, y, concepts)
    assert found[0] == Recovery(1_000, 1_000, reached=False, again=False)
    assert found[1].again
    assert prequential.mean_recovery(found, again=False) == 1_000
    assert prequential.mean_recovery(found[:1], again=True) is None
