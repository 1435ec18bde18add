"""Which column of a file plays which part: label, inputs, id, event time. What is hardly meant is refused, or left out.

    sample of rows ─► columns ─► label ─► inputs ─► order of time ─► ColumnRoles, with notes for whoever asked

``describe`` writes it down as a configuration.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streamkd.errors import SourceError
from streamkd.streams.files import doubts
from streamkd.streams.files.columns import Column, look
from streamkd.streams.files.doubts import Doubt, Labels
from streamkd.streams.files.order import Order, are_mixed, order_of
from streamkd.streams.files.rows import Rows

SAMPLE, RUN = 5_000, 200
LABELS = ("label", "labels", "target", "class", "y", "category", "intent", "species", "outcome", "digit", "fine_label")
IDS = ("id", "uuid", "key")
POSITIONS = ("index", "idx", "row", "row_id", "level_0", "unnamed: 0", "")
INSIST = "`--accept {}`"
LABEL_KINDS = ("numbers", "text", "categories", "codes")
PICTURES = ("image", "tensor")  # what the rest may describe
GONE = 0.5  # an input that a larger share of the records lacks is said


@dataclass(frozen=True)
class ColumnRoles:
    """Which column plays which part.

    ``order``: that of the file where it is that of the event time (``given``), or by the event time (``time``).
    ``mixed``: labels come in no order of theirs. ``beside``: of those that are left out, what could be an input too.
    ``gaps``: of inputs and these, in all records.
    """

    label: Column
    labels: Labels
    inputs: tuple[Column, ...]
    id: Column | None
    time: Column | None
    left_out: tuple[Column, ...]
    beside: tuple[Column, ...]
    order: Order | None
    mixed: bool
    gaps: Mapping[str, int]
    notes: tuple[str, ...]
    accept: tuple[str, ...]


def roles_of(rows: Rows, path: Path, asked: str | None, accept: Sequence[str]) -> ColumnRoles:
    """The parts of a file's columns; ``asked``: the label.

    Raises:
        SourceError: no rows, no label, no input, or something is hardly meant and not accepted.
    """
    if not len(rows):
        raise SourceError("the file has no rows", where=str(path), fix="name a file with records")
    names = rows.schema.names
    found = list(doubts.of_header(path, rows)) if "header" in accept else []  # else it was read as it looks
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SourceError(f"two columns go by the name {twice[0]!r}", where=str(path), fix="rename or drop one of them")
    sample = _sample(rows)
    columns = look(sample)
    label = _label(columns, asked, path)
    labels = doubts.labels_of(label.name, rows.chunks(label.name))
    found += doubts.of_labels(labels)
    doubts.refuse(found, accept, str(path), INSIST)
    return _parts(rows, columns, label, labels, sample, path, accept, {doubt.kind for doubt in found})


def _sample(rows: Rows) -> pa.Table:
    count = min(SAMPLE, len(rows))
    if rows.scattered or count == len(rows):
        return rows.pick(np.linspace(0, len(rows) - 1, count).astype(np.int64))
    runs = np.linspace(0, len(rows) - RUN, count // RUN).astype(np.int64)  # of a large file, from places all over it
    return rows.pick(np.unique(runs[:, None] + np.arange(RUN)))


def _label(columns: Sequence[Column], asked: str | None, path: Path) -> Column:
    """The column that was asked for, or the likeliest: by name, else the last one with few values."""
    if asked is not None:
        return _asked(columns, asked, path)
    called = [c for name in LABELS for c in columns if c.name.lower() == name]
    called += [c for c in columns if re.search(r"(^|[_ .-])(label|class|target)$", c.name.lower())]
    last = [c for c in columns[-1:] if c.holds == "categories" or (c.holds == "numbers" and c.values <= 20)]
    categories = [c for c in columns if c.holds == "categories"]
    for column in (*called, *last, *(categories if len(categories) == 1 and not called else [])):
        if not _why_no_label(column) and column.values > 1:
            return column
    if called:
        return _asked(columns, called[0].name, path)
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
    if column.holds in LABEL_KINDS and not column.values:
        return "it holds nothing but nulls"
    if column.holds == "numbers" and not column.whole:
        return (
            f"it holds {column.values} different fractional numbers, and labels are classes: make some of it, "
            "such as low, middle, high"
        )
    if column.holds == "tensor" or column.type.startswith(("list", "large_list", "fixed_size_list")):
        return f"it holds several values a record ({column.type}), and a record has one class"
    if column.holds not in LABEL_KINDS:
        return f"it holds {column.type}, and labels are whole numbers or strings"
    return ""


def _parts(
    rows: Rows,
    columns: Sequence[Column],
    label: Column,
    labels: Labels,
    sample: pa.Table,
    path: Path,
    accept: Sequence[str],
    accepted: set[str],
) -> ColumnRoles:
    others = [column for column in columns if column is not label]
    key = next((c for c in others if c.name.lower() in IDS and c.holds in LABEL_KINDS), None)
    time, order, notes = order_of(rows, others)
    free = [c for c in others if c not in (key, time) and not (c.counting and c.name.lower() in POSITIONS)]
    free, more, kept = _meant(free, sample, label.name, path, accept)
    inputs = _inputs(free)
    if not inputs:
        said = f": {_named(columns)}" + "".join(f"\n  - {note}" for note in more)
        raise SourceError(
            f"no column beside the label {label.name!r} can be an input{said}",
            where=str(path),
            fix="inputs are numbers, lists of numbers, strings, times, or PNG or JPEG bytes",
        )
    mixed = next((c for c in inputs if c.holds == "image" and c.sizes > 1), None)
    if mixed:
        raise SourceError(
            f"needed images of one size, got {mixed.sizes} sizes, most often {mixed.shape}",
            where=f"{path}: column {mixed.name}",
            fix="resize them first",
        )
    used = {label.name, *(c.name for c in inputs), *(c.name for c in (key, time) if c)}
    beside = tuple(c for c in free if c not in inputs and c.name and (_is_input(c) or c.holds in PICTURES))
    gaps = _gaps(rows, [*inputs, *beside])
    notes += [*more, *_said_of_gaps({c.name: gaps[c.name] for c in inputs if c.name in gaps}, len(rows))]
    notes += _plain_words(inputs, beside)
    left_out = tuple(c for c in columns if c.name not in used)
    insisted = tuple(dict.fromkeys(kind for kind in accept if kind in accepted | kept))
    in_no_order = are_mixed(rows.chunks(label.name), labels)
    return ColumnRoles(
        label, labels, tuple(inputs), key, time, left_out, beside, order, in_no_order, gaps, tuple(notes), insisted
    )


def _meant(
    free: Sequence[Column], sample: pa.Table, label: str, path: Path, accept: Sequence[str]
) -> tuple[list[Column], list[str], set[str]]:
    """The columns that may be inputs, what is said of the others, and which doubts were accepted.

    Numbers written as text are asked about: left out they would be missed, taken as words they would say nothing.
    """
    kept, notes, asked = [], [], []
    accepted: set[str] = set()
    for column in free:
        found = doubts.of_input(column.name, sample.column(column.name), sample.column(label))
        if found and found.kind == "number-texts":
            asked.append(found)
        if found and found.kind in accept:
            accepted.add(found.kind)
        elif found and found.kind != "number-texts":
            notes.append(f"Left out of the inputs: {_sentence(found)}; --accept {found.kind} takes it.")
            continue
        if (why := _nothing(column, len(sample))) != "":
            notes.append(f"Left out of the inputs: {column.name!r} {why}.")
            continue
        kept.append(column)
    doubts.refuse(asked, accept, str(path), INSIST)
    return kept, notes, accepted


def _sentence(found: Doubt) -> str:
    return found.said.removeprefix("the column ")


def _nothing(column: Column, records: int) -> str:
    """Why a column of numbers or categories tells nothing."""
    if column.nulls == records:
        return "holds nothing but nulls"
    if column.holds in ("numbers", "categories", "times") and column.values < 2 and records >= doubts.ENOUGH:
        return "is the same in all records that were looked at"
    return ""


def _gaps(rows: Rows, inputs: Sequence[Column]) -> dict[str, int]:
    """In how many of all records each input is missing, where it is in some."""
    found = dict.fromkeys([column.name for column in inputs], 0)
    for table in rows.tables(list(found)):
        for name in found:
            column = table.column(name)
            found[name] += column.null_count
            if pa.types.is_floating(column.type):
                found[name] += pc.sum(pc.is_nan(column)).as_py() or 0
    return {name: count for name, count in found.items() if count}


def _said_of_gaps(gaps: Mapping[str, int], records: int) -> list[str]:
    return [
        f"{count:,} of {records:,} records have no {name!r}: leave it out if that says nothing."
        for name, count in gaps.items()
        if count > GONE * records
    ]


def _plain_words(inputs: Sequence[Column], beside: Sequence[Column]) -> list[str]:
    """What else was decided and would surprise."""
    if not beside:
        return []
    what = {"image": "images", "tensor": "lists"}[inputs[0].holds]
    chosen, rest = (", ".join(repr(column.name) for column in columns) for columns in (inputs, beside))
    return [
        f"Of {what} only {chosen}; left out beside: {rest}. Their lines under inputs, with a # before, take them in."
    ]


def _inputs(free: Sequence[Column]) -> list[Column]:
    """Images first, else lists of numbers, which the rest describes; else everything."""
    for holds, limit in (("image", 1), ("tensor", None)):
        if found := [c for c in free if c.holds == holds]:
            return found[:limit]
    return [c for c in free if c.name and _is_input(c)]


def _is_input(column: Column) -> bool:
    times = column.holds == "times" and column.type.startswith(("timestamp", "date"))
    return times or column.holds in ("numbers", "categories", "codes", "text")


def _named(columns: Sequence[Column]) -> str:
    return ", ".join(f"{column.name} ({column.type})" for column in columns[:20]) + (
        ", ..." if len(columns) > 20 else ""
    )
