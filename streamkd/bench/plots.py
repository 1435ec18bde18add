"""One SVG per stream or scenario of a benchmark: a line per method, a dot per seed, a tick at the mean.

Standing alone, so its colours are written out, light and dark; no script, no network.
"""

import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from streamkd.bench.scores import Scores

_WIDTH, _LEFT, _RIGHT, _TOP, _LINE = 640, 170, 60, 34, 20
_STYLE = """<style>
svg { font: 12px system-ui, sans-serif; background: #fff; }
text { fill: #333; } .title { font-size: 14px; } .grid { stroke: #ddd; }
.dot { fill: #777; fill-opacity: .55; } .mean { stroke: #777; stroke-width: 2; }
.ours .dot { fill: #c4501b; } .ours .mean { stroke: #c4501b; } .ours text { font-weight: 600; }
@media (prefers-color-scheme: dark) { svg { background: #161616; } text { fill: #ddd; } .grid { stroke: #333; } }
</style>"""


def write(panels: Scores, folder: Path, measure: str = "final average accuracy") -> list[Path]:
    """``folder``/NAME.svg for every column, its best line on top; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, values in panels.items():
        ranked = dict(sorted(values.items(), key=lambda item: -statistics.mean(item[1])))
        files.append(folder / f"{name}.svg")
        files[-1].write_text(dots(ranked, title=f"{name}: {measure}"), "utf-8")
    return files


def dots(values: Mapping[str, Sequence[float]], *, title: str) -> str:
    """A strip chart from 0 to 1; names that begin with ``streamkd`` stand out."""
    height = _TOP + _LINE * len(values) + 30
    drawn = [f'<text x="8" y="20" class="title">{escape(title)}</text>']
    for tenth in range(0, 11, 2):
        x = _x(tenth / 10)
        drawn.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{height - 26}" class="grid"/>')
        drawn.append(f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle">{tenth / 10:.1f}</text>')
    for line, (name, points) in enumerate(values.items()):
        drawn.append(_strip(name, points, _TOP + _LINE * (line + 0.5)))
    box = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    return f'<svg {box} role="img" aria-label="{escape(title)}">{_STYLE}{"".join(drawn)}</svg>\n'


def _strip(name: str, points: Sequence[float], y: float) -> str:
    mean = statistics.mean(points)
    x = _x(mean)
    seeds = "".join(f'<circle cx="{_x(point):.1f}" cy="{y:.1f}" r="3.5" class="dot"/>' for point in points)
    tick = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 8:.1f}" y2="{y + 8:.1f}" class="mean"/>'
    left = f'<text x="{_LEFT - 12}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>'
    right = f'<text x="{_WIDTH - 8}" y="{y + 4:.1f}" text-anchor="end">{mean:.3f}</text>'
    kind = "ours" if name.startswith("streamkd") else "other"
    return f'<g class="{kind}">{left}{seeds}{tick}{right}</g>'


def _x(value: float) -> float:
    return _LEFT + value * (_WIDTH - _LEFT - _RIGHT)
