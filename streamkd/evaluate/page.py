"""``report.html`` from the content of ``report.json``: one file that opens without network and runs no script.

Every text that comes from a user (names of streams, tasks, teachers) is escaped. Called by
``streamkd.evaluate.report``.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from streamkd.evaluate import charts, exported
from streamkd.evaluate.charts import Mark, Point

_MODELS = {"served": "served model", "student": "student"}


def page(report: Mapping[str, Any]) -> str:
    """The whole page."""
    title = f"{report['stream'].get('name', 'stream')}: what was learned"
    return laid_out(title, _lead(report), _tiles(report), _cards(report), _footer(report))


def laid_out(title: str, lead: str, tiles: Sequence[str], cards: Sequence[str], footer: str) -> str:
    """A page of this look; tiles and cards are HTML, the rest is text."""
    template = Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(title), lead=escape(lead), tiles="".join(tiles), cards="\n".join(cards), footer=escape(footer)
    )


def _lead(report: Mapping[str, Any]) -> str:
    stream, seeds = report["stream"], report["seeds"]
    counted = [f"{_count(stream.get(key)):,} {key}" for key in ("records", "tasks", "classes") if stream.get(key)]
    runs = f"mean ± standard deviation of seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}"
    refused = [f"{stream['refused']:,} records refused"] if stream.get("refused") else []
    return " · ".join([*counted, *refused, *tested(report), runs])


def tested(report: Mapping[str, Any]) -> list[str]:
    """How many test records were used of how many there are, and what a reader has to know of them, in words."""
    found = report.get("tests")
    if not found:
        return []
    if not found["given"]:
        return ["no test records: measured by what was answered as records came, before they were learned"]
    said = [f"tested on {found['records']:,.0f} of {found['given']:,.0f} test records"]
    if unknown := found.get("of_labels_never_learned"):
        said.append(f"{unknown:,.0f} of them of labels that were never learned")
    if untested := found.get("untested"):
        said.append(f"{len(untested):,} learned task{'s' * (len(untested) > 1)} without test records")
    return said


def _footer(report: Mapping[str, Any]) -> str:
    place = report["environment"]
    known = [
        f"{key.replace('_', ' ')} {place[key]}" for key in ("streamkd", "torch", "cpu", "threads") if place.get(key)
    ]
    return " · ".join(known)


def _tiles(report: Mapping[str, Any]) -> list[str]:
    """The figures that are read first."""
    served = report.get("served") or report.get("student") or {}
    student = report.get("student") or {}
    wanted = [
        ("Served model", served, ("accuracy", "final_average"), "final average accuracy", 100, " %"),
        ("Student", student, ("accuracy", "final_average"), _learning(student), 100, " %"),
        ("Served, on arrival", served, ("accuracy", "prequential"), _answered(served), 100, " %"),
        ("Balanced accuracy", served, ("measures", "arrival", "balanced_accuracy"), _alone(served), 100, " %"),
        ("Forgetting", served, ("forgetting", "average"), "best so far minus final", 100, " %"),
        ("Calibration", served, ("calibration", "ece"), "expected error", 100, " %"),
        ("Throughput", report, ("throughput", "samples_per_second"), "records per second", 1, ""),
    ]
    return [_tile(name, *_figure(place, keys), said, scale, unit) for name, place, keys, said, scale, unit in wanted]


def _learning(student: Mapping[str, Any]) -> str:
    """The student's final accuracy, beside that on records that it is about to learn."""
    arriving, _ = _figure(student, ("accuracy", "prequential"))
    return "final average accuracy" + (f"; on arrival {100 * arriving:.1f} %" if arriving is not None else "")


def _answered(served: Mapping[str, Any]) -> str:
    """By whom arriving records were answered."""
    every = served.get("accuracy", {}).get("refresh_records")
    return f"by a copy up to {every:,.0f} records old" if every else "by the version of its time"


