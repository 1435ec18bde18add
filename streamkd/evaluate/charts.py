"""Charts as SVG text: no script, no network; colours are the page's CSS variables, so dark mode follows.

Each function takes plain numbers and returns one ``<svg>``; points where nothing was measured (``None``) are
left out. Called by ``streamkd.evaluate.page`` and ``streamkd.tune.results.page``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float | None]
COLOURS = 8
_WIDTH, _HEIGHT = 560, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 14, 34


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line: a boundary that was given, or one that was detected."""

    x: float
    text: str
    detected: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """Where numbers go: the ranges that are shown, and the size; ``strip`` is room between the area and its ticks."""

    x0: float
    x1: float
    y0: float
    y1: float
    width: float = _WIDTH
    height: float = _HEIGHT
    strip: float = 0.0

    @property
    def right(self) -> float:
        return self.width - _RIGHT

    @property
    def bottom(self) -> float:
        return self.height - _BOTTOM - self.strip

    def x(self, value: float) -> float:
        return _LEFT + (value - self.x0) / ((self.x1 - self.x0) or 1) * (self.right - _LEFT)

    def y(self, value: float) -> float:
        return self.bottom - (value - self.y0) / ((self.y1 - self.y0) or 1) * (self.bottom - _TOP)


def lines(
    series: Mapping[str, Sequence[Point]],
    marks: Sequence[Mark] = (),
    *,
    title: str,
    first: int = 0,
    whole: bool = True,
) -> str:
    """A line per name over records, from 0 or below, or no more than the values need; ``first`` is the colour of the
    first name.
    """
    values = [y for points in series.values() for _, y in points if y is not None]
    if not values:
        return nothing(title)
    xs = [x for points in series.values() for x, _ in points]
    frame = _frame(xs, [*values, 0.0]) if whole else _close(xs, values)
    drawn = [
        f'<path d="{line(points, frame)}" class="line" style="stroke:{colour(index)}"><title>{escape(name)}</title>'
        f"</path>{_end(points, frame, index)}"
        for index, (name, points) in enumerate(series.items(), first)
    ]
    return svg(title, [axes(frame), *[mark(one, frame) for one in marks], *drawn]) + legend(series, first)


def areas(series: Mapping[str, Sequence[Point]], marks: Sequence[Mark] = (), *, title: str) -> str:
    """Shares that sum to about 1, stacked in the order of the names."""
    xs = sorted({x for points in series.values() for x, _ in points})
    if not xs:
        return nothing(title)
    frame = Frame(_start(xs), xs[-1], 0.0, 1.0)
    floor = dict.fromkeys(xs, 0.0)
    drawn = []
    for index, (name, points) in enumerate(series.items()):
        share = {x: y or 0.0 for x, y in points}
        top = {x: floor[x] + share.get(x, 0.0) for x in xs}
        edge = [(x, min(top[x], 1.0)) for x in xs] + [(x, min(floor[x], 1.0)) for x in reversed(xs)]
        corners = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in edge)
        drawn.append(
            f'<polygon points="{corners}" style="fill:{colour(index)}" class="area">'
            f"<title>{escape(name)}</title></polygon>"
        )
        floor = top
    return svg(title, [axes(frame), *drawn, *[mark(one, frame) for one in marks]]) + legend(series)


def bars(values: Mapping[str, float | None], deviations: Mapping[str, float | None], *, title: str) -> str:
    """A bar per name with its standard deviation as a whisker."""
    known = {name: value for name, value in values.items() if value is not None}
    if not known:
        return nothing(title)
    tall = [value + (deviations.get(name) or 0) for name, value in known.items()]
    frame = _frame([0, len(known)], [0.0, min(known.values()), *tall, 0.05])
    drawn = []
    for index, (name, value) in enumerate(known.items()):
        left, right = frame.x(index + 0.2), frame.x(index + 0.8)
        top, base = sorted((frame.y(value), frame.y(0.0)))
        deviation = deviations.get(name) or 0.0
        middle = (left + right) / 2
        said = f"{escape(name)}: {value:.3f} ± {deviation:.3f}"
        drawn.append(
            _bar(left, right, top, base, f"fill:{colour(1)}", said)
            + f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{frame.y(value - deviation):.1f}"'
            f' y2="{frame.y(value + deviation):.1f}" class="whisker"/>'
            f'<text x="{middle:.1f}" y="{_HEIGHT - _BOTTOM + 16}" class="tick middle">{escape(_short(name))}</text>'
        )
    return svg(title, [axes(frame, across=False), *drawn])


