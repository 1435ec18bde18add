"""A configuration for a file of the user's own: what `streamkd init FILE` writes.

file ─► `roles` (which column plays which part) ─► commented YAML, which `streamkd.config.load` takes, and notes
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from streamkd.streams.files import profile
from streamkd.streams.files.columns import YEARS, Column
from streamkd.streams.files.dialect import CsvDialect
from streamkd.streams.files.formats import dialect_of
from streamkd.streams.files.roles import SAMPLE, ColumnRoles, roles_of
from streamkd.streams.files.rows import Rows, open_rows

FIT = 1_000
PERCEPTRON = "{name: mlp, hidden: [256, 128]}"
TEXT_FEATURES, TEXT_BESIDE = 4_096, 1_024  # of texts alone, and beside other columns
SPARE, CODE_FEATURES = 8, (64, 256)  # places for categories that come later; of few and of many codes
CHANNELS = (1, 3, 4)
LARGE = "as the records lie in the file; seed: shuffled by the seed, from a copy on disk, since the file is large"
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
    test = _test_file(path.resolve(), rows, dialect)
    student, more = _student(roles, _order(rows, roles))
    notes = (
        *profile.told(roles),
        *_dialect_notes(dialect, rows),
        *roles.notes,
        *_order_notes(rows, roles, test),
        *_lost(rows, roles),
        *more,
    )
    written = [*_source(path, rows, roles, dialect, test), *_records(roles), *student, *_weights(roles), ""]
    return Description("\n".join([*_head(path, rows, roles, notes), *written]), notes)


def _head(path: Path, rows: Rows, roles: ColumnRoles, notes: Sequence[str]) -> list[str]:
    looked = "all" if len(rows) <= SAMPLE else f"{SAMPLE:,}"
    lines = [
        f"# Written by `streamkd init {path.name}`: {len(rows):,} records, of which {looked} were looked at.",
    ]
    for column in roles.left_out:
        task = (
            f"; `task: {_plain(column.name)}` under records makes it the task" if column.holds == "categories" else ""
        )
        lines.append(f"# Left out: {column.name!r} ({column.type}){task}.")
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


def _order_notes(rows: Rows, roles: ColumnRoles, test: Path | None) -> Iterator[str]:
    if roles.order is None and rows.scattered:
        yield "The records are shuffled by the seed (order: seed); order: given plays them as they lie in the file."
    elif roles.order is None:
        yield "The file is large and played as it lies (order: given); order: seed shuffles it, from a copy on disk."
    elif test is None:
        yield "Each record is answered before it is learned, which is measured; test_ratio: 0.2 holds a fifth out."


def _lost(rows: Rows, roles: ColumnRoles) -> Iterator[str]:
    """Records that cannot be learned, since they lack something that is not filled."""
    lost = {roles.label.name: len(rows) - roles.labels.records}
    lost |= {c.name: roles.gaps[c.name] for c in roles.inputs if c.name in roles.gaps and not _fills(c, roles)}
    for name, count in lost.items():
        if count:
            yield f"{count:,} records have no {name!r}: they go to the dead letters."
    if lost[roles.label.name]:
        yield (
            "With `unlabelled: distil` under stream, teachers answer for records without a label; where a later record "
            "brings it, request_time and label_time under source join the two."
        )


def _csv(dialect: CsvDialect | None) -> list[str]:
    """How the file is written, where it is not as CSV usually is."""
    if dialect is None or dialect == CsvDialect():
        return []
    given = {key: value for key, value in dialect.model_dump().items() if value != getattr(CsvDialect(), key)}
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
    return [f"    csv: {yaml.safe_dump(given, default_flow_style=True, width=1 << 20, sort_keys=False).strip()}"]


def _source(path: Path, rows: Rows, roles: ColumnRoles, dialect: CsvDialect | None, test: Path | None) -> list[str]:
    target = path.resolve()
    lines = [
        f"name: {_plain(re.sub(r'[^A-Za-z0-9_.-]+', '-', path.stem) or 'stream')}",
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
    elif roles.order:
        lines.append("    test_ratio: 0  # all are learned, and answered before; 0.2 holds a fifth out, to test on")
        lines.append("    test: last  # what is held out is what came last; without this line: of each label")
    else:
        lines.append("    test_ratio: 0.2  # held out of each label, to measure the accuracy")
    order = _order(rows, roles)
    said = {
        "time": "by the event time; given: as the records lie in the file",
        "seed": "shuffled by the seed; given: as the records lie in the file",
        "given": "as the records lie in the file; seed: shuffled by the seed" if rows.scattered else LARGE,
    }
    lines.append(f"    order: {order}  # {said[order]}")
    return [
        *lines,
        "    # classes_per_task: 2  # class-incremental: so many labels at a time; then take out the line of detectors",
        "    rate: null  # records per second; null: as fast as they are learned",
        "    repeat: false  # true: for ever",
    ]


def _order(rows: Rows, roles: ColumnRoles) -> Literal["seed", "given", "time"]:
    return roles.order or ("seed" if rows.scattered else "given")


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
    lines = ["  records:", "    inputs:", *(f"      - {_input(column, roles)}" for column in roles.inputs)]
    lines += [f"      # - {_input(column, roles)}" for column in roles.beside]
    if any(column.lengths for column in roles.inputs):
        lines.append("      # pad: shorter lists end in zeros, longer ones are cut")
    lines.append(f"    label: {_plain(roles.label.name)}")
    lines.append(f"    label_type: {'int' if roles.label.holds == 'numbers' else 'string'}")
    lines += [f"    id: {_plain(roles.id.name)}"] if roles.id else []
    if roles.time:
        lines.append(f"    event_time: {_plain(roles.time.name)}")
        lines.append(f"    # as an input instead, beside order: given: - {_input(roles.time, roles)}")
    if len(roles.inputs) > PLENTY_COLUMNS:
        lines.append(f"  limits: {{columns: {len(roles.inputs) + 8}}}")
    return lines


def _fills(column: Column, roles: ColumnRoles) -> bool:
    """Whether there are gaps in a column, and something to fill them with."""
    floats = column.holds != "tensor" or (column.dtype.startswith("float") and len(column.shape) == 1)
    return column.name in roles.gaps and column.holds != "image" and floats


def _input(column: Column, roles: ColumnRoles) -> str:
    """One input as a flow mapping, with its normalisation."""
    filled = _fills(column, roles)
    values = f"name: {_plain(column.name)}" + (", missing: fill" if filled else "")
    gaps = f"{roles.gaps[column.name]:,} gaps" if filled else ""
    if column.holds == "numbers":
        return f"{{{values}, fit: {FIT}}}" + (f"  # {gaps}" if gaps else "")
    if column.holds not in ("tensor", "image"):
        more, said = _words(column, alone=roles.inputs == (column,), filled=filled)
        return f"{{{values}, {more}}}  # {', '.join(filter(None, (said, gaps)))}"
    values += ", kind: image" if column.holds == "image" else ""
    values += f", shape: [{', '.join(map(str, column.shape))}]"
    values += ", layout: CHW" if _is_channels_first(column.shape) else ""
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


def _words(column: Column, alone: bool, filled: bool) -> tuple[str, str]:
    """What a column of texts, categories or times is written as, and what is said of it."""
    if column.holds == "text":
        return f"kind: text, shape: [{TEXT_FEATURES if alone else TEXT_BESIDE}]", f"{column.values:,} texts, hashed"
    if column.holds == "times":
        parts = ["weekday", "day_of_year"] if column.days else ["hour", "weekday", "day_of_year"]
        parts += ["age"] if column.years > YEARS else []
        scaled = f", fit: {FIT}" if "age" in parts else ""
        return f"kind: time, parts: [{', '.join(parts)}]{scaled}", "age: in years" if scaled else "read in UTC"
    if column.holds == "codes":
        places = CODE_FEATURES[column.values > CODE_FEATURES[0]] + filled
        return f"kind: category, shape: [{places}]", f"{column.values:,} values, hashed"
    names = [name for name in column.names if name]
    listed = ", ".join(map(_plain, names))
    places = len(names) + SPARE + filled
    return f"kind: category, shape: [{places}], values: [{listed}]", f"{SPARE} places for others"


def _student(roles: ColumnRoles, order: str) -> tuple[list[str], list[str]]:
    """The lines after the stream's, and what should be said of them."""
    column = roles.inputs[0]
    picture = len(roles.inputs) == 1 and (_is_picture(column.shape) or _is_channels_first(column.shape))
    student = "{name: convnet, channels: [32, 64]}" if picture else PERCEPTRON
    one_task = order == "seed" or roles.time or roles.mixed
    why = "shuffled records are one task" if order == "seed" else "one task: its labels come mixed"
    why = "one task, in the order of time" if roles.time else why
    detectors = [f"detectors: []  # {why}; without this line new labels begin one"] if one_task else []
    hints = [] if len(roles.inputs) > 1 else list(_picture_hints(column))
    beside = [f"# with the inputs that are left out: student: {PERCEPTRON}"] if picture and roles.beside else []
    return [*detectors, f"student: {student}", *beside], hints


def _weights(roles: ColumnRoles) -> Iterator[str]:
    """Of a rare class: what would have it answered more often, for whom it is dear. How dear no file says."""
    if (rare := profile.rarest(roles.labels)) is not None:
        yield f"# A missed {rare[0]!r:.40} is dearer than a false alarm? Then each class may count by how rare it is:"
        yield "# publish: {class_weights: balanced}  # or by label; probabilities are then weighed, too"


def _is_picture(shape: tuple[int, ...]) -> bool:
    return len(shape) in (2, 3) and min(shape[:2]) >= 16 and (shape[2:] or (1,))[0] <= 4


def _is_channels_first(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[0] in CHANNELS and _is_picture(shape[1:])


def _picture_hints(column: Column) -> Iterator[str]:
    """Whether numbers may be the pixels of an image, and in which order."""
    shape, name = column.shape, column.name
    if _is_channels_first(shape):
        yield f"{name!r} {list(shape)} looks like images with their channels first, and is read so (layout: CHW)."
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
