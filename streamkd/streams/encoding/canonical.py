"""What a stream's records look like in Arrow, and which batches can be brought into that form.

Canonical: a tensor is a fixed-size list of the column's element type, text and categories are strings, an image is its
bytes, times are microseconds UTC, the label int64 or string, task and id strings. A gap that is filled is NaN in a
tensor, and null elsewhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

from streamkd.errors import SchemaMismatch
from streamkd.records import InputColumn, RecordSchema, RejectReason
from streamkd.streams.encoding.types import is_list, is_number, is_text

MOMENT = pa.timestamp("us", "UTC")


@lru_cache(64)
def arrow_schema(schema: RecordSchema) -> pa.Schema:
    """The canonical Arrow schema of a stream; columns in the order inputs, label, task, id, event time."""
    return pa.schema([(place.name, place.type) for place in places(schema)])


def check_schema(got: pa.Schema, schema: RecordSchema) -> None:
    """Whether batches of a schema can be taken; further columns are ignored.

    Raises:
        SchemaMismatch: names the column, what it needs and what came.
    """
    for place in places(schema):
        indices = got.get_all_field_indices(place.name)
        where = f"column {place.name!r}"
        if not indices and place.optional:
            continue
        if len(indices) != 1:
            said = "no such column" if not indices else f"{len(indices)} columns of that name"
            raise SchemaMismatch(f"needed {place.needed}, got {said} (columns: {_names(got)})", where=where)
        found = got.field(indices[0]).type
        if not _fits(found, place):
            fix = f"send {place.needed}, or change stream.records to what is sent"
            raise SchemaMismatch(f"needed {place.needed}, got {found}", where=where, fix=fix)


@dataclass(frozen=True)
class Place:
    """One canonical column; ``missing`` is the reason for a row without a value (``None``: it may be null).

    ``optional``: a label that may be null, or not there at all.
    """

    name: str
    type: pa.DataType
    missing: RejectReason | None
    column: InputColumn | None = None
    optional: bool = False

    @property
    def needed(self) -> str:
        """What the column has to hold, in words."""
        one = self.column is not None and self.column.kind == "tensor" and not self.column.shape
        return f"numbers ({self.type.value_type})" if one else str(self.type)


@lru_cache(64)
def places(schema: RecordSchema) -> tuple[Place, ...]:
    """The canonical columns, in their order."""
    return tuple(_each_place(schema))


def _each_place(schema: RecordSchema) -> Iterator[Place]:
    kinds = {"text": pa.string(), "category": pa.string(), "image": pa.binary(), "time": MOMENT}
    for column in schema.inputs:
        tensor = pa.list_(pa.from_numpy_dtype(np.dtype(column.dtype)), column.size)
        missing: RejectReason | None = "missing_input" if column.missing == "refuse" else None
        yield Place(column.name, kinds.get(column.kind, tensor), missing, column)
    label = pa.int64() if schema.label_type == "int" else pa.string()
    yield Place(schema.label, label, "missing_label", optional=schema.unlabelled)
    if schema.task:
        yield Place(schema.task, pa.string(), "missing_task")
    if schema.producer:
        yield Place(schema.producer, pa.string(), None)
    if schema.id:
        yield Place(schema.id, pa.string(), None)
    if schema.event_time:
        yield Place(schema.event_time, MOMENT, None)


def _names(got: pa.Schema) -> str:
    try:
        return ", ".join(map(repr, got.names[:20])) or "none"
    except UnicodeDecodeError:  # Arrow does not look at what a name is made of
        return "some with names that are not UTF-8"


def _fits(found: pa.DataType, place: Place) -> bool:
    if place.column is not None:
        return _fits_input(found, place.column)
    if place.type == MOMENT:
        return pa.types.is_timestamp(found) or pa.types.is_date(found)
    if place.optional and pa.types.is_null(found):
        return True
    found = found.value_type if pa.types.is_dictionary(found) else found
    if pa.types.is_int64(place.type):
        return is_number(found) or pa.types.is_boolean(found)
    if place.missing == "missing_label":
        return is_text(found)
    return is_text(found) or pa.types.is_primitive(found)  # tasks and ids of any plain type are written out


def _fits_input(found: pa.DataType, column: InputColumn) -> bool:
    if pa.types.is_null(found):  # a column of gaps alone
        return column.missing == "fill"
    if column.kind in ("text", "category", "time"):
        return _fits_one(found.value_type if pa.types.is_dictionary(found) else found, column)
    if column.kind == "image":
        return pa.types.is_binary(found) or pa.types.is_large_binary(found)
    if isinstance(found, pa.FixedShapeTensorType):
        in_order = found.permutation is None or list(found.permutation) == sorted(found.permutation)
        return (
            in_order
            and (tuple(found.shape) or (1,)) == (column.shape or (1,))
            and _fits_number(found.value_type, column)
        )
    sizes, element = nesting(found)
    known = [(size, n) for size, n in zip(sizes, levels(column, len(sizes)), strict=False) if size is not None]
    return (
        len(sizes) in (0, 1, len(column.shape))
        and (bool(sizes) or column.size == 1)
        and (column.pad or all(size == n for size, n in known))
        and _fits_number(element, column)
    )


def _fits_one(found: pa.DataType, column: InputColumn) -> bool:
    if column.kind == "category":
        return is_text(found) or is_number(found) or pa.types.is_boolean(found)
    if column.kind == "time":
        moment = pa.types.is_timestamp(found) or pa.types.is_date(found) or is_text(found)
        return moment or (pa.types.is_integer(found) and column.epoch is not None)
    return is_text(found)


def _fits_number(found: pa.DataType, column: InputColumn) -> bool:
    """Integers go into integers (row by row, if they survive) and floats; floats into floats only."""
    floats = np.dtype(column.dtype).kind == "f"
    return pa.types.is_integer(found) or pa.types.is_boolean(found) or (pa.types.is_floating(found) and floats)


def nesting(found: pa.DataType) -> tuple[list[int | None], pa.DataType]:
    """The list sizes from outside in (``None``: any), and the element type."""
    sizes: list[int | None] = []
    while is_list(found):
        sizes.append(found.list_size if pa.types.is_fixed_size_list(found) else None)
        found = found.value_type
    return sizes, found


def levels(column: InputColumn, depth: int) -> tuple[int, ...]:
    """The length that each level of a list must have: the shape, or all elements in one flat list."""
    return column.shape if depth == len(column.shape) and depth > 1 else (column.size,)[:depth]
