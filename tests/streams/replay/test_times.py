"""Files whose labels came later than their records: the order of the labels, and who came before each."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from streamkd.errors import SourceError
from streamkd.records import InputColumn, Late, RecordSchema
from streamkd.streams.replay.source import PARTITION, Replay, ReplayOptions, open_replay

SCHEMA = RecordSchema(inputs=(InputColumn(name="x", dtype="int64"),), id="id")
BASE = datetime(2026, 1, 1, tzinfo=UTC)


def source(folder: Path, table: pa.Table, **options: Any) -> Replay:
    """The table as a source whose labels are late; ``came`` and ``told`` are its times."""
    pa.parquet.write_table(table, folder / "late.parquet")
    named = {"request_time": "came", "label_time": "told", "test_ratio": 0, "accept": ("one-label",), **options}
    return open_replay(ReplayOptions(path=folder / "late.parquet", **named), SCHEMA)


def played(one: Replay) -> list[tuple[str, int]]:
    """What a learner does with batches of one: ``asked`` and ``learned`` with the number of each record."""
    assert isinstance(one, Late)
    events, asked, end = [], 0, one.end(PARTITION)
    assert end is not None
    numbers = one.read(PARTITION, 0, end).rows.column("x").to_pylist()
    for offset in range(end):
        rows, offsets = one.asked(PARTITION, asked, offset)
        assert rows.column("x").to_pylist() == [numbers[place] for place in offsets]
        events += [("asked", numbers[place]) for place in offsets]
        asked += len(offsets)
        events.append(("learned", numbers[offset]))
    return events


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=30), st.booleans())
@settings(max_examples=40, deadline=None)
def test_events_come_in_the_order_of_their_times(
    tmp_path_factory: pytest.TempPathFactory, times: list[tuple[int, int]], twice: bool
) -> None:
    """Whether a file has two times a row or each record twice, records are asked about and learned as it happened."""
    count = len(times)
    came, told = [a for a, _ in times], [a + b for a, b in times]
    columns = {"x": [*range(count)], "id": [f"r{n}" for n in range(count)], "label": [n % 2 for n in range(count)]}
    table = pa.table({**columns, "came": came, "told": told})
    if twice:
        first = pa.table({**columns, "label": pa.nulls(count, pa.int64()), "came": came})
        table = pa.concat_tables([first, pa.table({**columns, "came": told})])
    one = source(tmp_path_factory.mktemp("late"), table, label_time="came" if twice else "told")
    asked = [(a, 0, t, n, "asked") for n, (a, t) in enumerate(zip(came, told, strict=True))]
    events = asked + [(t, 1, t, n, "learned") for n, t in enumerate(told)]
    known = [(what, n) for *_, n, what in sorted(events)]
    assert played(one) == known


def test_the_first_label_counts_and_one_without_a_request_came_with_its_record(tmp_path: Path) -> None:
    """Record 1 is labelled twice, 2 was never asked about, 3 never gets its label, two have no id to be joined by."""
    rows = [(1, 10, None), (3, 11, None), (1, 12, 0), (2, 13, 1), (1, 14, 1), (None, 15, 0), (None, 16, 1)]
    table = pa.table(
        {
            "x": [n for n, *_ in enumerate(rows)],
            "id": [number for number, *_ in rows],
            "came": [at for _, at, _ in rows],
            "label": pa.array([label for *_, label in rows], pa.int64()),
        }
    )
    one = source(tmp_path, table, label_time="came")
    assert played(one) == [(what, n) for n in (2, 3, 5, 6) for what in ("asked", "learned")]
    assert one.read(PARTITION, 0, 9).rows.column("label").to_pylist() == [0, 1, 0, 1]


def test_times_may_be_timestamps(tmp_path: Path) -> None:
    """Of any unit, with a zone or none."""
    came = pa.array([BASE, BASE + timedelta(hours=1)], pa.timestamp("ms", "UTC"))
    told = pa.array([BASE + timedelta(hours=2), BASE + timedelta(hours=1, seconds=1)], pa.timestamp("us", "UTC"))
    table = pa.table({"x": [0, 1], "id": ["a", "b"], "label": [0, 1], "came": came, "told": told})
    assert played(source(tmp_path, table)) == [("asked", 0), ("asked", 1), ("learned", 1), ("learned", 0)]


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        ({"told": [0, 9]}, {}, "row 0 comes before its record"),
        ({"told": ["noon", "night"]}, {}, "'told': needed timestamps, dates or whole numbers"),
        ({"told": [3, None]}, {}, "'told': 1 records have no time"),
        ({}, {"label_time": "when"}, "needed a column 'when'"),
    ],
)
def test_times_that_say_nothing_are_refused(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    """The column is named, and what it holds."""
    table = pa.table({"x": [0, 1], "id": ["a", "b"], "label": [0, 1], "came": [1, 2], "told": [3, 4]} | columns)
    with pytest.raises(SourceError, match=said):
        source(tmp_path, table, **options)


@pytest.mark.parametrize(
    "beside",
    [
        {"label_time": None},
        {"classes_per_task": 2},
        {"repeat": True},
        {"rate": 5},
        {"order": "seed"},
        {"rotated": (90,)},
    ],
)
def test_another_order_beside_the_times_is_refused(beside: dict[str, Any]) -> None:
    """A stream has one order."""
    with pytest.raises(ValidationError, match="label_time"):
        ReplayOptions(**{"path": Path("x.parquet"), "request_time": "a", "label_time": "b", **beside})


def test_the_stream_may_end_early(tmp_path: Path) -> None:
    """``limit`` counts labels; who would only be labelled later is not asked about."""
    count = 6
    columns = {"x": [*range(count)], "id": [*map(str, range(count))], "label": [n % 2 for n in range(count)]}
    table = pa.table({**columns, "came": np.arange(count), "told": np.arange(count) + 2})
    events = played(source(tmp_path, table, limit=3))
    assert {n for _, n in events} == {0, 1, 2}
