"""Parallel coordinates: an axis a parameter, a line a trial, the objective on the right.

A line runs through the places of its trial's values; where a parameter does not count for it, it passes below the
axis. The last axis holds who finished; pruned and failed trials end below it. Called by ``streamkd.search.page``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from streamkd.evaluate import charts
from streamkd.search.plots import shortened, tight

_TOP, _BOTTOM, _FOOT, _SIDE, _APART = 58, 342, 16, 66, 104
_SMALLEST = 0.85  # of its size, in a narrower place than that it is moved sideways
_OFF = {"": 364, "pruned": 364, "failed": 384}
LABELS = 12  # of a choice; more are not written


@dataclass(frozen=True, slots=True)
class Axis:
    """A parameter: numbers from low to high (``log``: in the logarithm), or the names of a choice from the bottom."""

    path: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    names: tuple[str, ...] = ()

    def place(self, value: Any) -> float | None:
        """0 at the bottom to 1 at the top; ``None`` where the value has no place."""
        if value is None:
            return None
        if self.names:
            return self.place_of(self.names.index(said(value))) if said(value) in self.names else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        scale = math.log if self.log else float
        low, high, at = scale(self.low), scale(self.high), scale(max(value, 1e-300) if self.log else value)
        return min(max((at - low) / (high - low), 0.0), 1.0) if high > low else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        """Places and what is written beside them."""
        if self.names:
            every = math.ceil(len(self.names) / LABELS)
            return [
                (self.place_of(index), name if len(name) <= 14 else name[:13] + "…")
                for index, name in enumerate(self.names)
                if not index % every
            ]
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        if isinstance(self.low, int) and isinstance(self.high, int):
            middle = round(middle)
        return [(self.place(v) or 0.0, f"{v:.3g}") for v in dict.fromkeys((self.low, middle, self.high))]

    def place_of(self, index: int) -> float:
        return 0.5 if len(self.names) == 1 else index / (len(self.names) - 1)


@dataclass(frozen=True, slots=True)
class Course:
    """A trial's line; ``rank`` from 0 (the worst that finished) to 1, which colours it; ``kind`` as in plots."""

    values: Mapping[str, Any]
    objective: float | None
    kind: str
    rank: float
    said: str


def said(value: Any) -> str:
    """A value as it is written on an axis."""
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else str(value)


def axis(path: str, values: Sequence[Any], log: bool = False, choices: Sequence[Any] = ()) -> Axis:
    """The axis of the values that were tried; they are names where there were choices, or not all are numbers."""
    known = [value for value in values if value is not None]
    if not choices and known and all(isinstance(v, int | float) and not isinstance(v, bool) for v in known):
        return Axis(path, min(known), max(known), log and min(known) > 0)
    others = sorted({said(value) for value in known} - {said(value) for value in choices})
    return Axis(path, names=(*map(said, choices), *others))


def parallel(axes: Sequence[Axis], courses: Sequence[Course], objective: str, *, title: str) -> str:
    """Every course over the axes and the objective, in their order: the last is on top."""
    finished = [one.objective for one in courses if one.objective is not None]
    if not axes or not courses:
        return charts.nothing(title)
    low, high = tight(finished) if finished else (0.0, 1.0)
    every = [*axes, Axis(objective, low, high)]
    width = max(2 * _SIDE + _APART * len(axes), 900)
    xs = [_SIDE + index * (width - 2 * _SIDE) / len(axes) for index in range(len(every))]
    many = " many" if len(courses) > 60 else ""
    drawn = [_line(one, every, xs, many) for one in courses]
    drawn += [_axis(one, x, _missing(one, courses)) for one, x in zip(axes, xs, strict=False)]
    drawn += [_axis(every[-1], xs[-1], False), *_ends(courses, xs[-1])]
    below = [y for place, y in _OFF.items() if any(_below(one, axes, place) for one in courses)]
    height = max(below, default=_BOTTOM) + _FOOT
    style = f"min-width:{_SMALLEST * width:.0f}px"
    return f'<div class="across"><div style="{style}">{charts.svg(title, drawn, width, height)}</div></div>'


def _below(one: Course, axes: Sequence[Axis], place: str) -> bool:
    """Whether a course passes at this place below the axes."""
    if place:
        return one.objective is None and one.kind == place
    return any(axis.place(one.values.get(axis.path)) is None for axis in axes) or (
        one.objective is None and one.kind not in _OFF
    )


def _line(one: Course, axes: Sequence[Axis], xs: Sequence[float], many: str) -> str:
    ys = [_y(axis.place(one.values.get(axis.path)), "") for axis in axes[:-1]]
    ys.append(_y(axes[-1].place(one.objective), one.kind))
    points = "L".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
    style = f' style="--rank:{100 * one.rank:.0f}%"' if one.kind == "finished" else ""
    return f'<path d="M{points}" class="line course {one.kind}{many}"{style}><title>{escape(one.said)}</title></path>'


def _y(place: float | None, kind: str) -> float:
    return _OFF.get(kind, _OFF[""]) if place is None else _BOTTOM - place * (_BOTTOM - _TOP)


def _missing(axis: Axis, courses: Sequence[Course]) -> bool:
    return any(axis.place(one.values.get(axis.path)) is None for one in courses)


def _axis(one: Axis, x: float, off: bool) -> str:
    """The line, its ticks, and the path over it: what it belongs to above, its last key below."""
    owner, _, key = one.path.rpartition(".")
    head = f"<title>{escape(one.path)}</title>"
    drawn = [
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_BOTTOM}" class="stem"/>',
        f'<text x="{x:.1f}" y="24" class="tick middle">{escape(shortened(owner, 16))}{head}</text>',
        f'<text x="{x:.1f}" y="40" class="name middle">{escape(shortened(key, 16))}{head}</text>',
    ]
    drawn += [
        f'<text x="{x - 6:.1f}" y="{_y(place, "") + 4:.1f}" class="tick end halo">{escape(text)}</text>'
        for place, text in one.ticks()
    ]
    if off:
        drawn.append(f'<text x="{x - 6:.1f}" y="{_OFF[""] + 4}" class="tick end halo">off</text>')
    return "".join(drawn)


def _ends(courses: Sequence[Course], x: float) -> list[str]:
    """The names of the places below the objective's axis."""
    there = {one.kind for one in courses if one.objective is None}
    return [
        f'<text x="{x + 7:.1f}" y="{y + 4}" class="tick halo">{escape(kind)}</text>'
        for kind, y in _OFF.items()
        if kind in there
    ]
