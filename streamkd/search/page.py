"""``report.html`` of a search: one file that opens without network and runs no script, laid out as a run's report.

Every text that comes from a user (names, paths of parameters, reasons) is escaped. Called by
``streamkd.search.results``.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from streamkd.evaluate.charts import Mark, Point
from streamkd.evaluate.page import card, laid_out, number, table
from streamkd.search import coordinates, plots
from streamkd.search.best import final
from streamkd.search.coordinates import Axis, Course, said
from streamkd.search.domains import Choice, LogUniform
from streamkd.search.ledger import TrialRecord
from streamkd.search.outcome import Outcome
from streamkd.search.plots import Dot
from streamkd.search.progress import clock
from streamkd.search.summary import counted, judged_by, sentence

AXES = 14  # parameters that parallel coordinates show, the most important ones


def page(outcome: Outcome) -> str:
    """The whole page."""
    title = f"{outcome.header.get('name', 'search')}: what was searched"
    seeds = f"seeds {', '.join(map(str, outcome.seeds))}"
    measured = judged_by(outcome.header.get("validation"))
    lead = " · ".join([counted(outcome), f"objective {outcome.leading}", *measured, seeds])
    footer = f"streamkd {outcome.header.get('streamkd', '')} · {outcome.header.get('command', '')}"
    return laid_out(title, lead, _tiles(outcome), _cards(outcome), footer.strip(" ·"))


def _tiles(outcome: Outcome) -> list[str]:
    """The figures that are read first."""
    verdict, tiles = outcome.verdict, []
    if verdict is not None:
        name = f"trial {verdict.taken.number}" if verdict.taken.number else "as it stands"
        tiles.append(_tile(f"Taken: {name}", _figure(verdict.taken.objective(outcome.leading)), outcome.leading))
    if verdict is not None and verdict.default is not None and verdict.default is not verdict.taken:
        figure = _figure(verdict.default.objective(outcome.leading))
        tiles.append(_tile("As it stands", figure, f"trial 0, {verdict.default.state}"))
    if verdict is not None and verdict.lead is not None:
        seeds = len(verdict.leads)
        error = f"{seeds} seed{'s' * (seeds > 1)} alone, " if verdict.error is None else f"± {verdict.error:.4f} "
        tiles.append(_tile(f"Lead of trial {verdict.highest.number}", f"{verdict.lead:+.4f}", f"{error}over trial 0"))
    share = outcome.records / outcome.whole if outcome.whole else 0.0
    tiles.append(_tile("Records", f"{100 * share:.0f} %", f"{outcome.records:,} of {outcome.whole:,}"))
    seconds = sum(one.seconds for one in outcome.trials)
    tiles.append(_tile("Trials", str(len(outcome.trials)), f"{clock(seconds)} of work in all"))
    return tiles


def _tile(name: str, figure: str, small: str) -> str:
    return (
        f'<div class="tile"><span class="name">{escape(name)}</span><b>{figure}</b><small>{escape(small)}</small></div>'
    )


def _cards(outcome: Outcome) -> list[str]:
    found = [
        _verdict_card(outcome),
        _importance_card(outcome),
        _front_card(outcome),
        _history_card(outcome),
        _curves_card(outcome),
        _coordinates_card(outcome),
        _changes_card(outcome),
        _failures_card(outcome),
        _trials_card(outcome),
        _again_card(outcome),
    ]
    return [one for one in found if one]


def _verdict_card(outcome: Outcome) -> str:
    """What is taken, in words, and the values beside those of trial 0."""
    verdict = outcome.verdict
    wide = len(outcome.objectives) > 1  # with the front there are two cards beside each other without it
    if verdict is None:
        return card("What is taken", sentence(outcome), "", wide)
    columns = [one for one in (verdict.default, verdict.highest) if one is not None]
    columns = columns[:1] if len(columns) > 1 and columns[0] is columns[1] else columns
    rows = [
        [path, *[said(one.latest[path]) if path in one.latest else "–" for one in columns]] for path in _paths(outcome)
    ]
    heads = [f"trial {one.number}" if one.number else "as it stands" for one in columns]
    return card("What is taken", sentence(outcome), table(["parameter", *heads], rows), wide)


def _history_card(outcome: Outcome) -> str:
    dots = [_dot(outcome, one, float(one.number), final(one, outcome.leading)) for one in outcome.trials]
    default = next((one for one in outcome.trials if one.number == 0), None)
    level = final(default, outcome.leading) if default else None
    note = f"Trials that finished: {outcome.leading} by their number; the line is the best so far."
    note += " Dashed: the configuration as it stands." if level is not None else ""
    note += " Below: trials without a final figure." if any(dot.y is None for dot in dots) else ""
    return card("History", note, plots.history(dots, level, outcome.direction, title="History"))


def _curves_card(outcome: Outcome) -> str:
    order = {"pruned": 0, "open": 1, "failed": 1, "finished": 2, "default": 3, "taken": 4}
    lines = [
        (f"trial {one.number}, {one.state}", _curve(one, outcome.leading), _line_kind(outcome, one))
        for one in outcome.trials
        if one.readings
    ]
    lines.sort(key=lambda line: order[line[2]])
    there = {kind for _, _, kind in lines}
    marks = (
        [Mark(change["records"], "values changed") for change in outcome.verdict.taken.changes]
        if outcome.verdict
        else []
    )
    note = "Accuracy on validation records that no report uses, over the records seen; mean of the seeds."
    note += " Vertical lines: where the taken trial's values changed." if marks else ""
    names = {"taken": "taken", "default": "as it stands", "finished": "finished", "pruned": "pruned"}
    items = "".join(f'<span class="{kind}"><i></i>{name}</span>' for kind, name in names.items() if kind in there)
    drawn = plots.curves(lines, marks, title="Learning curves")
    return card("Learning curves", note, f'{drawn}<div class="legend strokes">{items}</div>')


def _coordinates_card(outcome: Outcome) -> str:
    paths = _paths(outcome)
    leading = list(dict.fromkeys([*outcome.importance.shares, *paths]))[:AXES]
    shown = [path for path in paths if path in leading]
    axes = [_axis(outcome, path) for path in shown]
    ranks = _ranks(outcome)
    order = {"failed": 0, "pruned": 1, "open": 1, "finished": 2, "taken": 3}
    courses = [
        Course(
            one.latest,
            final(one, outcome.leading),
            _kind(outcome, one),
            ranks.get(one.number, 0.0),
            _said(outcome, one),
        )
        for one in outcome.trials
    ]
    courses.sort(key=lambda one: (order[one.kind], one.rank))
    note = "A line a trial. Blue, the stronger the better: finished; orange: taken; grey: pruned; dashed: failed."
    if len(paths) > len(shown):
        note += f" The {len(shown)} most important of {len(paths)} parameters."
    return card(
        "Parameters and objective",
        note,
        coordinates.parallel(axes, courses, outcome.leading, title="Parallel coordinates"),
        wide=True,
    )


def _importance_card(outcome: Outcome) -> str:
    found = outcome.importance
    note = f"{found.method.capitalize()} over {found.trials} trials: how much of the trials' order goes with it."
    if found.explained is not None:
        note += f" Together the parameters explain {100 * found.explained:.0f} % of the order of trials not seen."
    note += " Pruned trials count below those that went on; –: it hardly varied." if found.trials else ""
    note += " Dashed: what chance alone gives to one in twenty." if found.chance is not None else ""
    shown = dict(list(found.shares.items())[:AXES])
    return card("Importance", note, plots.bars(shown, title="Importance", chance=found.chance))


def _front_card(outcome: Outcome) -> str:
    if len(outcome.objectives) < 2:
        return ""
    first, second = list(outcome.objectives)[:2]
    dots = [_dot(outcome, one, x, final(one, second)) for one in outcome.trials if (x := final(one, first)) is not None]
    front = [
        (x, y)
        for one in outcome.front
        if (x := final(one, first)) is not None and (y := final(one, second)) is not None
    ]
    numbers = ", ".join(str(one.number) for one in outcome.front)
    note = f"Trials on the front, which no other one beats in both: {numbers or 'none'} (front.yaml has them)."
    return card("Two objectives", note, plots.scatter(dots, front, (first, second), title="Two objectives"))


def _changes_card(outcome: Outcome) -> str:
    """What population-based training made of the taken trial on its way."""
    taken = outcome.verdict.taken if outcome.verdict else None
    if taken is None or not taken.changes:
        return ""
    rows, before = [], taken.values
    for change in taken.changes:
        moved = [
            f"{path} {said(before.get(path))} → {said(value)}"
            for path, value in change["values"].items()
            if before.get(path) != value
        ]
        parent = change.get("parent")
        rows.append([f"{change['records']:,}", "" if parent is None else f"trial {parent}", "; ".join(moved)])
        before = change["values"]
    note = "Its values were changed in the running stream; best.yaml has the last ones."
    return card(
        f"Changes of trial {taken.number}",
        note,
        table(["records", "state of", "values"], rows, ("state of", "values")),
        wide=True,
    )


def _failures_card(outcome: Outcome) -> str:
    rows = [[f"trial {one.number}", f"{one.records:,}", one.reason or "no reason is known"] for one in outcome.failures]
    rows += [[one.name, "", one.reason] for one in outcome.skipped]
    note = "Trials that failed, with the records they had seen; files among the trials that could not be read."
    return card("What failed", note, table(["", "records", "reason"], rows, ("reason",)), wide=True) if rows else ""


def _trials_card(outcome: Outcome) -> str:
    paths = _paths(outcome)
    rows = [
        [
            str(one.number),
            _state(outcome, one),
            *[_figure(one.objective(name)) for name in outcome.objectives],
            f"{one.records:,}",
            f"{one.seconds:,.1f}",
            *[said(one.latest[path]) if path in one.latest else "–" for path in paths],
        ]
        for one in outcome.trials
    ]
    head = ["trial", "state", *outcome.objectives, "records", "seconds", *paths]
    note = "Figures of trials that did not finish are those at their last reading, which fewer tasks may have entered."
    return card("All trials", note, table(head, rows, ("state",)), wide=True)


def _state(outcome: Outcome, one: TrialRecord) -> str:
    """How a trial ended, and the kind of reason that it failed for."""
    if _kind(outcome, one) == "taken":
        return f"{one.state}, taken"
    return f"{one.state}: {one.reason.partition(':')[0]}" if one.state == "failed" and one.reason else one.state


def _again_card(outcome: Outcome) -> str:
    parts = []
    for name in ("settings", "space", "config"):
        text = escape(json.dumps(outcome.header.get(name), indent=2, ensure_ascii=False))
        parts.append(f"<details><summary>{name}</summary><pre>{text}</pre></details>")
    return card("How to get it again", str(outcome.header.get("command", "")), "".join(parts), wide=True)


def _paths(outcome: Outcome) -> list[str]:
    """The parameters in the order of the space, then any others that trials have."""
    own = [one.path for one in outcome.space.parameters]
    return list(dict.fromkeys([*own, *(path for one in outcome.trials for path in one.latest)]))


def _axis(outcome: Outcome, path: str) -> Axis:
    domain = next((one.domain for one in outcome.space.parameters if one.path == path), None)
    choices = domain.values if isinstance(domain, Choice) else ()
    return coordinates.axis(
        path, [one.latest.get(path) for one in outcome.trials], isinstance(domain, LogUniform), choices
    )


def _kind(outcome: Outcome, one: TrialRecord) -> str:
    if outcome.verdict is not None and one is outcome.verdict.taken:
        return "taken"
    return one.state if one.state in plots.KINDS else "open"


def _line_kind(outcome: Outcome, one: TrialRecord) -> str:
    kind = _kind(outcome, one)
    return "default" if one.number == 0 and kind != "taken" else kind


def _ranks(outcome: Outcome) -> Mapping[int, float]:
    """0 for the worst that finished to 1 for the best."""
    finished = [(value, one.number) for one in outcome.trials if (value := final(one, outcome.leading)) is not None]
    ordered = [trial for _, trial in sorted(finished, reverse=outcome.direction == "min")]
    return {trial: place / max(len(ordered) - 1, 1) for place, trial in enumerate(ordered)}


def _dot(outcome: Outcome, one: TrialRecord, x: float, y: float | None) -> Dot:
    return Dot(x, y, _kind(outcome, one), _said(outcome, one))


def _said(outcome: Outcome, one: TrialRecord) -> str:
    """What a pointer that rests on a trial is told."""
    figures = [f"{name} {_figure(one.objective(name))}" for name in outcome.objectives]
    values = [f"{path} {said(value)}" for path, value in one.latest.items()]
    return "\n".join(
        [f"trial {one.number}, {one.state}" + (f": {one.reason}" if one.reason else ""), *figures, *values]
    )


def _curve(one: TrialRecord, objective: str) -> Sequence[Point]:
    """Accuracy at the marks of the stream; of a trial that gave none, the objective at its readings."""
    marks: Any = one.readings[-1].get("curve")
    if marks:
        return [(x, y) for x, y in marks]
    return [(reading["records"], reading["objectives"].get(objective)) for reading in one.readings]


def _figure(value: float | None) -> str:
    return number(value, 4)
