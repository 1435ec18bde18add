"""Predictions as they are kept for a label that comes later: canonical Arrow columns, and what was answered.

requests that were answered ─► pack ─► one Arrow IPC stream ─► ingress (``streamkd.streams.log.predictions``)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from streamkd.records import InputColumn, RecordSchema
from streamkd.serve.predictions.openinference import Columns
from streamkd.serve.predictions.predictor import ServedModel
from streamkd.streams.encoding import times
from streamkd.streams.encoding.canonical import MOMENT, arrow_schema
from streamkd.streams.log.predictions import KeptRequest, kept_schema, with_requests


@dataclass(frozen=True, slots=True)
class Prediction:
    """A request: its inputs, the probabilities [rows, classes] that a version gave, and when, in seconds since 1970.

    ``bad`` rows have no prediction.
    """

    id: str
    columns: Columns
    probabilities: np.ndarray
    published: ServedModel
    asked: float
    bad: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """How many records it has."""
        return len(self.probabilities)

    def nbytes(self) -> int:
        """About what it takes to hold."""
        return self.probabilities.nbytes + sum(_size(values) for values in self.columns.values())


def pack(requests: Sequence[Prediction], schema: RecordSchema) -> bytes:
    """All of them as one batch, in an Arrow IPC stream."""
    inputs = [_column([each.columns[column.name] for each in requests], column, schema) for column in schema.inputs]
    best = [each.probabilities.argmax(axis=1) for each in requests]
    classes = zip(requests, best, strict=True)
    predicted = [each.published.classes[place] for each, places in classes for place in places.tolist()]
    probability = np.concatenate([each.probabilities.max(axis=1) for each in requests])
    asked = np.repeat([int(each.asked * 1e6) for each in requests], [each.rows for each in requests])
    answer = (predicted, probability, pa.array(asked, pa.int64()).cast(MOMENT))
    columns = zip([*inputs, *answer], kept_schema(schema), strict=True)
    rows = pa.RecordBatch.from_arrays(
        [column if isinstance(column, pa.Array) else pa.array(column, field.type) for column, field in columns],
        schema=kept_schema(schema),
    )
    kept = [KeptRequest(each.id, each.rows, each.published.version, each.bad) for each in requests]
    return to_ipc(with_requests(rows, kept))


def in_arrow(columns: Columns, schema: RecordSchema) -> pa.RecordBatch:
    """The inputs of a request as canonical columns."""
    names = [column.name for column in schema.inputs]
    arrays = [_column([columns[column.name]], column, schema) for column in schema.inputs]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema([arrow_schema(schema).field(name) for name in names]))


def to_ipc(rows: pa.RecordBatch) -> bytes:
    """One batch as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    return bytes(sink.getvalue().to_pybytes())


def _column(parts: Sequence[Any], column: InputColumn, schema: RecordSchema) -> pa.Array:
    """Several requests' values of one column, one after the other."""
    needed = arrow_schema(schema).field(column.name).type
    if len(parts) > 1 and all(isinstance(part, np.ndarray) for part in parts):
        parts = [np.concatenate([part.reshape(len(part), -1) for part in parts])]
    arrays = [_array(part, needed) for part in parts]
    return arrays[0] if len(arrays) == 1 else pa.concat_arrays(arrays)


def _array(values: Any, needed: pa.DataType) -> pa.Array:
    if isinstance(values, pa.Array):
        return values
    if pa.types.is_fixed_size_list(needed):
        flat = values.reshape(-1)
        if flat.dtype.kind == "f":  # a gap: of all that is called NaN one, as in the log
            flat = np.where(np.isnan(flat), flat.dtype.type(np.nan), flat)
        return pa.FixedSizeListArray.from_arrays(pa.array(flat, needed.value_type, from_pandas=False), type=needed)
    if pa.types.is_timestamp(needed):
        moments = values.reshape(-1)
        return pa.array(moments, pa.int64(), mask=moments == times.GAP).cast(needed)
    return pa.array(values, needed)


def _size(values: Any) -> int:
    return (
        int(values.nbytes) if isinstance(values, np.ndarray | pa.Array) else sum(len(value or ()) for value in values)
    )
