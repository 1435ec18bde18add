"""A search while it runs: on a terminal a table that is drawn over, elsewhere a line for each trial that is over.

    Standing ─► Live ─┬► terminal   progress, time left, best so far; those that run, the best, the latest
                      └► other      0:55  trial 4 finished at 3,200 of 3,200 records, accuracy 0.9800; ...

A thread of its own keeps the clock going between two words of the search. Called by ``streamkd.cli.tune``.
"""

import os
import shutil
import threading
import time
from collections import Counter
from typing import Any, TextIO

from streamkd.search import progress
from streamkd.search.driver import Standing
from streamkd.search.ledger import DONE, TrialRecord

REDRAWN_SECONDS, CLOCK_SECONDS = 0.1, 1.0
QUIET_SECONDS = 60.0
"""Where no trial ended for so long a line says that the search goes on."""
BAR = 24
BOLD, DIM, RED, GREEN = "1", "2", "31", "32"


class Live:
    """Watches a search and shows it on a stream until it is closed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._drawn: list[int] = []
        self._told: dict[int, str] = {}
        self._last: Standing | None = None
        self._at = self._spoken = 0.0
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._clock: threading.Thread | None = None
        self.redraws = stream.isatty() and os.environ.get("TERM") != "dumb"

    def __call__(self, standing: Standing) -> None:
        """Show where the search stands."""
        with self._lock:
            if self._last is None:
                self._begin(standing)
            self._last, self._at = standing, time.monotonic()
            if not self.redraws:
                self._tell(standing)
            elif self._at - self._spoken >= REDRAWN_SECONDS:
                self._draw(standing)

    def _begin(self, standing: Standing) -> None:
        """What was over before, in a search that goes on, is no news."""
        self._told = {one.number: one.state for one in standing.trials if one.state in DONE}
        self._spoken = 0.0 if self.redraws else time.monotonic()
        self._clock = threading.Thread(target=self._tick, daemon=True)
        self._clock.start()

    def close(self) -> None:
        """The last state of the table stays; nothing is shown any more."""
        self._closed.set()
        if self._clock is not None:
            self._clock.join()
        if self._last is not None and self.redraws:
            self._draw(self._last)

    def _tick(self) -> None:
        while not self._closed.wait(CLOCK_SECONDS):
            with self._lock:
                if self._last is None:
                    continue
                since = time.monotonic() - self._at
                if self.redraws:
                    self._draw(self._last, since)
                elif time.monotonic() - self._spoken >= QUIET_SECONDS:
                    self._say(f"{progress.clock(self._last.seconds + since)}  {head(self._last, since)}")

    def _tell(self, standing: Standing) -> None:
        for one in standing.trials:
            if one.state in DONE and self._told.get(one.number) != one.state:
                self._told[one.number] = one.state
                self._say(f"{progress.clock(standing.seconds)}  {_ended(one, standing)}; {head(standing)}")

    def _say(self, line: str) -> None:
        self._stream.write(f"{line}\n")
        self._stream.flush()
        self._spoken = time.monotonic()

    def _draw(self, standing: Standing, since: float = 0.0) -> None:
        size = _size(self._stream)
        width, height = size.columns - 1, max(size.lines - 1, 4)
        lines = [(text, BOLD) for text in _headed(standing, width, since)]
        lines += [("", ""), *table(standing, width, height - len(lines) - 1)]
        above = sum(1 + max(length - 1, 0) // size.columns for length in self._drawn)  # it may be narrower by now
        back = f"\x1b[{above}F\x1b[J" if above else ""
        shown = [(text[:width], style) for text, style in lines]
        self._stream.write(back + "".join(f"{_styled(text, style)}\n" for text, style in shown))
        self._stream.flush()
        self._drawn, self._spoken = [len(text) for text, _ in shown], time.monotonic()


def head(standing: Standing, since: float = 0.0) -> str:
    """How far the search is, so many seconds since it was told, and the best so far, in one line."""
    return "; ".join(filter(None, (_counts(standing), _time_left(standing, since), _best(standing))))


def table(standing: Standing, width: int, most: int) -> list[tuple[str, str]]:
    """So many lines at most, each with its style: all trials, or those that matter most."""
    names = ("trial", "state", "records", *standing.directions, "seconds", "values")
    shown = _shown(standing, most - 1)
    left_out = len(standing.trials) - len(shown)
    shown = shown if not left_out else _shown(standing, most - 2)
    rows = [names, *(_row(one, standing) for one in shown)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(names))]
    right = range(2, len(names) - 1)
    lines = [
        "  ".join(
            cell.rjust(wide) if at in right else cell.ljust(wide)
            for at, (cell, wide) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    best = progress.best(standing)
    styles = [DIM, *(_style(one, best) for one in shown)]
    found = [(_cut(line.rstrip(), width), style) for line, style in zip(lines, styles, strict=True)]
    return [*found, (f"… and {len(standing.trials) - len(shown)} more", DIM)] if left_out else found


def _headed(standing: Standing, width: int, since: float) -> list[str]:
    """The head over several lines of that width, after a bar."""
    share = progress.share(standing)
    bar = f"{'█' * round(BAR * share)}{'░' * (BAR - round(BAR * share))} {share:4.0%}"
    time_spent = progress.clock(standing.seconds + since)
    parts = [f"{bar}  {time_spent}", _time_left(standing, since), _counts(standing), _best(standing)]
    lines: list[str] = []
    for part in filter(None, parts):
        if lines and len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += f", {part}"
        else:
            lines.append(part)
    return lines


def _counts(standing: Standing) -> str:
    counts = Counter[str](one.state for one in standing.trials)
    over = sum(counts[state] for state in DONE)
    states = [f"{counts[state]} {state}" for state in DONE if counts[state]]
    parts = [f"{over} of {standing.settings.trials} trials over", f"({', '.join(states)})" if states else ""]
    said = " ".join(filter(None, parts))
    return f"{said}, {counts['running']} running" if counts["running"] else said


def _time_left(standing: Standing, since: float) -> str:
    left = progress.seconds_left(standing)
    return "" if left is None else f"about {progress.clock(max(left - since, 1.0))} left"


def _best(standing: Standing) -> str:
    name = next(iter(standing.directions))
    best = progress.best(standing)
    return "" if best is None else f"best {name} {figure(best.objective(name))} (trial {best.number})"


def _ended(one: TrialRecord, standing: Standing) -> str:
    figures = [
        f", {name} {figure(value)}" for name in standing.directions if (value := one.objective(name)) is not None
    ]
    why = f" ({one.reason})" if one.reason else ""
    return f"trial {one.number} {one.state}{why} at {one.records:,} of {standing.total:,} records{''.join(figures)}"


def _shown(standing: Standing, most: int) -> list[TrialRecord]:
    """All; or those that run, the best, and the latest, by number."""
    if len(standing.trials) <= most:
        return list(standing.trials)
    best = progress.best(standing)
    by_weight = sorted(standing.trials, key=lambda one: (one.state == "running", one is best, one.number))
    return sorted(by_weight[-max(most, 1) :], key=lambda one: one.number)


def _row(one: TrialRecord, standing: Standing) -> tuple[str, ...]:
    figures = [figure(one.objective(name)) for name in standing.directions]
    values = one.reason or "  ".join(f"{_short(path, one.latest)} {_value(v)}" for path, v in one.latest.items())
    return str(one.number), one.state, f"{one.records:,}/{standing.total:,}", *figures, f"{one.seconds:.0f}", values


def _style(one: TrialRecord, best: TrialRecord | None) -> str:
    if best is not None and one.number == best.number:
        return GREEN
    return {"failed": RED, "pruned": DIM, "lost": DIM}.get(one.state, "")


def figure(value: float | None) -> str:
    """An objective as it is shown: shares with four digits after the point, counts with fewer."""
    return "-" if value is None else f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"


def _short(path: str, values: Any) -> str:
    """The path's last key, with the one before it where two end alike."""
    parts = path.split(".")
    alike = sum(other.split(".")[-1] == parts[-1] for other in values)
    return ".".join(parts[-2:]) if alike > 1 else parts[-1]


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: max(width - 1, 0)] + "…"


def _styled(text: str, style: str) -> str:
    return f"\x1b[{style}m{text}\x1b[m" if style and text and not os.environ.get("NO_COLOR") else text


def _size(stream: TextIO) -> os.terminal_size:
    """Of the terminal that the stream goes to, which is not always that of stdout."""
    try:
        found = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        found = shutil.get_terminal_size()
    return found if found.columns > 1 and found.lines > 0 else os.terminal_size((80, 24))
