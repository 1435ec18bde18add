"""What `streamkd push SOURCE` sends: a named dataset, a file, or the records of a stream definition, as batches."""

import difflib
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from streamkd import config
from streamkd.document import Document
from streamkd.errors import ConfigError, SourceError
from streamkd.hookspecs import SourceKind
from streamkd.plugins import Registry
from streamkd.records import Source
from streamkd.streams.files import formats
from streamkd.streams.replay import datasets

BATCH_RECORDS = 500
IDLE_SECONDS = 0.05


@dataclass(frozen=True)
class Outgoing:
    """Batches in order, and how many records they hold where that is known before."""

    name: str
    batches: Iterator[pa.RecordBatch]
    total: int | None


def open_outgoing(
    source: str,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    batch_records: int = BATCH_RECORDS,
) -> Outgoing:
    """The records of a source.

    ``columns`` maps the source's columns to those of the stream, and leaves the others out; ``None`` sends all as they
    are.

    Raises:
        SourceError: there is no such dataset or file, it cannot be read, or lacks a column. ConfigError: a definition
            that cannot be used.
    """
    path = Path(source)
    if source in datasets.NAMES:
        train = datasets.load(source).train
        opened = Outgoing(source, iter(train.to_batches(max_chunksize=batch_records)), train.num_rows)
    elif path.suffix in (".yaml", ".yml"):
        opened = _defined(path, batch_records)
    elif path.is_file():
        opened = Outgoing(path.name, formats.batches(path, batch_records), formats.count(path))
    else:
        raise SourceError(
            f"there is no dataset and no file {source!r}", where="push", fix=f"datasets: {', '.join(datasets.NAMES)}"
        )
    batches: Iterable[pa.RecordBatch] = opened.batches
    batches = _picked(batches, columns, opened.name) if columns else batches
    total = opened.total
    if limit is not None:
        batches = _first(batches, limit)
        total = limit if total is None else min(limit, total)
    return Outgoing(opened.name, iter(batches), total)


def _defined(path: Path, batch_records: int) -> Outgoing:
    """A definition's own source, read from its first record as fast as it gives them."""
    loaded = config.load(path)
    choice = loaded.stream.source
    registry = Registry.load(only=[choice.name])  # built-in sources are entry points of their own names
    if choice.name not in registry.names("sources"):
        registry = Registry.load()
    checked: Any = config.options(registry, "stream.source", "sources", choice, Document({}, str(path)))
    kind = registry.kind("sources", choice.name)
    if not isinstance(kind, SourceKind) or kind.push:
        raise ConfigError(
            f"the source {choice.name!r} is pushed to, so there is nothing to read",
            where=f"{path}: stream.source.name",
            fix="push a dataset, a file, or a definition whose source is replay",
        )
    fields = type(checked).model_fields
    changes: dict[str, Any] = {"rate": None} if "rate" in fields else {}
    if "seed" in fields and checked.seed is None:
        changes["seed"] = loaded.seed
    checked = checked.model_copy(update=changes)
    schema = loaded.stream.schema_of(kind.describe(checked))
    if schema is None:
        raise ConfigError("needed the columns", where=f"{path}: stream.records", fix="`streamkd init FILE` writes them")
    opened = kind.make(checked, schema)
    ends = [opened.end(partition) for partition in opened.partitions]
    total = None if None in ends else sum(end for end in ends if end is not None)
    return Outgoing(loaded.name, _read(opened, batch_records), total)


def _read(source: Source, batch_records: int) -> Iterator[pa.RecordBatch]:
    """All records, partition after partition in turn, waiting where there are none yet."""
    offsets = dict.fromkeys(source.partitions, 0)
    while offsets:
        idle = True
        for partition in list(offsets):
            chunk = source.read(partition, offsets[partition], batch_records)
            end = source.end(partition)
            if chunk.rows.num_rows:
                idle = False
                yield chunk.rows
            offsets[partition] = chunk.next_offset
            if source.finite and end is not None and chunk.next_offset >= end:
                del offsets[partition]
        if idle and offsets:
            time.sleep(IDLE_SECONDS)
    source.close()


def _picked(batches: Iterable[pa.RecordBatch], columns: Mapping[str, str], name: str) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for column in columns:
            if column not in batch.schema.names:
                near = difflib.get_close_matches(column, batch.schema.names, 1)
                raise SourceError(
                    f"there is no column {column!r}: {', '.join(batch.schema.names)}",
                    where=name,
                    fix=f"did you mean {near[0]!r}?" if near else "--columns FILE_COLUMN=STREAM_COLUMN,...",
                )
        yield pa.RecordBatch.from_arrays([batch.column(column) for column in columns], list(columns.values()))


def _first(batches: Iterable[pa.RecordBatch], limit: int) -> Iterator[pa.RecordBatch]:
    left = limit
    for batch in batches:
        yield batch.slice(0, left)
        left -= batch.num_rows
        if left <= 0:  # without asking for another, which may be long in coming
            return
