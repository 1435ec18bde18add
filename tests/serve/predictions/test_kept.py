"""Predictions in the form that the log has: every kind of column, from one request or several."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from streamkd.records import InputColumn, RecordSchema
from streamkd.serve.predictions.kept import Prediction, in_arrow, pack
from streamkd.serve.predictions.tensors import Faults
from streamkd.streams.encoding import times
from streamkd.streams.encoding.arrays import encode_inputs
from streamkd.streams.encoding.codec import encode, sift
from streamkd.streams.log.predictions import kept_schema, requests_of

SCHEMA = RecordSchema(
    inputs=(
        InputColumn(name="price"),
        InputColumn(name="counts", shape=(2, 2), dtype="int16"),
        InputColumn(name="words", kind="text", shape=(8,)),
        InputColumn(name="photo", kind="image", shape=(2, 2)),
        InputColumn(name="gaps", shape=(2,), missing="fill"),
        InputColumn(name="colour", kind="category", shape=(4,), missing="fill"),
        InputColumn(name="when", kind="time", parts=("hour",), missing="fill"),
    ),
    label_type="string",
)


@dataclass
class Version:
    """What answers, as far as it is asked here."""

    classes: tuple[str, ...] = ("yes", "no")
    version: int = 4


def photo(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (2, 2), value).save(buffer, "PNG")
    return buffer.getvalue()


def columns(rows: int, first: int = 0) -> dict[str, Any]:
    numbers = range(first, first + rows)
    return {
        "price": np.arange(first, first + rows, dtype=np.float32).reshape(rows, 1) / 4,
        "counts": np.arange(4 * rows, dtype=np.int16).reshape(rows, 2, 2) + 4 * first,
        "words": [f"a few words {number}" for number in numbers],
        "photo": [photo(number) for number in numbers],
        "gaps": np.array([[number, np.nan] for number in numbers], np.float32),
        "colour": ["red" if number % 2 else None for number in numbers],
        "when": np.array([times.GAP if number == 1 else number * 3_600_000_000 for number in numbers]),
    }


def answered(id: str, asked: Any, rows: int) -> Prediction:
    probabilities = np.linspace(0.1, 0.9, 2 * rows, dtype=np.float32).reshape(rows, 2)
    return Prediction(id, asked, probabilities, Version(), 1_700_000_000.5)  # type: ignore[arg-type]


def unpacked(body: bytes) -> pa.RecordBatch:
    with pa.ipc.open_stream(body) as reader:
        return reader.read_next_batch()


def test_what_is_kept_is_what_was_predicted_on() -> None:
    """The same numbers for the student by way of the log, bit for bit; with them answer, probability and time."""
    parts = [columns(3), columns(1, first=3), columns(2, first=4)]
    requests = [answered(name, part, len(part["words"])) for name, part in zip("abc", parts, strict=True)]
    rows = unpacked(pack(requests, SCHEMA))
    assert rows.schema.equals(kept_schema(SCHEMA))
    assert [(each.id, each.count, each.version) for each in requests_of(rows)] == [
        ("a", 3, 4),
        ("b", 1, 4),
        ("c", 2, 4),
    ]
    inputs = rows.select([column.name for column in SCHEMA.inputs]).add_column(7, "label", pa.array(["yes"] * 6))
    records, rejects = encode(inputs, SCHEMA, 0)
    assert not rejects
    expected = np.concatenate([encode_inputs(part, SCHEMA, Faults().note) for part in parts])
    assert records.inputs.tobytes() == expected.tobytes()
    assert set(rows.column("predicted").to_pylist()) == {"no"}
    assert rows.column("probability").to_pylist()[3] == pytest.approx(0.9)
    assert rows.column("asked")[0].value == 1_700_000_000_500_000


def test_columns_that_another_process_has_read_join_those_read_here() -> None:
    """Arrow columns beside lists and arrays of numbers."""
    here, there = columns(2), in_arrow(columns(2, first=2), SCHEMA)
    named = dict(zip(there.schema.names, there.columns, strict=True))
    rows = unpacked(pack([answered("a", here, 2), answered("b", named, 2)], SCHEMA))
    whole = unpacked(pack([answered("a", columns(4), 4)], SCHEMA))
    names = [column.name for column in SCHEMA.inputs]
    assert rows.select(names).to_pylist().__repr__() == whole.select(names).to_pylist().__repr__()  # NaN is not NaN
    labelled = whole.select(names).add_column(7, "label", pa.array(["yes"] * 4))
    assert sift(labelled, SCHEMA)[0].num_rows == 4


def test_what_waits_has_a_size() -> None:
    """Numbers, texts, images and Arrow columns count, so that the queue is bounded."""
    asked = columns(2)
    size = answered("a", asked, 2).nbytes()
    texts = sum(len(each or "") for name in ("words", "photo", "colour") for each in asked[name])
    assert size == 2 * 2 * 4 + 2 * 4 + 2 * 4 * 2 + 2 * 2 * 4 + 2 * 8 + texts
