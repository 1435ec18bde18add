"""How a CSV file is written is found by looking, and what was found reads it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from streamkd.errors import SourceError
from streamkd.streams.files import formats, texts

HEAD, ROWS = "size;town;label", [(n / 4, ("Köln", "Rome")[n % 2], n % 3) for n in range(40)]


def _lines(rows: Iterable[Iterable[Any]], separator: str, decimal: str = ".") -> str:
    return "".join(separator.join(str(cell).replace(".", decimal) for cell in row) + "\n" for row in rows)


WRITTEN = {
    "commas": (HEAD.replace(";", ",") + "\n" + _lines(ROWS, ","), {}),
    "semicolons": (HEAD + "\n" + _lines(ROWS, ";"), {"delimiter": ";"}),
    "tabs": (HEAD.replace(";", "\t") + "\n" + _lines(ROWS, "\t"), {"delimiter": "\t"}),
    "bars": (HEAD.replace(";", "|") + "\n" + _lines(ROWS, "|"), {"delimiter": "|"}),
    "decimal commas": (HEAD + "\n" + _lines(ROWS, ";", ","), {"delimiter": ";", "decimal": ","}),
    "a mark": ("\ufeff" + HEAD + "\n" + _lines(ROWS, ";"), {"delimiter": ";"}),
    "Windows' line ends": ((HEAD + "\n" + _lines(ROWS, ";")).replace("\n", "\r\n"), {"delimiter": ";"}),
    "no last line end": ((HEAD + "\n" + _lines(ROWS, ";"))[:-1], {"delimiter": ";"}),
}


def _table(path: Path) -> pa.Table:
    return pa.Table.from_batches(list(formats.batches(path, 100)))


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-16"])
@pytest.mark.parametrize("case", WRITTEN)
def test_the_same_records_however_they_are_written(case: str, encoding: str, tmp_path: Path) -> None:
    """Separators, decimal signs, marks, line ends and encodings are found, and all give the same table."""
    text, found = WRITTEN[case]
    if encoding != "utf-8" and text.startswith("\ufeff"):
        pytest.skip("UTF-16 has a mark of its own, and code pages have none")
    (tmp_path / "mine.csv").write_bytes(text.encode(encoding))
    dialect = formats.dialect_of(tmp_path / "mine.csv")
    assert dialect is not None
    assert dialect.model_dump(exclude_defaults=True) == {
        **found,
        **({"encoding": encoding} if encoding != "utf-8" else {}),
    }
    expected = pa.table({"size": [r[0] for r in ROWS], "town": [r[1] for r in ROWS], "label": [r[2] for r in ROWS]})
    assert _table(tmp_path / "mine.csv").equals(expected)


@pytest.mark.parametrize(
    ("column", "separator", "found", "values"),
    [
        (["1.5", "?", "2"], ",", {"nulls": "?"}, [1.5, None, 2.0]),
        (["1.5", "-", "2"], ",", {"nulls": "-"}, [1.5, None, 2.0]),
        (["1.5", "", "NA"], ",", {}, [1.5, None, None]),
        (["red", "?", "null"], ",", {"nulls": "?"}, ["red", None, None]),
        (["red", "-", "None"], ",", {}, ["red", "-", "None"]),
        (["true", "False", ""], ",", {}, [1, 0, None]),
        (["1.234,5", "7,25", "1.000"], ";", {"decimal": ",", "thousands": ".", "delimiter": ";"}, [1234.5, 7.25, 1000]),
        (["1,234.5", "7.25", "1,000"], "|", {"thousands": ",", "delimiter": "|"}, [1234.5, 7.25, 1000]),
        (["1,234", "7,250", "1,000"], ";", {"decimal": ",", "delimiter": ";"}, [1.234, 7.25, 1]),
        (['"two\nlines"', "one", "one"], ",", {"newlines": True}, ["two\nlines", "one", "one"]),
    ],
)
def test_cells_are_read_as_they_are_meant(
    column: list[str], separator: str, found: dict[str, Any], values: list[Any], tmp_path: Path
) -> None:
    """Gaps in their usual spellings, booleans, groups of digits and line ends within quotes."""
    lines = "".join(f"{cell}{separator}w{n % 3}\n" for n, cell in enumerate(column * 10))
    (tmp_path / "mine.csv").write_text(f"x{separator}label\n{lines}")
    dialect = formats.dialect_of(tmp_path / "mine.csv")
    assert dialect is not None
    said = dialect.model_dump(exclude_defaults=True)
    assert {**said, **({"nulls": said["nulls"][-1]} if "nulls" in said else {})} == found
    assert _table(tmp_path / "mine.csv")["x"].to_pylist() == values * 10


@pytest.mark.parametrize(
    ("days", "form"),
    [
        (["24.12.2020", "1.3.2021"], "%d.%m.%Y"),
        (["12/24/2020", "03/01/2021"], "%m/%d/%Y"),
        (["24/12/2020 08:15", "01/03/2021 00:00"], "%d/%m/%Y %H:%M"),
    ],
)
def test_days_in_other_orders_are_times(days: list[str], form: str, tmp_path: Path) -> None:
    """Dates that are not ISO 8601 are read by the one format that all of them have."""
    lines = "".join(f"{day},{n % 3}\n" for n, day in enumerate(days * 20))
    (tmp_path / "mine.csv").write_text(f"when,label\n{lines}")
    assert formats.dialect_of(tmp_path / "mine.csv").times == (form,)  # type: ignore[union-attr]
    assert pa.types.is_timestamp(_table(tmp_path / "mine.csv").schema.field("when").type)


def test_fractions_may_come_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types are those of samples from all over a large file; what no sample shows is refused with its record."""
    monkeypatch.setattr(texts, "SAMPLE_BYTES", 500)
    monkeypatch.setattr(texts, "WHOLE_BYTES", 4_000)
    monkeypatch.setattr(texts, "PIECE_BYTES", 1_000)
    rows = [f"{n},{n % 3}" for n in range(2_000)]
    late = [*rows[:-1], "0.5,1"]
    (tmp_path / "late.csv").write_text("x,label\n" + "\n".join([*rows[:1500], *(f"{n}.5,1" for n in range(500))]))
    assert _table(tmp_path / "late.csv")["x"].to_pylist()[-1] == 499.5
    (tmp_path / "last.csv").write_text("x,label\n" + "\n".join(late))
    with pytest.raises(SourceError, match=r"last\.csv: near record 1,999: .*invalid value '0\.5'"):
        _table(tmp_path / "last.csv")


def test_json_lines_are_records(tmp_path: Path) -> None:
    """Objects within objects become columns, missing keys gaps, and whole numbers fractions where some are."""
    (tmp_path / "mine.jsonl").write_text('{"a": 1, "b": {"c": true}, "l": [1, 2]}\n\n{"a": 1.5, "l": [3, 4]}\n')
    assert _table(tmp_path / "mine.jsonl").to_pylist() == [
        {"a": 1.0, "b.c": 1, "l": [1, 2]},
        {"a": 1.5, "b.c": None, "l": [3, 4]},
    ]
    (tmp_path / "array.json").write_text('[{"a": 1}]')
    with pytest.raises(SourceError, match=r"needed one JSON object a line, got one array[\s\S]*jq"):
        _table(tmp_path / "array.json")
