"""One tensor of a request or an answer: JSON or little-endian bytes, checked against its column.

A BYTES element is a 4-byte length and its bytes; JSON holds the bytes of images as base64. BOOL is taken for numbers
and categories, as 0 and 1. A gap is null in JSON, NaN or an empty element in bytes.

A value that is none of its column's makes its row a bad one: the row is noted, and holds zeros or gaps. What is wrong
with the tensor as a whole, its shape or its length, is raised.
"""

import base64
import binascii
import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pydantic_core

from streamkd.errors import LimitExceeded, RecordError
from streamkd.records import InputColumn, Label
from streamkd.streams.encoding import times
from streamkd.streams.encoding.categories import category_of
from streamkd.streams.encoding.lists import nulls_as_nan

DATATYPES = {
    "uint8": "UINT8",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
Values = np.ndarray | Sequence[str | None] | Sequence[bytes]
NO_NUMBER = np.iinfo(np.int64).min
_FLOAT_CHARACTERS = 24  # -1.7976931348623157e+308
_ROW_CHARACTERS = 64  # brackets


class Faults(dict[int, str]):
    """The bad rows of a request, and what is wrong with each; a row keeps the first that was found."""

    def note(self, row: int, column: str, said: object) -> None:
        """A row is bad."""
        self.setdefault(row, f"input {column!r}: {said}")


def read_tensor(
    tensor: Mapping[str, object], column: InputColumn, tail: memoryview, limit_rows: int, faults: Faults
) -> tuple[Values, int, memoryview]:
    """Values and number of records of one input, and what is left of the binary part."""
    datatype, where = datatype_of(column), f"input {column.name}"
    truth = tensor.get("datatype") == "BOOL" and column.kind in ("tensor", "category")
    if tensor.get("datatype") != datatype and not truth:
        raise RecordError(f"{where}: needed datatype {datatype}, got {tensor.get('datatype')!r:.40}")
    rows = _rows(tensor.get("shape"), column, where, limit_rows)
    parameters = as_mapping(tensor.get("parameters", {}), f"parameters of {where}")
    if "shared_memory_region" in parameters:
        raise RecordError(f"{where}: shared memory is not supported", fix="send the tensor in the request")
    size = parameters.get("binary_data_size")
    if size is None:
        return _from_json(tensor.get("data"), column, rows, faults), rows, tail
    if "data" in tensor:
        raise RecordError(f"{where}: needed either data or binary_data_size, got both")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(tail):
        raise RecordError(f"{where}: needed binary_data_size of at most {len(tail)} (what came), got {size!r:.40}")
    raw, tail = tail[:size], tail[size:]
    if truth:
        return _from_json(_truths(raw, column, rows), column, rows, faults), rows, tail
    read = _numbers if column.kind == "tensor" else _elements
    return read(raw, column, rows, faults), rows, tail


def _rows(shape: object, column: InputColumn, where: str, limit_rows: int) -> int:
    wire = wire_shape(column)
    if not isinstance(shape, list) or not all(isinstance(n, int) and not isinstance(n, bool) for n in shape):
        raise RecordError(f"{where}: needed a shape of whole numbers, got {shape!r:.80}")
    single = wire == (1,) and len(shape) == 1
    if not shape or (tuple(shape[1:]) != wire and not single) or shape[0] < 1:
        needed = ", ".join(map(str, wire))
        raise RecordError(f"{where}: needed shape [records, {needed}] with 1 record or more, got {shape!r:.80}")
    if shape[0] > limit_rows:
        raise LimitExceeded(f"{where}: needed at most {limit_rows} records in a request, got {shape[0]}")
    return shape[0]


def _truths(raw: memoryview, column: InputColumn, rows: int) -> list[bool]:
    """A byte for each boolean."""
    needed = rows * math.prod(wire_shape(column))
    if len(raw) != needed:
        raise RecordError(f"input {column.name}: needed {needed} bytes for its shape and datatype, got {len(raw)}")
    return [value != 0 for value in raw]


def _numbers(raw: memoryview, column: InputColumn, rows: int, faults: Faults) -> np.ndarray:
    """Little-endian numbers."""
    kind = np.dtype(column.dtype).newbyteorder("<")
    needed = rows * column.size * kind.itemsize
    if len(raw) != needed:
        raise RecordError(f"input {column.name}: needed {needed} bytes for its shape and datatype, got {len(raw)}")
    return _fitting(np.frombuffer(raw, kind).reshape(rows, column.size), column, faults)


def _fitting(values: np.ndarray, column: InputColumn, faults: Faults) -> np.ndarray:
    """Numbers [rows, size] as [rows, *shape] of the column's type; one that it cannot hold makes its row bad."""
    target = np.dtype(column.dtype)
    with np.errstate(all="ignore"):
        if target.kind == "f":
            found = values.astype(target)  # a copy: torch takes no read-only memory
            wrong = np.isinf(found) if column.missing == "fill" else ~np.isfinite(found)
        else:
            limits = np.iinfo(target)
            wrong = (values < limits.min) | (values > limits.max)
            found = np.where(wrong, 0, values).astype(target)
    for row in np.flatnonzero(wrong.any(axis=1)).tolist():
        value = values[row][wrong[row]][0]
        said = f"needed numbers that fit {target}, got {value}" if np.isfinite(float(value)) else "NaN or infinite"
        faults.note(row, column.name, said)
        found[row] = 0
    return found.reshape(len(found), *(column.shape or (1,)))


def _elements(raw: memoryview, column: InputColumn, rows: int, faults: Faults) -> Values:
    values: list[bytes] = []
    place = 0
    while place < len(raw):
        if place + 4 > len(raw) or len(values) == rows:
            break
        (length,) = struct.unpack_from("<I", raw, place)
        place += 4 + length
        if place > len(raw):
            break
        values.append(bytes(raw[place - length : place]))
    if place != len(raw) or len(values) != rows:
        said = f"needed {rows} elements, each with a 4-byte length before it, got other bytes"
        raise RecordError(f"input {column.name}: {said}")
    return _each(values, column, faults)


def _from_json(data: object, column: InputColumn, rows: int, faults: Faults) -> Values:
    if not isinstance(data, list):
        raise RecordError(f"input {column.name}: needed a list as data, got {kind_of(data)}")
    if column.kind != "tensor":
        flat = [v for value in data for v in (value if isinstance(value, list) else [value])]
        if len(flat) != rows:
            raise RecordError(f"input {column.name}: needed {rows} values, got {len(flat)}")
        return _each(flat, column, faults)
    try:
        values = np.array(data)
    except (ValueError, OverflowError):
        values = np.empty(0, object)
    values = nulls_as_nan(values) if column.missing == "fill" else values
    if values.dtype.kind not in _kinds(column) or values.size != rows * column.size:
        return _row_by_row(data, column, rows, faults)
    if values.ndim > 2 and values.shape[1:] != column.shape:
        raise RecordError(f"input {column.name}: needed numbers of its shape, got shape {values.shape}")
    return _fitting(values.reshape(rows, column.size), column, faults)


def _kinds(column: InputColumn) -> str:
    """What numpy calls the types whose values a column takes."""
    return "iub" if np.dtype(column.dtype).kind in "iu" else "iubf"


def _row_by_row(data: list[Any], column: InputColumn, rows: int, faults: Faults) -> np.ndarray:
    """Numbers among which are others, nulls perhaps: whose row is bad is asked of each row alone."""
    if column.size > 1 and len(data) == rows * column.size and not any(isinstance(value, list) for value in data):
        data = [data[start : start + column.size] for start in range(0, len(data), column.size)]
    if len(data) != rows or not (column.size == 1 or all(isinstance(value, list) for value in data)):
        said = f"needed {rows * column.size} numbers for its shape, got {_sample(data)}"
        raise RecordError(f"input {column.name}: {said}")
    values = np.zeros((rows, column.size), np.float64 if np.dtype(column.dtype).kind == "f" else object)
    for row, value in enumerate(data):
        try:
            values[row] = _row(value, column)
        except ValueError as fault:
            faults.note(row, column.name, fault)
    return _fitting(values, column, faults)


def _row(value: Any, column: InputColumn) -> np.ndarray:
    """One record's numbers, flat."""
    try:
        found = np.array(value)
    except (ValueError, OverflowError):  # lists of different lengths
        found = np.empty(0, object)
    found = nulls_as_nan(found) if column.missing == "fill" else found
    if found.dtype.kind not in _kinds(column):
        raise ValueError(f"needed numbers of type {column.dtype}, got {_sample(value)}")
    if found.size != column.size:
        raise ValueError(f"needed {column.size} numbers, got {found.size}")
    return found.reshape(-1)


def _each(values: Sequence[Any], column: InputColumn, faults: Faults) -> Values:
    """Texts, categories, times or images, one by one, as ``encode_inputs`` takes them."""
    found: list[Any] = []
    for row, value in enumerate(values):
        try:
            each = _value(value, column)
            if each is None and column.missing == "refuse":
                raise ValueError("missing")
        except ValueError as fault:
            faults.note(row, column.name, fault)
            each = None
        found.append(b"" if each is None and column.kind == "image" else each)
    return np.array([times.GAP if v is None else v for v in found], np.int64) if column.kind == "time" else found


def _value(value: Any, column: InputColumn) -> str | int | bytes | None:
    """One element of JSON or of the binary part; ``None`` is a gap.

    Raises:
        ValueError: it is none of the column's.
    """
    if column.kind != "image" and isinstance(value, bytes):
        value = _text(value)
    if value is None or column.kind == "category":
        return category_of(value)
    if column.kind == "time":
        return times.microseconds(value, column.epoch) if value != "" else None
    if column.kind == "image":
        return value if isinstance(value, bytes) else _base64(value)
    if not isinstance(value, str):
        raise ValueError(f"needed a string, got {value!r:.40}")
    return value


def _text(element: bytes) -> str:
    try:
        return element.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"needed UTF-8 text, got {element[:20]!r}") from None


