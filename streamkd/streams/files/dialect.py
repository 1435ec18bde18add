"""How a CSV file is written: separator, decimal sign, header, gaps, dates, encoding.

    samples of the file ─► cells ─► CsvDialect

``streamkd init`` looks once and writes what it found into the configuration; ``push FILE`` and ``predict FILE``, which
have none, look too. pyarrow does the reading.
"""

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from streamkd.records import Model

NULLS = ("", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null")
ODD_NULLS = ("?", "-", "--", ".", "*", "None", "none")  # gaps among numbers; of these only ? is one among words
SEPARATORS = "\t;|,"  # a comma may also stand in numbers, so it is the last that is tried
ROWS = 1_000  # of each sample
PARTS, PART_BYTES = 8, 256 << 10
NUMBER = re.compile(r"\s*[-+]?(\d+([.,]\d*)?|[.,]\d+)(e[-+]?\d+)?\s*", re.IGNORECASE)
WITH_COMMA = re.compile(r"[-+]?(\d+|\d{1,3}(\.\d{3})+)?(,\d+)?(e[-+]?\d+)?", re.IGNORECASE)
WITH_POINT = re.compile(r"[-+]?(\d+|\d{1,3}(,\d{3})+)?(\.\d*)?(e[-+]?\d+)?", re.IGNORECASE)
DAYS = ("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%Y/%m/%d")
HOURS = ("", " %H:%M", " %H:%M:%S")
RISING_NAMES = 5  # so many numbers in a row that rise are names, as wavelengths are; a record's values seldom do


class CsvDialect(Model):
    """How a CSV file is written. Without a header the columns are called f0, f1, ..."""

    delimiter: str = Field(default=",", min_length=1, max_length=1)
    decimal: Literal[".", ","] = "."
    thousands: Literal["", ".", ",", " ", "'"] = Field(default="", description="what groups the digits of numbers")
    header: bool = True
    nulls: tuple[str, ...] = Field(default=NULLS, description="cells that are gaps")
    times: tuple[str, ...] = Field(default=(), description="of dates and times, beside ISO 8601: %d.%m.%Y %H:%M")
    newlines: bool = Field(default=False, description="quoted cells hold line ends")
    encoding: str = "utf-8"


def look_at(path: Path, open_file: Callable[[Path], pa.NativeFile], header: bool | None = None) -> CsvDialect:
    """What the beginning of a file and seven further places say; ``header``: where it is known."""
    with open_file(path) as file:
        encoding = _encoding(file)
        texts = list(_texts(file, encoding))
    delimiter = _delimiter(texts[0], path)
    tables = [_rows(text, delimiter) for text in texts]
    names, *records = tables[0] or [[]]
    width = len(names)
    cells = [row for row in (*records, *(row for table in tables[1:] for row in table)) if len(row) == width]
    columns = [[cell.strip() for cell in column] for column in zip(*cells, strict=True)]
    first = header if header is not None else not (records and no_header(names, columns))
    nulls = (*NULLS, *(null for null in ODD_NULLS if any(_is_gap(null, column) for column in columns)))
    columns = [[cell for cell in column if cell not in nulls] for column in columns]
    decimal, thousands = _signs(columns, delimiter)
    return CsvDialect(
        delimiter=delimiter,
        decimal=decimal,
        thousands=thousands,
        header=first,
        nulls=nulls,
        times=tuple(dict.fromkeys(filter(None, (time_format(column, decimal) for column in columns)))),
        newlines=any("\n" in cell for row in cells for cell in row),
        encoding=encoding,
    )


def no_header(names: Sequence[str], columns: Sequence[Sequence[object]]) -> bool:
    """Whether the names are rather values of the columns: numbers over numbers, words that come again."""
    if numbered(names):
        return False
    like = [name for name, column in zip(names, columns, strict=False) if _is_value(name, column)]
    return bool(like) and 2 * len(like) >= len(names)


def numbered(names: Sequence[str]) -> bool:
    """0, 1, 2, ... as pandas names columns, or numbers that rise, as wavelengths do."""
    numbers = [float(name) for name in names if NUMBER.fullmatch(name) and "," not in name]
    steps = np.diff(numbers)
    return len(numbers) > 1 and bool(np.all(steps == 1) or (len(numbers) >= RISING_NAMES and np.all(steps > 0)))


def _is_value(name: str, column: Sequence[object]) -> bool:
    cells = [str(cell) for cell in column[:100] if cell is not None and cell not in NULLS]
    if cells and all(NUMBER.fullmatch(cell) for cell in cells):
        return NUMBER.fullmatch(name) is not None
    return bool(name) and name in cells


def time_format(cells: Sequence[str], decimal: str = ".") -> str | None:
    """The one format of days, or of days and times, that all cells have; ISO 8601 needs none."""
    likely = [cell for cell in dict.fromkeys(cells) if re.match(r"\d{1,4}[./-]\d{1,2}[./-]\d{2,4}\b", cell)]
    if not cells or len(likely) < len(set(cells)):
        return None
    days = DAYS if decimal == "," else (DAYS[0], DAYS[2], DAYS[1], *DAYS[3:])  # 01/02 is January where the point rules
    formats = (day + hour for day in days for hour in HOURS)
    return next((form for form in formats if all(_is_time(cell, form) for cell in likely)), None)


def _is_time(cell: str, form: str) -> bool:
    try:
        return 1900 <= datetime.strptime(cell, form).year < 2100  # noqa: DTZ007 - asked whether, not when
    except ValueError:
        return False


def _encoding(file: pa.NativeFile) -> str:
    """UTF-8 where all of the file is, UTF-16 by its mark, else Windows' Western code page."""
    head = file.read(2)
    if head in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    file.seek(0)
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while part := file.read(1 << 20):
            decoder.decode(part)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8"


def _texts(file: pa.NativeFile, encoding: str) -> Iterator[str]:
    """Whole lines from places all over the file; the first begins with the file."""
    size = file.size()
    for place in range(PARTS if size > PARTS * PART_BYTES and encoding != "utf-16" else 1):
        file.seek(size * place // PARTS)
        data = file.read(PART_BYTES)
        if place:
            data = data[data.find(b"\n") + 1 :]
        text = data.decode(encoding, "ignore").removeprefix("\ufeff").replace("\r\n", "\n").replace("\0", "")
        yield text if len(data) < PART_BYTES and not place else text[: text.rfind("\n") + 1]


def _rows(text: str, delimiter: str) -> list[list[str]]:
    rows: list[list[str]] = []
    try:
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
            rows += [row] if row else []
            if len(rows) > ROWS:
                break
    except csv.Error:  # a cell of more than 128 KiB: what came before it says enough
        pass
    return rows


def _delimiter(text: str, path: Path) -> str:
    """The separator that parts nearly all lines into equally many cells."""
    if ".tsv" in path.suffixes:
        return "\t"
    for delimiter in SEPARATORS:
        widths = [len(row) for row in _rows(text, delimiter)]
        if widths and widths[0] > 1 and widths.count(widths[0]) > 0.95 * len(widths):
            return delimiter
    return ","


def _is_gap(null: str, column: Sequence[str]) -> bool:
    """Whether a cell that may be a gap is one in this column."""
    if null not in column:
        return False
    others = [cell for cell in column if cell not in NULLS and cell not in ODD_NULLS]
    return bool(others) and (null == "?" or all(NUMBER.fullmatch(cell) for cell in others))


def _signs(columns: Sequence[Sequence[str]], delimiter: str) -> tuple[Literal[".", ","], Literal["", ".", ","]]:
    """The sign before decimals, and the one between groups of three digits."""
    commas = [column for column in columns if _numbers(column, WITH_COMMA, ",")]
    points = [column for column in columns if _numbers(column, WITH_POINT, ".")]
    decimals = [column for column in commas if not all(re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+", cell) for cell in column)]
    if decimals or (commas and not points and delimiter == ";"):
        return ",", "." if any("." in cell for column in commas for cell in column) else ""
    grouped = any(_numbers(column, WITH_POINT, ",") for column in columns)
    return ".", "," if grouped else ""


def _numbers(column: Sequence[str], form: re.Pattern[str], sign: str) -> bool:
    """Whether all cells are numbers of this form, and some have the sign."""
    return any(sign in cell for cell in column) and all(cell and form.fullmatch(cell) for cell in column)
