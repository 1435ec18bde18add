"""Files as people have them: each is made here, small, with what `streamkd init` says of it.

``docs/reference/files.md`` is made of these rows, and ``test_kinds.py`` takes each
through init, replay, push and predict.
"""

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

N = 400
Made = Callable[[Path], Path]
Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Kind:
    """One file. ``said`` is in what init says or writes, or in its refusal; ``lost`` records cannot be learned."""

    title: str
    made: Made
    said: str
    refused: bool = False
    label: str | None = "churn"
    lost: int = 0


def base(seed: int = 0) -> dict[str, list[Any]]:
    """Customers: two numbers, a town, and whether they left."""
    draw = np.random.default_rng(seed)
    age, income = draw.integers(18, 80, N), draw.lognormal(10, 0.5, N).round(2)
    town = draw.choice(["Berlin", "Köln", "Münster", "Ulm", "Bonn"], N)
    left = (age < 35) ^ (income > 30_000) ^ (draw.random(N) < 0.1)
    return {
        "age": age.tolist(),
        "income": income.tolist(),
        "town": town.tolist(),
        "churn": ["yes" if gone else "no" for gone in left],
    }


def cells(values: Sequence[Any], decimal: str = ".", gap: str = "") -> list[str]:
    """Values as they stand in CSV."""
    return [gap if v is None else str(v).replace(".", decimal) if isinstance(v, float) else str(v) for v in values]


def csv(
    columns: Columns,
    separator: str = ",",
    decimal: str = ".",
    gap: str = "",
    header: bool = True,
    name: str = "mine.csv",
    encoding: str = "utf-8",
    end: str = "\n",
) -> Made:
    def made(folder: Path) -> Path:
        written = zip(*(cells(values, decimal, gap) for values in columns.values()), strict=True)
        lines = [separator.join(columns)] * header + [separator.join(line) for line in written]
        data = (end.join(lines) + end).encode(encoding)
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return folder / name

    return made


def parquet(columns: Mapping[str, Any]) -> Made:
    def made(folder: Path) -> Path:
        pa.parquet.write_table(pa.table(dict(columns)), folder / "mine.parquet")
        return folder / "mine.parquet"

    return made


def jsonl(records: Sequence[Mapping[str, Any]]) -> Made:
    return written("".join(json.dumps(record) + "\n" for record in records), "mine.jsonl")


def written(text: str | bytes, name: str = "mine.csv") -> Made:
    def made(folder: Path) -> Path:
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
        return folder / name

    return made


def with_gaps(values: Sequence[Any], every: int) -> list[Any]:
    return [None if n % every == 3 else value for n, value in enumerate(values)]


B = base()
ALL_GAPS = {name: with_gaps(values, 7 + n) for n, (name, values) in enumerate(B.items()) if name != "churn"}
HOURS = [f"2024-{1 + n // 100:02d}-{1 + n % 28:02d} {n % 24:02d}:00:00" for n in range(N)]
IN_ORDER = [str(np.datetime64("2024-01-01T00:00:00") + np.timedelta64(n * 7, "h")).replace("T", " ") for n in range(N)]
DAYS = [f"{1 + n * 5 % 28:02d}.{1 + n % 12:02d}.{1950 + n * 7 % 60}" for n in range(N)]
MOMENTS = np.datetime64("2024-01-01T00:00:00") + np.arange(N) * np.timedelta64(3_600, "s")
WORDS = "the bill was wrong again and nobody at the shop could help me with it so I will leave soon".split()  # noqa: SIM905 - a sentence
NOTES = [" ".join(np.random.default_rng(n).choice(WORDS, 8)) for n in range(N)]
CODES = [f"A{n * 37 % 91:03d}" for n in range(N)]
QUOTED = [f'"{note[:20]}\n; {n}"' for n, note in enumerate(NOTES)]
GROUPED = [f"{value:,.2f}".translate(str.maketrans(",.", ".,")) for value in B["income"]]
NESTED = [{"home": {"town": t, "rooms": a % 6}, "age": a} for t, a in zip(B["town"], B["age"], strict=True)]
VECTORS = np.random.default_rng(1).normal(size=(N, 12)).round(3).tolist()
RARE = ["yes" if n % 100 == 7 else "no" for n in range(N)]
MIXED = {**B, "born": DAYS, "codes": CODES, "note": NOTES}

