"""What a stream's records look like in Arrow, and the good rows of a batch in exactly that form.

    batch as it came ─► check_schema (whole) ─► sift ─► canonical rows + rejects ─► encode ─► numpy

Canonical: a tensor is a fixed-size list of the column's element type, text a string, an image its
bytes, the label int64 or string, task and id strings, the event time microseconds UTC. What is
cast keeps its value: integers must survive exactly, floats are rounded to the declared width.
Where records may lack their label it is null, and a batch may lack the whole column.
Called by the intake of push sources, by the learner (``encode``), and by the predictor (``encode_inputs``).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streamkd.errors import LimitExceeded, SchemaMismatch
from streamkd.records import InputColumn, Records, RecordSchema, Reject, RejectReason
from streamkd.streams.encoding.arrays import encode_inputs, encode_rows, undecodable
from streamkd.streams.encoding.lists import padded

__all__ = ["arrow_schema", "check_schema", "encode", "encode_inputs", "sift"]

NAME_BYTES = 256  # of a label or a task
DICTIONARY_BYTES = 256 << 20  # what dictionary columns may unfold to
_EVENT_TIME = pa.timestamp("us", "UTC")
_SECONDS = (
    -62_135_596_800,
    253_402_300_800,
)  # the years 1 to 9999, which ``datetime`` can hold; the end is no longer one
_PARTS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@lru_cache(64)
def arrow_schema(schema: RecordSchema) -> pa.Schema:
    """The canonical Arrow schema of a stream; columns in the order inputs, label, task, id, event time."""
    return pa.schema([(place.name, place.type) for place in _places(schema)])


def check_schema(got: pa.Schema, schema: RecordSchema) -> None:
    """Whether batches of a schema can be taken; further columns are ignored.

    Raises:
        SchemaMismatch: names the column, what it needs and what came.
    """
    for place in _places(schema):
        indices = got.get_all_field_indices(place.name)
        where = f"column {place.name!r}"
        if not indices and place.optional:
            continue
        if len(indices) != 1:
            said = "no such column" if not indices else f"{len(indices)} columns of that name"
            raise SchemaMismatch(f"needed {place.type}, got {said} (columns: {_names(got)})", where=where)
        found = got.field(indices[0]).type
        if not _fits(found, place):
            fix = f"send {place.type}, or change stream.records to what is sent"
            raise SchemaMismatch(f"needed {place.type}, got {found}", where=where, fix=fix)


def sift(
    rows: pa.RecordBatch, schema: RecordSchema, row_bytes: int | None = None, *, images: bool = False
) -> tuple[pa.RecordBatch, list[Reject]]:
    """The good rows in canonical form and order, and why each of the others is refused.

    ``Reject.row`` counts in ``rows``. ``row_bytes`` bounds the bytes of one record. ``images``: also those go whose
    image cannot be decoded.

    Raises:
        SchemaMismatch: as ``check_schema``. LimitExceeded: a dictionary that unfolds past all bounds.
    """
    check_schema(rows.schema, schema)
    faults = _Faults(rows.num_rows)
    arrays = []
    for place in _places(schema):
        index = rows.schema.get_field_index(place.name)
        array = _plain(rows.column(index)) if index >= 0 else pa.nulls(rows.num_rows, place.type)
        if place.column is not None and place.column.kind == "tensor":
            arrays.append(_tensor(array, place.column, place.type, faults))
        elif pa.types.is_int64(place.type):
            arrays.append(_integers(array, place, faults))
        else:
            arrays.append(_cast(array, place, faults))
    if row_bytes is not None:
        _refuse_large(arrays, row_bytes, faults)
        _refuse_long_names(arrays, schema, faults)
    if images:
        _refuse_undecodable(arrays, schema, faults)
    canonical = pa.RecordBatch.from_arrays(arrays, schema=arrow_schema(schema))
    return (canonical if faults.none else canonical.filter(pa.array(~faults.bad))), faults.rejects()


def encode(rows: pa.RecordBatch, schema: RecordSchema, partition_offset: int) -> tuple[Records, list[Reject]]:
    """Rows to numbers; rows in another form are sifted first.

    ``partition_offset`` is the offset of ``rows[0]``; ``Reject.row`` counts in ``rows``.

    Raises:
        SchemaMismatch: the rows are neither canonical nor can be made so.
    """
    numbers = np.arange(rows.num_rows)
    rejects: list[Reject] = []
    canonical = rows.schema.equals(arrow_schema(schema))
    if not canonical or (not schema.unlabelled and rows.column(schema.label).null_count):
        rows, rejects = sift(rows, schema)
        numbers = np.delete(numbers, [reject.row for reject in rejects])
    records, undecoded = encode_rows(rows, schema, numbers, partition_offset)
    return records, sorted([*rejects, *undecoded], key=lambda reject: reject.row)


@dataclass(frozen=True)
class _Place:
    """One canonical column; ``missing`` is the reason for a row without a value (``None``: it may be null).

    ``optional``: a label that may be null, or not there at all.
    """

    name: str
    type: pa.DataType
    missing: RejectReason | None
    column: InputColumn | None = None
    optional: bool = False


@lru_cache(64)
def _places(schema: RecordSchema) -> tuple[_Place, ...]:
    return tuple(_each_place(schema))


def _each_place(schema: RecordSchema) -> Iterator[_Place]:
    kinds = {"text": pa.string(), "image": pa.binary()}
    for column in schema.inputs:
        tensor = pa.list_(pa.from_numpy_dtype(np.dtype(column.dtype)), column.size)
        yield _Place(column.name, kinds.get(column.kind, tensor), "missing_input", column)
    label = pa.int64() if schema.label_type == "int" else pa.string()
    yield _Place(schema.label, label, "missing_label", optional=schema.unlabelled)
    if schema.task:
        yield _Place(schema.task, pa.string(), "missing_task")
    if schema.id:
        yield _Place(schema.id, pa.string(), None)
    if schema.event_time:
        yield _Place(schema.event_time, _EVENT_TIME, None)


def _names(got: pa.Schema) -> str:
    try:
        return ", ".join(map(repr, got.names[:20])) or "none"
    except UnicodeDecodeError:  # Arrow does not look at what a name is made of
        return "some with names that are not UTF-8"


def _fits(found: pa.DataType, place: _Place) -> bool:
    if place.column is not None:
        return _fits_input(found, place.column)
    if place.type == _EVENT_TIME:
        return pa.types.is_timestamp(found) or pa.types.is_date(found)
    if place.optional and pa.types.is_null(found):
        return True
    found = found.value_type if pa.types.is_dictionary(found) else found
    if pa.types.is_int64(place.type):
        return pa.types.is_integer(found) or pa.types.is_floating(found)
    if place.missing == "missing_label":
        return _is_text(found)
    return _is_text(found) or pa.types.is_primitive(found)  # tasks and ids of any plain type are written out


def _fits_input(found: pa.DataType, column: InputColumn) -> bool:
    if column.kind == "text":
        return _is_text(found.value_type if pa.types.is_dictionary(found) else found)
    if column.kind == "image":
        return pa.types.is_binary(found) or pa.types.is_large_binary(found)
    if isinstance(found, pa.FixedShapeTensorType):
        in_order = found.permutation is None or list(found.permutation) == sorted(found.permutation)
        return in_order and (tuple(found.shape) or (1,)) == (column.shape or (1,)) and _fits_element(found, column)
    sizes, element = _nesting(found)
    known = [(size, n) for size, n in zip(sizes, _levels(column, len(sizes)), strict=False) if size is not None]
    return (
        len(sizes) in (0, 1, len(column.shape))
        and (bool(sizes) or column.size == 1)
        and (column.pad or all(size == n for size, n in known))
        and _fits_number(element, np.dtype(column.dtype))
    )


def _fits_element(found: pa.FixedShapeTensorType, column: InputColumn) -> bool:
    return _fits_number(found.value_type, np.dtype(column.dtype))


def _fits_number(found: pa.DataType, needed: np.dtype) -> bool:
    """Integers go into integers (row by row, if they survive) and floats; floats into floats only."""
    if pa.types.is_integer(found):
        return True
    return pa.types.is_floating(found) and needed.kind == "f"


def _is_text(found: pa.DataType) -> bool:
    return pa.types.is_string(found) or pa.types.is_large_string(found)


def _nesting(found: pa.DataType) -> tuple[list[int | None], pa.DataType]:
    """The list sizes from outside in (``None``: any), and the element type."""
    sizes: list[int | None] = []
    while pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found):
        sizes.append(found.list_size if pa.types.is_fixed_size_list(found) else None)
        found = found.value_type
    return sizes, found


def _levels(column: InputColumn, depth: int) -> tuple[int, ...]:
    """The length that each level of a list must have: the shape, or all elements in one flat list."""
    return column.shape if depth == len(column.shape) and depth > 1 else (column.size,)[:depth]


@dataclass
class _Faults:
    """The bad rows of one batch; a row keeps the first reason that was found."""

    rows: int
    found: dict[int, tuple[RejectReason, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bad = np.zeros(self.rows, bool)

    @property
    def none(self) -> bool:
        return not self.found

    def add(self, rows: np.ndarray, reason: RejectReason, detail: str) -> None:
        """Mark rows (indices)."""
        for row in rows[~self.bad[rows]].tolist():
            self.found[row] = (reason, detail)
        self.bad[rows] = True

    def rejects(self) -> list[Reject]:
        return [Reject(row, *self.found[row]) for row in sorted(self.found)]


def _plain(array: pa.Array) -> pa.Array:
    """Extension types as their storage, dictionaries as their values."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if not pa.types.is_dictionary(array.type):
        return array
    if _is_text(array.type.value_type):
        lengths = pc.binary_length(array.dictionary).cast(pa.int64())
        decoded_bytes = pc.sum(lengths.take(array.indices)).as_py() or 0
        if decoded_bytes > DICTIONARY_BYTES:
            raise LimitExceeded(f"a dictionary column of {decoded_bytes} bytes, at most {DICTIONARY_BYTES}")
    return array.dictionary_decode()


