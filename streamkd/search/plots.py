"""The charts of a search as SVG, in the frame and the colours of ``streamkd.evaluate.charts``.

    history ── who finished, in their order, and the best so far     curves ─── accuracy over the records seen
    bars ───── importance, a bar a path                              scatter ── two objectives and their front

A trial is a ``Dot``: its kind says how it looks (shape and colour, so that either alone is enough). Parallel
coordinates are in ``streamkd.search.coordinates``. Called by ``streamkd.search.page``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from streamkd.evaluate import charts
from streamkd.evaluate.charts import Frame, Mark, Point

KINDS = {
    "taken": "◆ taken",
    "finished": "● finished",
    "pruned": "○ pruned",
    "failed": "× failed",
    "open": "□ not ended",
}
_ROW, _NAMES, _LONGEST = 24, 236, 268
_CLASS = "chart search"  # its texts grow on a narrow page


@dataclass(frozen=True, slots=True)
class Dot:
    """A trial in a chart; ``y`` is ``None`` where it has no figure to stand at."""

    x: float
    y: float | None
    kind: str
    said: str


def history(dots: Sequence[Dot], level: float | None, direction: str, *, title: str) -> str:
    """Figures by the trial's number; who has none stands in the strip below. ``level`` is that of trial 0."""
    known = [dot.y for dot in dots if dot.y is not None]
    if not known:
        return charts.nothing(title)
    low, high = tight([*known, *([level] if level is not None else [])])
    frame = Frame(-0.5, max(dot.x for dot in dots) + 0.5, low, high, height=300, strip=44)
    size = min(3.8, max(1.2, 200 / len(dots)))
    drawn = [charts.axes(frame, across=False), _numbers(frame), _level(frame, level), _best(dots, frame, direction)]
    drawn += [_strip(frame, dots)]
    drawn += [
        _dot(frame.x(dot.x), frame.bottom + (16 if dot.kind == "pruned" else 34), dot, size)
        for dot in dots
        if dot.y is None
    ]
    drawn += [_dot(frame.x(dot.x), _within(frame, dot.y), dot) for dot in dots if dot.y is not None]
    return _svg(title, drawn, frame) + key(dots)


def curves(lines: Sequence[tuple[str, Sequence[Point], str]], marks: Sequence[Mark] = (), *, title: str) -> str:
    """(name, points, kind) over records, drawn in their order; the kinds are ``default`` and those of ``KINDS``."""
    values = [y for _, points, _ in lines for _, y in points if y is not None]
    if not values:
        return charts.nothing(title)
    low, high = tight(values)
    frame = Frame(0, max(x for _, points, _ in lines for x, _ in points), low, high)
    many = " many" if len(lines) > 60 else ""
    drawn = [
        f'<path d="{_stroke(points, frame)}" class="line trial {kind}{many}"><title>{escape(name)}</title></path>'
        for name, points, kind in lines
    ]
    return _svg(title, [charts.axes(frame), *[charts.mark(one, frame) for one in marks], *drawn], frame)


def bars(values: Mapping[str, float | None], *, title: str, chance: float | None = None) -> str:
    """A bar a name from the left, the longest on top as they come; without a bar where there is no value.

    ``chance`` is a dashed line: what does not reach it may be nothing.
    """
    if not any(value is not None for value in values.values()):
        return charts.nothing(title)
    full = max(0.05, chance or 0.0, *(value or 0.0 for value in values.values()))
    height = len(values) * _ROW + 6
    drawn = [_bar_row(row, name, value, full) for row, (name, value) in enumerate(values.items())]
    if chance is not None:
        x = _NAMES + chance / full * _LONGEST
        drawn.insert(0, f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}" class="ideal"/>')
    return charts.svg(title, drawn, 560, height, _CLASS)


def scatter(dots: Sequence[Dot], front: Sequence[tuple[float, float]], names: tuple[str, str], *, title: str) -> str:
    """Two objectives of each trial that finished; the front is the line."""
    known = [(dot, dot.y) for dot in dots if dot.y is not None]
    if not known:
        return charts.nothing(title)
    (x0, x1), (y0, y1) = tight([dot.x for dot, _ in known]), tight([y for _, y in known])
    frame = Frame(x0, x1, y0, y1, strip=16)
    line = charts.line([(min(max(x, x0), x1), _clipped(frame, y)) for x, y in sorted(front)], frame)
    drawn = [
        charts.axes(frame, across=False),
        *[
            f'<text x="{frame.x(v):.1f}" y="{frame.bottom + 18:g}" class="tick middle">{v:.4g}</text>'
            for v in np.linspace(x0, x1, 6)
        ],
        f'<text x="{frame.right:g}" y="{frame.height - 12:g}" class="axis end">{escape(names[0])} →</text>',
        f'<text x="{frame.x(x0) + 6:.1f}" y="{frame.y(y1) + 12:.1f}" class="axis start">{escape(names[1])} ↑</text>',
        f'<path d="{line}" class="line front"/>',
        *[_dot(frame.x(min(max(dot.x, x0), x1)), _within(frame, y), dot) for dot, y in known],
    ]
    return _svg(title, drawn, frame) + key(dots)


