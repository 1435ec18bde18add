"""Files as strangers bring them: what `streamkd init` and a replay of them say. One row of the table for each file.

A row says what is done (``init``: a configuration is written, ``play``: a configuration opens the file), with which
file, and the words that come: of the refusal where they begin with an exclamation mark, else of what is noted.
"""

import io
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from streamkd.errors import SourceError
from streamkd.records import RecordSchema
from streamkd.streams.files.describe import describe
from streamkd.streams.replay import source as replay
from streamkd.streams.replay.review import first_records

N = 200
DRAW = np.random.default_rng(7)
X = DRAW.normal(size=N)
CLASSES = np.arange(N) % 4
WORDS = [("cat", "dog", "owl", "fox")[n] for n in CLASSES]
QUANTITY = np.random.default_rng(1).permutation(442) % 214 + 25  # as scikit-learn's diabetes: 442 records, 214 values
WIDE = DRAW.normal(size=442)
BYTES = DRAW.integers(0, 256, (60, 3072), dtype=np.uint8)
TIMES = np.arange(N) * 3_600_000_000
Made = Callable[[Path], Path]


def parquet(columns: Mapping[str, Any], name: str = "mine.parquet") -> Made:
    def made(folder: Path) -> Path:
        pa.parquet.write_table(pa.table(dict(columns)), folder / name)
        return folder / name

    return made


def arrow(columns: Mapping[str, Any]) -> Made:
    def made(folder: Path) -> Path:
        pa.feather.write_feather(pa.table(dict(columns)), folder / "mine.arrow")
        return folder / "mine.arrow"

    return made


def csv(columns: Mapping[str, Any]) -> Made:
    def made(folder: Path) -> Path:
        pa.csv.write_csv(pa.table(dict(columns)), folder / "mine.csv")
        return folder / "mine.csv"

    return made


def text(content: str, name: str = "mine.csv") -> Made:
    def made(folder: Path) -> Path:
        (folder / name).write_text(content, "utf-8")
        return folder / name

    return made


def twice_named() -> Made:
    def made(folder: Path) -> Path:
        table = pa.Table.from_arrays([pa.array(X), pa.array(X), pa.array(CLASSES)], ["x", "x", "label"])
        pa.parquet.write_table(table, folder / "mine.parquet")
        return folder / "mine.parquet"

    return made


def with_tests(train: Mapping[str, Any], test: Mapping[str, Any]) -> Made:
    def made(folder: Path) -> Path:
        parquet(test, "test.parquet")(folder)
        return parquet(train)(folder)

    return made


def png(side: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side), side, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def lists(values: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


@dataclass(frozen=True)
class Strange:
    """One row: ``title``, what is done with the file that is ``made``, and the words ``said``."""

    title: str
    by: Literal["init", "play"]
    made: Made
    said: str
    label: str | None = None
    accept: tuple[str, ...] = ()
    inputs: tuple[dict[str, Any], ...] = ({"name": "x"},)
    records: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)


def row(title: str, by: Literal["init", "play"], made: Made, said: str, **more: Any) -> Strange:
    return Strange(title, by, made, said, **more)


