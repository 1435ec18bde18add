"""What runs reached over what they cost: an SVG with a panel for processor time and one for bytes, axes logarithmic.

Standing alone, so its colours are written out, light and dark; no script, no network.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

Point = tuple[float, ...]
"""Microseconds a record, megabytes where they are told, accuracy."""
NAMED = ("streamkd", "streamkd, served")
UNITS = ("µs a record", "MB of state")
_HEIGHT, _PANEL, _LEFT, _TOP, _BOTTOM = 380, 390, 50, 40, 50
_STYLE = """<style>
svg { font: 11px system-ui, sans-serif; background: #fff; }
text { fill: #333; } .title { font-size: 14px; } .grid { stroke: #ddd; }
circle { fill: #777; fill-opacity: .6; } .ours circle { fill: #c4501b; } .ours text { font-weight: 600; }
@media (prefers-color-scheme: dark) { svg { background: #161616; } text { fill: #ddd; } .grid { stroke: #333; } }
</style>"""


def write(points: Mapping[str, Mapping[str, Point]], folder: Path, units: Sequence[str] = UNITS) -> list[Path]:
    """``folder``/NAME.svg for every stream; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, lines in points.items():
        files.append(folder / f"{name}.svg")
        files[-1].write_text(drawn(name, lines, units), "utf-8")
    return files


def drawn(title: str, lines: Mapping[str, Point], units: Sequence[str] = UNITS) -> str:
    """A panel for each price; names that begin with ``streamkd`` stand out, the others are told by the pointer."""
    parts = [f'<text x="8" y="20" class="title">{escape(title)}: accuracy over its price</text>']
    low = math.floor(10 * min(point[-1] for point in lines.values())) / 10
    prices = min(len(point) for point in lines.values()) - 1
    for place, unit in enumerate(units[:prices]):
        parts += _panel(_LEFT + place * (_PANEL + _LEFT), {n: (p[place], p[-1]) for n, p in lines.items()}, low, unit)
    width = 20 + prices * (_PANEL + _LEFT)
    box = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT}" width="{width}" height="{_HEIGHT}"'
    return f'<svg {box} role="img" aria-label="{escape(title)}">{_STYLE}{"".join(parts)}</svg>\n'


def _panel(left: int, lines: Mapping[str, tuple[float, float]], low: float, unit: str) -> list[str]:
    least, most = (f(math.log10(max(x, 1e-3)) for x, _ in lines.values()) for f in (min, max))
    least, span = least - 0.1, max(most - least, 0.1) + 0.2
    ground = _HEIGHT - _BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(max(x, 1e-3)) - least) / span
        return left + across * (_PANEL - 20), ground - (y - low) / (1 - low) * (ground - _TOP)

    parts = []
    for tenth in range(round(10 * low), 11):
        _, y = at(1, tenth / 10)
        parts.append(f'<line x1="{left}" x2="{left + _PANEL - 20}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tenth / 10:.1f}</text>')
    for mark in _marks(least, least + span):
        x, _ = at(mark, low)
        parts.append(f'<text x="{x:.1f}" y="{ground + 16}" text-anchor="middle">{mark:g}</text>')
    parts.append(f'<text x="{left + _PANEL // 2}" y="{_HEIGHT - 12}" text-anchor="middle">{unit}</text>')
    return parts + [_dot(name, *at(*point)) for name, point in lines.items()]


def _marks(least: float, most: float) -> Sequence[float]:
    found = [times * 10.0**power for power in range(-3, 7) for times in (1, 3)]
    return [mark for mark in found if least <= math.log10(mark) <= most]


def _dot(name: str, x: float, y: float) -> str:
    kind = "ours" if name.startswith("streamkd") else "other"
    label = f'<text x="{x:.1f}" y="{y - 8:.1f}" text-anchor="middle">{name}</text>' if name in NAMED else ""
    dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{escape(name)}</title></circle>'
    return f'<g class="{kind}">{dot}{label}</g>'
