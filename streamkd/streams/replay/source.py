"""The source ``replay``: a dataset or a file as a stream of tasks, by offset.

    rows ─► classes ─► tasks ─► one segment per (variation, task) ─► a round ─► rounds, one after another

The record at an offset is a pure function of the options and the offset: class order, shuffles, label noise and the
small changes of later rounds are drawn from the seed, and pacing decides only when a record is there. So any offset can
be read again, at any time, in any chunks, in any process.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

from streamkd.errors import SourceError
from streamkd.hookspecs import SourceKind, hookimpl
from streamkd.records import Chunk, RecordSchema
from streamkd.streams.encoding.lists import element_type, holds_lists, to_fixed, to_values
from streamkd.streams.replay import datasets, variations
from streamkd.streams.replay.options import ReplayOptions
from streamkd.streams.replay.review import review
from streamkd.streams.replay.splits import Split, split

PARTITION = "replay/0"
CHANGES = 1  # of the streams of random numbers of a segment: orders have none
BLOCK_BYTES, BLOCK_RECORDS = 4 << 20, 1024


def describe(options: ReplayOptions) -> RecordSchema | None:
    """The schema of a dataset; ``None`` for a file, whose columns only the configuration can name."""
    return datasets.describe(options.dataset) if options.dataset else None


def make(options: ReplayOptions, schema: RecordSchema) -> "Replay":
    """The source.

    Raises:
        SourceError: data that is missing, damaged, or without the schema's columns.
    """
    return Replay(options, schema)


@hookimpl
def streamkd_sources() -> list[SourceKind]:
    """The source that plays what is stored."""
    summary = "a dataset or a file as a stream of tasks: split, permuted, rotated, noisy, paced"
    return [SourceKind("replay", make, ReplayOptions, summary, describe=describe)]


@dataclass(frozen=True)
class Segment:
    """One task in one form: records ``[start, start + len(rows))`` of a round."""

    number: int
    start: int
    rows: np.ndarray
    form: str

    @property
    def end(self) -> int:
        return self.start + len(self.rows)


class Replay:
    """Records by offset, as the module says."""

    partitions = (PARTITION,)

    def __init__(self, options: ReplayOptions, schema: RecordSchema) -> None:
        self._schema = schema
        self._seed = options.seed or 0
        self._shuffled = options.order == "seed"
        self._train, self._test = split(options, schema, self._seed)
        if options.path:
            review(options, schema, self._train, self._test)
        self._forms = {name: _form(name, schema, self._seed) for name in options.forms}
        self._jitter = _jitter(schema) if options.rounds == "changed" else None
        self._changed = self._jitter is not None or any(self._forms.values())
        self._segments = self._lay_out(options)
        self._round = self._segments[-1].end
        rounds = None if options.repeat is True else max(1, int(options.repeat))
        ends = [end for end in (rounds and rounds * self._round, options.limit) if end]
        self._end = min(ends) if ends else None
        self.finite = self._end is not None
        self._pace = Pace(options.rate)
        self._block_records = 0
        self._blocks: dict[int, pa.RecordBatch] = {}
        self._order = lru_cache(maxsize=4)(self._draw_order)
        self._draws = lru_cache(maxsize=4)(self._draw_changes)

    def read(self, partition: str, offset: int, limit: int) -> Chunk:
        """Up to ``limit`` rows from ``offset`` on: those that the end and the pace allow now."""
        if offset < 0:
            raise SourceError(f"needed an offset of 0 or more, got {offset}", where=f"partition {partition}")
        end = offset + max(0, min(limit, self._pace.allows(offset)))
        end = min(end, max(self._end, offset)) if self._end is not None else end
        return Chunk(self._rows(offset, end), partition, offset, end)

    def end(self, partition: str) -> int | None:
        """The number of records of all rounds; ``None`` where they repeat for ever."""
        return self._end

    def turn(self, partition: str, offset: int) -> int | None:
        """In which round the offset lies, from 1 on; ``None`` where the stream is one round."""
        return offset // self._round + 1 if self._end is None or self._end > self._round else None

    def tests(self) -> Mapping[str, pa.RecordBatch]:
        """Test records by task, in the forms of the tasks, in the order of the stream, as far as it goes.

        Raises:
            SourceError: some are of no task that the train records have, and would be left out.
        """
        if self._test.outside:
            raise SourceError(
                f"{self._test.outside} test records are of a task or label that the train records do not have",
                where="stream.source.test_path",
                fix="leave them out of the test file, or have records of them in the train file too",
            )
        found: dict[str, pa.RecordBatch] = {}
        for segment in self._segments:
            if self._end is not None and segment.start >= self._end:
                break
            there = segment.rows if self._end is None else segment.rows[: self._end - segment.start]
            for task in dict.fromkeys(self._train.tasks[there].tolist()):
                rows = np.flatnonzero(self._test.tasks == task)
                name = self._train.name(task, segment.form)
                if name is not None and len(rows) and name not in found:
                    found[name] = self._compose(self._test, rows, segment.form)
        return found

    def close(self) -> None:
        self._blocks.clear()

    def _lay_out(self, options: ReplayOptions) -> list[Segment]:
        segments: list[Segment] = []
        for name in options.forms:
            for rows in self._train.groups(in_order=not self._shuffled and not options.classes_per_task):
                start = segments[-1].end if segments else 0
                segments.append(Segment(len(segments), start, rows, name))
        return segments

    def _rows(self, start: int, end: int) -> pa.RecordBatch:
        """Rows by offset, cut from blocks that are composed once: small reads stay cheap."""
        if start == end:
            return self._block(0).slice(0, 0)
        first, size = self._block(start), self._block_records
        if (end - 1) // size == start // size:
            return first.slice(start % size, end - start)
        parts, at = [first.slice(start % size)], (start // size + 1) * size
        while at < end:
            parts.append(self._block(at).slice(0, end - at))
            at += size
        return pa.concat_batches(parts)

    def _block(self, offset: int) -> pa.RecordBatch:
        if not self._block_records:
            few = self._span(0, min(16, self._round))
            row_bytes = max(1, few.nbytes // few.num_rows)
            self._block_records = int(np.clip(BLOCK_BYTES // row_bytes, 1, BLOCK_RECORDS))
        number = offset // self._block_records
        if number not in self._blocks:
            while len(self._blocks) > 1:
                self._blocks.pop(next(iter(self._blocks)))
            start = number * self._block_records
            end = start + self._block_records
            self._blocks[number] = self._span(start, end if self._end is None else min(end, max(self._end, start)))
        return self._blocks[number]

    def _span(self, start: int, end: int) -> pa.RecordBatch:
        """The records of offsets ``[start, end)``, over segments and rounds."""
        parts = []
        while start < end:
            turn, place = divmod(start, self._round)
            segment = self._segment_at(place)
            stop = min(end - start, segment.end - place)
            here = slice(place - segment.start, place - segment.start + stop)
            rows, draws = self._order(turn, segment.number)[here], self._draws(turn, segment.number)
            parts.append(self._compose(self._train, rows, segment.form, None if draws is None else draws[here]))
            start += stop
        return pa.concat_batches(parts) if parts else self._compose(self._train, np.zeros(0, np.int64), "plain")

    def _segment_at(self, place: int) -> Segment:
        ends = [segment.end for segment in self._segments]
        return self._segments[int(np.searchsorted(ends, place, side="right"))]

    def _draw_order(self, turn: int, number: int) -> np.ndarray:
        rows = self._segments[number].rows
        return np.random.default_rng([self._seed, turn, number]).permutation(rows) if self._shuffled else rows

    def _draw_changes(self, turn: int, number: int) -> np.ndarray | None:
        """How each record of a segment differs in this round [records, 4]; the first shows them as they are."""
        if self._jitter is None or not turn:
            return None
        drawn = np.random.default_rng([self._seed, turn, number, CHANGES])
        return drawn.uniform(-1, 1, (len(self._segments[number].rows), variations.DRAWS))

    def _compose(self, part: Split, rows: np.ndarray, form: str, draws: np.ndarray | None = None) -> pa.RecordBatch:
        """These rows of a part in one form, with the columns of the schema."""
        table = part.take(rows)
        columns: dict[str, pa.Array] = {}
        for column in self._schema.inputs:
            values = _whole(table.column(column.name))
            if column.kind == "tensor" and (self._changed or (column.pad and holds_lists(values.type))):
                values = self._reshape(values, column.size, column.pad, form, draws)
            columns[column.name] = values
        noisy = part.labels
        columns[self._schema.label] = (
            _whole(table.column(self._schema.label)) if noisy is None else noisy.take(pa.array(rows))
        )
        if self._schema.task:
            columns[self._schema.task] = part.tasks_of(rows, form)
        for name in (self._schema.id, self._schema.event_time):
            if name:
                columns[name] = _whole(table.column(name))
        return pa.RecordBatch.from_pydict(columns)

    def _reshape(self, column: pa.Array, size: int, pad: bool, form: str, draws: np.ndarray | None) -> pa.Array:
        """Lists as fixed-size lists of one type, so that every form has the same columns."""
        values, good = to_values(column, size, pad)
        if self._jitter is not None and draws is not None:
            values = self._jitter(values, draws)
        change = self._forms[form]
        values = values if change is None else change(values)
        return to_fixed(values.astype(element_type(column.type).to_pandas_dtype(), copy=False), good)


class Pace:
    """How many records from an offset on are there: ``rate`` per second since the first read, from its offset on."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._first: tuple[int, float] | None = None

    def allows(self, offset: int) -> int:
        if self._rate is None:
            return 1 << 62
        if self._first is None:
            self._first = offset, time.monotonic()
        first, opened = self._first
        return first + int(self._rate * (time.monotonic() - opened)) - offset


def _form(name: str, schema: RecordSchema, seed: int) -> variations.Form | None:
    if name != "plain" and len(schema.inputs) != 1:
        raise SourceError(f"variation {name} needs one input column, got {len(schema.inputs)}", fix="use plain")
    return variations.form(name, schema.inputs[0], seed)


def _jitter(schema: RecordSchema) -> variations.Jitter:
    if len(schema.inputs) != 1:
        raise SourceError(f"rounds: changed needs one input column, got {len(schema.inputs)}", fix="leave rounds out")
    return variations.Jitter(schema.inputs[0])


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """One array of a column of any number of chunks."""
    joined = column.combine_chunks()
    if isinstance(joined, pa.ChunkedArray):
        return joined.chunk(0) if joined.num_chunks else pa.array([], joined.type)
    return joined