TESTED = {"test_path": "test.parquet"}
TEXT = {"label_type": "string"}
GIVEN = {"test_ratio": 0.2}
SHARED = np.random.default_rng(3).permutation(900)
HILL = np.random.default_rng(4).normal(50, 9, 900).round().astype(int)
TABLE = [
    # the label
    row(
        "a quantity of whole numbers",
        "init",
        parquet({"x": WIDE, "target": QUANTITY}),
        "!214 different values in 442 records, from 25 to 238, .* a quantity rather than classes",
    ),
    row(
        "a quantity that many records share, in decimals",
        "init",
        parquet({"a": SHARED / 7.0, "target": np.arange(900) % 30 * 1.0}),
        "!30 different values in 900 records, .* a quantity rather than classes",
    ),
    row(
        "a quantity that many records share, common in the middle",
        "init",
        csv({"a": SHARED / 7.0, "target": np.sort(HILL)[SHARED]}),
        "!different values in 900 records, .* a quantity rather than classes",
    ),
    row(
        "thirty classes by number, alike in size",
        "init",
        csv({"a": SHARED / 7.0, "target": np.arange(900) % 30}),
        "label_type: int",
    ),
    row(
        "a quantity, meant",
        "init",
        parquet({"x": WIDE, "target": QUANTITY}),
        r"accept: \[many-labels\]",
        accept=("many-labels",),
    ),
    row(
        "a quantity in CSV",
        "init",
        csv({"x": WIDE, "target": QUANTITY}),
        "!a quantity rather than classes[\\s\\S]*--accept many-labels",
    ),
    row("a quantity in Arrow", "init", arrow({"x": WIDE, "target": QUANTITY}), "!a quantity rather than classes"),
    row(
        "a quantity of floats that are whole",
        "init",
        parquet({"x": WIDE, "target": QUANTITY * 1.0}),
        "!a quantity rather than classes",
    ),
    row(
        "a quantity written as text",
        "init",
        parquet({"x": WIDE, "target": [str(q) for q in QUANTITY]}),
        "!a quantity rather than classes",
        label="target",
    ),
    row(
        "a quantity of fractions",
        "init",
        parquet({"x": X, "target": X}),
        "!fractional numbers, and labels are classes",
        label="target",
    ),
    row(
        "a quantity of fractions, guessed",
        "init",
        parquet({"x": X, "colour": WORDS, "target": X}),
        "!'target' cannot be a label: it holds 200 different fractional numbers, and labels are classes",
    ),
    row(
        "one class in a hundred",
        "init",
        parquet({"x": X, "label": [["no", "yes"][n % 100 == 9] for n in range(N)]}),
        "Only 1.0% of the records are 'yes': without it one is right for 99.0%",
    ),
    row(
        "a quantity in a configuration",
        "play",
        parquet({"x": WIDE, "label": QUANTITY}),
        r"!a quantity rather than classes[\s\S]*`accept: \[many-labels\]`",
    ),
    row(
        "a quantity in a configuration, meant",
        "play",
        parquet({"x": WIDE, "label": QUANTITY}),
        "",
        source={"accept": ["many-labels"]},
    ),
    row(
        "fractions as labels in a configuration",
        "play",
        parquet({"x": X, "label": X}),
        "!none of the first 200 records can be learned: label: needed a whole number",
        source={"accept": ["many-labels"], "test_ratio": 0},
    ),
    row(
        "a label that each record has alone",
        "init",
        parquet({"x": X, "label": np.arange(N)}),
        "!an id or a text rather than classes",
    ),
    row(
        "texts for labels",
        "init",
        parquet({"x": X, "label": [f"sentence {n}" for n in range(N)]}),
        "!an id or a text rather than classes",
    ),
    row(
        "an id for the label in a configuration",
        "play",
        parquet({"x": X, "label": [f"u{n}" for n in range(N)]}),
        "!an id or a text",
        records=TEXT,
    ),
    row(
        "one class",
        "init",
        parquet({"x": X, "label": np.ones(N, int)}),
        "!all 200 records have the label 1 in 'label'",
    ),
    row(
        "one class, asked for",
        "init",
        parquet({"x": X, "label": np.ones(N, int)}),
        "!all 200 records have the label 1 in 'label'[\\s\\S]*right for 100 %",
        label="label",
    ),
    row(
        "one class in a configuration",
        "play",
        parquet({"x": X, "label": np.ones(N, int)}),
        "!all 200 records have the label 1",
    ),
    row(
        "one class in a configuration, meant",
        "play",
        parquet({"x": X, "label": np.ones(N, int)}),
        "",
        source={"accept": ["one-label"]},
    ),
    row(
        "no label at all",
        "init",
        parquet({"x": X, "label": pa.nulls(N, pa.int64())}),
        "!'label' cannot be a label: it holds nothing but nulls",
        label="label",
    ),
    row(
        "no label at all in a configuration",
        "play",
        parquet({"x": X, "label": pa.nulls(N, pa.int64())}),
        "!no record has a label in 'label'",
    ),
    row(
        "several labels in one text",
        "init",
        parquet({"x": X, "label": [("a", "b", "c", "a|b", "b|c", "a|b|c")[n % 6] for n in range(N)]}),
        r"!joins several labels with '\|': 'a\|b', 'b\|c', 'a\|b\|c'; 6 combinations of 3 labels",
    ),
    row(
        "several labels with semicolons",
        "init",
        parquet({"x": X, "label": [("a;b", "b;c", "a", "c")[n % 4] for n in range(N)]}),
        "!joins several labels with ';'",
    ),
    row(
        "several labels in a configuration",
        "play",
        parquet({"x": X, "label": [("a,b", "b,c", "a", "c")[n % 4] for n in range(N)]}),
        "!joins several labels with ','",
        records=TEXT,
    ),
    row(
        "places with commas are no several labels",
        "init",
        parquet({"x": X, "label": [("Rome, IT", "Bonn, DE", "Kiel, DE")[n % 3] for n in range(N)]}),
        "label: label",
    ),
    row(
        "a list of labels",
        "init",
        parquet({"x": X, "label": [["a"], ["a", "b"]] * 100}),
        "!several values a record",
        label="label",
    ),
    row(
        "labels with spaces behind",
        "init",
        parquet({"x": X, "label": [("cat", "cat ", "dog")[n % 3] for n in range(N)]}),
        "!differ by spaces alone: 'cat', 'cat ' would be 2 classes",
    ),
    row(
        "labels with spaces in a configuration",
        "play",
        parquet({"x": X, "label": [("cat", " cat", "dog")[n % 3] for n in range(N)]}),
        "!spaced-labels",
        records=TEXT,
    ),
    row("booleans as labels", "init", parquet({"x": X, "label": [n % 2 == 0 for n in range(N)]}), "label_type: int"),
    row(
        "a dictionary column as label",
        "init",
        parquet({"x": X, "label": pa.array(WORDS).dictionary_encode()}),
        "label_type: string",
    ),
    row(
        "a dictionary column as label in Arrow",
        "init",
        arrow({"x": X, "label": pa.array(WORDS).dictionary_encode()}),
        "label_type: string",
    ),
    row("whole floats as labels", "init", parquet({"x": X, "label": CLASSES * 1.0}), "label_type: int"),
    row(
        "numbers as text as labels", "init", parquet({"x": X, "label": [str(n) for n in CLASSES]}), "label_type: string"
    ),
    row("words for int labels", "play", parquet({"x": X, "label": WORDS}), "!column 'label': needed int64, got string"),
    row(
        "numbers for string labels",
        "play",
        parquet({"x": X, "label": CLASSES}),
        "!column 'label': needed string, got int64",
        records=TEXT,
    ),
    row(
        "dates as labels",
        "init",
        parquet({"x": X, "label": pa.array(TIMES, pa.timestamp("us"))}),
        "!cannot be a label: it holds timestamp",
        label="label",
    ),
    row(
        "a label that is not there",
        "init",
        parquet({"x": X, "label": CLASSES}),
        "!did you mean --label label",
        label="lable",
    ),
    row(
        "a label that is not there, in a configuration",
        "play",
        parquet({"x": X, "lable": CLASSES}),
        "!did you mean 'lable'",
    ),
    row("forty classes of five records", "init", parquet({"x": X, "label": np.arange(N) % 40}), "40 different values"),
    # the header
    row(
        "no header, numbers",
        "init",
        text("".join(f"5.{n % 7},1.4,{n},{n % 3}\n" for n in range(60))),
        "The first line looks like a record, so the columns are called f0 to f3",
    ),
    row(
        "no header, a word at the end",
        "init",
        text("".join(f"5.{n % 7},1.4,0.{n},{'ab'[n % 2]}\n" for n in range(60))),
        "header: false",
    ),
    row(
        "no header, in a configuration",
        "play",
        text("".join(f"0.{n},{n % 3}\n" for n in range(60))),
        "!header",
        inputs=({"name": "0.0"},),
        records={"label": "0"},
    ),
    row(
        "no header, meant",
        "init",
        text("1.5,label\n" + "".join(f"0.{n},{n % 3}\n" for n in range(60))),
        r"accept: \[header\]",
        accept=("header",),
    ),
    row(
        "columns named by numbers",
        "init",
        text("0,1,2,label\n" + "".join(f"0.{n},1.{n},2.{n % 9},{n % 3}\n" for n in range(60))),
        "label: label",
    ),
    row(
        "columns named by wavelengths",
        "init",
        text(
            "400.5,410.5,420.5,430.5,440.5\n" + "".join(f"0.{n},1.{n},2.{n % 9},.{n % 5},{n % 3}\n" for n in range(60))
        ),
        "label: '440.5'",
    ),
    row("a header alone", "init", text("x,label\n"), "!the file has no rows"),
    row("a header alone, in a configuration", "play", text("x,label\n"), "!the file has no records"),
    row("an empty file", "init", text(""), "!the file is empty"),
    row("an empty Parquet file", "init", text("", "mine.parquet"), "!the file is empty"),
    row(
        "a Parquet file without records",
        "play",
        parquet({"x": pa.array([], pa.float64()), "label": pa.array([], pa.int64())}),
        "!the file has no records",
    ),
    row(
        "a picture instead of a table",
        "init",
        text("GIF89a", "mine.gif"),
        "!needed Parquet, Arrow IPC, Feather, CSV or JSON lines",
    ),
    row("two columns of one name", "init", twice_named(), "!two columns go by the name 'x'"),
    row(
        "two columns of one name, in a configuration",
        "play",
        twice_named(),
        "!needed one column 'x', got 2 of that name",
    ),
    row(
        "two columns of one name in CSV",
        "init",
        text("x,x,label\n" + "".join(f"{n}.5,1,{n % 3}\n" for n in range(60))),
        "!two columns go by the name 'x'",
    ),
    # the inputs
    row(
        "an integer id beside the inputs",
        "init",
        parquet({"row_number": np.arange(N), "x": X, "label": CLASSES}),
        "Left out of the inputs: 'row_number' looks like an id: it counts from 0 to 199",
    ),
    row(
        "an integer id, meant",
        "init",
        parquet({"row_number": np.arange(N), "x": X, "label": CLASSES}),
        "name: row_number, fit",
        accept=("ids",),
    ),
    row(
        "ids that do not rise",
        "init",
        parquet({"customer_id": np.random.default_rng(0).permutation(N), "x": X, "label": CLASSES}),
        "each of 200 records has a number of its own",
    ),
    row(
        "ids of letters",
        "init",
        parquet({"device_id": [f"dev {n * 7}" for n in range(N)], "x": X, "label": CLASSES}),
        "Left out of the inputs: 'device_id' looks like an id",
    ),
    row(
        "hashes",
        "init",
        parquet({"what": [f"{n:08x}" for n in DRAW.permutation(N)], "x": X, "label": CLASSES}),
        "'what' looks like an id",
    ),
    row(
        "an id among a configuration's inputs",
        "play",
        parquet({"x": np.arange(N), "label": CLASSES}),
        "!'x' looks like an id: it counts from 0 to 195",
    ),
    row(
        "an id among a configuration's inputs, meant",
        "play",
        parquet({"x": np.arange(N), "label": CLASSES}),
        "",
        source={"accept": ["ids"]},
    ),
    row(
        "nothing but an id",
        "init",
        parquet({"number": np.arange(N), "label": CLASSES}),
        "!can be an input[\\s\\S]*--accept ids takes it",
    ),
    row(
        "a constant",
        "init",
        parquet({"c": np.ones(N), "x": X, "label": CLASSES}),
        "Left out of the inputs: 'c' is the same in all records",
    ),
    row(
        "a constant in a configuration",
        "play",
        parquet({"x": np.ones(N), "label": CLASSES}),
        "the input 'x' is 1.0 in all 160 records",
    ),
    row(
        "a column of nulls",
        "init",
        parquet({"gone": pa.nulls(N, pa.float64()), "x": X, "label": CLASSES}),
        "Left out of the inputs: 'gone' holds nothing but nulls",
    ),
    row(
        "a column of nulls in a configuration",
        "play",
        parquet({"x": pa.nulls(N, pa.float64()), "label": CLASSES}),
        "!none of the first 160 records can be learned: x: a null",
    ),
    row(
        "a column that is mostly null",
        "init",
        parquet({"few": [n / 2 if n % 5 == 0 else None for n in range(N)], "x": X, "label": CLASSES}),
        "160 of 200 records have no 'few'",
    ),
    row(
        "numbers written as text",
        "init",
        parquet({"x": [f"{value:.3f}" for value in X], "label": CLASSES}),
        "!'x' holds numbers written as text",
    ),
    row(
        "numbers with commas",
        "init",
        parquet({"x": [f"{value:.3f}".replace(".", ",") for value in X], "label": CLASSES}),
        "!'x' holds numbers written as text[\\s\\S]*pandas.to_numeric",
    ),
    row(
        "numbers with a few words among them",
        "init",
        csv({"x": [*map(str, X[:-3]), "calm", "calm", "gusty"], "label": CLASSES}),
        "!'x' holds numbers and 3 words, such as 'calm'[\\s\\S]*errors='coerce'",
    ),
    row(
        "JSON lines with a text among numbers",
        "init",
        text(
            "".join(f'{{"x": {n if n != 150 else chr(34) + "n/a" + chr(34)}, "label": 1}}\n' for n in range(N)),
            "a.jsonl",
        ),
        "!near record 150: .*changed from number to string[\\s\\S]*null for a gap",
    ),
    row(
        "JSON lines that break off",
        "init",
        text("".join(f'{{"x": {n}, "label": {n % 4}}}\n' for n in range(N))[:-4], "mine.jsonl"),
        "!near record 199: .*[\\s\\S]*one whole JSON object a line",
    ),
    row(
        "numbers written as text, in a configuration",
        "play",
        parquet({"x": [f"{value:.3f}" for value in X], "label": CLASSES}),
        "!number-texts",
        inputs=({"name": "x", "kind": "text", "shape": [64]},),
    ),
    row("text for a number", "play", parquet({"x": WORDS, "label": CLASSES}), "!column 'x': needed .*, got string"),
    row(
        "the label under another name",
        "init",
        parquet({"code": CLASSES * 3 + 7, "x": X, "label": WORDS}),
        "Left out of the inputs: 'code' says the label",
        label="label",
    ),
    row(
        "the label under another name, in a configuration",
        "play",
        parquet({"x": CLASSES, "label": CLASSES}),
        "!'x' says the label",
    ),
    row(
        "the label itself among the inputs",
        "play",
        parquet({"x": X, "label": CLASSES}),
        "!each column has one role; used twice: label",
        inputs=({"name": "x"}, {"name": "label"}),
    ),
    row(
        "3,072 bytes in one list",
        "init",
        parquet({"x": lists(BYTES), "label": np.arange(60) % 3}),
        r"'x' has 3,072 values, 32x32x3: if they are an image, write shape: \[32, 32, 3\]",
    ),
    row(
        "784 numbers in one list",
        "init",
        parquet({"x": lists(BYTES[:, :784].astype(np.float32)), "label": np.arange(60) % 3}),
        r"784 values, 28x28: if they are an image, write shape: \[28, 28\]",
    ),
    row(
        "images with their channels first",
        "init",
        parquet({"x": BYTES[:, :3072].reshape(60, 3, 32, 32).tolist(), "label": np.arange(60) % 3}),
        r"looks like images with their channels first, and is read so \(layout: CHW\)",
    ),
    row(
        "lists of another length than the shape",
        "play",
        parquet({"x": pa.array(BYTES[:, :10].tolist(), pa.list_(pa.uint8())), "label": np.arange(60) % 3}),
        "!none of the first 48 records can be learned: x: needed 12 values, got 10",
        inputs=({"name": "x", "shape": [12], "dtype": "uint8"},),
    ),
    row(
        "images of several sizes",
        "init",
        parquet({"x": [png(16 + n % 2) for n in range(60)], "label": np.arange(60) % 3}),
        "!needed images of one size",
    ),
    row("bytes that are no image", "init", parquet({"x": [b"abc"] * N, "label": CLASSES}), "!can be an input"),
    row(
        "texts beside numbers",
        "init",
        parquet({"review": [f"this is the {n}th" for n in range(N)], "stars": X, "label": CLASSES}),
        r"1 numbers \(stars\); 1 texts \(review\)",
    ),
    # the order
    row(
        "an event time in order",
        "init",
        parquet({"when": pa.array(TIMES, pa.timestamp("us")), "x": X, "label": CLASSES}),
        r"'when' is the event time: .*order: given",
    ),
    row(
        "an event time in order, in CSV",
        "init",
        csv({"when": pa.array(TIMES, pa.timestamp("us")), "x": X, "label": CLASSES}),
        "Each record is answered before it is learned",
    ),
    row(
        "an event time newest first",
        "init",
        parquet({"when": pa.array(TIMES[::-1], pa.timestamp("us")), "x": X, "label": CLASSES}),
        "the records lie newest first, and are learned in the order of time",
    ),
    row(
        "an event time out of order",
        "init",
        parquet({"when": pa.array(np.roll(TIMES, 50), pa.timestamp("us")), "x": X, "label": CLASSES}),
        "order: time  # by the event time",
    ),
    row(
        "a date",
        "init",
        parquet({"day": pa.array(np.arange(N, dtype=np.int32), pa.date32()), "x": X, "label": CLASSES}),
        "'day' is the event time",
    ),
    row(
        "a time in seconds",
        "init",
        parquet({"timestamp": 1_700_000_000 + np.arange(N) ** 2, "x": X, "label": CLASSES}),
        "'timestamp' counts like a time",
    ),
    row(
        "a time without a time zone in a configuration",
        "play",
        parquet({"when": pa.array(TIMES, pa.timestamp("us")), "x": X, "label": CLASSES}),
        "",
        records={"event_time": "when"},
    ),
    row(
        "a number for the event time",
        "play",
        parquet({"when": TIMES, "x": X, "label": CLASSES}),
        "!column 'when': needed timestamp",
        records={"event_time": "when"},
    ),
    # the test records
    row(
        "the same file to test on",
        "play",
        parquet({"x": X, "label": CLASSES}),
        "!test_path is the file that is trained on",
        source={"test_path": "mine.parquet"},
    ),
    row(
        "a copy of the file to test on",
        "play",
        with_tests({"x": X, "label": CLASSES}, {"x": X, "label": CLASSES}),
        "!200 of 200 test records looked at are train records too",
        source=TESTED,
    ),
    row(
        "a copy of the file to test on, meant",
        "play",
        with_tests({"x": X, "label": CLASSES}, {"x": X, "label": CLASSES}),
        "",
        source={**TESTED, "accept": ["same-tests"]},
    ),
    row(
        "some test records that are train records",
        "play",
        with_tests({"x": X, "label": CLASSES}, {"x": np.r_[X[:20], X[20:] + 9], "label": CLASSES}),
        "20 of 200 test records looked at are train records too",
        source=TESTED,
    ),
    row(
        "records twice in one file",
        "play",
        parquet({"x": np.r_[X[:96], X[:96]], "label": np.r_[CLASSES[:96], CLASSES[:96]]}),
        "test records looked at are train records too",
    ),
    row(
        "a test file of other columns",
        "play",
        with_tests({"x": X, "label": CLASSES}, {"z": X, "label": CLASSES}),
        "!test.parquet: needed a column 'x', got z, label",
        source=TESTED,
    ),
    row(
        "a test file of other types",
        "play",
        with_tests({"x": X, "label": CLASSES}, {"x": X, "label": WORDS}),
        "!test.parquet: column 'label': needed int64, got string",
        source=TESTED,
    ),
    row(
        "a test file of other labels",
        "play",
        with_tests({"x": X, "label": CLASSES}, {"x": X + 1, "label": CLASSES + 10}),
        "!200 of 200 test records have labels that no train record has: 10, 11, 12, 13",
        source=TESTED,
    ),
    row(
        "a test file of some other labels",
        "play",
        with_tests({"x": X, "label": CLASSES}, {"x": X + 1, "label": CLASSES + 1}),
        "50 of 200 test records have labels that no train record has: 4; they count as wrong",
        source=TESTED,
    ),
    row(
        "an empty test file",
        "play",
        with_tests({"x": X, "label": CLASSES}, {"x": X[:0], "label": CLASSES[:0]}),
        "!test.parquet: it has no record",
        source=TESTED,
    ),
    row(
        "a test file and a ratio",
        "play",
        with_tests({"x": X, "label": CLASSES}, {"x": X, "label": CLASSES}),
        "!test_ratio holds records out of a file that has no test_path",
        source={**TESTED, **GIVEN},
    ),
    row(
        "a test file that is not there",
        "play",
        parquet({"x": X, "label": CLASSES}),
        "!test.parquet: there is no such file",
        source=TESTED,
    ),
    row(
        "several doubts at once",
        "play",
        parquet({"x": np.arange(N), "label": np.arange(N)}),
        "!2 things are hardly meant:[\\s\\S]*many-labels, ids",
    ),
]


