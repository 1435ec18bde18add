"""Columns of lists as arrays [rows, size], and back as fixed-size lists.

    list, large list, fixed-size list (nested too), fixed-shape tensor ─► values [rows, size] ─► fixed_size_list

A row that does not have ``size`` values is null in the result; with ``pad`` a shorter row is filled with
zeros and a longer one is cut. Booleans are 0 and 1.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streamkd.errors import SchemaMismatch
from streamkd.streams.encoding.types import is_list, is_number

PADDED_ELEMENTS = 1 << 20


def element_type(kind: pa.DataType) -> pa.DataType:
    """The type of the innermost values."""
    if isinstance(kind, pa.FixedShapeTensorType):
        return element_type(kind.storage_type)
    return element_type(kind.value_type) if is_list(kind) else kind


def holds_lists(kind: pa.DataType) -> bool:
    """Whether a column of this type holds several values a row."""
    return isinstance(kind, pa.FixedShapeTensorType) or is_list(kind)


def to_fixed(values: np.ndarray, good: np.ndarray | None = None) -> pa.FixedSizeListArray:
    """``values`` [rows, size] as fixed-size lists; rows that are not ``good`` are null."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    mask = None if good is None or good.all() else pa.array(~good)
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=mask)


def padded(column: pa.Array, size: int) -> pa.FixedSizeListArray:
    """Lists of any length as lists of ``size``: shorter ones end in zeros, longer ones are cut, null rows stay null."""
    step = max(1, PADDED_ELEMENTS // size)  # what is computed beside the result stays small
    parts = [to_fixed(*to_values(column.slice(at, step), size, pad=True)) for at in range(0, len(column) or 1, step)]
    return parts[0] if len(parts) == 1 else pa.concat_arrays(parts)


def fit(values: np.ndarray, size: int) -> np.ndarray:
    """One list of numbers, ended in zeros or cut."""
    kind = values.dtype if values.size else np.uint8  # an empty list is of no type yet, and this one goes into any
    return np.concatenate([values[:size].astype(kind), np.zeros(max(0, size - len(values)), kind)])


def nulls_as_nan(values: np.ndarray) -> np.ndarray:
    """Numbers and nulls, as JSON has them, as numbers; anything else as it came."""
    if values.dtype.kind != "O" or not all(
        each is None or isinstance(each, int | float) for each in values.reshape(-1)
    ):
        return values
    return values.astype(np.float64)


def to_values(column: pa.Array, size: int, pad: bool = False, gaps: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """``(values [rows, size], good [rows])`` of a column of numbers or lists; bad rows hold zeros.

    With ``gaps`` nulls are NaN, and a null row is of nothing else.

    Raises:
        SchemaMismatch: the values are no numbers, or nested lists of varying length.
    """
    if gaps and column.null_count and is_list(column.type):
        there = np.asarray(column.is_valid())
        values, good = np.full((len(column), size), np.nan), np.ones(len(column), bool)
        values[there], good[there] = to_values(column.filter(pa.array(there)), size, pad, gaps)
        return values, good
    flat, lengths = _runs(column)
    flat = flat.cast(pa.uint8()) if pa.types.is_boolean(flat.type) else flat
    if not is_number(flat.type):
        raise SchemaMismatch(f"needed numbers or lists of numbers, got {column.type}")
    if gaps and flat.null_count:
        flat = flat.cast(pa.float64(), safe=False).fill_null(np.nan)
    good = (lengths >= 0) if pad else (lengths == size)
    missing = np.asarray(flat.is_null()) if flat.null_count else None
    numbers = (flat.fill_null(0) if flat.null_count else flat).to_numpy(zero_copy_only=False)
    if (lengths == size).all():
        values = numbers.reshape(-1, size)
        return values, good if missing is None else ~missing.reshape(-1, size).any(axis=1)
    starts = np.cumsum(np.maximum(lengths, 0)) - np.maximum(lengths, 0)
    there = (np.arange(size) < lengths[:, None]) & good[:, None]
    places = (starts[:, None] + np.arange(size))[there]
    values = np.zeros(there.shape, numbers.dtype)
    values[there] = numbers[places]
    if missing is not None:
        there[there] = missing[places]  # where a null is, from here on
        good = good & ~there.any(axis=1)
    return values, good


def _runs(column: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Innermost values, end to end, and how many of them are each row's (-1: the row is null)."""
    if isinstance(column.type, pa.FixedShapeTensorType):
        return _runs(column.storage)
    if not is_list(column.type):
        return column, np.ones(len(column), np.int64)
    lengths = pc.list_value_length(column).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    values, inner = _runs(column.flatten())
    if len(inner) and not (inner == inner[0]).all():
        raise SchemaMismatch(f"needed inner lists of one length, got {column.type} of several")
    return values, np.where(lengths < 0, -1, lengths * (inner[0] if len(inner) else 1))
