"""A running search as a person sees it: a line for each trial that ends, and on a terminal one that is drawn over."""

import io
from collections.abc import Iterator
from typing import Any

import pytest

from streamkd.tune import progress
from streamkd.tune.controller import SearchStatus
from streamkd.tune.progress import Progress
from streamkd.tune.record import TrialRecord
from streamkd.tune.settings import Settings

TOTAL = 9000


def trial(number: int, state: Any, records: int = TOTAL, accuracy: float = 0.8, **more: Any) -> TrialRecord:
    """A trial with a reading, unless it has seen nothing; a second for each thousand records."""
    readings = ({"records": records, "objectives": {"accuracy": accuracy}, "per_seed": {}},) if records else ()
    values = {"optimizer.learning_rate": 0.001234567, "adapt.learning_rate": 0.01, "memory.replay": 60}
    return TrialRecord(number, values, state, readings, seconds=records / 1000, **more)


def standing(*trials: TrialRecord, seconds: float = 10.0, **settings: Any) -> SearchStatus:
    return SearchStatus(trials, Settings(**{"trials": 8, **settings}), {"accuracy": "max"}, TOTAL, seconds)


def course() -> Iterator[SearchStatus]:
    """A search from its begin to its end, a trial after the other."""
    over: tuple[TrialRecord, ...] = ()
    for number in range(8):
        yield standing(*over, trial(number, "running", 0), seconds=10 * number)
        yield standing(*over, trial(number, "running", 3000), seconds=10 * number + 5)
        state = ("finished", "pruned", "failed")[number % 3]
        over = (*over, trial(number, state, 6000, 0.8 + number / 100, reason="nan" if state == "failed" else ""))
        yield standing(*over, seconds=10 * number + 9)


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_last_line_is_drawn_over() -> None:
    """Each trial that ends keeps its line; below it there is one line, in the end none."""
    stream = Terminal()
    shown = Progress(stream)
    for now in course():
        shown(now)
    assert "50%" not in stream.getvalue()
    assert "4 of 8 trials over (2 finished, 1 pruned, 1 failed), 1 running" in stream.getvalue()
    shown.close()
    kept = [line.rpartition("\r\x1b[K")[2] for line in stream.getvalue().split("\n")]
    assert [line.split()[2] for line in kept[:-1]] == [str(number) for number in range(8)]
    assert kept[-1] == ""


def test_elsewhere_each_trial_that_ends_is_a_line() -> None:
    """Into a file goes a line a trial, with its state, reason, figures and the best so far, and nothing else."""
    file = io.StringIO()
    shown = Progress(file)
    for now in course():
        shown(now)
    shown.close()
    lines = file.getvalue().splitlines()
    assert len(lines) == 8
    assert lines[0].startswith("0:09  trial 0 finished at 6,000 of 9,000 records, accuracy 0.8000; 1 of 8 trials over")
    assert "trial 2 failed (nan)" in lines[2]
    assert lines[7].endswith("best accuracy 0.8600 (trial 6)")


def test_what_was_over_before_is_no_news() -> None:
    """A search that goes on tells only what ends from now on."""
    file = io.StringIO()
    shown = Progress(file)
    shown(standing(trial(0, "finished"), trial(1, "pruned"), trial(2, "running", 0)))
    shown(standing(trial(0, "finished"), trial(1, "pruned"), trial(2, "finished")))
    shown.close()
    assert [line.split()[2] for line in file.getvalue().splitlines()] == ["2"]


def test_time_left_is_shared_among_what_runs() -> None:
    """Trials to come and the rest of those that run, each as long as one was on average, over as many as run."""
    over = [trial(0, "finished", 9000), trial(1, "pruned", 3000)]
    one = standing(*over, trial(2, "running", 3000))
    two = standing(*over, trial(2, "running", 3000), trial(3, "running", 3000))
    assert progress.seconds_left(one) == pytest.approx(5 * 6 + 3)
    assert progress.seconds_left(two) == pytest.approx((4 * 6 + 3 + 3) / 2)


def test_time_left_ends_with_the_budget() -> None:
    """No more is left than the budget has, also where nothing else is known; of a search that has ended nothing is."""
    assert progress.seconds_left(standing(trial(0, "running", 0), time_budget_seconds=15.0)) == pytest.approx(5.0)
    assert progress.seconds_left(standing(trial(0, "finished"), trial(1, "waiting", 3000))) is None


@pytest.mark.parametrize(("direction", "number"), [("max", 2), ("min", 1)])
def test_the_best_is_that_of_the_direction(direction: str, number: int) -> None:
    """Among the finished ones, the first of equals; pruned and running ones do not count."""
    trials = (
        trial(0, "running", 3000, 0.99),
        trial(1, "finished", accuracy=0.1),
        trial(2, "finished", accuracy=0.9),
        trial(3, "finished", accuracy=0.9),
        trial(4, "finished", accuracy=0.1),
        trial(5, "pruned", 3000, 0.01),
    )
    shown = progress.head(SearchStatus(trials, Settings(), {"accuracy": direction}, TOTAL, 1.0))
    assert shown.endswith(f"(trial {number})")
