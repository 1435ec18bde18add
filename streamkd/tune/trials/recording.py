"""The stream that one seed's trials see: its train records in order, and validation records by task. Plain Arrow.

config, seed ─► validation (never the report's test records) ─► Recording ─► pickled once, given to all ─► Source
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from streamkd.config import Config
from streamkd.errors import SourceError
from streamkd.plugins import Registry
from streamkd.records import Chunk, Label, RecordSchema, Source
from streamkd.tune.trials import validation
from streamkd.wiring import schema_of

VALIDATED = 1_000
"""Most validation records of a seed, over all its tasks: evaluation must stay small beside training."""
LEAST = 10
"""Validation records of a task, where a thousand over all tasks would be fewer."""
MARKS, MOST_MARKS = 10, 50
PARTITION = "recording/0"


@dataclass(frozen=True)
class ValidationTask:
    """Records that nobody trains on. The train records of the same task lie in offsets [``begins``, ``ends``)."""

    name: str
    begins: int
    ends: int
    rows: pa.RecordBatch


@dataclass(frozen=True)
class Recording:
    """One seed's stream. ``marks``: offsets after which every trial is measured, the last one the end.

    ``held_out``: how many validation records there are; ``tasks`` has ``validated`` of them.
    """

    seed: int
    schema: RecordSchema
    records: pa.RecordBatch
    tasks: tuple[ValidationTask, ...]
    marks: tuple[int, ...]
    held_out: int = 0

    @property
    def validated(self) -> int:
        """How many records every trial is measured by."""
        return sum(task.rows.num_rows for task in self.tasks)

    @property
    def total(self) -> int:
        """How many records there are to train on."""
        return int(self.records.num_rows)

    def source(self) -> Source:
        """The train records as a source; its tests are the validation records."""
        return _Recorded(self)


class _Recorded:
    """A recording by offset."""

    partitions: tuple[str, ...] = (PARTITION,)
    finite = True

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    def read(self, partition: str, offset: int, limit: int) -> Chunk:
        rows = self._recording.records.slice(offset, limit)
        return Chunk(rows, partition, offset, offset + rows.num_rows)

    def end(self, partition: str) -> int | None:
        return self._recording.total

    def tests(self) -> Mapping[str, pa.RecordBatch]:
        return {task.name: task.rows for task in self._recording.tasks}

    def close(self) -> None: ...


def record(config: Config, registry: Registry, seed: int) -> Recording:
    """What the trials of a seed train on and are measured by.

    Raises:
        ConfigError: the source is pushed or never ends, or the seed is a report's. SourceError: it cannot be read, or
            leaves nothing to train on or to be measured by.
    """
    schema = schema_of(config, registry)
    rows, tests = validation.parts(config, registry, schema, seed)
    tests = {task: batch for task, batch in tests.items() if batch.num_rows}
    if not rows.num_rows or not tests:
        raise SourceError(
            f"leaves {rows.num_rows} records to train on and {sum(map(len, tests.values()))} to be measured by",
            where="stream.source",
            fix="record more of it: a search holds a fifth of each label out",
        )
    most = max(VALIDATED // len(tests), LEAST)
    spans = _spans(rows, tests, schema)
    tasks = [ValidationTask(name, *spans[name], _few(batch, schema, most)) for name, batch in tests.items()]
    ordered = tuple(sorted(tasks, key=lambda task: task.begins))
    held_out = sum(batch.num_rows for batch in tests.values())
    return Recording(seed, schema, rows, ordered, _marks(rows, schema, ordered), held_out)


def _few(rows: pa.RecordBatch, schema: RecordSchema, most: int) -> pa.RecordBatch:
    """At most so many rows, evenly spaced once they are sorted by label, so that every label keeps its share."""
    if rows.num_rows <= most:
        return rows
    order = np.argsort(np.array([str(label) for label in rows.column(schema.label).to_pylist()]), kind="stable")
    return rows.take(pa.array(np.sort(order[np.arange(most) * rows.num_rows // most])))


def _spans(
    rows: pa.RecordBatch, tests: Mapping[str, pa.RecordBatch], schema: RecordSchema
) -> dict[str, tuple[int, int]]:
    """From the first to after the last train record of each task: by the task column, else by its labels."""
    if schema.task:
        places = _places(rows.column(schema.task).to_pylist())
        if all(name in places for name in tests):
            return {name: places[name] for name in tests}
    by_label = _places(rows.column(schema.label).to_pylist())
    found = {}
    for name, batch in tests.items():
        mine = [by_label[label] for label in set(batch.column(schema.label).to_pylist()) if label in by_label]
        found[name] = (min(begins for begins, _ in mine), max(ends for _, ends in mine)) if mine else (0, len(rows))
    return found


def _places(values: Sequence[Label | None]) -> dict[Label | None, tuple[int, int]]:
    """Of each value: the place of the first, and the place after the last."""
    first: dict[Label | None, int] = {}
    last: dict[Label | None, int] = {}
    for place, value in enumerate(values):
        first.setdefault(value, place)
        last[value] = place + 1
    return {value: (first[value], last[value]) for value in first}


def _marks(rows: pa.RecordBatch, schema: RecordSchema, tasks: Sequence[ValidationTask]) -> tuple[int, ...]:
    """Where one task gives way to another; evenly spaced where the stream has one task, or too many changes."""
    total = rows.num_rows
    if schema.task:
        values = rows.column(schema.task).to_pylist()
        found = [place for place in range(1, total) if values[place] != values[place - 1]]
    else:
        found = sorted({task.ends for task in tasks} - {total})
    if not 1 <= len(found) < MOST_MARKS:
        found = [total * part // MARKS for part in range(1, MARKS) if total * part // MARKS]
    return (*found, total)
