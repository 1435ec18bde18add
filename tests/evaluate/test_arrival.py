"""Measures of what is served: by the model that was there when a record came, and by no later one."""

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
    assert arrivals.measures.overall == 0.75
    arrivals.take(always(1))
    arrivals.score(X, Y)
    found = arrivals.measures
    assert (found.accuracy, found.overall, found.records) == (0.25, 0.5, 8)


def test_nobody_is_answered_before_there_is_a_model() -> None:
    """Records that come before the first version count neither as right nor as wrong."""
    arrivals = Arrivals(window=4)
    arrivals.score(X, Y)
    found = arrivals.measures
    assert (found.accuracy, found.overall, found.records) == (None, None, 0)


def test_a_label_that_the_model_has_not_heard_of_is_wrong() -> None:
    """Columns beyond the model's head can be no answer of it."""
    arrivals = Arrivals(window=4)
    arrivals.take(always(0, classes=1))
    arrivals.score(X, torch.tensor([0, 1, 2, 3]))
    assert arrivals.measures.overall == 0.25


@pytest.mark.parametrize("y", [[-1, -1, -1, -1], [0, -1, 1, -1]])
def test_records_without_label_are_not_counted(y: list[int]) -> None:
    """Half of the labelled ones are right; of none there is no figure."""
    arrivals = Arrivals(window=4)
    arrivals.take(always(0))
    arrivals.score(X, torch.tensor(y))
    assert (arrivals.measures.overall, arrivals.measures.records) == ((0.5, 2) if 0 in y else (None, 0))


def test_probabilities_are_those_that_were_answered() -> None:
    """The log-loss is that of a softmax of the model's logits."""
    arrivals = Arrivals(window=4)
    arrivals.take(always(0))
    arrivals.score(X, Y)
    sure = torch.softmax(torch.tensor([1.0, 0.0, 0.0]).double(), 0)
    expected = -(3 * sure[0].log() + sure[1].log()) / 4
    assert arrivals.measures.figures("abc")["all"]["log_loss"] == pytest.approx(float(expected), abs=1e-12)
