"""A configuration for a file of the user's own: what `streamkd init FILE` writes.

file ─► `roles` (which column plays which part) ─► commented YAML, which `streamkd.config.load` takes, and notes
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from streamkd.streams.files.columns import Column
from streamkd.streams.files.dialect import CsvDialect
from streamkd.streams.files.formats import dialect_of
from streamkd.streams.files.roles import SAMPLE, ColumnRoles, roles_of
from streamkd.streams.files.rows import Rows, open_rows

FIT = 1_000
TEXT_FEATURES, CATEGORY_FEATURES = 4_096, 32
CHANNELS = (1, 3, 4)
PLENTY_COLUMNS = 60  # a batch may have 64 columns unless the limits say more


@dataclass(frozen=True)
class Description:
    """The configuration's text, and what of it a person should read before using it."""

    text: str
    notes: tuple[str, ...]


def describe(path: Path, label: str | None = None, accept: Sequence[str] = ()) -> Description:
    """A configuration that learns a file, with what was found in its comments.

    Raises:
        SourceError: the file cannot be read, no label can be found (its columns are named), there is no input, or
            something is hardly meant and not among ``accept``.
    """
    dialect = dialect_of(path, header=True if "header" in accept else None)
    rows = open_rows(path, dialect, in_order=True)
    roles = roles_of(rows, path, label, accept)
    student, more = _student(roles, len(rows), shuffled=rows.scattered and not roles.time)
    notes = (*_dialect_notes(dialect, rows), *roles.notes, *more)
    written = [*_source(path, rows, roles, dialect), *_records(roles), *student, ""]
    return Description("\n".join([*_head(path, rows, roles, notes), *written]), notes)


def _head(path: Path, rows: Rows, roles: ColumnRoles, notes: Sequence[str]) -> list[str]:
    looked = "all" if len(rows) <= SAMPLE else f"{SAMPLE:,}"
    lines = [
        f"# Written by `streamkd init {path.name}`: {len(rows):,} records, of which {looked} were looked at.",
        f"# The label is {roles.label.name!r}: {roles.label.values} different values.",
    ]
    for column in roles.left_out:
        task = (
            f"; `task: {_plain(column.name)}` under records makes it the task" if column.holds == "categories" else ""
        )
        lines.append(f"# Left out: {column.name!r} ({column.type}){task}.")
    for column in (roles.label, *roles.inputs):
        if column.nulls:
            lines.append(f"# {column.nulls} records have no {column.name!r}: they go to the dead letters.")
    lines += [f"# {note}" for note in notes]
    return [*lines, "# `streamkd check` this file, `streamkd serve` it to learn, `streamkd run` it for a report."]


def _dialect_notes(dialect: CsvDialect | None, rows: Rows) -> Iterator[str]:
    """What of a CSV file is other than usual, with what would change it."""
    if dialect is None:
        return
    if not dialect.header:
        names = rows.schema.names
        yield (
            f"The first line looks like a record, so the columns are called {names[0]} to {names[-1]}; "
            "--accept header takes it for their names."
        )
    if dialect.thousands:
        yield f"{dialect.thousands!r} between digits groups them; `thousands: ''` under csv takes such cells for words."
    if days := [form for form in dialect.times if form.startswith(("%d/%m", "%m/%d"))]:
        yield f"Dates are read as {days[0]}; turn day and month round in `times` under csv if they are the other way."
    if dialect.encoding == "cp1252":
        yield "It is not UTF-8 and read as Windows' Western code page; `encoding` under csv names another."


def _csv(dialect: CsvDialect | None) -> list[str]:
    """How the file is written, where it is not as CSV usually is."""
    if dialect is None or dialect == CsvDialect():
        return []
    given = {key: value for key, value in dialect.model_dump().items() if value != getattr(CsvDialect(), key)}
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
    return [f"    csv: {yaml.safe_dump(given, default_flow_style=True, width=1 << 20, sort_keys=False).strip()}"]


