"""Which column of a file plays which part: label, inputs, id, event time. What is hardly meant is refused, or left out.

    sample of rows ─► columns ─► label ─► inputs ─► order of time ─► ColumnRoles, with notes for whoever asked

``describe`` writes it down as a configuration.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from streamkd.errors import SourceError
from streamkd.streams.files import doubts
from streamkd.streams.files.columns import Column, look
from streamkd.streams.files.doubts import Doubt
from streamkd.streams.files.rows import Rows

SAMPLE, RUN = 5_000, 200
LABELS = ("label", "labels", "target", "class", "y", "category", "intent", "species", "outcome", "digit", "fine_label")
IDS = ("id", "uuid", "key")
POSITIONS = ("index", "idx", "row", "row_id", "level_0", "unnamed: 0", "")
TIME_NAME = re.compile(r"(^|[_ .-])(time|timestamp|date|datetime|ts|epoch|when)$", re.IGNORECASE)
INSIST = "`--accept {}`"
GONE = 0.5  # an input that a larger share of the records lacks is said


@dataclass(frozen=True)
class ColumnRoles:
    """Which column plays which part. ``in_time``: the records lie in the order of the event time."""

    label: Column
    inputs: tuple[Column, ...]
    id: Column | None
    time: Column | None
    left_out: tuple[Column, ...]
    in_time: bool
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
    found += doubts.of_labels(doubts.labels_of(label.name, rows.chunks(label.name)))
    doubts.refuse(found, accept, str(path), INSIST)
    return _parts(rows, columns, label, sample, path, accept, {doubt.kind for doubt in found})


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
    if column.holds in ("numbers", "text", "categories") and not column.values:
        return "it holds nothing but nulls"
    if column.holds == "numbers" and not column.whole:
        return f"it holds {column.values} different fractional numbers, and labels are classes"
    if column.holds == "tensor" or column.type.startswith(("list", "large_list", "fixed_size_list")):
        return f"it holds several values a record ({column.type}), and a record has one class"
    if column.holds not in ("numbers", "text", "categories"):
        return f"it holds {column.type}, and labels are whole numbers or strings"
    return ""


def _parts(
    rows: Rows,
    columns: Sequence[Column],
    label: Column,
    sample: pa.Table,
    path: Path,
    accept: Sequence[str],
    accepted: set[str],
) -> ColumnRoles:
    others = [column for column in columns if column is not label]
    key = next((c for c in others if c.name.lower() in IDS and c.holds in ("numbers", "text", "categories")), None)
    time = next((c for c in others if c.holds == "times" and c.type.startswith(("timestamp", "date"))), None)
    in_time, notes = _order(rows, time, others)
    free = [c for c in others if c not in (key, time) and not (c.counting and c.name.lower() in POSITIONS)]
    free, more, kept = _meant(free, sample, label.name, path, accept)
    inputs = _inputs(free)
    if not inputs:
        said = f": {_named(columns)}" + "".join(f"\n  - {note}" for note in more)
        raise SourceError(
            f"no column beside the label {label.name!r} can be an input{said}",
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
    notes += [*more, *_gaps(inputs, len(sample)), *_plain_words(inputs, free)]
    left_out = tuple(c for c in columns if c.name not in used)
    insisted = tuple(dict.fromkeys(kind for kind in accept if kind in accepted | kept))
    return ColumnRoles(label, tuple(inputs), key, time, left_out, in_time, tuple(notes), insisted)


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
    if column.holds in ("numbers", "categories") and column.values < 2 and records >= doubts.ENOUGH:
        return "is the same in all records that were looked at"
    return ""


def _order(rows: Rows, time: Column | None, others: Sequence[Column]) -> tuple[bool, list[str]]:
    """Whether the records lie in the order of their event time, and what is said of it."""
    if time is None:
        return False, [
            f"{c.name!r} counts like a time; as a timestamp column it would be the event time, and the order be kept."
            for c in others
            if c.counting and TIME_NAME.search(c.name)
        ]
    steps, back = _steps(rows.chunks(time.name))
    kept = f"{time.name!r} is the event time: the records are learned as they lie in the file (order: given)"
    if not back:
        return True, [f"{kept}, which is the order of time, and what came last tests (test: last)."]
    how = "newest first" if back > 0.9 * steps else f"{back:,} of them earlier than the one before"
    return False, [f"{kept}, {how}: sort them by {time.name!r}; every fifth record of each label tests."]


def _steps(chunks: Iterable[pa.Array]) -> tuple[int, int]:
    """From record to record: how many steps there are in time, and how many of them go back."""
    steps = back = 0
    last = np.zeros(0, np.int64)
    for chunk in chunks:
        times = chunk.drop_null().cast(pa.timestamp("us"), safe=False).cast(pa.int64()).to_numpy()
        taken = np.diff(np.concatenate([last, times]))
        steps, back = steps + len(taken), back + int((taken < 0).sum())
        last = times[-1:] if len(times) else last
    return steps, back


def _gaps(inputs: Sequence[Column], records: int) -> list[str]:
    return [
        f"{c.nulls:,} of {records:,} records have no {c.name!r}, and a record needs every input: leave it out?"
        for c in inputs
        if c.nulls > GONE * records
    ]


def _plain_words(inputs: Sequence[Column], free: Sequence[Column]) -> list[str]:
    """What else was decided and would surprise."""
    rest = [c.name for c in free if c not in inputs and c.holds in ("numbers", "categories", "text", "tensor", "image")]
    what = {"image": "images", "tensor": "lists", "text": "texts"}.get(inputs[0].holds)
    return (
        [f"Of {what} only {', '.join(repr(c.name) for c in inputs)}; left out beside: {', '.join(map(repr, rest))}."]
        if rest and what
        else []
    )


def _inputs(free: Sequence[Column]) -> list[Column]:
    """Images first, else lists of numbers, else texts, else every number and category: the rest describes them."""
    by_kind = {holds: [c for c in free if c.holds == holds] for holds in ("image", "tensor", "text")}
    for holds, limit in (("image", 1), ("tensor", None), ("text", None)):
        if by_kind[holds]:
            return by_kind[holds][:limit]
    return [c for c in free if c.holds in ("numbers", "categories") and c.name]


def _named(columns: Sequence[Column]) -> str:
    return ", ".join(f"{column.name} ({column.type})" for column in columns[:20]) + (
        ", ..." if len(columns) > 20 else ""
    )
