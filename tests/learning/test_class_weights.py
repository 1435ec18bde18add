"""Class weights: scikit-learn's balanced ones, bounded, following the newest records; or those that are given."""

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from streamkd.learning.class_weights import MOST, ClassWeights
from streamkd.state.tree import pack, unpack


def test_balanced_ones_are_scikit_learns() -> None:
    """n / (classes · n_c), of records with a label."""
    labels = np.repeat([0, 1, 2], [80, 15, 5])
    one = ClassWeights("balanced")
    one.see(np.concatenate([labels, [-1, -1]]))
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert one.of("abc").tolist() == pytest.approx(expected.tolist(), abs=1e-12)


def test_no_class_counts_more_than_so_many_times_another() -> None:
    """One record in ten thousand, or a label that is known and has not come: bounded."""
    one = ClassWeights("balanced")
    one.see(np.repeat([0, 1], [9_999, 1]))
    weights = one.of("abc")
    assert weights[1] == weights[2] == pytest.approx(MOST * weights[0])
    assert ClassWeights("balanced").of("ab").tolist() == [1.0, 1.0]


def test_they_follow_a_stream_that_changes() -> None:
    """What was rare and is frequent now is not weighed as rare any more."""
    one = ClassWeights("balanced")
    for labels in ([0] * 9 + [1], [0] + [1] * 9):
        for _ in range(5_000):
            one.see(np.array(labels))
    assert one.of("ab")[0] > 2 * one.of("ab")[1]


def test_given_ones_go_by_the_label() -> None:
    """A number in YAML is the label of that number; 1 where nothing is said."""
    assert ClassWeights({"1": 9.0, "spam": 2.0}).of([0, 1, "spam"]).tolist() == [1.0, 9.0, 2.0]


def test_they_go_on_from_their_state() -> None:
    """To the same bits."""
    draw, one, other = np.random.default_rng(0), ClassWeights("balanced"), ClassWeights("balanced")
    one.see(draw.integers(0, 4, 300))
    other.load_state_dict(unpack(pack(one.state_dict())))
    more = draw.integers(0, 5, 200)
    one.see(more)
    other.see(more)
    assert np.array_equal(one.of("abcde"), other.of("abcde"))