def heatmap(
    matrix: Sequence[Sequence[float | None]],
    names: Sequence[str],
    *,
    title: str,
    sides: tuple[str, str] = ("after", "on"),
    early: bool = True,
) -> str:
    """Accuracy after each task (down) on each task (across); cells above the diagonal were not learned yet (``early``).

    ``sides``: what down and across are, of another matrix of shares.
    """
    count = len(matrix)
    cell = min(64.0, (_WIDTH - 90) / max(count, 1))
    width, height = max(90 + cell * count, 360), 40 + cell * count
    drawn = []
    every = math.ceil(24 / cell)  # names that would touch are left out
    for i, row in enumerate(matrix):
        y = 30 + i * cell
        for j, value in enumerate(row):
            said = f"{sides[0]} {names[i]}, {sides[1]} {names[j]}"
            drawn.append(_cell(value, early and j > i, 90 + j * cell, y, cell, said))
        if i % every:
            continue
        drawn.append(f'<text x="82" y="{y + cell / 2 + 4:.1f}" class="tick end">{escape(_short(names[i]))}</text>')
        drawn.append(
            f'<text x="{90 + (i + 0.5) * cell:.1f}" y="22" class="tick middle">{escape(_short(names[i]))}</text>'
        )
    head = f'<text x="0" y="10" class="axis start">{sides[0]} ↓ {sides[1]} →</text>'
    return svg(title, [head, *drawn], width, height, "heat")


def diagram(bins: Sequence[Mapping[str, float]], *, title: str) -> str:
    """Accuracy against confidence: bars on the diagonal are calibrated; the gap is drawn."""
    if not bins:
        return nothing(title)
    frame = Frame(0.0, 1.0, 0.0, 1.0)
    total = sum(one["records"] for one in bins) or 1
    drawn = []
    for one in bins:
        left, right = frame.x(one["low"]) + 1, frame.x(one["high"]) - 1
        said = f"confidence {one['confidence']:.2f}, accuracy {one['accuracy']:.2f}, {one['records']:.0f} records"
        shade = 0.35 + 0.65 * min(1.0, one["records"] / total * len(bins))
        low, high = sorted((one["accuracy"], one["confidence"]))
        drawn += [
            _bar(left, right, frame.y(low), frame.y(0), f"fill:{colour(0)};opacity:{shade:.2f}", said),
            _bar(left, right, frame.y(high), frame.y(low), f"fill:{colour(1)};opacity:{0.75 * shade:.2f}", said),
        ]
    across = f'x1="{frame.x(0):.1f}" y1="{frame.y(0):.1f}" x2="{frame.x(1):.1f}" y2="{frame.y(1):.1f}"'
    return svg(title, [axes(frame), *drawn, f'<line {across} class="ideal"/>'])


def legend(names: Mapping[str, object], first: int = 0) -> str:
    """The names beside their colours."""
    items = "".join(
        f'<span><i style="background:{colour(index)}"></i>{escape(name)}</span>'
        for index, name in enumerate(names, first)
    )
    return f'<div class="legend">{items}</div>'


def colour(index: int) -> str:
    """The colour of a series by its place."""
    return f"var(--c{index % COLOURS})"


def _frame(xs: Sequence[float], ys: Sequence[float]) -> Frame:
    low, high = min(ys), max(ys)
    top = 1.0 if 0.5 < high <= 1.0 else _ceiling(high)
    return Frame(_start(xs), max(xs), -_ceiling(-low) if low < 0 else 0.0, top)


def _close(xs: Sequence[float], ys: Sequence[float]) -> Frame:
    """Round ends around the values; five steps between them."""
    step = _ceiling((max(ys) - min(ys)) / 4 or 0.01)
    low = math.floor(min(ys) / step + 1e-9) * step
    return Frame(_start(xs), max(xs), low, low + 5 * step)


