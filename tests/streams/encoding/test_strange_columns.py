"""Columns of every type that Arrow has, in every place of a record: taken, refused row by row, or by name."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from streamkd.errors import RecordError
from streamkd.records import InputColumn, RecordSchema
from streamkd.settings import Limits
from streamkd.streams.ingest.admission import admit_batch

SCHEMA = RecordSchema(inputs=(InputColumn(name="x", dtype="uint8"),), task="task", id="id", event_time="t")
GOOD: dict[str, Any] = {
    "x": pa.array([1, 2]),
    "label": pa.array([1, 2]),
    "task": pa.array(["a", "b"]),
    "id": pa.array(["a", "b"]),
    "t": pa.array([0, 1], pa.timestamp("us")),
}
STRANGE: list[tuple[str, pa.Array, str]] = [
    # title, column, answer per place in the order of GOOD: t taken, r a row or both refused, - the batch refused
    *((name, pa.array([1, 2]).cast(name), "tttt-") for name in ("int8", "uint64")),
    *((name, pa.array([1, 2], pa.type_for_alias(name)), "-ttt-") for name in ("float32", "float64")),
    *((name, pa.array([1, 2], pa.type_for_alias(name)), "--ttt") for name in ("date32",)),
    *(
        (name, pa.array([1, 2], pa.type_for_alias(name)), "--tt-")
        for name in ("time32[ms]", "time64[ns]", "duration[us]")
    ),
    ("negative numbers", pa.array([-1, 1]), "rttt-"),
    ("the largest numbers", pa.array([2**64 - 1, 2**63 - 1], pa.uint64()), "rrtt-"),
    ("no number", pa.array([float("nan"), float("inf")]), "-rtt-"),
    ("a half", pa.array([0.5, 1.0]), "-rtt-"),
    ("booleans", pa.array([True, False]), "tttt-"),
    ("text", pa.array(["a", "b"]), "--tt-"),
    ("a null", pa.array(["a", None]), "--rt-"),
    ("nulls of no type", pa.nulls(2), "-----"),
    ("bytes", pa.array([b"a", b"b"]), "-----"),
    ("lists of one", pa.array([[1], [2]]), "t----"),
    ("lists of two", pa.array([[1, 2], [2]]), "r----"),
    ("a list with a null", pa.array([[1], [None]]), "r----"),
    ("lists of text", pa.array([["a"], ["b"]]), "-----"),
    ("objects", pa.array([{"a": 1}, None]), "-----"),
    ("a map", pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())), "-----"),
    ("intervals", pa.array([pa.MonthDayNano([1, 2, 3]), None]), "-----"),
    ("string views", pa.array(["a", "b"], pa.string_view()), "-----"),
    ("runs", pa.RunEndEncodedArray.from_arrays([2], ["a"]), "-----"),
    ("list views", pa.array([[1], [2]], pa.list_view(pa.int64())), "-----"),
    ("a dictionary of text", pa.array(["a", "a"]).dictionary_encode(), "--tt-"),
    ("a dictionary of numbers", pa.array([1, 2]).dictionary_encode(), "-ttt-"),
    ("a dictionary of times", pa.array([0, 1], pa.timestamp("s")).dictionary_encode(), "--tt-"),
    ("a dictionary of lists", pa.DictionaryArray.from_arrays(pa.array([0, 0]), pa.array([[1.0]])), "-----"),
    ("half floats", pa.array(np.array([1, 2], np.float16)), "-ttt-"),
    ("decimals", pa.array([1, 2], pa.decimal128(5)), "-----"),
    ("a union", pa.UnionArray.from_sparse(pa.array([0, 0], pa.int8()), [pa.array([1, 2])]), "-----"),
    ("bytes of one length", pa.array([b"ab", b"cd"], pa.binary(2)), "-----"),
    ("identifiers", pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16] * 2, pa.binary(16))), "-----"),
    ("times of no zone", pa.array([0, 1], pa.timestamp("s", "Mars/Phobos")), "----t"),
    ("times past all bounds", pa.array([0, 2**62], pa.timestamp("s")), "--ttr"),
]


@pytest.mark.parametrize(("title", "column", "answers"), STRANGE, ids=[row[0] for row in STRANGE])
def test_a_strange_column(title: str, column: pa.Array, answers: str) -> None:
    """Whatever it is, the answer is rows, reasons or a refusal in words."""
    said = [_answer(pa.record_batch({**GOOD, place: column})) for place in GOOD]
    assert "".join(each[0] for each in said) == answers
    assert all("needed" in each or each in ("r", "t") for each in said)


def _answer(batch: pa.RecordBatch) -> str:
    try:
        return "r" if admit_batch(batch, SCHEMA, Limits(), "p").rejects else "t"
    except RecordError as refusal:
        return f"- {refusal}"
