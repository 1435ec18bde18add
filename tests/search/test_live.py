"""A running search as a person sees it: a table that is drawn over on a real terminal, plain lines elsewhere."""

import fcntl
import io
import os
import re
import struct
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import pytest

from streamkd.search import live, progress
from streamkd.search.driver import Standing
from streamkd.search.ledger import TrialRecord
from streamkd.search.live import Live
from streamkd.search.settings import Settings

TOTAL = 9000


def trial(number: int, state: Any, records: int = TOTAL, accuracy: float = 0.8, **more: Any) -> TrialRecord:
    """A trial with a reading, unless it has seen nothing; a second for each thousand records."""
    readings = ({"records": records, "objectives": {"accuracy": accuracy}, "per_seed": {}},) if records else ()
    values = {"optimizer.learning_rate": 0.001234567, "adapt.learning_rate": 0.01, "memory.replay": 60}
    return TrialRecord(number, values, state, readings, seconds=records / 1000, **more)


def standing(*trials: TrialRecord, seconds: float = 10.0, **settings: Any) -> Standing:
    return Standing(trials, Settings(**{"trials": 8, **settings}), {"accuracy": "max"}, TOTAL, seconds)


def course() -> Iterator[Standing]:
    """A search from its begin to its end, a trial after the other."""
    over: tuple[TrialRecord, ...] = ()
    for number in range(8):
        yield standing(*over, trial(number, "running", 0), seconds=10 * number)
        yield standing(*over, trial(number, "running", 3000), seconds=10 * number + 5)
        state = ("finished", "pruned", "failed")[number % 3]
        over = (*over, trial(number, state, 6000, 0.8 + number / 100, reason="nan" if state == "failed" else ""))
        yield standing(*over, seconds=10 * number + 9)


class Screen:
    """What stands on a terminal of so many columns after these bytes."""

    def __init__(self, columns: int) -> None:
        self.columns, self.lines, self.row, self.column = columns, [""], 0, 0

    def feed(self, text: str) -> None:
        for part in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|[^\x1b]", text):
            if part.startswith("\x1b"):
                self._command(part[2:-1], part[-1])
            elif part == "\n":
                self.row, self.column = self.row + 1, 0
                self.lines += [""] * (self.row + 1 - len(self.lines))
            elif part != "\r":
                assert self.column < self.columns, "it wraps"
                self.lines[self.row] = self.lines[self.row][: self.column] + part
                self.column += 1

    def _command(self, number: str, letter: str) -> None:
        if letter == "F":
            self.row, self.column = self.row - int(number), 0
            assert self.row >= 0
        elif letter == "J":
            self.lines = [*self.lines[: self.row], ""]
        else:
            assert letter == "m"


class Terminal:
    """A pseudo-terminal of this size; ``read`` gives what was put on it since."""

    def __init__(self, columns: int, lines: int) -> None:
        self._ours, theirs = os.openpty()
        self.resize(columns, lines)
        os.set_blocking(self._ours, False)
        self.stream: TextIO = os.fdopen(theirs, "w", encoding="utf-8")

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def read(self) -> str:
        found = b""
        while True:
            try:
                found += os.read(self._ours, 1 << 16)
            except BlockingIOError:
                return found.decode("utf-8")

    def close(self) -> None:
        self.stream.close()
        os.close(self._ours)


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, columns: int, lines: int) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(live, "REDRAWN_SECONDS", 0.0)
    made = Terminal(columns, lines)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize(("columns", "lines"), [(30, 24), (80, 24), (200, 60), (80, 8)])
def test_the_table_is_drawn_over(monkeypatch: pytest.MonkeyPatch, columns: int, lines: int) -> None:
    """On a terminal of any size one table stands there at the end: nothing wraps, nothing is left of others."""
    screen = Screen(columns)
    with terminal(monkeypatch, columns, lines) as there:
        shown = Live(there.stream)
        for now in course():
            shown(now)
            screen.feed(there.read())
            assert len(screen.lines) <= lines
        shown.close()
        screen.feed(there.read())
    assert sum(line.startswith("trial ") for line in screen.lines) == 1
    assert "100%" in screen.lines[0]
    numbers = [int(found[1]) for line in screen.lines if (found := re.match(r"(\d+) +(?:fini|prun|fail)", line))]
    assert numbers == sorted(set(numbers))
    assert 6 in numbers  # the best


