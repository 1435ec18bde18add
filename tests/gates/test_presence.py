"""Presence: a class is absent when by its own rate too many of its records are missing."""

import numpy as np

from streamkd.gates.presence import Presence


def seen(labels: list[int]) -> Presence:
    one = Presence()
    for label in labels:
        one.see(label)
    return one


def test_the_classes_of_a_task_that_is_over_are_absent_soon() -> None:
    """Two classes, then two others: a dozen records later the first two do not come any more, and come back at once."""
    one = seen([0, 1] * 100 + [2, 3] * 3)
    assert one.absent().tolist() == [False] * 4
    for label in [2, 3] * 4:
        one.see(label)
    assert one.absent().tolist() == [True, True, False, False]
    one.see(0)
    assert one.absent().tolist() == [False, True, False, False]


def test_a_rare_class_that_comes_is_there() -> None:
    """One record in a hundred: absent for few of the times that one looks, and for good when it stops."""
    draw = np.random.default_rng(0)
    one, away = Presence(), 0
    for label in (draw.random(20_000) < 0.01).astype(int).tolist():
        one.see(label)
        away += bool(one.absent()[1:].any())
    assert away < 0.02 * 20_000
    for _ in range(1_000):
        one.see(0)
    assert one.absent().tolist() == [False, True]


def test_a_class_is_rare_by_its_own_rate() -> None:
    """Of two hundred records one is too few to show what the class is like, ten are not; one that never came is not."""
    one = seen(([0] * 19 + [2]) * 10 + [3] + [0] * 199)
    assert one.rare().tolist() == [False, False, False, True]


def test_it_goes_on_from_its_state() -> None:
    """The same answers after a restart."""
    one, other = seen([0, 1, 2] * 9 + [0] * 60), Presence()
    other.load_state_dict(one.state_dict())
    assert other.absent().tolist() == one.absent().tolist() == [False, True, True]
