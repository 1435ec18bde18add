"""A search while it runs: a line for each trial that is over; on a terminal a last one, drawn over, says how far it is.

    0:55  trial 4 finished at 3,200 of 3,200 records, accuracy 0.9800; 7 of 16 trials over (3 finished, 4 pruned), ...

Called by ``streamkd.cli.tune``.
"""

import shutil
from collections import Counter
from typing import TYPE_CHECKING, TextIO

from streamkd.tune.record import DONE, TrialRecord
from streamkd.tune.results.decision import highest

if TYPE_CHECKING:
    from streamkd.tune.controller import SearchStatus


class Progress:
    """Watches a search and tells of it on a stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._terminal = stream, stream.isatty()
        self._told: set[int] | None = None

    def __call__(self, standing: "SearchStatus") -> None:
        """Tell what is new."""
        over = {one.number: one for one in standing.trials if one.state in DONE}
        if self._told is None:  # what was over before, in a search that goes on, is no news
            self._told = set(over)
        status = f"{clock(standing.seconds)}  {head(standing)}"
        for number in sorted(over.keys() - self._told):
            self._told.add(number)
            self._write(f"{clock(standing.seconds)}  {_ended(over[number], standing)}; {head(standing)}\n")
        if self._terminal:
            self._write(status[: shutil.get_terminal_size().columns - 1])

    def close(self) -> None:
        """Nothing is told any more."""
        self._write("")

    def _write(self, text: str) -> None:
        self._stream.write(f"\r\x1b[K{text}" if self._terminal else text)
        self._stream.flush()


def head(standing: "SearchStatus") -> str:
    """How far the search is, and the best so far, in one line."""
    counts = Counter[str](one.state for one in standing.trials)
    states = ", ".join(f"{counts[state]} {state}" for state in DONE if counts[state])
    over = f"{sum(counts[state] for state in DONE)} of {standing.settings.trials} trials over"
    over += f" ({states})" * bool(states) + f", {counts['running']} running" * bool(counts["running"])
    left, (name, direction) = seconds_left(standing), next(iter(standing.directions.items()))
    first = highest(standing.trials, name, direction)
    return "; ".join(
        [
            over,
            *([] if left is None else [f"about {clock(max(left, 1.0))} left"]),
            *([] if first is None else [f"best {name} {figure(first.objective(name))} (trial {first.number})"]),
        ]
    )


def _ended(one: TrialRecord, standing: "SearchStatus") -> str:
    known = [(name, one.objective(name)) for name in standing.directions]
    figures = "".join(f", {name} {figure(value)}" for name, value in known if value is not None)
    why = f" ({one.reason})" if one.reason else ""
    return f"trial {one.number} {one.state}{why} at {one.records:,} of {standing.total:,} records{figures}"


def seconds_left(standing: "SearchStatus") -> float | None:
    """Trials to come and the rest of those that run, each as long as one was, over as many as run at once.

    ``None`` where no trial runs, and while none is over; no more than the time budget leaves.
    """
    running = [one for one in standing.trials if one.state == "running"]
    over = [one for one in standing.trials if one.state in DONE]
    if not running:
        return None
    budget = standing.settings.time_budget_seconds
    most = [] if budget is None else [max(budget - standing.seconds, 0.0)]
    if spent := [one.seconds for one in over if one.seconds]:
        each = sum(spent) / len(spent)
        to_come = max(standing.settings.trials - len(over) - len(running), 0) * each
        most.append((to_come + sum(max(each - one.seconds, 0.1 * each) for one in running)) / len(running))
    return min(most, default=None)


def figure(value: float | None) -> str:
    """An objective as it is shown: shares with four digits after the point, counts with fewer."""
    return "-" if value is None else f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"


def clock(seconds: float) -> str:
    """``1:05``, or ``2:01:05`` from an hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
