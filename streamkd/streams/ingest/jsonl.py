"""JSON lines as rows of a stream: each line is one object, each value is coerced to its column's type.

Tensors are numbers or (nested) lists of numbers, images base64 text, event times ISO 8601 or seconds since
1970. A line that does not fit is refused alone. Keys that are no columns are ignored.
"""

import base64
import binascii
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from streamkd.records import InputColumn, RecordSchema, Reject, RejectReason
from streamkd.streams.encoding.codec import arrow_schema
from streamkd.streams.encoding.lists import fit
from streamkd.streams.log.dead_letters import RECORD_BYTES

LINE_FACTOR = 5  # "255," takes four bytes for one


class _UnfitError(Exception):
    """A line that cannot become a row."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def parse(
    lines: Sequence[bytes], schema: RecordSchema, row_bytes: int
) -> tuple[pa.RecordBatch, list[int], list[Reject]]:
    """Rows of the lines that fit, the line number of each row, and why the other lines do not fit."""
    rows: list[list[Any]] = []
    places: list[int] = []
    rejects: list[Reject] = []
    for number, line in enumerate(lines):
        try:
            if len(line) > row_bytes * LINE_FACTOR:
                raise _UnfitError("too_large", f"a line of {len(line)} bytes, at most {row_bytes * LINE_FACTOR}")
            rows.append(_row(_load(line), schema))
            places.append(number)
        except _UnfitError as unfit:
            rejects.append(Reject(number, unfit.reason, str(unfit)))
    return _batch(rows, schema), places, rejects


def record(line: bytes) -> bytes | None:
    """What a dead letter keeps of a line."""
    return line if len(line) <= RECORD_BYTES else None


def _load(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except RecursionError:
        raise _UnfitError("decode", "JSON nested too deeply") from None
    except ValueError as fault:  # of JSON, of UTF-8, of integers with thousands of digits
        raise _UnfitError("decode", f"broken JSON: {fault}") from None
    if not isinstance(value, dict):
        raise _UnfitError("decode", f"needed a JSON object, got {type(value).__name__}")
    return value


def _row(values: dict[str, Any], schema: RecordSchema) -> list[Any]:
    """The values in the order of the canonical columns."""
    row = [_input(values.get(column.name), column) for column in schema.inputs]
    row.append(_label(values.get(schema.label), schema))
    if schema.task:
        row.append(_task(values.get(schema.task), schema.task))
    if schema.id:
        row.append(_plain(values.get(schema.id), schema.id))
    if schema.event_time:
        row.append(_time(values.get(schema.event_time), schema.event_time))
    return row


def _input(value: Any, column: InputColumn) -> Any:
    if value is None:
        raise _UnfitError("missing_input", f"{column.name}: missing")
    if column.kind == "tensor":
        return _tensor(value, column)
    if not isinstance(value, str):
        raise _UnfitError("decode", f"{column.name}: needed text, got {type(value).__name__}")
    try:
        return _utf8(value, column.name) if column.kind == "text" else base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise _UnfitError("decode", f"{column.name}: needed base64") from None


def _tensor(value: Any, column: InputColumn) -> np.ndarray:
    """One record's numbers, flat and in the column's element type."""
    needed = np.dtype(column.dtype)
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):  # lists of different lengths, or deeper than numpy goes
        raise _UnfitError("wrong_shape", f"{column.name}: lists of different lengths") from None
    if array.size and array.dtype.kind not in "iuf":
        missing = array.dtype.kind == "O" and any(each is None for each in array.reshape(-1))
        said = "a null" if missing else "needed numbers"
        raise _UnfitError("missing_input" if missing else "decode", f"{column.name}: {said}")
    array = fit(array, column.size) if column.pad and array.ndim == 1 else array
    if array.shape not in (column.shape, (column.size,)) and not (column.size == 1 and array.shape == ()):
        raise _UnfitError("wrong_shape", f"{column.name}: needed shape {list(column.shape)}, got {list(array.shape)}")
    with np.errstate(all="ignore"):
        cast = array.astype(needed)
        if needed.kind == "f" and not np.isfinite(cast).all():
            raise _UnfitError("not_finite", f"{column.name}: NaN or infinite")
        if needed.kind != "f" and not np.array_equal(cast, array):
            raise _UnfitError("decode", f"{column.name}: a value that {needed} cannot hold")
    return cast.reshape(-1)


def _label(value: Any, schema: RecordSchema) -> str | int | None:
    if value is None and schema.unlabelled:
        return None
    if value is None:
        raise _UnfitError("missing_label", f"{schema.label}: missing")
    if schema.label_type == "string":
        if isinstance(value, str):
            return _utf8(value, schema.label)
    elif _is_whole(value):
        return int(value)
    raise _UnfitError("decode", f"{schema.label}: needed {schema.label_type}, got {json.dumps(value)[:80]}")


def _is_whole(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and -(2**63) <= value < 2**63 and value == int(value)


def _task(value: Any, name: str) -> str:
    if value is None:
        raise _UnfitError("missing_task", f"{name}: missing")
    return str(_plain(value, name))


def _plain(value: Any, name: str) -> str | None:
    if value is None or isinstance(value, str):
        return value if value is None else _utf8(value, name)
    if isinstance(value, list | dict):
        raise _UnfitError("decode", f"{name}: needed text or a number")
    return json.dumps(value)


def _time(value: Any, name: str) -> datetime | None:
    if value is None:
        return None
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        if isinstance(value, bool):  # which Python takes for 0 or 1 s
            raise TypeError
        return datetime.fromtimestamp(value, UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        raise _UnfitError("decode", f"{name}: needed ISO 8601 or seconds since 1970") from None


def _utf8(value: str, name: str) -> str:
    """JSON can write half of a surrogate pair, which is no text."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _UnfitError("decode", f"{name}: is not Unicode text") from None
    return value


def _batch(rows: list[list[Any]], schema: RecordSchema) -> pa.RecordBatch:
    canonical = arrow_schema(schema)
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(canonical)
    arrays = []
    for place, (field, values) in enumerate(zip(canonical, columns, strict=True)):
        if place < len(schema.inputs) and schema.inputs[place].kind == "tensor":
            flat = np.concatenate(values) if values else np.zeros(0, schema.inputs[place].dtype)
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(flat, field.type.value_type), type=field.type))
        else:
            arrays.append(pa.array(values, field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=canonical)
