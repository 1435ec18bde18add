"""A file before it is played: do its columns fit the schema, and is what it would be taken for meant?

    both splits ─► columns fit? ─► doubts (refused unless accepted) ─► what else was seen (logged)

Called by ``replay`` for every file, so by all commands that read one; ``first_records`` by ``streamkd check``.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streamkd.errors import SchemaMismatch, SourceError
from streamkd.records import RecordSchema, Source
from streamkd.streams.encoding.canonical import arrow_schema, check_schema
from streamkd.streams.encoding.codec import sift
from streamkd.streams.files import doubts
from streamkd.streams.files.doubts import Doubt, Labels
from streamkd.streams.replay.options import ReplayOptions
from streamkd.streams.replay.splits import NONE, Split

logger = logging.getLogger(__name__)
SAMPLE, TRIED = 5_000, 1_000
TESTS = 1_000  # so many test records are looked for among the train records
BLOCK_BYTES = 4 << 20  # compared at once: sifting takes twenty times as much
COMPARED_BYTES = 256 << 20  # of a larger file nobody waits for the comparison
TWINS = 0.01  # a larger share of test records that are train records too is said
INSIST = "`accept: [{}]` under stream.source"


def review(options: ReplayOptions, schema: RecordSchema, train: Split, test: Split) -> None:
    """Refuse what does not fit, or is hardly meant; log what is only odd.

    Raises:
        SourceError: a column of another type than the schema says, or a doubt that is not accepted.
    """
    assert options.path is not None
    _fits(train, schema, options.path)
    if options.test_path and test.rows is not train.rows:
        _fits(test, schema, options.test_path)
    found = [*_of_train(options, schema, train), *_of_tests(options, schema, train, test)]
    doubts.refuse(found, options.accept, str(options.path), INSIST)


def first_records(source: Source, schema: RecordSchema) -> None:
    """Read the first records and see whether any of them can be learned.

    Raises:
        SourceError: not one of them; the reason of the first is named.
    """
    for partition in source.partitions:
        rows = source.read(partition, 0, TRIED).rows
        _, rejects = sift(rows, schema, images=True)
        if rows.num_rows and len(rejects) == rows.num_rows:
            raise SourceError(
                f"none of the first {rows.num_rows:,} records can be learned: {rejects[0].detail}",
                where=partition,
                fix="change stream.records to what the records are, or the records",
            )
        if rejects:
            logger.warning(
                "%d of the first %d records cannot be learned, such as record %d: %s",
                len(rejects),
                rows.num_rows,
                rejects[0].row,
                rejects[0].detail,
            )


def _fits(part: Split, schema: RecordSchema, path: Path) -> None:
    """The columns have types that the schema can take; the task is written by the replay."""
    columns = part.rows.schema.empty_table().select(list(part.columns)).schema
    try:
        check_schema(columns, schema.model_copy(update={"task": None}))
    except SchemaMismatch as fault:
        fix = "change stream.records to what the file holds, or the file"
        raise SourceError(fault.message, where=f"{path}: {fault.where}", fix=fix) from None


def _of_train(options: ReplayOptions, schema: RecordSchema, train: Split) -> Iterator[Doubt]:
    assert options.path is not None
    if options.csv is None or options.csv.header:
        yield from doubts.of_header(options.path, train.rows)
    labels = _labels(train, schema, train.codes)
    if labels.values or not schema.unlabelled:
        yield from doubts.of_labels(labels)
    rows = np.flatnonzero(train.tasks != NONE)
    sample = train.take(_spread(rows, SAMPLE) if train.rows.scattered else rows[:SAMPLE])
    for column in schema.inputs:
        values = sample.column(column.name)
        if not column.shape or column.kind == "text":
            if (found := doubts.of_input(column.name, values, sample.column(schema.label))) is not None:
                yield found
            _say_if_constant(column.name, values)


def _say_if_constant(name: str, values: pa.ChunkedArray) -> None:
    if len(values) >= doubts.ENOUGH and pc.count_distinct(values).as_py() == 1:
        logger.warning("the input %r is %r in all %d records looked at", name, values[0].as_py(), len(values))


def _of_tests(options: ReplayOptions, schema: RecordSchema, train: Split, test: Split) -> Iterator[Doubt]:
    rows = np.flatnonzero(test.tasks != NONE)
    apart = options.test_path is not None and test.rows is not train.rows
    if apart and not len(rows) and options.test_limit != 0:
        yield _other_tests(options, "it has no record of the train file's tasks")
    if not len(rows):
        return
    yield from _unknown(options, schema, train, test, rows)
    if apart and options.test_path and options.path and options.test_path.resolve() == options.path.resolve():
        yield Doubt("same-tests", "test_path is the file that is trained on", "name another, or take test_path out")
        return
    if train.rows.scattered and (tried := _spread(rows, TESTS)).size:
        twins = _twins(schema, train, test.take(tried))
        said = f"{twins:,} of {len(tried):,} test records looked at are train records too (the same inputs and label)"
        if apart and 2 * twins > len(tried):
            yield Doubt("same-tests", said, "name a test file of other records")
        elif twins > TWINS * len(tried):
            logger.warning("%s: accuracy on them says little", said)


def _other_tests(options: ReplayOptions, said: str) -> Doubt:
    return Doubt("other-tests", f"{options.test_path}: {said}", "name the test file of the same stream")


def _unknown(
    options: ReplayOptions, schema: RecordSchema, train: Split, test: Split, rows: np.ndarray
) -> Iterator[Doubt]:
    """Test records whose label no train record has: no answer to them can be right."""
    known = set(_labels(train, schema, train.codes[train.tasks != NONE]).values)
    labels = _labels(test, schema, test.codes[rows])
    other = [(value, count) for value, count in zip(labels.values, labels.counts, strict=True) if value not in known]
    lost = sum(count for _, count in other)
    if not lost:
        return
    named = ", ".join(repr(value) for value, _ in other[:5]) + (", ..." if len(other) > 5 else "")
    said = f"{lost:,} of {labels.records:,} test records have labels that no train record has: {named}"
    if options.test_path and lost == labels.records:
        yield _other_tests(options, said)
    else:
        logger.warning("%s; they count as wrong", said)


def _labels(part: Split, schema: RecordSchema, codes: np.ndarray) -> Labels:
    """The labels of these codes, and how many have each; neither nulls nor NaN."""
    counts = np.bincount(codes[codes != NONE], minlength=len(part.classes))
    there = [code for code, value in enumerate(part.classes) if counts[code] and value == value]
    return Labels(schema.label, [part.classes[code] for code in there], counts[there])


def _twins(schema: RecordSchema, train: Split, tests: pa.Table) -> int:
    """How many of the tests are among the train records; 0 where there are too many bytes to look."""
    rows = np.flatnonzero(train.tasks != NONE)
    wanted = list(_contents(tests, schema))
    each_bytes = max(1, tests.nbytes // max(1, tests.num_rows))
    if each_bytes * len(rows) > COMPARED_BYTES:
        return 0
    found: set[int] = set()
    block = max(1, BLOCK_BYTES // each_bytes)
    for begin in range(0, len(rows), block):
        found.update(_contents(train.take(rows[begin : begin + block]), schema))
    return sum(content in found for content in wanted)


def _contents(table: pa.Table, schema: RecordSchema) -> Iterator[int]:
    """A hash of each good record's inputs and label, however its columns are written."""
    plain = schema.model_copy(update=dict.fromkeys(("task", "producer", "id", "event_time")))
    names = arrow_schema(plain).names
    for batch in table.select(names).combine_chunks().to_batches():
        rows, _ = sift(batch, plain)
        columns = [_cells(rows.column(name)) for name in names]
        yield from (hash(cells) for cells in zip(*columns, strict=True))


def _cells(column: pa.Array) -> list[object]:
    if not pa.types.is_fixed_size_list(column.type):
        return list(column.to_pylist())
    values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
    return [row.tobytes() for row in values]


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    """At most so many of the rows, evenly spaced."""
    return rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)] if len(rows) > count else rows
