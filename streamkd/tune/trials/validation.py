"""What a search may look at: records that the report tests nobody on, in class orders that it does not use.

    replay   a fifth of the train records of each label is held out of the stream (``validation_ratio``); a test file
             is not opened, and the test records of a data set or of a file that is cut are not read
    others   every fifth train record of each label is taken out of the stream; ``tests()`` is not called

The seed decides the order of classes, tasks and records, also where the configuration gives the source one of its
own: seeds from ``FIRST_SEED`` on belong to searches, those below to reports. ``record`` is the only caller.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from streamkd.choices import Choice
from streamkd.config import Config
from streamkd.errors import ConfigError, SourceError
from streamkd.plugins import Registry
from streamkd.records import RecordSchema, Source
from streamkd.streams.batcher import Batcher
from streamkd.streams.encoding import codec
from streamkd.wiring import open_source, source_kind

FIRST_SEED = 100
EVERY = 5
RATIO = 1 / EVERY
WAIT_SECONDS = 60.0
"""A source that gives nothing for so long is taken to be stuck."""
READ = 1_000


def parts(
    config: Config, registry: Registry, schema: RecordSchema, seed: int
) -> tuple[pa.RecordBatch, Mapping[str, pa.RecordBatch]]:
    """The train records in their order, and validation records by task.

    Raises:
        ConfigError: the source is pushed or never ends, or the seed is a report's. SourceError: it cannot be read.
    """
    if seed < FIRST_SEED:
        raise ConfigError(
            f"needed a seed of {FIRST_SEED} or more, got {seed}: those below belong to reports", where="seeds"
        )
    if source_kind(config, registry).push:
        raise ConfigError(
            f"the source {config.stream.source.name} is pushed, and a trial needs the whole stream again and again",
            where="stream.source",
            fix="search on a recorded stream: a replay source with dataset or path",
        )
    source, _ = open_source(_held_apart(config, seed), registry, schema)
    try:
        if not source.finite:
            raise ConfigError(
                "the stream never ends, and a trial needs an end",
                where="stream.source",
                fix="set limit to a number of records, or repeat: false",
            )
        rows = _canonical([*_read(source, config.stream.batch.size)], schema)
        if config.stream.source.name != "replay":
            return _cut(rows, schema)
        return rows, {task: _canonical([tests], schema) for task, tests in source.tests().items()}
    finally:
        source.close()


def _held_apart(config: Config, seed: int) -> Config:
    """The configuration under the seed, its source as fast as it can be read, and without test records if it can be."""
    source = config.stream.source
    if source.name == "replay":
        values = {**source.values, "seed": seed, "rate": None, "validation_ratio": RATIO}
        source = Choice.model_validate({"name": source.name, **values})
    stream = config.stream.model_copy(update={"source": source})
    return config.model_copy(update={"seed": seed, "stream": stream})


def _read(source: Source, size: int) -> Iterator[pa.RecordBatch]:
    """All records, partitions taking turns as the learner would take them."""
    cutter = Batcher(source, READ if len(source.partitions) == 1 else size, 1.0)
    offsets = dict.fromkeys(source.partitions, 0)
    since = time.monotonic()
    while any(offset != source.end(partition) for partition, offset in offsets.items()):
        if (chunk := cutter.next(offsets)) is not None:
            offsets[chunk.partition], since = chunk.next_offset, time.monotonic()
            yield chunk.rows
        elif time.monotonic() - since > WAIT_SECONDS:
            raise SourceError(f"gave nothing for {WAIT_SECONDS:.0f} seconds", where="stream.source")
        else:
            time.sleep(0.01)


def _canonical(batches: Sequence[pa.RecordBatch], schema: RecordSchema) -> pa.RecordBatch:
    """The good rows, in the form that takes least time to decode."""
    good = [codec.sift(batch, schema, images=True)[0] for batch in batches]
    return pa.concat_batches(good or [codec.arrow_schema(schema).empty_table().to_batches()[0]])


def _cut(rows: pa.RecordBatch, schema: RecordSchema) -> tuple[pa.RecordBatch, dict[str, pa.RecordBatch]]:
    """Every fifth record of each label and task is held out; one that comes again is where it was the first time."""
    tasks = rows.column(schema.task).to_pylist() if schema.task else ["0"] * rows.num_rows
    labels = rows.column(schema.label).to_pylist()
    held: list[bool] = []
    seen: dict[bytes, bool] = {}
    count: dict[tuple[object, object], int] = {}
    for record, label, task in zip(_identities(rows, schema), labels, tasks, strict=True):
        if record not in seen:
            place = count[label, task] = count.get((label, task), 0) + 1
            seen[record] = label is not None and place % EVERY == 0
        held.append(seen[record])
    apart = np.array(held, bool)
    names = dict.fromkeys(task for task, out in zip(tasks, held, strict=True) if out)
    tests = {str(name): rows.filter(pa.array(apart & np.array([task == name for task in tasks]))) for name in names}
    return rows.filter(pa.array(~apart)), tests


def _identities(rows: pa.RecordBatch, schema: RecordSchema) -> Iterator[bytes]:
    """What makes a record the same as another: its id, or all of its inputs."""
    columns = [rows.column(name) for name in ([schema.id] if schema.id else [c.name for c in schema.inputs])]
    for row in zip(*(column.to_pylist() for column in columns), strict=True):
        yield hashlib.sha256(repr(row).encode()).digest()