def _tensor(array: pa.Array, column: InputColumn, needed: pa.DataType, faults: _Faults) -> pa.Array:
    """Any list or number column as fixed-size lists; rows that do not fit hold zeros and are marked."""
    sizes, _ = _nesting(array.type)
    array = padded(array, column.size) if column.pad and len(sizes) == 1 else array
    owners = np.arange(len(array), dtype=np.int32)  # of each value its row: four bytes a value, not eight
    for depth, length in enumerate(_levels(column, len(sizes))):
        keep = _long_enough(array, owners, length, column, depth, faults)
        if not keep.all():
            array, owners = array.filter(pa.array(keep)), owners[keep]
        array, owners = array.flatten(), np.repeat(owners, length)
    if array.null_count:
        nulls = array.is_null().to_numpy(zero_copy_only=False)
        faults.add(np.unique(owners[nulls]), "missing_input", f"{column.name}: a null")
    values = array.fill_null(0).to_numpy(zero_copy_only=False) if array.null_count else array.to_numpy()
    values = _numbers(values, np.dtype(column.dtype), owners, column.name, faults)
    if len(owners) != faults.rows * column.size:
        whole = np.zeros((faults.rows, column.size), values.dtype)
        good = ~faults.bad[owners]
        whole[~faults.bad] = values[good].reshape(-1, column.size)
        values = whole.reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(values, needed.value_type), type=needed)


