"""A search on the terminal: a table that is drawn over, or elsewhere a line for each trial that ends.

7 of 16 trials: 2 running, 1 finished, 4 pruned; 31% of the records of whole trials, 1:12; best accuracy 0.912 ...

trial  state     records  accuracy  seconds  values
"""

import shutil
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, TextIO

from streamkd.search.driver import Standing
from streamkd.search.ledger import DONE, TrialRecord
from streamkd.search.metrics import best_of

REDRAWN_SECONDS = 0.1
FEWEST = 4


class Live:
    """Watches a search and shows it on a stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._drawn = 0
        self._at = 0.0
        self._states: dict[int, str] = {}
        self._last: Standing | None = None

    def __call__(self, standing: Standing) -> None:
        """Show where the search stands."""
        self._last = standing
        if self._stream.isatty():
            if time.monotonic() - self._at >= REDRAWN_SECONDS:
                self._draw(standing)
            return
        for one in standing.trials:
            if self._states.get(one.number) != one.state:
                self._states[one.number] = one.state
                if one.state in (*DONE, "lost"):
                    self._stream.write(f"{_said(one, standing)}; {_head(standing)}\n")
        self._stream.flush()

    def close(self) -> None:
        """The last state of the table."""
        if self._last is not None and self._stream.isatty():
            self._draw(self._last)

    def _draw(self, standing: Standing) -> None:
        size = shutil.get_terminal_size()
        lines = [_head(standing), "", *table(standing, size.columns - 1, max(size.lines - 4, FEWEST))]
        back = f"\x1b[{self._drawn}F\x1b[J" if self._drawn else ""
        self._stream.write(back + "\n".join(line[: size.columns - 1] for line in lines) + "\n")
        self._stream.flush()
        self._drawn, self._at = len(lines), time.monotonic()


def _head(standing: Standing) -> str:
    counts = Counter[str](one.state for one in standing.trials)
    order = ("running", "finished", "pruned", "failed", "lost", "waiting")
    states = ", ".join(f"{counts[state]} {state}" for state in order if counts[state])
    seen = sum(one.records for one in standing.trials)
    share = seen / max(len(standing.trials) * standing.total, 1)
    minutes, seconds = divmod(int(standing.seconds), 60)
    return (
        f"{len(standing.trials)} of {standing.settings.trials} trials: {states}; {share:.0%} of the records of whole "
        f"trials, {minutes}:{seconds:02}{_best(standing)}"
    )


def _best(standing: Standing) -> str:
    name, direction = next(iter(standing.directions.items()))
    best = best_of(standing.trials, name, direction)
    if best is None:
        return ""
    number = next(one.number for one in standing.trials if one.state == "finished" and one.objective(name) == best)
    return f"; best {name} {best:.4f} (trial {number})"


def _said(one: TrialRecord, standing: Standing) -> str:
    figures = "".join(
        f", {name} {value}" for name, value in zip(standing.directions, _figures(one, standing), strict=True)
    )
    why = f" ({one.reason})" if one.reason else ""
    return f"trial {one.number} {one.state}{why} at {one.records} of {standing.total} records{figures}"


def table(standing: Standing, width: int, most: int) -> list[str]:
    """The trials as lines no wider than that: all, or those that run and the latest."""
    head = ("trial", "state", "records", *standing.directions, "seconds", "values")
    rows = [head, *(_row(one, standing) for one in _shown(standing.trials, most - 1))]
    widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
    return [
        "  ".join(cell.ljust(wide) for cell, wide in zip(row, widths, strict=True))[:width].rstrip() for row in rows
    ]


def _shown(trials: Sequence[TrialRecord], most: int) -> list[TrialRecord]:
    latest = sorted(trials, key=lambda one: (one.state == "running", one.number))[-most:]
    return sorted(latest, key=lambda one: one.number)


def _row(one: TrialRecord, standing: Standing) -> tuple[str, ...]:
    seconds = one.seconds or (time.time() - one.begun_at if one.begun_at and one.state == "running" else 0.0)
    values = one.reason or "  ".join(f"{_short(path, one.latest)} {_value(v)}" for path, v in one.latest.items())
    records = f"{one.records}/{standing.total}"
    return (str(one.number), one.state, records, *_figures(one, standing), f"{seconds:.0f}", values)


def _figures(one: TrialRecord, standing: Standing) -> list[str]:
    values = [one.objective(name) for name in standing.directions]
    return ["-" if value is None else f"{value:.4f}" for value in values]


def _short(path: str, values: Any) -> str:
    """The path's last key, with the one before it where two end alike."""
    parts = path.split(".")
    alike = sum(other.split(".")[-1] == parts[-1] for other in values)
    return ".".join(parts[-2:]) if alike > 1 else parts[-1]


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
