"""Observers: what they cost, and what they may do."""

import time
from collections.abc import Callable
from typing import Any

from streamkd.observe import Observers


class Seeing:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_step(self, record: int, loss: float, accuracy: float) -> None:
        self.seen.append(record)


def microseconds(call: Callable[[], Any]) -> float:
    """Of the fastest of many hundreds: what else the machine does makes no call faster."""
    best = float("inf")
    for _ in range(300):
        begun = time.perf_counter()
        for _ in range(20):
            call()
        best = min(best, time.perf_counter() - begun)
    return best / 20 * 1e6


def test_five_observers_take_a_few_times_what_five_bare_calls_take() -> None:
    """Guarding and timing five observers costs under 5 µs a step where a bare call takes 0.05: a multiple of that."""
    observers = [(f"observer-{number}", Seeing()) for number in range(5)]
    told = Observers(observers)
    bare = [observer.on_step for _, observer in observers]

    def plainly() -> None:
        for method in bare:
            method(1, 0.5, 0.5)

    assert microseconds(lambda: told.tell("on_step", 1, 0.5, 0.5)) < 20 * microseconds(plainly)
    assert all(observer.seen for _, observer in observers)
    assert {*told.strikes.seconds} == {name for name, _ in observers}


def test_where_nobody_listens_nothing_is_worked_out() -> None:
    """The learner asks first: without an observer of steps it computes nothing for one."""
    assert not Observers([]).hear("on_step")
    assert not Observers([("other", type("Other", (), {"on_published": print})())]).hear("on_step")
    assert Observers([("one", Seeing())]).hear("on_step")