def _start(xs: Sequence[float]) -> float:
    """0 where that hides nothing, else the first."""
    return 0.0 if 0 <= min(xs) <= 0.2 * max(xs) else min(xs)


def _ceiling(value: float) -> float:
    """The next round number above: 1, 2, 2.5, 5 or 10 times a power of ten."""
    if value <= 0:
        return 0.1
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10, 20) if factor * power >= value * 0.999_999)


def axes(frame: Frame, across: bool = True) -> str:
    """Grid lines with their numbers, upwards and across."""
    drawn = []
    for step in range(6):
        value = frame.y0 + (frame.y1 - frame.y0) * step / 5
        y = frame.y(value)
        drawn.append(f'<line x1="{_LEFT}" x2="{frame.right:g}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        drawn.append(f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" class="tick end">{value:.4g}</text>')
    for value in _round(frame.x0, frame.x1) if across else ():
        side = "end" if value == frame.x1 else "middle"
        x, y = frame.x(value), frame.height - _BOTTOM + 18
        drawn.append(f'<text x="{x:.1f}" y="{y}" class="tick {side}">{_thousands(value)}</text>')
    return "".join(drawn)


def _round(low: float, high: float) -> list[float]:
    """Up to seven round numbers from low to high."""
    step = _ceiling((high - low) / 6) if high > low else 1.0
    first = math.ceil(low / step)
    return [number * step for number in range(first, first + 8) if number * step <= high * 1.000_001]


def line(points: Sequence[Point], frame: Frame) -> str:
    """Straight lines, broken where a value is missing."""
    parts, pen = [], "M"
    for x, y in points:
        if y is None:
            pen = "M"
            continue
        parts.append(f"{pen}{frame.x(x):.1f},{frame.y(y):.1f}")
        pen = "L"
    return "".join(parts)


def _end(points: Sequence[Point], frame: Frame, index: int) -> str:
    known = [(x, y) for x, y in points if y is not None]
    if not known:
        return ""
    x, y = known[-1]
    return f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3" style="fill:{colour(index)}"/>'


def _bar(left: float, right: float, top: float, bottom: float, style: str, said: str) -> str:
    return (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{max(bottom - top, 0.5):.1f}" rx="1.5"'
        f' style="{style}"><title>{said}</title></rect>'
    )


def mark(one: Mark, frame: Frame) -> str:
    """A line where a task begins; nothing outside the frame."""
    if not frame.x0 <= one.x <= frame.x1:
        return ""
    x, kind = frame.x(one.x), "drift" if one.detected else "boundary"
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{frame.bottom:g}" class="{kind}">'
        f"<title>{escape(one.text)}</title></line>"
    )


def _cell(value: float | None, is_early: bool, x: float, y: float, size: float, about: str) -> str:
    place = f'x="{x + 1:.1f}" y="{y + 1:.1f}" width="{size - 2:.1f}" height="{size - 2:.1f}" rx="3"'
    if value is None:
        return f'<rect {place} class="blank"/>'
    said = f"{about}: {value:.3f}"
    text = f"{100 * value:.0f}" if size >= 22 else ""
    strong = "strong" if value > 0.6 else "weak"
    early = " early" if is_early else ""
    return (
        f'<rect {place} class="cell{early}" style="fill-opacity:{0.06 + 0.94 * max(0.0, min(1.0, value)):.3f}">'
        f"<title>{escape(said)}</title></rect>"
        f'<text x="{x + size / 2:.1f}" y="{y + size / 2 + 4:.1f}" class="value {strong}{early}">{text}</text>'
    )


def svg(title: str, parts: Sequence[str], width: float = _WIDTH, height: float = _HEIGHT, kind: str = "chart") -> str:
    """A picture of these parts, with its title for those who do not see it."""
    size = f'viewBox="0 0 {width:.0f} {height:.0f}"'
    return f'<svg {size} class="{kind}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def nothing(title: str) -> str:
    """What stands in the place of a chart without data."""
    return f'<p class="nothing">Not measured: {escape(title.lower())}.</p>'


def _short(name: str) -> str:
    return name if len(name) <= 11 else name[:10] + "…"


def _thousands(value: float) -> str:
    return f"{value:.4g}" if value < 1000 else f"{value / 1000:.4g} k"