def _alone(served: Mapping[str, Any]) -> str:
    """What saying the most frequent label would come to."""
    arrival = (served.get("measures") or {}).get("arrival") or {}
    share, label = (arrival.get("majority") or {}).get("share"), (arrival.get("majority") or {}).get("label")
    always = "the most frequent label" if label is None else f"“{escape(label)}”"
    return "recall, mean over classes" + (f"; always {always} has {100 * share:.1f} % right" if share else "")


def _tile(name: str, value: float | None, deviation: float | None, said: str, scale: float, unit: str) -> str:
    if value is None:
        return ""
    digits = 1 if scale == 100 else 0
    text = f"{value * scale:,.{digits}f}{unit}"
    around = f"<i>± {deviation * scale:,.{digits}f}</i>" if deviation else ""
    return f'<div class="tile"><span class="name">{name}</span><b>{text}{around}</b><small>{said}</small></div>'


def _figure(place: Mapping[str, Any], keys: Sequence[str]) -> tuple[float | None, float | None]:
    """A figure and its deviation at a path of the report."""
    for key in keys[:-1]:
        place = place.get(key) or {}
    return place.get(keys[-1]), place.get(f"{keys[-1]}_std")


def _cards(report: Mapping[str, Any]) -> list[str]:
    marks, history = _marks(report), _over_seeds(report, "history")
    models = {name: report[name] for name in _MODELS if report.get(name)}
    narrow = [
        *[_matrix_card(name, model, report) for name, model in models.items()],
        _tests_card(report),
        *_class_cards(report),
        _measures_card(report),
        _history_card(history, marks),
        _forgetting_card(history, marks),
        _gate_card(report, marks),
        _gain_card(report, marks),
        *[_per_task_card(name, model, report) for name, model in list(models.items())[:1]],
        *[_calibration_card(name, model) for name, model in list(models.items())[:1]],
        _efficiency_card(report),
        _fidelity_card(report),
        _boundaries_card(report),
    ]
    shown = [card for card in narrow if card]
    if len(shown) % 2:
        shown[-1] = shown[-1].replace('class="card"', 'class="card wide"', 1)
    wide = [_export_card(report["export"])] if report.get("export") else []
    return [*shown, *wide, _seeds_card(report), _config_card(report)]


