"""What the runs of a benchmark reached, over the seeds: as figures with names, and as the cells of a table.

rows of runs ─► Scores ─► named ─► figures          ─► table ─► terminal, documents          ─► plots
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence

Scores = Mapping[str, Mapping[str, Sequence[float]]]
"""By column of a table (a stream, a scenario) and by line (a method, a policy), a value for each seed."""
Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Head and lines."""


def named(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Means over the seeds by name, sample deviations beside them as ``..._std`` (0 for one seed)."""
    found: dict[str, float] = {}
    for name, each in values.items():
        found |= {name: statistics.mean(each), f"{name}_std": _deviation(each)}
    return found


def table(what: str, scores: Scores, lines: Iterable[str], gap: str) -> Table:
    """Mean ± deviation by line and column; ``gap`` where nothing was run. A line without any run is left out."""
    cells = [(line, *(cell(each[line]) if line in each else gap for each in scores.values())) for line in lines]
    return (what, *scores), [line for line in cells if any(cell != gap for cell in line[1:])]


def cell(values: Sequence[float]) -> str:
    """Mean ± deviation; of one seed without."""
    return f"{statistics.mean(values):.3f}" + (f" ± {_deviation(values):.3f}" if len(values) > 1 else "")


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