def _long_enough(
    array: pa.Array, owners: np.ndarray, length: int, column: InputColumn, depth: int, faults: _Faults
) -> np.ndarray:
    """Which lists go on to the next level: those of rows without a fault so far."""
    if array.null_count:
        missing = np.unique(owners[array.is_null().to_numpy(zero_copy_only=False)])
        faults.add(missing, "missing_input", f"{column.name}: a null")
    if not pa.types.is_fixed_size_list(array.type):
        lengths = pc.list_value_length(array).fill_null(length).to_numpy(zero_copy_only=False)
        wrong = lengths != length
        for got in np.unique(lengths[wrong]).tolist():
            said = f"{column.name}: needed {length} values, got {got}" + (f" at depth {depth + 1}" if depth else "")
            faults.add(np.unique(owners[lengths == got]), "wrong_shape", said)
    return np.asarray(~faults.bad[owners])


def _numbers(values: np.ndarray, needed: np.dtype, owners: np.ndarray, name: str, faults: _Faults) -> np.ndarray:
    """Cast; a row with a value that does not survive, or is not finite, is marked."""
    if values.dtype != needed:
        with np.errstate(all="ignore"):
            cast = values.astype(needed)
            if values.dtype.kind in "iu" and not np.can_cast(values.dtype, needed, "safe"):
                changed = (cast.astype(values.dtype) != values) | ((cast < 0) != (values < 0))
                if changed.any():
                    said = f"{name}: a value that {needed} cannot hold"
                    faults.add(np.unique(owners[changed]), "decode", said)
        values = cast
    if needed.kind == "f":
        finite = np.isfinite(values)
        if not finite.all():
            faults.add(np.unique(owners[~finite]), "not_finite", f"{name}: NaN or infinite")
    return values


