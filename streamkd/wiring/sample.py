"""The first records of a source through everything that lies before the student, and one of them as it sees it.

source ─► codec ─► normalisation ─► named features, for people
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from streamkd.config import Config
from streamkd.errors import ConfigError, SourceError
from streamkd.logs import some
from streamkd.plugins import Registry
from streamkd.records import InputColumn, RecordSchema, Reject, Source
from streamkd.streams.encoding.codec import encode
from streamkd.students.networks import Normalise
from streamkd.wiring.sources import at_once, open_source, source_kind

RECORDS = 100
SHOWN = 6  # elements of a list, characters by the ten


def sample(config: Config, registry: Registry, schema: RecordSchema) -> Iterator[str]:
    """A line for all records, one for each fault among them, and one for each column of the first good one.

    Raises:
        ConfigError: the source is pushed to. SourceError: no record can be learned.
    """
    if source_kind(config, registry).push:
        raise ConfigError(
            "records are pushed to this source, so there are none to show", where="stream.source", fix="name a file"
        )
    source, _ = open_source(at_once(config), registry, schema)
    try:
        yield from _told(source, schema)
    finally:
        source.close()


def _told(source: Source, schema: RecordSchema) -> Iterator[str]:
    rows = source.read(source.partitions[0], 0, RECORDS).rows
    records, rejects = encode(rows, schema, 0)
    yield f"{rows.num_rows} records read, {len(records)} can be learned"
    yield from refused(rejects)
    if not len(records):
        raise SourceError("no record can be learned", where="stream.source", fix="change stream.records")
    x = torch.from_numpy(np.array(records.inputs))
    normalise = Normalise(schema)
    normalise.observe(x)
    seen, place = normalise(x[:1])[0].flatten(), int(records.offsets[0])
    yield f"record {place} as the student sees it; its label is {records.labels[0]!r}"
    at = 0
    for column in normalise.columns.schema.inputs:
        raw = rows.column(column.name)[place]
        yield f"  {column.name}: {_plain(raw)} -> {_seen(column, seen[at : at + column.width])}"
        at += column.width


def refused(rejects: Sequence[Reject]) -> Iterator[str]:
    """A line for each thing that is wrong, with the records in which it is."""
    alike: dict[str, list[int]] = {}
    for reject in rejects:
        alike.setdefault(reject.detail, []).append(reject.row)
    for detail, rows in [*alike.items()][:SHOWN]:
        yield f"  record{'s' if len(rows) > 1 else ''} {some(rows, SHOWN)} cannot: {detail}"


def _plain(raw: pa.Scalar) -> str:
    """A value as it came, cut where it is long."""
    value = raw.as_py()
    text = (
        f"{len(value):,} bytes" if isinstance(value, bytes) else repr(value) if isinstance(value, str) else str(value)
    )
    return text if len(text) <= 10 * SHOWN else f"{text[: 10 * SHOWN]}..."


def _seen(column: InputColumn, z: Tensor) -> str:
    """The features of one column, by name where they have one; of categories and words those that are not 0."""
    names, values = _names(column), z.tolist()
    if names:
        told = [(n, v) for n, v in zip(names, values, strict=True) if v or column.kind not in ("text", "category")]
        return ", ".join(f"{name} {value:.3g}" for name, value in told) or "nothing"
    there = np.array(values)
    if column.raw:
        return f"{np.count_nonzero(there[: column.size])} bytes of text"
    if column.kind == "text":
        return f"{np.count_nonzero(there)} of {len(there):,} hashed features"
    said = ", ".join(f"{value:.3g}" for value in values[:SHOWN])
    return f"{list(column.encoded_shape)} {said}{', ...' if len(values) > SHOWN else ''}"


def _names(column: InputColumn) -> list[str]:
    """What the features of a column are called; none for lists, images and texts."""
    missing = ["missing"] * len(column.indicators)
    if column.kind == "category":
        others = column.width - len(column.values) - len(missing)
        return [*column.values, *(f"other {number}" for number in range(1, others + 1)), *missing]
    if column.kind == "time":
        circles = ([part] if part == "age" else [f"{part} sin", f"{part} cos"] for part in column.parts)
        return [name for names in circles for name in names] + missing
    return ["value", *missing] if column.kind == "tensor" and not column.shape else []