def test_it_says_how_far_the_search_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share, time, time left, trials by state, the best so far with its trial."""
    with terminal(monkeypatch, 200, 24) as there:
        shown = Live(there.stream)
        shown(standing(trial(0, "finished", accuracy=0.91), trial(1, "pruned", 3000), trial(2, "running", 4500)))
        text = there.read()
        shown.close()
    assert (
        "31%  0:10, about 0:31 left, 2 of 8 trials over (1 finished, 1 pruned), 1 running, best accuracy 0.9100" in text
    )
    assert re.search(r"2 +running +4,500/9,000 +0\.8000", text)
    assert "optimizer.learning_rate 0.00123  adapt.learning_rate 0.01  replay 60" in text


def test_a_long_search_shows_what_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more trials than there are lines: those that run, the best one, the latest, and how many more there are."""
    trials = [trial(number, "finished", accuracy=0.9 if number == 7 else 0.8) for number in range(60)]
    trials[3] = trial(3, "running", 3000)
    with terminal(monkeypatch, 80, 14) as there:
        shown = Live(there.stream)
        shown(standing(*trials, trials=64))
        text = re.sub(r"\x1b\[\d*m", "", there.read())
        shown.close()
    rows = [int(number) for number in re.findall(r"^(\d+) +(?:running|finished) ", text, re.M)]
    assert {3, 7, 59} <= set(rows)
    assert f"… and {60 - len(rows)} more" in text


def test_the_clock_goes_on_between_two_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that says nothing for a while is drawn again with the time that went by."""
    monkeypatch.setattr(live, "CLOCK_SECONDS", 0.05)
    with terminal(monkeypatch, 80, 24) as there:
        shown = Live(there.stream)
        shown(standing(trial(0, "running", 0), seconds=59.9))
        text = ""
        for _ in range(100):
            text += there.read()
            if "1:00" in text:
                break
            time.sleep(0.02)
        shown.close()
    assert "1:00" in text


@pytest.mark.parametrize("variable", ["NO_COLOR", "TERM"])
def test_no_colours_where_none_are_wanted(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """With NO_COLOR the table has none; a dumb terminal gets plain lines, without any control sequence."""
    with terminal(monkeypatch, 80, 24) as there:
        monkeypatch.setenv(variable, "dumb")
        shown = Live(there.stream)
        text = ""
        for now in course():
            shown(now)
            text += there.read()
        shown.close()
    assert not re.search(r"\x1b\[[\d;]*m", text)
    assert ("\x1b" in text) == (variable == "NO_COLOR")


def test_elsewhere_each_trial_that_ends_is_a_line() -> None:
    """Into a file goes a line a trial, with its state, reason, figures and the best so far, and nothing else."""
    file = io.StringIO()
    shown = Live(file)
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
    shown = Live(file)
    shown(standing(trial(0, "finished"), trial(1, "pruned"), trial(2, "running", 0)))
    shown(standing(trial(0, "finished"), trial(1, "pruned"), trial(2, "finished")))
    shown.close()
    assert [line.split()[2] for line in file.getvalue().splitlines()] == ["2"]


def test_a_quiet_search_says_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no trial ends for a while a line says how far it is."""
    monkeypatch.setattr(live, "CLOCK_SECONDS", 0.02)
    monkeypatch.setattr(live, "QUIET_SECONDS", 0.05)
    file = io.StringIO()
    shown = Live(file)
    shown(standing(trial(0, "running", 3000)))
    time.sleep(0.5)
    shown.close()
    assert file.getvalue().startswith("0:10  0 of 8 trials over, 1 running; about")


def test_time_left_is_shared_among_what_runs() -> None:
    """Trials to come and the rest of those that run, each as long as one was on average, over as many as run."""
    over = [trial(0, "finished", 9000), trial(1, "pruned", 3000)]
    one = standing(*over, trial(2, "running", 3000))
    two = standing(*over, trial(2, "running", 3000), trial(3, "running", 3000))
    assert progress.seconds_left(one) == pytest.approx(5 * 6 + 3)
    assert progress.seconds_left(two) == pytest.approx((4 * 6 + 3 + 3) / 2)


def test_time_left_before_any_trial_is_over() -> None:
    """The pace of those that run says how long a whole one takes; before a reading nothing is known."""
    assert progress.seconds_left(standing(trial(0, "running", 3000))) == pytest.approx(7 * 9 + 6)
    assert progress.seconds_left(standing(trial(0, "running", 0))) is None


def test_time_left_ends_with_the_budget() -> None:
    """No more is left than the budget has, also where nothing else is known; of a search that has ended nothing is."""
    assert progress.seconds_left(standing(trial(0, "running", 3000), time_budget_seconds=15.0)) == pytest.approx(5.0)
    assert progress.seconds_left(standing(trial(0, "running", 0), time_budget_seconds=15.0)) == pytest.approx(5.0)
    assert progress.seconds_left(standing(trial(0, "finished"), trial(1, "lost", 3000))) is None


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
    best = progress.best(Standing(trials, Settings(), {"accuracy": direction}, TOTAL, 1.0))
    assert best is not None
    assert best.number == number
