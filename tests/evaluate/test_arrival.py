"""Prequential accuracy of what is served: by the model that was there when a record came, and by no later one."""

import json

import pytest
import torch
import torch.nn.functional as F

from streamkd.evaluate.arrival import Arrivals, Predict


def always(column: int, classes: int = 3) -> Predict:
    """A model that gives every record one answer."""
    return lambda x: F.one_hot(torch.full((len(x),), column), classes).float()


X = torch.zeros(4, 2)
Y = torch.tensor([0, 0, 0, 1])


def test_each_batch_is_answered_by_the_model_of_its_time() -> None:
    """Three of four are right while column 0 is said, one of four once column 1 is."""
    arrivals = Arrivals(window=4)
    arrivals.take(always(0))
    arrivals.score(X, Y)
    assert arrivals.overall == 0.75
    arrivals.take(always(1))
    arrivals.score(X, Y)
    assert (arrivals.accuracy, arrivals.overall, arrivals.records) == (0.25, 0.5, 8)


def test_nobody_is_answered_before_there_is_a_model() -> None:
    """Records that come before the first version count neither as right nor as wrong."""
    arrivals = Arrivals(window=4)
    arrivals.score(X, Y)
    assert (arrivals.accuracy, arrivals.overall, arrivals.records) == (None, None, 0)


def test_a_label_that_the_model_has_not_heard_of_is_wrong() -> None:
    """Columns beyond the model's head can be no answer of it."""
    arrivals = Arrivals(window=4)
    arrivals.take(always(0, classes=1))
    arrivals.score(X, torch.tensor([0, 1, 2, 3]))
    assert arrivals.overall == 0.25


@pytest.mark.parametrize("y", [[-1, -1, -1, -1], [0, -1, 1, -1]])
def test_records_without_label_are_not_counted(y: list[int]) -> None:
    """Half of the labelled ones are right; of none there is no figure."""
    arrivals = Arrivals(window=4)
    arrivals.take(always(0))
    arrivals.score(X, torch.tensor(y))
    assert (arrivals.overall, arrivals.records) == ((0.5, 2) if 0 in y else (None, 0))


def test_stopped_and_resumed_the_counts_are_the_same() -> None:
    """Through JSON, and the model given again: as if nothing had been."""
    first, second = Arrivals(window=4), Arrivals(window=4)
    first.take(always(0))
    first.score(X, Y)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.take(always(0))
    for one in (first, second):
        one.score(X[:2], Y[2:])
    assert second.state_dict() == first.state_dict()
    assert (second.accuracy, second.overall) == (first.accuracy, first.overall)