def _source(path: Path, rows: Rows, roles: ColumnRoles, dialect: CsvDialect | None) -> list[str]:
    target = path.resolve()
    test = _test_file(target, rows, dialect)
    lines = [
        f"name: {re.sub(r'[^A-Za-z0-9_.-]+', '-', path.stem) or 'stream'}",
        "stream:",
        "  # To learn live records of the same columns instead of this file: source: {name: flight}, and then",
        f"  #   streamkd push {target.name} --to grpc://127.0.0.1:8815",
        "  source:",
        "    name: replay",
        f"    path: {_plain(str(target))}",
        *_csv(dialect),
    ]
    lines += [f"    accept: [{', '.join(roles.accept)}]  # hardly meant, but meant"] if roles.accept else []
    if test:
        lines.append(f"    test_path: {_plain(str(test))}")
    elif roles.in_time:
        lines.append("    test_ratio: 0.2")
        lines.append(
            "    test: last  # what came last is held out, to measure the accuracy; test: evenly, of each label"
        )
    else:
        lines.append("    test_ratio: 0.2  # held out of each label, to measure the accuracy")
    if roles.time:
        lines.append("    order: given  # as the records lie in the file; seed: shuffled by the seed")
    elif rows.scattered:
        lines.append("    order: seed  # shuffled by the seed; given: as the records lie in the file")
    else:
        lines.append("    order: given  # the file is too large to be shuffled")
    return [
        *lines,
        "    # classes_per_task: 2  # class-incremental: so many labels at a time; then take out the line of detectors",
        "    rate: null  # records per second; null: as fast as they are learned",
        "    repeat: false  # true: for ever",
    ]


def _test_file(path: Path, rows: Rows, dialect: CsvDialect | None) -> Path | None:
    """The test file beside a train file, if it has the same columns."""
    if "train" not in path.stem:
        return None
    for name in ("test", "validation", "valid", "val"):
        test = path.with_name(path.name.replace("train", name))
        if (
            test != path
            and test.is_file()
            and set(rows.schema.names) <= set(open_rows(test, dialect, in_order=True).schema.names)
        ):
            return test
    return None


def _records(roles: ColumnRoles) -> list[str]:
    lines = ["  records:", "    inputs:", *(f"      - {_input(column)}" for column in roles.inputs)]
    if any(column.lengths for column in roles.inputs):
        lines.append("      # pad: shorter lists end in zeros, longer ones are cut")
    lines.append(f"    label: {_plain(roles.label.name)}")
    lines.append(f"    label_type: {'int' if roles.label.holds == 'numbers' else 'string'}")
    lines += [f"    id: {_plain(roles.id.name)}"] if roles.id else []
    lines += [f"    event_time: {_plain(roles.time.name)}"] if roles.time else []
    if len(roles.inputs) > PLENTY_COLUMNS:
        lines.append(f"  limits: {{columns: {len(roles.inputs) + 8}}}")
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


def _student(roles: ColumnRoles, records: int, shuffled: bool) -> tuple[list[str], list[str]]:
    """The lines after the stream's, and what should be said of them."""
    column = roles.inputs[0]
    picture = len(roles.inputs) == 1 and _is_picture(column.shape)
    student = "{name: convnet, channels: [32, 64]}" if picture else "{name: mlp, hidden: [256, 128]}"
    per_label = max(500, min(5 * roles.label.values, 5_000))
    one_task = shuffled or roles.time
    why = "shuffled records are one task" if shuffled else "one task, in the order of time"
    detectors = [f"detectors: []  # {why}; without this line new labels begin one"] if one_task else []
    size = min(per_label, max(50, records // 2))
    hints = [] if picture or len(roles.inputs) > 1 else list(_picture_hints(column))
    return [*detectors, f"memory: {{size: {size}}}  # remembered records", f"student: {student}"], hints


def _is_picture(shape: tuple[int, ...]) -> bool:
    return len(shape) in (2, 3) and min(shape[:2]) >= 16 and (shape[2:] or (1,))[0] <= 4


def _picture_hints(column: Column) -> Iterator[str]:
    """Whether numbers that go into a perceptron may be the pixels of an image."""
    shape, name = column.shape, column.name
    if len(shape) == 3 and _is_picture(shape[1:]) and shape[0] in CHANNELS:
        turned = [*shape[1:], shape[0]]
        yield (
            f"{name!r} {list(shape)} looks like images with their channels first; a convnet and moved images need "
            f"{turned}: write the file again with numpy.moveaxis(x, 1, -1)."
        )
    for channels in CHANNELS if len(shape) == 1 and not column.lengths else ():
        side = round((shape[0] / channels) ** 0.5)
        if side * side * channels == shape[0] and side >= 16:
            pixels = [side, side] if channels == 1 else [side, side, channels]
            order = "; if the channels come one after another, turn them first" if channels > 1 else ""
            yield (
                f"{name!r} has {shape[0]:,} values, {'x'.join(map(str, pixels))}: if they are an image, write shape: "
                f"{pixels} and student: {{name: convnet}}{order}."
            )
            return


def _plain(name: str) -> str:
    """A string as YAML, quoted where it must be between braces."""
    return yaml.safe_dump([name], default_flow_style=True, width=1 << 20, allow_unicode=True).strip()[1:-1]