def tight(values: Sequence[float]) -> tuple[float, float]:
    """Round ends around the values; what lies far below or above the others is left outside."""
    q1, q3 = np.quantile(values, [0.25, 0.75])
    reach = 3 * max(float(q3 - q1), 1e-3 * max(abs(float(q3)), 1e-6))
    low, high = max(min(values), float(q1) - reach), min(max(values), float(q3) + reach)
    step = _nice((high - low) / 4 or abs(high) / 50 or 0.01)
    first = math.floor(low / step + 1e-9) * step
    while first + 5 * step < high - 1e-12:
        step = _nice(step * 1.01)
        first = math.floor(low / step + 1e-9) * step
    if max(values) <= 1.0 < first + 5 * step:
        return max(0.0, 1.0 - 5 * step) if min(values) >= 0 else 1.0 - 5 * step, 1.0
    return first, first + 5 * step


def shortened(name: str, most: int) -> str:
    """A path by its end, which says more than its beginning; whole keys where they are short enough."""
    if len(name) <= most:
        return name
    ends = [name[at + 1 :] for at, sign in enumerate(name) if sign == "."]
    return "…" + next((end for end in ends if 0 < len(end) < most), name[-most + 1 :])


def key(dots: Sequence[Dot]) -> str:
    """The kinds that are there, beside their shapes."""
    there = {dot.kind for dot in dots}
    items = "".join(f'<span class="{kind}">{said}</span>' for kind, said in KINDS.items() if kind in there)
    return f'<div class="legend key">{items}</div>'


def _svg(title: str, drawn: Sequence[str], frame: Frame) -> str:
    return charts.svg(title, drawn, frame.width, frame.height, _CLASS)


def _stroke(points: Sequence[Point], frame: Frame) -> str:
    """A line; a trial that was measured once is a dash there."""
    known = [(x, _clipped(frame, y)) for x, y in points if y is not None]
    if len(known) != 1:
        return charts.line([(x, _clipped(frame, y)) for x, y in points], frame)
    x, y = frame.x(known[0][0]), frame.y(known[0][1] or 0.0)
    return f"M{x - 4:.1f},{y:.1f}H{x + 4:.1f}"


def _strip(frame: Frame, dots: Sequence[Dot]) -> str:
    """The names of the rows below the area."""
    there = {dot.kind for dot in dots if dot.y is None}
    lower = next((kind for kind in ("failed", "open") if kind in there), "")
    rows = {16: "pruned" if "pruned" in there else "", 34: lower}
    left = frame.x(frame.x0) - 7
    return "".join(
        f'<text x="{left:.1f}" y="{frame.bottom + y + 4:.1f}" class="tick end">{name}</text>'
        for y, name in rows.items()
        if name
    )


def _bar_row(row: int, name: str, value: float | None, full: float) -> str:
    """A name, its bar and its number; ``full`` is the value that fills the width."""
    left, y = _NAMES, row * _ROW + 4
    long = (value or 0.0) / full * _LONGEST
    size = f'x="{left}" y="{y}" width="{max(long, 1):.1f}" height="17" rx="2"'
    bar = "" if value is None else f'<rect {size} style="fill:{charts.colour(0)}"/>'
    text = "–" if value is None else f"{value:.2f}"
    return (
        f'<text x="{left - 8}" y="{y + 13}" class="tick end">{escape(shortened(name, 36))}'
        f"<title>{escape(name)}</title></text>{bar}"
        f'<text x="{left + long + 7:.1f}" y="{y + 13}" class="tick">{text}</text>'
    )


def _nice(step: float) -> float:
    """The next round number above: 1, 2, 2.5, 5 or 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10, 20) if factor * power >= step * 0.999_999)


def _dot(x: float, y: float, dot: Dot, size: float = 3.8) -> str:
    """Diamond, disc, ring, cross or square."""
    said = f"<title>{escape(dot.said)}</title>"
    if dot.kind == "taken":
        return f'<path d="M{x:.1f},{y - 7:.1f}l7,7l-7,7l-7,-7z" class="dot taken">{said}</path>'
    if dot.kind == "failed":
        return f'<path d="M{x - 4:.1f},{y - 4:.1f}l8,8m0,-8l-8,8" class="dot failed">{said}</path>'
    if dot.kind == "open":
        return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" class="dot open">{said}</rect>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}" class="dot {dot.kind}">{said}</circle>'


def _numbers(frame: Frame) -> str:
    """Whole numbers under the area."""
    last = int(frame.x1)
    every = max(1, int(_nice(last / 10))) if last else 1
    return "".join(
        f'<text x="{frame.x(n):.1f}" y="{frame.height - 4:g}" class="tick middle">{n}</text>'
        for n in range(0, last + 1, every)
    )


def _level(frame: Frame, level: float | None) -> str:
    if level is None:
        return ""
    y = _within(frame, level)
    return f'<line x1="{frame.x(frame.x0):.1f}" x2="{frame.right:g}" y1="{y:.1f}" y2="{y:.1f}" class="ideal"/>'


def _best(dots: Sequence[Dot], frame: Frame, direction: str) -> str:
    """A step wherever a trial was better than all before."""
    better, best = (max if direction == "max" else min), None
    path = ""
    for dot in sorted(dots, key=lambda one: one.x):
        if dot.y is None:
            continue
        now = dot.y if best is None else better(best, dot.y)
        if now != best:
            x, y = frame.x(dot.x), _within(frame, now)
            path += f"M{x:.1f},{y:.1f}" if best is None else f"H{x:.1f}V{y:.1f}"
            best = now
    return f'<path d="{path}H{frame.right:g}" class="line front"/>' if path else ""


def _clipped(frame: Frame, value: float | None) -> float | None:
    return None if value is None else min(max(value, frame.y0), frame.y1)


def _within(frame: Frame, value: float) -> float:
    """The height of a value; what lies outside stands on the edge."""
    return frame.y(min(max(value, frame.y0), frame.y1))