def _base64(value: object) -> bytes:
    try:
        return base64.b64decode(value, validate=True)  # type: ignore[arg-type]
    except (binascii.Error, ValueError, TypeError):
        raise ValueError(f"needed image bytes as base64 in JSON, got {value!r:.40}") from None


def to_json(content: object) -> bytes:
    """JSON; numbers that are not finite become null, since no other reader takes NaN."""
    try:
        return pydantic_core.to_json(content, inf_nan_mode="null")
    except pydantic_core.PydanticSerializationError:  # half of a surrogate pair, which UTF-8 has not
        return json.dumps(content).encode()


def to_binary(values: Values | Sequence[Label | None], datatype: str) -> bytes:
    """The bytes of a tensor in the protocol's binary form; text has its length before it.

    ``None`` is the empty text, or ``NO_NUMBER``.
    """
    if datatype == "FP32":
        return np.ascontiguousarray(values, dtype="<f4").tobytes()
    if datatype == "INT64":
        return np.array([NO_NUMBER if value is None else value for value in values], "<i8").tobytes()
    elements = [b"" if value is None else str(value).encode("utf-8", "replace") for value in values]
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def wire_shape(column: InputColumn) -> tuple[int, ...]:
    """Shape of one record in a request; what is no tensor is one element."""
    return column.shape or (1,) if column.kind == "tensor" else (1,)


def text_bytes(column: InputColumn) -> int | None:
    """The most bytes that one record's values can need as JSON; ``None`` for what has no size, as texts and images."""
    if column.kind != "tensor":
        return None
    kind = np.dtype(column.dtype)
    digits = len(str(np.iinfo(kind).min)) if kind.kind in "iu" else _FLOAT_CHARACTERS
    return column.size * (digits + 2) + _ROW_CHARACTERS


def datatype_of(column: InputColumn) -> str:
    """The protocol's datatype of an input column."""
    return DATATYPES[column.dtype] if column.kind == "tensor" else "BYTES"


def as_mapping(value: object, what: str) -> Mapping[str, Any]:
    """The value, if it is a JSON object.

    Raises:
        RecordError: it is none.
    """
    if not isinstance(value, dict):
        raise RecordError(f"needed a JSON object as {what}, got {kind_of(value)}")
    return value


def kind_of(value: object) -> str:
    """What JSON calls the type of a value, with its article."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "nothing")


def _sample(data: Any) -> str:
    while isinstance(data, list) and data and isinstance(data[0], list):
        data = data[0]
    return f"{data!r:.80}" if not isinstance(data, list) else f"{data[:4]!r:.80}"
