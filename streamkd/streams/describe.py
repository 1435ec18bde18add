"""A configuration for a file of the user's own: what `streamkd init FILE` writes.

file ─► sample of rows ─► columns ─► label ─► inputs ─► commented YAML, which `streamkd.config.load` takes
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml

from streamkd.errors import SourceError
from streamkd.streams.columns import Column, look
from streamkd.streams.files import Rows, open_rows

SAMPLE = 5_000
FIT = 1_000
TEXT_FEATURES, CATEGORY_FEATURES = 4_096, 32
PLENTY_COLUMNS = 60  # a batch may have 64 columns unless the limits say more
LABELS = ("label", "labels", "target", "class", "y", "category", "intent", "species", "outcome", "digit", "fine_label")
IDS = ("id", "uuid", "key")
POSITIONS = ("index", "idx", "row", "row_id", "level_0", "unnamed: 0", "")


def describe(path: Path, label: str | None = None) -> str:
    """YAML text of a configuration that learns a file, with what was found in its comments.

    Raises:
        SourceError: the file cannot be read, no label can be found (its columns are named), or there is no input.
    """
    rows = open_rows(path)
    columns = look(_sample(rows))
    found = _label(columns, label, path)
    plan = _plan(columns, found, path)
    student = _student(plan, len(rows), shuffled=rows.scattered)
    return "\n".join([*_head(path, rows, plan), *_source(path, rows), *_records(plan), *student, ""])


@dataclass(frozen=True)
class Plan:
    """Which column plays which part."""

    label: Column
    inputs: tuple[Column, ...]
    id: Column | None
    time: Column | None
    left_out: tuple[Column, ...]


def _sample(rows: Rows) -> pa.Table:
    if not len(rows):
        raise SourceError("the file has no rows", fix="name a file with records")
    count = min(SAMPLE, len(rows))
    spread = np.linspace(0, len(rows) - 1, count).astype(np.int64) if rows.scattered else np.arange(count)
    return rows.pick(spread)


def _label(columns: Sequence[Column], asked: str | None, path: Path) -> Column:
    """The column that was asked for, or the likeliest: by name, else the last one with few values."""
    if asked is not None:
        return _asked(columns, asked, path)
    likely = [c for name in LABELS for c in columns if c.name.lower() == name]
    likely += [c for c in columns if re.search(r"(^|[_ .-])(label|class|target)$", c.name.lower())]
    likely += [c for c in columns[-1:] if c.holds == "categories" or (c.holds == "numbers" and c.values <= 20)]
    categories = [c for c in columns if c.holds == "categories"]
    likely += categories if len(categories) == 1 else []
    for column in likely:
        if not _why_no_label(column) and column.values > 1:
            return column
    raise SourceError(
        f"no column looks like a label: {_named(columns)}", where=str(path), fix="name it with --label COLUMN"
    )


def _asked(columns: Sequence[Column], asked: str, path: Path) -> Column:
    names = [column.name for column in columns]
    if asked not in names:
        near = difflib.get_close_matches(asked, names, 1)
        raise SourceError(
            f"there is no column {asked!r}: {_named(columns)}",
            where=str(path),
            fix=f"did you mean --label {near[0]}?" if near else "name one of them with --label",
        )
    column = columns[names.index(asked)]
    why = _why_no_label(column)
    if why:
        raise SourceError(f"{asked!r} cannot be a label: {why}", where=str(path), fix="name another with --label")
    return column


def _why_no_label(column: Column) -> str:
    if column.holds == "numbers" and not column.whole:
        return f"it holds {column.values} different fractional numbers, and labels are classes"
    if column.holds not in ("numbers", "text", "categories"):
        return f"it holds {column.type}, and labels are whole numbers or strings"
    return ""


def _plan(columns: Sequence[Column], label: Column, path: Path) -> Plan:
    others = [column for column in columns if column is not label]
    key = next((c for c in others if c.name.lower() in IDS and c.holds in ("numbers", "text", "categories")), None)
    time = next((c for c in others if c.holds == "times" and c.type.startswith(("timestamp", "date"))), None)
    free = [c for c in others if c not in (key, time) and not (c.counting and c.name.lower() in POSITIONS)]
    inputs = _inputs(free)
    if not inputs:
        raise SourceError(
            f"no column beside the label {label.name!r} can be an input: {_named(columns)}",
            where=str(path),
            fix="inputs are numbers, lists of numbers, strings, or PNG or JPEG bytes",
        )
    mixed = next((c for c in inputs if c.holds == "image" and c.sizes > 1), None)
    if mixed:
        raise SourceError(
            f"needed images of one size, got {mixed.sizes} sizes, most often {mixed.shape}",
            where=f"{path}: column {mixed.name}",
            fix="resize them first",
        )
    used = {label.name, *(c.name for c in inputs), *(c.name for c in (key, time) if c)}
    return Plan(label, tuple(inputs), key, time, tuple(c for c in columns if c.name not in used))


def _inputs(free: Sequence[Column]) -> list[Column]:
    """Images first, else lists of numbers, else texts, else every number and category: the rest describes them."""
    by_kind = {holds: [c for c in free if c.holds == holds] for holds in ("image", "tensor", "text")}
    for holds, limit in (("image", 1), ("tensor", None), ("text", None)):
        if by_kind[holds]:
            return by_kind[holds][:limit]
    return [c for c in free if c.holds in ("numbers", "categories") and c.name]


def _head(path: Path, rows: Rows, plan: Plan) -> list[str]:
    looked = "all" if len(rows) <= SAMPLE else f"{SAMPLE:,}"
    lines = [
        f"# Written by `streamkd init {path.name}`: {len(rows):,} records, of which {looked} were looked at.",
        f"# The label is {plan.label.name!r}: {plan.label.values} different values.",
    ]
    for column in plan.left_out:
        more = (
            f"; `task: {_plain(column.name)}` under records makes it the task" if column.holds == "categories" else ""
        )
        lines.append(f"# Left out: {column.name!r} ({column.type}){more}.")
    for column in (plan.label, *plan.inputs):
        if column.nulls:
            lines.append(f"# {column.nulls} records have no {column.name!r}: they go to the dead letters.")
    return [*lines, "# `streamkd check` this file, `streamkd serve` it to learn, `streamkd run` it for a report."]


def _source(path: Path, rows: Rows) -> list[str]:
    target = path.resolve()
    test = _test_file(target, rows)
    in_memory = rows.scattered
    lines = [
        f"name: {re.sub(r'[^A-Za-z0-9_.-]+', '-', path.stem) or 'stream'}",
        "stream:",
        "  # To learn live records of the same columns instead of this file: source: {name: flight}, and then",
        f"  #   streamkd push {target.name} --to grpc://127.0.0.1:8815",
        "  source:",
        "    name: replay",
        f"    path: {_plain(str(target))}",
    ]
    if test:
        lines.append(f"    test_path: {_plain(str(test))}")
    else:
        lines.append("    test_ratio: 0.2  # held out of each label, to measure the accuracy")
    if in_memory:
        lines.append("    order: seed  # shuffled by the seed; given: as the records lie in the file")
    else:
        lines.append("    order: given  # the file is too large to be shuffled")
    return [
        *lines,
        "    # classes_per_task: 2  # class-incremental: so many labels at a time; then take out the line of detectors",
        "    rate: null  # records per second; null: as fast as they are learned",
        "    repeat: false  # true: for ever",
    ]


def _test_file(path: Path, rows: Rows) -> Path | None:
    """The test file beside a train file, if it has the same columns."""
    if "train" not in path.stem:
        return None
    for name in ("test", "validation", "valid", "val"):
        test = path.with_name(path.name.replace("train", name))
        if test != path and test.is_file() and set(rows.schema.names) <= set(open_rows(test).schema.names):
            return test
    return None


def _records(plan: Plan) -> list[str]:
    lines = ["  records:", "    inputs:", *(f"      - {_input(column)}" for column in plan.inputs)]
    if any(column.lengths for column in plan.inputs):
        lines.append("      # pad: shorter lists end in zeros, longer ones are cut")
    lines.append(f"    label: {_plain(plan.label.name)}")
    lines.append(f"    label_type: {'int' if plan.label.holds == 'numbers' else 'string'}")
    lines += [f"    id: {_plain(plan.id.name)}"] if plan.id else []
    lines += [f"    event_time: {_plain(plan.time.name)}"] if plan.time else []
    if len(plan.inputs) > PLENTY_COLUMNS:
        lines.append(f"  limits: {{columns: {len(plan.inputs) + 8}}}")
    return lines


def _input(column: Column) -> str:
    """One input as a flow mapping, with its normalisation."""
    values = f"name: {_plain(column.name)}"
    if column.holds in ("text", "categories"):
        features = TEXT_FEATURES if column.holds == "text" else CATEGORY_FEATURES
        return f"{{{values}, kind: text, shape: [{features}]}}  # {column.values} values, hashed"
    if column.holds == "numbers":
        return f"{{{values}, fit: {FIT}}}"
    values += ", kind: image" if column.holds == "image" else ""
    values += f", shape: [{', '.join(map(str, column.shape))}]"
    values += "" if column.holds == "image" else f", dtype: {column.dtype}"
    if column.lengths:
        short, long = column.lengths
        moments = f"mean: {column.mean:.6g}, std: {column.std:.6g}"
        return f"{{{values}, pad: true, {moments}}}  # lists of {short} to {long} values"
    if column.dtype == "uint8":
        return (
            f"{{{values}, scale: {1 / 255!r}, mean: {column.mean / 255:.4f}, std: {max(column.std / 255, 1e-4):.4f}}}"
        )
    return f"{{{values}, fit: {FIT}}}  # mean and std of the first {FIT:,} records"


def _student(plan: Plan, records: int, shuffled: bool) -> list[str]:
    shape = plan.inputs[0].shape
    picture = len(plan.inputs) == 1 and len(shape) in (2, 3) and min(shape[:2]) >= 16 and (shape[2:] or (1,))[0] <= 4
    student = "{name: convnet, channels: [32, 64]}" if picture else "{name: mlp, hidden: [256, 128]}"
    per_label = max(500, min(5 * plan.label.values, 5_000))
    detectors = (
        ["detectors: []  # shuffled records are one task; without this line new labels begin one"] if shuffled else []
    )
    size = min(per_label, max(50, records // 2))
    return [*detectors, f"memory: {{size: {size}}}  # remembered records", f"student: {student}"]


def _plain(name: str) -> str:
    """A string as YAML: quoted where it must be."""
    text = yaml.safe_dump(name, default_flow_style=True, width=1 << 20, allow_unicode=True).strip()
    text = text.removesuffix("...").strip()
    return text if not re.search(r"[\[\]{},#]", text) or text[0] in "'\"" else "'" + name.replace("'", "''") + "'"


def _named(columns: Sequence[Column]) -> str:
    return ", ".join(f"{column.name} ({column.type})" for column in columns[:20]) + (
        ", ..." if len(columns) > 20 else ""
    )
