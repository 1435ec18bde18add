"""`streamkd check --sample`: the first records through everything, and one of them with its features by name."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from streamkd import config
from streamkd.errors import ConfigError, SourceError
from streamkd.plugins import Registry
from streamkd.records import Reject
from streamkd.wiring import sample, schema_of
from streamkd.wiring.sample import refused

WRITTEN = """
stream:
  source: {{name: replay, path: {path}, order: given, test_ratio: 0, rate: 5}}
  records:
    inputs:
      - {{name: size, fit: 100, missing: fill}}
      - {{name: town, kind: category, shape: [4], values: [Bonn, Rome]}}
      - {{name: day, kind: time, parts: [weekday, age]}}
      - {{name: note, kind: text, shape: [64]}}
      - {{name: more, shape: [3]}}
    label_type: string
"""
TABLE = {
    "size": [None if n == 1 else n % 3 - 1.0 for n in range(90)],
    "town": ["Rome" if n % 2 == 0 else "Oslo" for n in range(90)],
    "day": pa.array(range(10_957, 11_047), pa.date32()),
    "note": [f"the {n}th of them" for n in range(90)],
    "more": [[1.0, 2.0, 3.0] if n else [1.0] for n in range(90)],
    "label": ["yes" if n % 2 else "no" for n in range(90)],
}


def _told(folder: Path, written: str) -> list[str]:
    pa.parquet.write_table(pa.table(TABLE), folder / "a.parquet")
    (folder / "a.yaml").write_text(written.format(path=folder / "a.parquet"), "utf-8")
    registry = Registry.load()
    loaded = config.load(folder / "a.yaml", registry=registry)
    return list(sample(loaded, registry, schema_of(loaded, registry)))


def test_a_record_is_shown_as_the_student_sees_it(tmp_path: Path) -> None:
    """Refused records are named; of the first good one every column stands as it came, and as it is seen."""
    assert _told(tmp_path, WRITTEN) == [
        "90 records read, 89 can be learned",
        "  record 0 cannot: more: needed 3 values, got 1",
        "record 1 as the student sees it; its label is 'yes'",
        "  size: None -> value 0, missing 1",
        "  town: 'Oslo' -> other 2 1",
        "  day: 2000-01-02 -> weekday sin -0.782, weekday cos 0.623, age 0.00274",
        "  note: 'the 1th of them' -> 24 of 64 hashed features",
        "  more: [1.0, 2.0, 3.0] -> [3] 1, 2, 3",
    ]


def test_what_is_wrong_with_many_is_said_once() -> None:
    """With the records that it is wrong with, the first ones; another fault has a line of its own."""
    many = [Reject(row, "wrong_shape", "more: needed 3 values, got 1") for row in range(10, 20)]
    assert [*refused([*many[:5], Reject(3, "missing_input", "size: missing"), *many[5:]])] == [
        "  records 10, 11, 12, 13, 14, 15, … 4 more cannot: more: needed 3 values, got 1",
        "  record 3 cannot: size: missing",
    ]


def test_there_must_be_something_to_show(tmp_path: Path) -> None:
    """Where no record is good, or where they are pushed, one sentence says so."""
    with pytest.raises(SourceError, match="no record can be learned"):
        _told(tmp_path, WRITTEN.replace("shape: [3]", "shape: [5]"))
    with pytest.raises(ConfigError, match="pushed to this source"):
        _told(
            tmp_path,
            WRITTEN.replace(
                "source: {{name: replay, path: {path}, order: given, test_ratio: 0, rate: 5}}",
                "source: {{name: flight}}",
            ),
        )
