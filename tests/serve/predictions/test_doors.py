"""The same values become the same numbers over every door, whether they are learned from or predicted."""

import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from streamkd.records import InputColumn, RecordSchema
from streamkd.serve.predictions import client, openinference
from streamkd.serve.predictions.tensors import Faults, datatype_of, wire_shape
from streamkd.streams.encoding import codec
from streamkd.streams.ingest import jsonl

SCHEMA = RecordSchema(
    inputs=(
        InputColumn(name="number", missing="fill"),
        InputColumn(name="pair", shape=(2,), dtype="float64", missing="fill"),
        InputColumn(name="whole", dtype="int16"),
        InputColumn(name="truth"),
        InputColumn(name="name", kind="category", shape=(9,), values=("a", "7"), missing="fill"),
        InputColumn(name="code", kind="category", shape=(5,), values=("7",)),
        InputColumn(name="at", kind="time", parts=("minute", "weekday", "day_of_year", "age"), missing="fill"),
        InputColumn(name="note", kind="text", shape=(16,), missing="fill"),
    )
)
ARROW = {
    "number": pa.float32(),
    "pair": pa.list_(pa.float64()),
    "whole": pa.int64(),
    "truth": pa.bool_(),
    "name": pa.string(),
    "code": pa.int32(),
    "at": pa.timestamp("us", "UTC"),
    "note": pa.large_string(),
}
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
TIMES = st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
RECORD = st.fixed_dictionaries(
    {
        "number": st.none() | FLOATS,
        "pair": st.none() | st.lists(st.none() | FLOATS, min_size=2, max_size=2),
        "whole": st.integers(-(2**15), 2**15 - 1),
        "truth": st.booleans(),
        "name": st.none() | TEXT | st.sampled_from(["a", "7"]),
        "code": st.integers(-(2**31), 2**31 - 1),
        "at": st.none() | TIMES,
        "note": st.none() | TEXT,
    }
)


def over_arrow(records: list[dict[str, Any]]) -> np.ndarray:
    """Flight, Parquet and files."""
    return _encoded(batch(records))


def batch(records: list[dict[str, Any]]) -> pa.RecordBatch:
    columns = {name: pa.array([record[name] for record in records], kind) for name, kind in ARROW.items()}
    return pa.record_batch({**columns, "label": pa.array([0] * len(records))})


def _encoded(rows: pa.RecordBatch) -> np.ndarray:
    found, rejects = codec.encode(rows, SCHEMA, 0)
    assert not rejects
    return found.inputs


def over_the_log(records: list[dict[str, Any]]) -> np.ndarray:
    """Sifted at the door, written and read again."""
    rows, rejects = codec.sift(batch(records), SCHEMA)
    assert not rejects
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    return _encoded(pa.ipc.open_stream(sink.getvalue()).read_next_batch())


def over_json_lines(records: list[dict[str, Any]]) -> np.ndarray:
    """HTTP ingest."""
    lines = [json.dumps({**_plain(record), "label": 0}).encode() for record in records]
    rows, _, rejects = jsonl.parse(lines, SCHEMA, 1 << 20)
    assert not rejects
    return _encoded(rows)


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "at": record["at"] and record["at"].isoformat()}


def over_inference_in_json(records: list[dict[str, Any]]) -> np.ndarray:
    """The Open Inference Protocol; a pair that is missing is a pair of nulls there."""
    tensors = []
    for column in SCHEMA.inputs:
        data = [_plain(record)[column.name] for record in records]
        data = [[None, None] if value is None else value for value in data] if column.name == "pair" else data
        tensors.append(_tensor(column, len(records)) | {"data": data})
    return _read(json.dumps({"inputs": tensors}).encode(), None)


def over_inference_in_binary(records: list[dict[str, Any]]) -> np.ndarray:
    """What `streamkd predict` sends of a file."""
    tensors, raw = [], []
    for column in SCHEMA.inputs:
        described = _tensor(column, len(records))
        raw.append(client._raw(batch(records), described, Faults()))
        tensors.append({**described, "parameters": {"binary_data_size": len(raw[-1])}})
    head = json.dumps({"inputs": tensors}).encode()
    return _read(b"".join([head, *raw]), str(len(head)))


def _tensor(column: InputColumn, rows: int) -> dict[str, Any]:
    return {"name": column.name, "datatype": datatype_of(column), "shape": [rows, *wire_shape(column)]}


def _read(body: bytes, header_length: str | None) -> np.ndarray:
    request, inputs = openinference.read(body, header_length, SCHEMA, 1_000)
    assert not request.faults
    return inputs


@given(st.lists(RECORD, min_size=1, max_size=8))
def test_every_door_gives_the_same_numbers(records: list[dict[str, Any]]) -> None:
    """Bit for bit, gaps and strange names among them."""
    wanted = over_arrow(records)
    assert np.isfinite(wanted).all()
    assert wanted.shape == (len(records), *SCHEMA.shape)
    for door in (over_the_log, over_json_lines, over_inference_in_json, over_inference_in_binary):
        found = door(records)
        assert found.dtype == wanted.dtype, door.__name__
        np.testing.assert_array_equal(found, wanted, err_msg=door.__name__)
