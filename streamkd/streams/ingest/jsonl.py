"""JSON lines as rows of a stream: each line is one object, each value is coerced to its column's type.

Tensors are numbers, booleans or (nested) lists of them, categories text, numbers or booleans, images base64 text, times
ISO 8601, event times that or seconds since 1970. A gap is null, or no such key. A line that does not fit is refused
alone. Keys that are no columns are ignored.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from streamkd.records import InputColumn, RecordSchema, Reject, RejectReason
from streamkd.streams.encoding import times
from streamkd.streams.encoding.canonical import MOMENT, Place, arrow_schema, places
from streamkd.streams.encoding.categories import category_of
from streamkd.streams.encoding.lists import fit, nulls_as_nan

LINE_FACTOR = 5  # "255," takes four bytes for one


def in_json(value: Any) -> str | float:
    """What JSON has no form for, as ``parse`` reads it; the ``default`` of ``json.dumps``."""
    if isinstance(value, bytes | bytearray):
        return base64.b64encode(value).decode()
    return float(value) if isinstance(value, Decimal) else value.isoformat() if isinstance(value, date) else str(value)


class _UnfitError(Exception):
    """A line that cannot become a row."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def parse(
    lines: Sequence[bytes], schema: RecordSchema, row_bytes: int, beside: Sequence[Mapping[str, str]] = ()
) -> tuple[pa.RecordBatch, list[int], list[Reject]]:
    """Rows of the lines that fit, the line number of each row, and why the other lines do not fit.

    ``beside``: further values of each line, where there are any.
    """
    rows: list[list[Any]] = []
    columns = places(schema)
    numbers: list[int] = []
    rejects: list[Reject] = []
    with np.errstate(all="ignore"):  # what a column's type cannot hold is found
        for number, line in enumerate(lines):
            try:
                if len(line) > row_bytes * LINE_FACTOR:
                    raise _UnfitError("too_large", f"a line of {len(line)} bytes, at most {row_bytes * LINE_FACTOR}")
                values = {**_load(line), **beside[number]} if beside else _load(line)
                rows.append([_value(values.get(place.name), place) for place in columns])
                numbers.append(number)
            except _UnfitError as unfit:
                rejects.append(Reject(number, unfit.reason, str(unfit)))
    return _batch(rows, schema), numbers, rejects


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


def _value(value: Any, place: Place) -> Any:
    """The value of one canonical column."""
    if value is None:
        if place.missing is None or place.optional:
            return None
        raise _UnfitError(place.missing, f"{place.name}: missing")
    if place.column is not None:
        return _input(value, place.column)
    if place.type == MOMENT:
        return _time(value, place.name)
    return _label(value, place) if place.missing == "missing_label" else _plain(value, place.name)


def _input(value: Any, column: InputColumn) -> Any:
    if column.kind == "tensor":
        return _tensor(value, column)
    if column.kind in ("category", "time"):
        return _category_or_time(value, column)
    if not isinstance(value, str):
        raise _UnfitError("decode", f"{column.name}: needed text, got {type(value).__name__}")
    try:
        return _utf8(value, column.name) if column.kind == "text" else base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise _UnfitError("decode", f"{column.name}: needed base64") from None


def _category_or_time(value: Any, column: InputColumn) -> str | int | None:
    """Canonical; the empty text is a gap."""
    try:
        if column.kind == "category":
            found: str | int | None = category_of(value)
        else:
            found = times.microseconds(value, column.epoch) if value != "" else None
    except ValueError as fault:
        raise _UnfitError("decode", f"{column.name}: {fault}") from None
    if found is None and column.missing == "refuse":
        raise _UnfitError("missing_input", f"{column.name}: missing")
    return _utf8(found, column.name) if isinstance(found, str) else found


def _tensor(value: Any, column: InputColumn) -> np.ndarray:
    """One record's numbers, flat and in the column's element type; NaN where a gap is filled."""
    needed, fills = np.dtype(column.dtype), column.missing == "fill"
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):  # lists of different lengths, or deeper than numpy goes
        raise _UnfitError("wrong_shape", f"{column.name}: lists of different lengths") from None
    array = nulls_as_nan(array) if fills else array
    if array.size and array.dtype.kind not in "iufb":
        missing = array.dtype.kind == "O" and any(each is None for each in array.reshape(-1))
        said = "a null" if missing else "needed numbers"
        raise _UnfitError("missing_input" if missing else "decode", f"{column.name}: {said}")
    array = fit(array, column.size) if column.pad and array.ndim == 1 else array
    if array.shape not in (column.shape, (column.size,)) and not (column.size == 1 and array.shape == ()):
        raise _UnfitError("wrong_shape", f"{column.name}: needed shape {list(column.shape)}, got {list(array.shape)}")
    cast = array.astype(needed)
    if needed.kind == "f" and not (np.isfinite(cast) | np.isnan(cast) if fills else np.isfinite(cast)).all():
        raise _UnfitError("not_finite", f"{column.name}: NaN or infinite")
    if needed.kind != "f" and not np.array_equal(cast, array):
        raise _UnfitError("decode", f"{column.name}: a value that {needed} cannot hold")
    return cast.reshape(-1)


def _label(value: Any, place: Place) -> str | int:
    if pa.types.is_string(place.type):
        if isinstance(value, str):
            return _utf8(value, place.name)
    elif _is_whole(value):
        return int(value)
    needed = "string" if pa.types.is_string(place.type) else "int"
    raise _UnfitError("decode", f"{place.name}: needed {needed}, got {json.dumps(value)[:80]}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | float) and -(2**63) <= value < 2**63 and value == int(value)


def _plain(value: Any, name: str) -> str:
    """Tasks and ids: text, or what JSON writes for it."""
    if isinstance(value, str):
        return _utf8(value, name)
    if isinstance(value, list | dict):
        raise _UnfitError("decode", f"{name}: needed text or a number")
    return json.dumps(value)


def _time(value: Any, name: str) -> datetime:
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
    columns = list(zip(*rows, strict=True)) or [()] * len(places(schema))
    arrays = []
    for place, values in zip(places(schema), columns, strict=True):
        if place.column is not None and place.column.kind == "tensor":
            gap = np.full(place.column.size, np.nan if place.missing is None else 0).astype(place.column.dtype)
            flat = np.concatenate([gap if each is None else each for each in values] or [gap[:0]])
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(flat, place.type.value_type), type=place.type))
        else:
            arrays.append(pa.array(values, place.type))
    return pa.RecordBatch.from_arrays(arrays, schema=arrow_schema(schema))