def said_by_init(strange: Strange, path: Path) -> str:
    described = describe(path, strange.label, strange.accept)
    return "\n".join([described.text, *described.notes])


def said_by_play(strange: Strange, path: Path, caplog: pytest.LogCaptureFixture) -> str:
    schema = RecordSchema.model_validate({"inputs": strange.inputs, **strange.records})
    given = dict(strange.source)
    if "test_path" in given:
        given["test_path"] = path.with_name(given["test_path"])
    with caplog.at_level(logging.WARNING):
        source = replay.Replay(replay.ReplayOptions.model_validate({"path": path, "seed": 0, **given}), schema)
        first_records(source, schema)
    return caplog.text


@pytest.mark.parametrize("strange", TABLE, ids=lambda strange: f"{strange.by}: {strange.title}")
def test_what_is_said_of_a_strange_file(strange: Strange, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each file of the table is refused, or taken, with its words; a refusal always has a way out."""
    path = strange.made(tmp_path)

    def say() -> str:
        return said_by_init(strange, path) if strange.by == "init" else said_by_play(strange, path, caplog)

    if not strange.said.startswith("!"):
        assert_says(strange.said, say())
        return
    with pytest.raises((SourceError, ValidationError)) as raised:
        say()
    assert_says(strange.said[1:], str(raised.value))
    if isinstance(raised.value, SourceError):
        assert raised.value.fix
        assert raised.value.where


def assert_says(words: str, said: str) -> None:
    assert re.search(words, said), said
    if not words:
        assert said == ""


def test_the_table_is_long_and_its_titles_differ() -> None:
    """At least sixty files, each under a title of its own."""
    titles = [strange.title for strange in TABLE]
    assert len(set(titles)) == len(titles) >= 60
