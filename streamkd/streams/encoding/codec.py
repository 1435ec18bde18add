"""The good rows of a batch in canonical form, and as numbers.

    batch as it came ─► check_schema (whole) ─► sift ─► canonical rows + rejects ─► encode ─► numpy

What is cast keeps its value: integers must survive exactly, floats are rounded to the declared width.
Where records may lack their label it is null, and a batch may lack the whole column.
Called by the intake of push sources, and by the learner (``encode``).
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streamkd.errors import LimitExceeded, SchemaMismatch
from streamkd.records import InputColumn, Records, RecordSchema, Reject, RejectReason
from streamkd.streams.encoding import times
from streamkd.streams.encoding.arrays import encode_rows, undecodable
from streamkd.streams.encoding.canonical import (
    MOMENT,
    Place,
    arrow_schema,
    check_schema,
    levels,
    nesting,
    places,
)
from streamkd.streams.encoding.categories import category_of
from streamkd.streams.encoding.lists import padded, to_values
from streamkd.streams.encoding.types import is_text

NAME_BYTES = 256  # of a label or a task
DICTIONARY_BYTES = 256 << 20  # what dictionary columns may unfold to
_SECONDS = (-62_135_596_800, 253_402_300_800)  # from year 1 to before year 10,000, which ``datetime`` can hold
_PARTS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


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
    for place in places(schema):
        index = rows.schema.get_field_index(place.name)
        array = _plain(rows.column(index)) if index >= 0 else pa.nulls(rows.num_rows, place.type)
        if place.column is not None:
            arrays.append(_input(array, place, place.column, faults))
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
    return (canonical.filter(pa.array(~faults.bad)) if faults.bad.any() else canonical), faults.rejects()


def encode(rows: pa.RecordBatch, schema: RecordSchema, partition_offset: int) -> tuple[Records, list[Reject]]:
    """Rows to numbers; rows in another form are sifted first.

    ``partition_offset`` is the offset of ``rows[0]``; ``Reject.row`` counts in ``rows``.

    Raises:
        SchemaMismatch: the rows are neither canonical nor can be made so.
    """
    numbers = np.arange(rows.num_rows)
    rejects: list[Reject] = []
    if not _is_sifted(rows, schema):
        rows, rejects = sift(rows, schema)
        numbers = np.delete(numbers, [reject.row for reject in rejects])
    records, undecoded = encode_rows(rows, schema, numbers, partition_offset)
    return records, sorted([*rejects, *undecoded], key=lambda reject: reject.row)


def _is_sifted(rows: pa.RecordBatch, schema: RecordSchema) -> bool:
    """Whether nothing is left for ``sift``: rows of the log, or of a file that happens to be as whole as they are."""
    return rows.schema.equals(arrow_schema(schema)) and all(
        _is_whole(rows.column(place.name), place) for place in places(schema)
    )


def _is_whole(array: pa.Array, place: Place) -> bool:
    kind = place.column.kind if place.column else None
    if kind == "tensor":
        values = array.flatten()
        floats = pa.types.is_floating(values.type)
        whole = not floats or not _neither_number_nor_gap(values.to_numpy(zero_copy_only=False), place.column).any()
        return not array.null_count and not values.null_count and whole
    if array.null_count and place.missing is not None and not place.optional:
        return False
    return kind != "category" or not pc.any(pc.equal(array, "")).as_py()


class _Faults:
    """The bad rows of one batch; a row keeps the first reason that was found."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.bad = np.zeros(rows, bool)
        self._found: dict[int, tuple[RejectReason, str]] = {}

    def add(self, rows: np.ndarray | list[int], reason: RejectReason, detail: str) -> None:
        """Mark rows (indices)."""
        for row in np.asarray(rows, np.int64).tolist():
            self._found.setdefault(row, (reason, detail))
        self.bad[rows] = True

    def rejects(self) -> list[Reject]:
        return [Reject(row, *self._found[row]) for row in sorted(self._found)]