def _matrix_card(name: str, model: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    matrix = model["accuracy"].get("matrix")
    if not matrix or not _compared(report):
        return ""
    title = f"Accuracy matrix, {_MODELS[name]}"
    note = "Percent right on each task's test records (across) after each task (down). Grey: not learned yet."
    return card(title, note, charts.heatmap(matrix, _tasks(report, len(matrix)), title=title))


def _tests_card(report: Mapping[str, Any]) -> str:
    """What was tested on, and what the end is on each part of it."""
    found = report.get("tests")
    if not found or not found["given"]:
        return ""
    note = f"{'; '.join(tested(report)).capitalize()}. Percent right at the end."
    if not found["by_task"]:
        note += " The stream names no tasks, so nothing is compared task by task: the end counts, over all of them."
    ends = {
        name: {one["task"]: one for one in (report.get(name) or {}).get("accuracy", {}).get("per_test") or []}
        for name in _MODELS
    }
    rows = [
        [one["task"], f"{one['records']:,.0f} of {one['given']:,.0f}"]
        + [_pm(ends[name].get(one["task"]) or {}, "accuracy", 1, 100) for name in _MODELS]
        for one in found.get("sets") or []
    ]
    return card("Test records", note, table(["test set", "records", *_MODELS.values()], rows))


_SPANS = {"arrival": "on arrival", "tests": "on tests"}
_MEASURES = (
    ("accuracy", "accuracy", 100),
    ("balanced accuracy", "balanced_accuracy", 100),
    ("macro F1", "macro_f1", 100),
    ("ROC AUC", "auc", 1),
    ("Cohen's kappa", "kappa", 1),
    ("kappa, temporal", "kappa_temporal", 1),
    ("kappa M", "kappa_m", 1),
    ("log-loss, nats", "log_loss", 1),
    ("calibration error", "calibration_error", 100),
)


def _measures_card(report: Mapping[str, Any]) -> str:
    """Each measure of each model, on what arrived and on test records."""
    found = {
        f"{name} {said}": (report.get(name) or {}).get("measures", {}).get(span) or {}
        for name in _MODELS
        for span, said in _SPANS.items()
    }
    found = {head: measures for head, measures in found.items() if measures.get("records")}
    if not found:
        return ""
    rows = [
        [said + (" %" if scale == 100 else ""), *(_pm(m, key, 3 if scale == 1 else 1, scale) for m in found.values())]
        for said, key, scale in _MEASURES
    ]
    off = max((measures.get("auc_error") or 0.0 for measures in found.values()), default=0.0)
    note = (
        "On arrival: of all records, each answered before it was learned. Kappa: 0 is as good as chance, as the label"
    )
    note += " before (temporal), as the most frequent label (M)."
    note += f" Areas of so many records are taken from histograms, {off:.4f} off at most." if off else ""
    return card("Measures", note, table(["measure", *found], rows))


def _class_cards(report: Mapping[str, Any]) -> list[str]:
    """Of what was served: the confusion matrix, and recall, precision, F1 and area of each class."""
    spans = (report.get("served") or {}).get("measures") or {}
    return [_class_card(spans[span], said) for span, said in _SPANS.items() if (spans.get(span) or {}).get("classes")]


def _class_card(found: Mapping[str, Any], said: str) -> str:
    classes = found["classes"]
    names = [one["label"] for one in classes]
    matrix = [
        [one["answered"].get(name, 0) / one["records"] if one["records"] else None for name in names] for one in classes
    ]
    drawn = charts.heatmap(matrix, names, title=f"Confusion {said}", sides=("label", "answered"), early=False)
    figures = ("recall", "precision", "f1", "auc")
    rows = [[one["label"], f"{one['records']:,.0f}", *(_pm(one, key, 3) for key in figures)] for one in classes]
    note = "Percent of the records of each label (down) that were given each answer (across)."
    left = (found.get("classes_seen") or 0) - sum(1 for one in classes if one["records"])
    note += f" {left:,.0f} rarer or later classes are left out." if left > 0 else ""
    head = ["class", "records", "recall", "precision", "F1", "AUC"]
    return card(f"Answers by class, served {said}", note, drawn + table(head, rows))


def _compared(report: Mapping[str, Any]) -> bool:
    """Whether figures go task by task; one of a report that does not say is taken to."""
    return (report.get("tests") or {}).get("by_task") is not False


def _history_card(history: Sequence[Mapping[str, Any]], marks: Sequence[Mark]) -> str:
    series = {
        "student, on arrival": _points(history, "prequential"),
        "served model, held out": _points(history, "holdout"),
    }
    note = "The student on the last thousand records just before it learned them; the served model on held-out ones."
    return card(
        "Accuracy over time", note + _marks_note(marks), charts.lines(_measured(series), marks, title="Accuracy")
    )


def _forgetting_card(history: Sequence[Mapping[str, Any]], marks: Sequence[Mark]) -> str:
    series = {"forgetting": _points(history, "forgetting")}
    note = "The served model's best accuracy on each task so far minus now, on held-out records, averaged."
    return card("Forgetting over time", note, charts.lines(_measured(series), marks, title="Forgetting"))


def _gate_card(report: Mapping[str, Any], marks: Sequence[Mark]) -> str:
    gate = report.get("gate") or {}
    points: list[dict[str, Any]] = gate.get("weights") or next(
        (seed["gate"]["weights"] for seed in report["per_seed"] if seed.get("gate")), []
    )
    names = dict.fromkeys(name for point in points for name in point.get("weights") or {})
    series = {"hard label": _points(points, "hard")}
    series |= {name: [(point["record"], (point.get("weights") or {}).get(name)) for point in points] for name in names}
    overhead = gate.get("overhead_ratio")
    note = "Share of the loss that the label and each teacher have."
    note += f" The gate's own work is {100 * overhead:.0f} % of the time." if overhead is not None else ""
    return card("Gate weights over time", note, charts.areas(_measured(series), marks, title="Gate weights"))


def _gain_card(report: Mapping[str, Any], marks: Sequence[Mark]) -> str:
    series: dict[str, Sequence[Point]] = {}
    for teacher in _over_seeds(report, "teachers"):
        series[teacher["name"]] = _points(teacher.get("marginal_gain") or [], "marginal_gain")
    note = "What the pool would lose without each teacher on held-out records: by this it is kept or evicted."
    note += " Colours as in the gate."
    drawn = charts.lines(_measured(series), marks, title="Marginal gain of teachers", first=1)
    return card("Marginal gain of each teacher", note, drawn)


def _per_task_card(name: str, model: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    found = model.get("forgetting") or {}
    lost = found.get("per_task") or []
    if not _compared(report):
        return ""
    names = _tasks(report, len(lost))
    deviations = dict(zip(names, found.get("per_task_std") or [None] * len(lost), strict=False))
    note = "Best accuracy before the last task minus final; whiskers are one standard deviation over seeds."
    drawn = charts.bars(dict(zip(names, lost, strict=False)), deviations, title="Forgetting per task")
    return card(f"Forgetting per task, {_MODELS[name]}", note, drawn)


def _calibration_card(name: str, model: Mapping[str, Any]) -> str:
    found = model.get("calibration") or {}
    figures = [f"{key.upper()} {_pm(found, key, 3)}" for key in ("ece", "nll") if found.get(key) is not None]
    note = f"Accuracy against confidence; the orange part is the gap. {', '.join(figures)}."
    bins = [one for one in found.get("bins") or [] if one.get("accuracy") is not None]
    return card(f"Calibration, {_MODELS[name]}", note, charts.diagram(bins, title="Calibration"))


def _efficiency_card(report: Mapping[str, Any]) -> str:
    found = report.get("efficiency") or {}
    rows = [
        [said, number(found[key], 0)]
        for key, said in (("parameters", "parameters"), ("bytes", "bytes"), ("flops", "FLOPs per record"))
        if found.get(key) is not None
    ]
    for one in found.get("latency_seconds") or []:
        said = f"latency, {one['form']}, batch {one['batch']}"
        rows.append([said, f"p50 {1e3 * one['p50']:.3f} ms · p95 {1e3 * one['p95']:.3f} ms"])
    note = "2 FLOPs per multiply-add; latency of a forward pass without the network."
    return card("Efficiency", note, table(["", "figure"], rows)) if rows else ""


def _fidelity_card(report: Mapping[str, Any]) -> str:
    rows = [
        [one["teacher"], *(_pm(one, key, 3) for key in ("accuracy", "agreement", "kl"))]
        for one in report.get("fidelity") or []
        if one
    ]
    note = "On test records: accuracy of each teacher alone, how often the student says the same, their divergence."
    return (
        card("Fidelity to the teachers", note, table(["teacher", "accuracy", "agreement", "KL (nats)"], rows))
        if rows
        else ""
    )


def _boundaries_card(report: Mapping[str, Any]) -> str:
    found = _over_seeds(report, "boundaries")
    rows = [[f"{one['record']:,.0f}", one.get("detector") or "", one.get("task") or ""] for one in found]
    note = "Where a task began, and what said so." + _shared_note(report, "boundaries")
    return card("Boundaries", note, table(["record", "detector", "task"], rows)) if rows else ""


def _export_card(found: Mapping[str, Any]) -> str:
    """The forms of the newest export that was put here."""
    head, rows = exported.table(found)
    note = f"Of {'; '.join(exported.told(found))}. Agreement and difference are with the version's own answers."
    return card("Exported", note, table(head, rows), wide=True)


def _seeds_card(report: Mapping[str, Any]) -> str:
    rows = []
    for seed in report["per_seed"]:
        cells = [str(seed["seed"])]
        for model, path in _EACH:
            cells.append(number(_figure(seed.get(model) or {}, path)[0]))
        cells.append(number(_figure(seed, ("throughput", "samples_per_second"))[0], 0))
        rows.append(cells)
    head = ["seed", "served", "on arrival", "forgetting", "ECE", "student", "on arrival", "forgetting", "records/s"]
    return card("Each seed", "", table(head, rows), wide=True)


_EACH = (
    ("served", ("accuracy", "final_average")),
    ("served", ("accuracy", "prequential")),
    ("served", ("forgetting", "average")),
    ("served", ("calibration", "ece")),
    ("student", ("accuracy", "final_average")),
    ("student", ("accuracy", "prequential")),
    ("student", ("forgetting", "average")),
)


def _config_card(report: Mapping[str, Any]) -> str:
    parts = []
    for name in ("config", "environment"):
        text = escape(json.dumps(report[name], indent=2, ensure_ascii=False))
        parts.append(f"<details><summary>{name}</summary><pre>{text}</pre></details>")
    return card("How to get it again", "", "".join(parts), wide=True)


def card(title: str, note: str, body: str, wide: bool = False) -> str:
    """A part of the page: heading, a note, what it shows."""
    said = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<section class="card{" wide" if wide else ""}"><h2>{escape(title)}</h2>{said}{body}</section>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[str] = ()) -> str:
    """Rows under their heads; all columns but the first and those in ``text`` stand to the right."""
    kinds = ['class="number"' if index and name not in text else "" for index, name in enumerate(head)]
    top = "".join(f"<th {kind}>{escape(name)}</th>" for kind, name in zip(kinds, head, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f"<td {kind}>{escape(str(cell))}</td>" for kind, cell in zip(kinds, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _over_seeds(report: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """What the seeds have in common, or the first seed's where their points in time differ."""
    return report.get(key) or next((seed[key] for seed in report["per_seed"] if seed.get(key)), [])


def _shared_note(report: Mapping[str, Any], key: str) -> str:
    """That some seeds have entries which are not shown."""
    shown, most = len(_over_seeds(report, key)), max(len(seed.get(key) or []) for seed in report["per_seed"])
    return f" {shown} that all seeds have, of up to {most} of one seed (report.json: per_seed)." if shown < most else ""


def _marks(report: Mapping[str, Any]) -> list[Mark]:
    return [
        Mark(one["record"], f"{one.get('detector')}: task {one.get('task')}", one.get("detector") not in _GIVEN)
        for one in _over_seeds(report, "boundaries")
    ]


_GIVEN = ("task-column", "new-label", "start", None)  # told by the stream; other detectors guess from the records


def _marks_note(marks: Sequence[Mark]) -> str:
    return " Vertical lines: task boundaries (dashed: given; red: detected drift)." if marks else ""


def _points(items: Sequence[Mapping[str, Any]], key: str) -> list[Point]:
    return [(item["record"], item.get(key)) for item in items]


def _measured(series: Mapping[str, Sequence[Point]]) -> dict[str, Sequence[Point]]:
    return {name: points for name, points in series.items() if any(y is not None for _, y in points)}


def _tasks(report: Mapping[str, Any], count: int) -> list[str]:
    tasks = report["stream"].get("tasks")
    names = [str(task) for task in tasks] if isinstance(tasks, list) else []
    return names[:count] if len(names) >= count else [str(index + 1) for index in range(count)]


def _count(value: Any) -> int:
    return len(value) if isinstance(value, list) else int(value)


def _pm(place: Mapping[str, Any], key: str, digits: int, scale: float = 1) -> str:
    value, deviation = place.get(key), place.get(f"{key}_std")
    return number(value and scale * value, digits) + (f" ± {scale * deviation:.{digits}f}" if deviation else "")


def number(value: float | None, digits: int = 3) -> str:
    """A number with that many digits, or a dash."""
    return "–" if value is None else f"{value:,.{digits}f}"
