"""``report.html`` of a search: one file that opens without network and runs no script, laid out as a run's report.

Every text that comes from a user (names, paths of parameters, reasons) is escaped. Optuna's dashboard draws more, from
the same journal. Called by ``streamkd.tune.results.files``.
"""

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from streamkd.evaluate import charts
from streamkd.evaluate.charts import Point
from streamkd.evaluate.page import card, laid_out, number, table
from streamkd.tune.progress import clock
from streamkd.tune.record import TrialRecord
from streamkd.tune.results.outcome import Outcome
from streamkd.tune.results.summary import counted, judged_by, said, sentence
from streamkd.tune.space.space import Space

CURVES = 6  # trials beside the taken one and the configuration as it stands


def page(outcome: Outcome, space: Space) -> str:
    """The whole page."""
    measured, seeds = judged_by(outcome.header["validation"]), ", ".join(map(str, outcome.seeds))
    lead = f"{counted(outcome.states)} · objective {outcome.leading} · {measured} · seeds {seeds}"
    footer = f"streamkd {outcome.header['streamkd']} · {outcome.header['command']}"
    paths = [one.path for one in space.parameters]
    cards = [
        _verdict_card(outcome, paths),
        _importance_card(outcome),
        _history_card(outcome),
        _curves_card(outcome),
        *_failures_card(outcome),
        _trials_card(outcome, paths),
        _again_card(outcome),
    ]
    return laid_out(f"{outcome.header['name']}: what was searched", lead, _tiles(outcome), cards, footer)


def _tiles(outcome: Outcome) -> list[str]:
    """The figures that are read first."""
    verdict, tiles = outcome.verdict, []
    if verdict is not None:
        name = f"trial {verdict.taken.number}" if verdict.taken.number else "as it stands"
        tiles.append((f"Taken: {name}", _figure(verdict.taken.objective(outcome.leading)), outcome.leading))
    if verdict is not None and verdict.default is not None and verdict.default is not verdict.taken:
        figure = _figure(verdict.default.objective(outcome.leading))
        tiles.append(("As it stands", figure, f"trial 0, {verdict.default.state}"))
    if verdict is not None and verdict.lead is not None:
        seeds = len(verdict.leads)
        error = f"{seeds} seed{'s' * (seeds > 1)} alone, " if verdict.error is None else f"± {verdict.error:.4f} "
        tiles.append((f"Lead of trial {verdict.highest.number}", f"{verdict.lead:+.4f}", f"{error}over trial 0"))
    share = outcome.records / outcome.whole if outcome.whole else 0.0
    tiles.append(("Records", f"{100 * share:.0f} %", f"{outcome.records:,} of {outcome.whole:,}"))
    worked = clock(sum(one.seconds for one in outcome.trials))
    tiles.append(("Trials", str(len(outcome.trials)), f"{worked} of work in all"))
    return [
        f'<div class="tile"><span class="name">{escape(name)}</span><b>{figure}</b><small>{escape(small)}</small></div>'
        for name, figure, small in tiles
    ]


def _verdict_card(outcome: Outcome, paths: Sequence[str]) -> str:
    """What is taken, in words, and the values beside those of trial 0."""
    if outcome.verdict is None:
        return card("What is taken", sentence(outcome), "")
    columns = {one.number: one for one in (outcome.verdict.default, outcome.verdict.highest) if one is not None}
    rows = [[path, *(_value(one, path) for one in columns.values())] for path in paths]
    heads = [f"trial {number}" if number else "as it stands" for number in columns]
    return card("What is taken", sentence(outcome), table(["parameter", *heads], rows))


def _importance_card(outcome: Outcome) -> str:
    note = "PED-ANOVA: what sets those apart that came far and high. Pruned trials count below those that went on."
    rows = [[path, f"{share:.2f}"] for path, share in outcome.importances.items()]
    return card("Importance", note, table(["parameter", "share"], rows) if rows else charts.nothing("Importance"))


def _history_card(outcome: Outcome) -> str:
    """The figures of those that finished, by their number, and the best of them so far."""
    figures = [(one.number, value) for one in outcome.trials if (value := one.final(outcome.leading)) is not None]
    better = max if outcome.objectives[outcome.leading] == "max" else min
    best: list[Point] = [(at, better(value for _, value in figures[: n + 1])) for n, (at, _) in enumerate(figures)]
    series: dict[str, Sequence[Point]] = {"each that finished": figures, "the best so far": best} if figures else {}
    return card(
        "History", f"{outcome.leading} by the trial's number.", charts.lines(series, title="History", whole=False)
    )


def _curves_card(outcome: Outcome) -> str:
    """The taken trial, the configuration as it stands, and those that came farthest and highest beside them."""
    taken = outcome.verdict.taken if outcome.verdict else None
    sign = 1 if outcome.objectives[outcome.leading] == "max" else -1
    others = [one for one in outcome.trials if one.readings and one is not taken and one is not outcome.default]
    others.sort(key=lambda one: (one.records, sign * (one.objective(outcome.leading) or 0.0)), reverse=True)
    first = [one for one in (taken, outcome.default) if one is not None and one.readings]
    shown = {one.number: one for one in (*first, *others[:CURVES])}
    series = {f"trial {number}, {one.state}": _curve(one, outcome.leading) for number, one in shown.items()}
    note = "Accuracy on validation records that no report uses, over the records seen; mean of the seeds."
    return card("Learning curves", note, charts.lines(series, title="Learning curves", whole=False))


def _failures_card(outcome: Outcome) -> list[str]:
    rows = [[f"trial {one.number}", f"{one.records:,}", one.reason] for one in outcome.failures]
    return [card("What failed", "", table(["", "records", "reason"], rows, ("reason",)), wide=True)] if rows else []


def _trials_card(outcome: Outcome, paths: Sequence[str]) -> str:
    rows = [
        [
            str(one.number),
            _state(outcome, one),
            *[_figure(one.objective(name)) for name in outcome.objectives],
            f"{one.records:,}",
            f"{one.seconds:,.1f}",
            *[_value(one, path) for path in paths],
        ]
        for one in outcome.trials
    ]
    head = ["trial", "state", *outcome.objectives, "records", "seconds", *paths]
    note = "Figures of trials that did not finish are those at their last reading, which fewer tasks may have entered."
    return card("All trials", note, table(head, rows, ("state",)), wide=True)


def _state(outcome: Outcome, one: TrialRecord) -> str:
    """How a trial ended, whether it is taken or on a front, and the kind of reason that it failed for."""
    taken = ", taken" if outcome.verdict is not None and one is outcome.verdict.taken else ""
    front = ", on the front" if one in outcome.front else ""
    return f"{one.state}: {one.reason.partition(':')[0]}" if one.state == "failed" else f"{one.state}{taken}{front}"


def _again_card(outcome: Outcome) -> str:
    parts = []
    for name in ("settings", "space", "config"):
        text = escape(json.dumps(outcome.header[name], indent=2, ensure_ascii=False))
        parts.append(f"<details><summary>{name}</summary><pre>{text}</pre></details>")
    return card("How to get it again", outcome.header["command"], "".join(parts), wide=True)


def _curve(one: TrialRecord, objective: str) -> Sequence[Point]:
    """Accuracy at the marks of the stream; of a trial that gave none, the objective at its readings."""
    marks: Any = one.readings[-1].get("curve")
    if marks:
        return [(x, y) for x, y in marks]
    return [(reading["records"], reading["objectives"].get(objective)) for reading in one.readings]


def _value(one: TrialRecord, path: str) -> str:
    return said(one.values[path]) if path in one.values else "–"


def _figure(value: float | None) -> str:
    return number(value, 4)