def _plain(array: pa.Array) -> pa.Array:
    """Extension types as their storage, dictionaries as their values."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if not pa.types.is_dictionary(array.type):
        return array
    if is_text(array.type.value_type):
        lengths = pc.binary_length(array.dictionary).cast(pa.int64())
        decoded_bytes = pc.sum(lengths.take(array.indices)).as_py() or 0
        if decoded_bytes > DICTIONARY_BYTES:
            raise LimitExceeded(f"a dictionary column of {decoded_bytes} bytes, at most {DICTIONARY_BYTES}")
    return array.dictionary_decode()


def _input(array: pa.Array, place: Place, column: InputColumn, faults: _Faults) -> pa.Array:
    array = array.cast(place.type) if pa.types.is_null(array.type) else array
    if column.kind == "tensor" and column.missing == "fill":
        return _with_gaps(array, column, place.type, faults)
    if column.kind == "tensor":
        if array.type == place.type and _is_whole(array, place):  # as most producers send it: nothing is copied
            return array
        return _tensor(array, column, place.type, faults)
    if column.kind == "category":
        array = _category(array)
    elif column.kind == "time" and not pa.types.is_temporal(array.type):
        array = _moments(array, column, faults)
    return _cast(array, place, faults)


def _category(array: pa.Array) -> pa.Array:
    """Whatever names a category as text, of booleans 0 and 1; numbers of a floating type are whole where they can be
    (as pandas writes integers with gaps), NaN and the empty text are gaps.
    """
    if pa.types.is_floating(array.type):
        values = array.cast(pa.float64()).to_numpy(zero_copy_only=False)
        return pa.array([category_of(value) for value in values.tolist()], pa.string())
    array = array.cast(pa.uint8()) if pa.types.is_boolean(array.type) else array
    array = array if is_text(array.type) else array.cast(pa.string())
    empty = pc.equal(array, "")
    return pc.if_else(empty, pa.scalar(None, array.type), array) if pc.any(empty).as_py() else array


def _moments(array: pa.Array, column: InputColumn, faults: _Faults) -> pa.Array:
    """Times from text or whole numbers; the empty text is a gap."""
    found: list[int | None] = []
    for row, value in enumerate(array.to_pylist()):
        try:
            found.append(None if value is None or value == "" else times.microseconds(value, column.epoch))
        except ValueError as fault:
            faults.add([row], "decode", f"{column.name}: {fault}")
            found.append(0)
    return pa.array(found, MOMENT)


def _with_gaps(array: pa.Array, column: InputColumn, needed: pa.DataType, faults: _Faults) -> pa.Array:
    """A number or a flat list of numbers in which nulls become NaN."""
    values, good = to_values(array, column.size, column.pad, gaps=True)
    if not good.all():
        faults.add(np.flatnonzero(~good), "wrong_shape", f"{column.name}: needed {column.size} values, got others")
    owners = np.repeat(np.arange(len(values), dtype=np.int32), column.size)
    numbers = _numbers(values.reshape(-1), column, owners, faults)
    return pa.FixedSizeListArray.from_arrays(pa.array(numbers, needed.value_type), type=needed)


def _tensor(array: pa.Array, column: InputColumn, needed: pa.DataType, faults: _Faults) -> pa.Array:
    """Any list or number column as fixed-size lists; rows that do not fit hold zeros and are marked."""
    sizes, _ = nesting(array.type)
    array = padded(array, column.size) if column.pad and len(sizes) == 1 else array
    owners = np.arange(len(array), dtype=np.int32)  # of each value its row: four bytes a value, not eight
    for depth, length in enumerate(levels(column, len(sizes))):
        keep = _long_enough(array, owners, length, column, depth, faults)
        if not keep.all():
            array, owners = array.filter(pa.array(keep)), owners[keep]
        array, owners = array.flatten(), np.repeat(owners, length)
    array = array.cast(pa.uint8()) if pa.types.is_boolean(array.type) else array
    if array.null_count:
        nulls = array.is_null().to_numpy(zero_copy_only=False)
        faults.add(np.unique(owners[nulls]), "missing_input", f"{column.name}: a null")
    values = array.fill_null(0).to_numpy(zero_copy_only=False) if array.null_count else array.to_numpy()
    values = _numbers(values, column, owners, faults)
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


def _numbers(values: np.ndarray, column: InputColumn, owners: np.ndarray, faults: _Faults) -> np.ndarray:
    """Cast; a row with a value that does not survive, or is neither finite nor a gap, is marked."""
    needed, name = np.dtype(column.dtype), column.name
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
        wrong = _neither_number_nor_gap(values, column)
        if wrong.any():
            faults.add(np.unique(owners[wrong]), "not_finite", f"{name}: NaN or infinite")
        if column.missing == "fill":
            values = np.where(np.isnan(values), needed.type(np.nan), values)  # of all that is called NaN one
    return values


def _neither_number_nor_gap(values: np.ndarray, column: InputColumn | None) -> np.ndarray:
    return np.isinf(values) if column is not None and column.missing == "fill" else ~np.isfinite(values)


def _integers(array: pa.Array, place: Place, faults: _Faults) -> pa.Array:
    """Labels as int64; floats only where they are whole numbers, and NaN is none, as pandas writes it."""
    name = place.name
    array = array.cast(place.type) if pa.types.is_null(array.type) or pa.types.is_boolean(array.type) else array
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
        faults.add(np.flatnonzero(np.isnan(values) & ~gone), "missing_label", f"{name}: NaN")
        for row in np.flatnonzero(~whole & ~gone & ~np.isnan(values)).tolist():
            faults.add([row], "decode", f"{name}: needed a whole number, got {values[row]}")
        values = np.where(whole, values, 0)
    elif values.dtype == np.uint64:
        large = np.flatnonzero(values > np.iinfo(np.int64).max)
        faults.add(large, "decode", f"{name}: needed int64, got a larger number")
    return pa.array(values.astype(np.int64), mask=gone if place.optional and gone.any() else None)


def _cast(array: pa.Array, place: Place, faults: _Faults) -> pa.Array:
    """Text, images, string labels, tasks, ids and event times."""
    if array.null_count and place.missing is not None and not place.optional:
        faults.add(_nulls(array), place.missing, f"{place.name}: null")
    if place.type == MOMENT:
        return _times(array, place.name, faults)
    try:
        return array if array.type == place.type else array.cast(place.type)
    except pa.ArrowException as fault:  # a time of a zone that nobody knows, an interval
        said = f"needed {place.type}, got {array.type}, which cannot be written out: {fault}"
        raise SchemaMismatch(said, where=f"column {place.name!r}", fix="send text") from None


def _times(array: pa.Array, name: str, faults: _Faults) -> pa.Array:
    """Event times as microseconds; one of another year than 1 to 9999 would wrap, or be no ``datetime``."""
    if pa.types.is_date(array.type):
        array = array.cast(pa.timestamp("s" if pa.types.is_date32(array.type) else "ms"))
    unit = array.type.unit
    first, end = (bound * _PARTS[unit] for bound in _SECONDS)
    values = array.cast(pa.int64())
    inside = pc.and_(pc.greater_equal(values, max(first, -(2**63))), pc.less_equal(values, min(end, 2**63) - 1))
    if not pc.all(inside, min_count=0).as_py():
        outside = np.flatnonzero(~inside.fill_null(True).to_numpy(zero_copy_only=False))
        for row in outside.tolist():
            said = f"{name}: needed a time of the years 1 to 9999, got {values[row].as_py()} {unit} since 1970"
            faults.add([row], "decode", said)
        array = pc.if_else(inside, array, pa.scalar(None, array.type))
    return array.cast(pa.timestamp("us", array.type.tz), safe=False).cast(MOMENT)


def _nulls(array: pa.Array) -> np.ndarray:
    return np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))


def _refuse_large(arrays: list[pa.Array], row_bytes: int, faults: _Faults) -> None:
    sizes = np.zeros(faults.rows, np.int64)
    for array in arrays:
        if pa.types.is_string(array.type) or pa.types.is_binary(array.type):
            sizes += pc.binary_length(array).fill_null(0).to_numpy(zero_copy_only=False)
        elif pa.types.is_fixed_size_list(array.type):
            sizes += array.type.list_size * array.type.value_type.bit_width // 8
        else:
            sizes += array.type.bit_width // 8
    large = np.flatnonzero(sizes > row_bytes)
    if len(large):
        faults.add(large, "too_large", f"a record of {int(sizes[large].max())} bytes, at most {row_bytes}")


def _refuse_long_names(arrays: list[pa.Array], schema: RecordSchema, faults: _Faults) -> None:
    """Labels, tasks and producers are kept for as long as the learner lives, and shown: they are names, not texts."""
    for array, place in zip(arrays, places(schema), strict=True):
        if place.name in (schema.label, schema.task, schema.producer) and pa.types.is_string(array.type):
            long = pc.binary_length(array).fill_null(0).to_numpy(zero_copy_only=False) > NAME_BYTES
            faults.add(np.flatnonzero(long), "too_large", f"{place.name}: more than {NAME_BYTES} bytes")


def _refuse_undecodable(arrays: list[pa.Array], schema: RecordSchema, faults: _Faults) -> None:
    for array, column in zip(arrays, schema.inputs, strict=False):
        for row, reason, said in undecodable(array, column) if column.kind == "image" else ():
            faults.add([row], reason, said)
