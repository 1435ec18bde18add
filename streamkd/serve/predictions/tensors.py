"""One tensor of a request or an answer: JSON or little-endian bytes, checked against its column.

A BYTES element is a 4-byte length and its bytes; JSON holds the bytes of images as base64.
"""

import base64
import binascii
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import pydantic_core

from streamkd.errors import LimitExceeded, RecordError
from streamkd.records import InputColumn

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
Values = np.ndarray | list[str] | list[bytes]
_FLOAT_CHARACTERS = 24  # -1.7976931348623157e+308
_ROW_CHARACTERS = 64  # brackets


def read_tensor(
    tensor: Mapping[str, object], column: InputColumn, tail: memoryview, limit_rows: int
) -> tuple[Values, int, memoryview]:
    """Values and number of records of one input, and what is left of the binary part."""
    datatype, where = datatype_of(column), f"input {column.name}"
    if tensor.get("datatype") != datatype:
        raise RecordError(f"{where}: needed datatype {datatype}, got {tensor.get('datatype')!r:.40}")
    rows = _rows(tensor.get("shape"), column, where, limit_rows)
    parameters = as_mapping(tensor.get("parameters", {}), f"parameters of {where}")
    if "shared_memory_region" in parameters:
        raise RecordError(f"{where}: shared memory is not supported", fix="send the tensor in the request")
    size = parameters.get("binary_data_size")
    if size is None:
        return _from_json(tensor.get("data"), column, rows, where), rows, tail
    if "data" in tensor:
        raise RecordError(f"{where}: needed either data or binary_data_size, got both")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(tail):
        raise RecordError(f"{where}: needed binary_data_size of at most {len(tail)} (what came), got {size!r:.40}")
    return _from_binary(tail[:size], column, rows, where), rows, tail[size:]


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


def _from_binary(raw: memoryview, column: InputColumn, rows: int, where: str) -> Values:
    if column.kind != "tensor":
        return _elements(raw, column, rows, where)
    needed = rows * column.size * np.dtype(column.dtype).itemsize
    if len(raw) != needed:
        raise RecordError(f"{where}: needed {needed} bytes for its shape and datatype, got {len(raw)}")
    values = np.frombuffer(raw, np.dtype(column.dtype).newbyteorder("<"))
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise RecordError("NaN or infinite", where=f"input {column.name!r}")
    return values.astype(column.dtype).reshape(rows, *column.shape)  # a copy: torch takes no read-only memory


def _elements(raw: memoryview, column: InputColumn, rows: int, where: str) -> list[str] | list[bytes]:
    values: list[Any] = []
    place = 0
    while place < len(raw):
        if place + 4 > len(raw) or len(values) == rows:
            break
        (length,) = struct.unpack_from("<I", raw, place)
        place += 4 + length
        if place > len(raw):
            break
        values.append(_text(bytes(raw[place - length : place]), column, where))
    if place != len(raw) or len(values) != rows:
        raise RecordError(f"{where}: needed {rows} elements, each with a 4-byte length before it, got other bytes")
    return values


def _text(element: bytes, column: InputColumn, where: str) -> str | bytes:
    if column.kind == "image":
        return element
    try:
        return element.decode("utf-8")
    except UnicodeDecodeError:
        raise RecordError(f"{where}: needed UTF-8 text, got {element[:20]!r}") from None


def _from_json(data: object, column: InputColumn, rows: int, where: str) -> Values:
    if not isinstance(data, list):
        raise RecordError(f"{where}: needed a list as data, got {kind_of(data)}")
    if column.kind != "tensor":
        return _strings(data, column, rows, where)
    try:
        values = np.array(data)
    except (ValueError, OverflowError):
        values = np.empty(0, object)
    target = np.dtype(column.dtype)
    if values.dtype.kind not in ("iu" if target.kind in "iu" else "iuf"):
        raise RecordError(f"{where}: needed numbers of type {column.dtype} in even rows, got {_sample(data)}")
    if values.size != rows * column.size or (values.ndim > 2 and values.shape[1:] != column.shape):
        raise RecordError(f"{where}: needed {rows * column.size} numbers for its shape, got shape {values.shape}")
    return _narrow(values, target, where).reshape(rows, *column.shape)


def _narrow(values: np.ndarray, target: np.dtype, where: str) -> np.ndarray:
    low, high = values.min(), values.max()
    limits = np.iinfo(target) if target.kind in "iu" else np.finfo(target)
    if not (limits.min <= low and high <= limits.max):
        raise RecordError(f"{where}: needed numbers that fit {target}, got {low} to {high}")
    return values.astype(target)


def _strings(data: list[Any], column: InputColumn, rows: int, where: str) -> list[str] | list[bytes]:
    flat = [v for value in data for v in (value if isinstance(value, list) else [value])]
    if len(flat) != rows or not all(isinstance(value, str) for value in flat):
        raise RecordError(f"{where}: needed {rows} strings, got {_sample(data)}")
    if column.kind == "text":
        return flat
    try:
        return [base64.b64decode(value, validate=True) for value in flat]
    except (binascii.Error, ValueError):
        raise RecordError(f"{where}: needed image bytes as base64 in JSON, got {_sample(data)}") from None


def to_json(content: object) -> bytes:
    """JSON; numbers that are not finite become null, since no other reader takes NaN."""
    try:
        return pydantic_core.to_json(content, inf_nan_mode="null")
    except pydantic_core.PydanticSerializationError:  # half of a surrogate pair, which UTF-8 has not
        return json.dumps(content).encode()


def to_binary(values: Values, datatype: str) -> bytes:
    """The bytes of a tensor in the protocol's binary form; text has its length before it."""
    if datatype != "BYTES":
        return np.ascontiguousarray(values, dtype="<f4" if datatype == "FP32" else "<i8").tobytes()
    elements = [str(value).encode("utf-8", "replace") for value in values]
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def wire_shape(column: InputColumn) -> tuple[int, ...]:
    """Shape of one record in a request; a text or an image is one element."""
    return column.shape or (1,) if column.kind == "tensor" else (1,)


def text_bytes(column: InputColumn) -> int | None:
    """The most bytes that one record's values can need as JSON; ``None`` for texts and images, which have no size."""
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
