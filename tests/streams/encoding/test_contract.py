"""The contract of a stream: what of its columns has changed, each by name; and what is sent beside it."""

import pyarrow as pa
import pytest

from streamkd.records import InputColumn, RecordSchema
from streamkd.streams.encoding import contract
from streamkd.streams.encoding.canonical import arrow_schema

X, Y = InputColumn(name="x", shape=(8,)), InputColumn(name="y")
BEFORE = RecordSchema(inputs=(X, Y))
OTHERS: list[tuple[tuple[InputColumn, ...], str]] = [
    ((X,), "column 'y' is gone"),
    ((X, Y, InputColumn(name="z", missing="fill")), "column 'z' is new"),
    ((InputColumn(name="x", shape=(2, 4)), Y), "column 'x': shape was (8,), is (2, 4)"),
    ((X, InputColumn(name="y", dtype="float64")), "column 'y': dtype was float32, is float64"),
    ((X, InputColumn(name="y", fit=9)), "column 'y': fit was 0, is 9"),
    ((Y, X), "the order was x, y, is y, x"),
    ((X, Y), ""),
]


@pytest.mark.parametrize(("inputs", "said"), OTHERS, ids=[said or "the same" for _, said in OTHERS])
def test_input_columns_that_have_changed_are_named(inputs: tuple[InputColumn, ...], said: str) -> None:
    """Each with what it was and is, its normalisation too; nothing of those that are the same."""
    assert "; ".join(contract.of_inputs(BEFORE, RecordSchema(inputs=inputs))) == said


def test_canonical_columns_that_have_changed_are_named() -> None:
    """Those of the log: inputs, label, task; several at once."""
    after = RecordSchema(inputs=(X,), label_type="string", task="task")
    assert contract.differences(arrow_schema(BEFORE), arrow_schema(after)) == [
        "column 'y' is gone",
        "column 'label': was int64, is string",
        "column 'task' is new",
    ]
    assert contract.differences(arrow_schema(BEFORE), arrow_schema(BEFORE)) == []


def test_what_is_sent_is_remembered_by_column_and_bounded() -> None:
    """The first type first; as many columns, types and characters as there is room for."""
    first = pa.schema({"x": pa.int32(), "more": pa.string()})
    known = contract.news(first, {})
    assert known == {"x": ["int32"], "more": ["string"]}
    assert contract.news(first, known) is known
    wider = contract.news(pa.schema({"x": pa.int64(), "a" * 999: pa.int8()}), known)
    assert wider == {"x": ["int32", "int64"], "more": ["string"], "a" * contract.CHARACTERS: ["int8"]}
    assert contract.in_words({**wider, "z": ["int8"]}, RecordSchema(inputs=(InputColumn(name="x"),)))[1:] == [
        "sent in several types: x (int32, int64)"
    ]
    for number in range(2 * contract.COLUMNS):
        wider = contract.news(pa.schema({f"c{number}": pa.int8(), "x": pa.list_(pa.int8(), number)}), wider)
    assert len(wider) == contract.COLUMNS
    assert len(wider["x"]) == contract.TYPES