def _integers(array: pa.Array, place: _Place, faults: _Faults) -> pa.Array:
    """Labels as int64; floats only where they are whole numbers, and NaN is none, as pandas writes it."""
    name = place.name
    array = array.cast(place.type) if pa.types.is_null(array.type) else array
    gone = np.zeros(len(array), bool)
    if array.null_count:
        gone[_nulls(array)] = True
        if not place.optional:
            faults.add(np.flatnonzero(gone), "missing_label", f"{name}: null")
        array = array.fill_null(0)
    values = array.to_numpy(zero_copy_only=False)
    if values.dtype.kind == "f":
        gone = gone | np.isnan(values) if place.optional else gone
        with np.errstate(invalid="ignore"):
            whole = np.isfinite(values) & (np.floor(values) == values) & (np.abs(values) < 2.0**63)
        for row in np.flatnonzero(~whole & ~gone).tolist():
            missing = np.isnan(values[row])
            reason: RejectReason = "missing_label" if missing else "decode"
            said = f"{name}: NaN" if missing else f"{name}: needed a whole number, got {values[row]}"
            faults.add(np.array([row]), reason, said)
        values = np.where(whole, values, 0)
    elif values.dtype == np.uint64:
        large = np.flatnonzero(values > np.iinfo(np.int64).max)
        faults.add(large, "decode", f"{name}: needed int64, got a larger number")
    return pa.array(values.astype(np.int64), mask=gone if place.optional and gone.any() else None)


def _cast(array: pa.Array, place: _Place, faults: _Faults) -> pa.Array:
    """Text, images, string labels, tasks, ids and event times."""
    if array.null_count and place.missing is not None and not place.optional:
        faults.add(_nulls(array), place.missing, f"{place.name}: null")
    if place.type == _EVENT_TIME:
        return _times(array, place.name, faults)
    try:
        return array if array.type == place.type else array.cast(place.type)
    except pa.ArrowException as fault:  # a time of a zone that nobody knows, an interval
        said = f"needed {place.type}, got {array.type}, which cannot be written out: {fault}"
        raise SchemaMismatch(said, where=f"column {place.name!r}", fix="send text") from None


def _times(array: pa.Array, name: str, faults: _Faults) -> pa.Array:
    """Event times as microseconds; one of another year than 1 to 9999 would wrap, or be no ``datetime``."""
    array = array.cast(pa.timestamp("s" if pa.types.is_date32(array.type) else "ms")) if _is_date(array) else array
    unit = array.type.unit
    first, end = (bound * _PARTS[unit] for bound in _SECONDS)
    values = array.cast(pa.int64())
    inside = pc.and_(pc.greater_equal(values, max(first, -(2**63))), pc.less_equal(values, min(end, 2**63) - 1))
    if not pc.all(inside, min_count=0).as_py():
        outside = np.flatnonzero(~inside.fill_null(True).to_numpy(zero_copy_only=False))
        for row in outside.tolist():
            said = f"{name}: needed a time of the years 1 to 9999, got {values[row].as_py()} {unit} since 1970"
            faults.add(np.array([row]), "decode", said)
        array = pc.if_else(inside, array, pa.scalar(None, array.type))
    return array.cast(pa.timestamp("us", array.type.tz), safe=False).cast(_EVENT_TIME)


def _is_date(array: pa.Array) -> bool:
    return bool(pa.types.is_date(array.type))


def _nulls(array: pa.Array) -> np.ndarray:
    return np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))


def _refuse_large(arrays: list[pa.Array], row_bytes: int, faults: _Faults) -> None:
    sizes = np.zeros(faults.rows, np.int64)
    for array in arrays:
        if pa.types.is_string(array.type) or pa.types.is_binary(array.type):
            sizes += pc.binary_length(array).fill_null(0).to_numpy(zero_copy_only=False)
        else:
            sizes += array.type.bit_width // 8 if not pa.types.is_fixed_size_list(array.type) else _list_bytes(array)
    large = np.flatnonzero(sizes > row_bytes)
    if len(large):
        faults.add(large, "too_large", f"a record of {int(sizes[large].max())} bytes, at most {row_bytes}")


def _refuse_long_names(arrays: list[pa.Array], schema: RecordSchema, faults: _Faults) -> None:
    """Labels and tasks are kept for as long as the learner lives, and shown: they are names, not texts."""
    for array, place in zip(arrays, _places(schema), strict=True):
        if place.name in (schema.label, schema.task) and pa.types.is_string(array.type):
            long = pc.binary_length(array).fill_null(0).to_numpy(zero_copy_only=False) > NAME_BYTES
            faults.add(np.flatnonzero(long), "too_large", f"{place.name}: more than {NAME_BYTES} bytes")


def _refuse_undecodable(arrays: list[pa.Array], schema: RecordSchema, faults: _Faults) -> None:
    for array, column in zip(arrays, schema.inputs, strict=False):
        for row, reason, said in undecodable(array, column) if column.kind == "image" else ():
            faults.add(np.array([row]), reason, said)


def _list_bytes(array: pa.FixedSizeListArray) -> int:
    return int(array.type.list_size * array.type.value_type.bit_width // 8)
