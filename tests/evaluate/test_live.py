"""Live quality: a figure for what was measured, and none for what has only just begun."""

import torch

from streamkd.evaluate.live import ENOUGH, LiveQuality


def measured(rows: int, current: int | None) -> LiveQuality:
    """The second of two tasks has so many held-out records, all of them wrong; those of the first are right."""
    quality = LiveQuality()
    y, task = torch.zeros(9 + rows, dtype=torch.int64), torch.tensor([0] * 9 + [1] * rows)
    logits = torch.nn.functional.one_hot(task, 2).float()
    quality.measure(lambda x: logits, torch.zeros(len(y), 1), y, task, ["a", "b"], current)
    return quality


def test_a_task_that_has_just_begun_has_no_figure() -> None:
    """Of fewer than ``ENOUGH`` records "0 %" says nothing: no accuracy, no best, and the mean is over the others."""
    early = measured(ENOUGH - 1, current=1)
    assert early.per_task == {"a": 1.0}
    assert early.accuracy == 1.0
    assert early.best == {"a": 1.0}


def test_with_enough_records_it_has_one() -> None:
    """Five wrong answers are 0 %; a task that is over keeps the little that the memory has of it."""
    assert measured(ENOUGH, current=1).per_task == {"a": 1.0, "b": 0.0}
    assert measured(1, current=0).per_task == {"a": 1.0, "b": 0.0}