KINDS = [
    # how it is written
    Kind("CSV", csv(B), "2 numbers (age; income); 1 categories (town of 5)"),
    Kind("semicolons and decimal commas", csv(B, ";", ","), "csv: {delimiter: ;, decimal: ','}"),
    Kind("tabs, .tsv", csv(B, "\t", name="mine.tsv"), r'csv: {delimiter: "\t"}'),
    Kind("bars, .txt", csv(B, "|", name="mine.txt"), "csv: {delimiter: '|'}"),
    Kind("digits in groups: 1.234,50", csv({**B, "income": GROUPED}, ";"), "decimal: ',', thousands: ."),
    Kind("no header", csv(B, header=False), "the columns are called f0 to f3", label="f3"),
    Kind("UTF-8 with a mark, Windows' line ends", csv(B, ";", ",", encoding="utf-8-sig", end="\r\n"), "delimiter: ;"),
    Kind(
        "Windows' code page", csv(B, ";", encoding="cp1252"), "It is not UTF-8 and read as Windows' Western code page"
    ),
    Kind("UTF-16", csv(B, encoding="utf-16"), "csv: {encoding: utf-16}"),
    Kind("CSV packed by gzip", csv(B, name="mine.csv.gz"), "2 numbers (age; income)"),
    Kind("line ends and separators in quotes", csv({"note": QUOTED, **B}, ";"), "newlines: true"),
    Kind("a row number of pandas", csv({"": list(range(N)), **B}), "# Left out: '' (int64)."),
    Kind("JSON lines", jsonl([dict(zip(B, row, strict=True)) for row in zip(*B.values(), strict=True)]), "town of 5"),
    Kind(
        "JSON lines with objects and missing keys",
        jsonl(
            [
                {**(n if i % 5 else {"age": 40}), "churn": c}
                for i, (n, c) in enumerate(zip(NESTED, B["churn"], strict=True))
            ]
        ),
        "name: home.town, missing: fill, kind: category",
    ),
    Kind("objects in Parquet", parquet({"who": NESTED, "churn": B["churn"]}), "name: who.home.rooms, fit: 1000"),
    Kind(
        "dictionaries in Parquet",
        parquet(
            {**B, "town": pa.array(B["town"]).dictionary_encode(), "churn": pa.array(B["churn"]).dictionary_encode()}
        ),
        "1 categories (town of 5)",
    ),
    Kind(
        "eighty columns",
        parquet({**{f"x{n}": np.random.default_rng(n).normal(size=N) for n in range(80)}, **B}),
        "78 more",
    ),
    # gaps
    Kind("gaps in every kind of column", csv({**ALL_GAPS, "churn": B["churn"]}), "name: town, missing: fill"),
    Kind("gaps as NA", csv({**ALL_GAPS, "churn": B["churn"]}, gap="NA"), "name: age, missing: fill"),
    Kind("gaps as ?", csv({**ALL_GAPS, "churn": B["churn"]}, gap="?"), "'?']"),
    Kind(
        "gaps as - among numbers",
        csv({**B, "income": with_gaps(B["income"], 9)}, gap="-"),
        "name: income, missing: fill",
    ),
    Kind("nulls in Parquet", parquet({**ALL_GAPS, "churn": B["churn"]}), "name: town, missing: fill, kind: category"),
    Kind(
        "NaN in Parquet",
        parquet({**B, "income": [np.nan if v is None else v for v in with_gaps(B["income"], 9)]}),
        "income, 45 gaps",
    ),
    Kind(
        "a column that is mostly empty",
        csv({**B, "fax": [n % 50 if n % 9 == 0 else None for n in range(N)]}),
        "355 of 400 records have no 'fax'",
    ),
    Kind("a column without any value", csv({**B, "fax": [None] * N}), "'fax' holds nothing but nulls"),
    Kind(
        "records without a label",
        csv({**B, "churn": with_gaps(B["churn"], 8)}),
        "50 records have no 'churn': they go to the dead letters",
        lost=50,
    ),
    # what columns hold
    Kind(
        "true and false, with gaps",
        csv({**B, "member": with_gaps(["true", "False"] * 200, 9)}),
        "name: member, missing: fill, fit",
    ),
    Kind("yes and no", csv({**B, "member": with_gaps(["yes", "no"] * 200, 9)}), "values: ['yes', 'no']"),
    Kind("booleans in Parquet", parquet({**B, "member": with_gaps([True, False] * 200, 9)}), "member, 45 gaps"),
    Kind("days as 24.12.1980", csv({"born": DAYS, **B}, ";"), "kind: time, parts: [weekday, day_of_year, age]"),
    Kind(
        "times in order", csv({"when": IN_ORDER, **B}), "'when' is the event time: the records are learned as they lie"
    ),
    Kind("times in no order", csv({"when": HOURS, **B}), "order: time  # by the event time"),
    Kind("newest first", parquet({"when": MOMENTS[::-1], **B}), "the records lie newest first"),
    Kind(
        "a date of birth",
        parquet({"birth_date": MOMENTS.astype("M8[D]")[::-1] - np.arange(N) * 30, **B}),
        "name: birth_date, kind: time",
    ),
    Kind(
        "an id",
        csv({"customer_id": np.random.default_rng(0).permutation(N).tolist(), **B}),
        "Left out of the inputs: 'customer_id'",
    ),
    Kind("ids of letters", csv({"key": [f"{n * 7919:08x}" for n in range(N)], **B}), "id: key"),
    Kind("a constant", csv({"country": ["DE"] * N, **B}), "'country' is the same in all records"),
    Kind(
        "the label in other words",
        csv({"status": [c.replace("yes", "gone").replace("no", "there") for c in B["churn"]], **B}),
        "'status' says the label",
    ),
    Kind("texts beside numbers and categories", csv({"note": NOTES, **B}), "1 texts (note)"),
    Kind("many codes", csv({"airport": CODES, **B}), "1 categories of many values (airport of 91)"),
    Kind("fractions that come late", csv({**B, "income": [n if n < 350 else n + 0.5 for n in range(N)]}), "2 numbers"),
    Kind("everything at once", csv(MIXED, ";", ",", gap="?"), "1 times (born)"),
    Kind("vectors", parquet({"vector": VECTORS, "churn": B["churn"]}), "name: vector, shape: [12], dtype: float32"),
    Kind("one in a hundred positive", csv({**B, "churn": RARE}), "Only 1.0% of the records are 'yes'"),
    # what is no stream of classes
    Kind(
        "a price to foretell", csv({**B, "target": B["income"]}), "labels are classes: make some of it", True, "target"
    ),
    Kind(
        "a number of days to foretell",
        csv({**B, "target": [n * 7 % 300 for n in range(N)]}),
        "a quantity rather than classes",
        True,
        "target",
    ),
    Kind(
        "several labels in a cell",
        csv({**B, "tags": ["a|b", "b|c", "c", "a|c"] * 100}),
        "joins several labels",
        True,
        "tags",
    ),
    Kind("one class", csv({**B, "churn": ["no"] * N}), "all 400 records have the label 'no'", True, "churn"),
    Kind("no label by name", csv({"age": B["age"], "income": B["income"]}), "no column looks like a label", True, None),
    Kind("a line with too many cells", written("x,label\n1,a\n2,b,c\n3,a\n"), "Expected 2 columns, got 3", True, None),
    Kind("one JSON array", written('[{"x": 1, "label": 0}]', "mine.json"), "needed one JSON object a line", True, None),
    Kind("a spreadsheet", written(b"PK\x03\x04rest", "mine.xlsx"), "name a CSV file *.csv", True, None),
    Kind("a name twice", written("x,x,label\n1,2,a\n2,3,b\n"), "two columns go by the name 'x'", True, None),
    Kind("nothing", written(""), "the file is empty", True, None),
]
