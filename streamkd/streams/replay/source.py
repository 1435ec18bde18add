"""The source ``replay``: a dataset or a file as a stream of tasks, by offset.

    rows ─► classes ─► tasks ─► one segment per (variation, task) ─► a round ─► rounds, one after another

The record at an offset is a pure function of the options and the offset: class order, shuffles, label noise and the
small changes of later rounds are drawn from the seed, and pacing decides only when a record is there. So any offset can
be read again, at any time, in any chunks, in any process.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streamkd.errors import SourceError
from streamkd.hookspecs import SourceKind, hookimpl
from streamkd.records import Chunk, InputColumn, RecordSchema
from streamkd.streams.encoding.lists import element_type, holds_lists, to_fixed, to_values
from streamkd.streams.replay import datasets, variations
from streamkd.streams.replay.options import ReplayOptions
from streamkd.streams.replay.review import review
from streamkd.streams.replay.splits import Split, split

PARTITION = "replay/0"
CHANGES = 1  # of the streams of random numbers of a segment: orders have none
WINDOW_BYTES, WINDOW_RECORDS = 4 << 20, 1024


def describe(options: ReplayOptions) -> RecordSchema | None:
    """The schema of a dataset; ``None`` for a file, whose columns only the configuration can name."""
    return datasets.describe(options.dataset) if options.dataset else None


@hookimpl
def streamkd_sources() -> list[SourceKind]:
    """The source that plays what is stored."""
    summary = "a dataset or a file as a stream of tasks: split, permuted, rotated, noisy, paced"
    return [SourceKind("replay", open_replay, ReplayOptions, summary, describe=describe)]


def open_replay(options: ReplayOptions, schema: RecordSchema) -> "Replay":
    """The source; one whose labels are late where the options name their times."""
    return LateReplay(options, schema) if options.request_time else Replay(options, schema)


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
    """Records by offset, as the module says.

    Raises:
        SourceError: data that is missing, damaged, or without the schema's columns.
    """

    partitions = (PARTITION,)

    def __init__(self, options: ReplayOptions, schema: RecordSchema) -> None:
        self._schema = schema
        self._seed = options.seed or 0
        self._shuffled = options.order == "seed" and not options.request_time
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
        self._rate = options.rate
        self._first: tuple[int, float] | None = None  # the offset that was read first, and when
        self._order = lru_cache(maxsize=4)(self._draw_order)
        self._draws = lru_cache(maxsize=4)(self._draw_changes)
        self._window = 0, self._span(0, 0)

    def read(self, partition: str, offset: int, limit: int) -> Chunk:
        """Up to ``limit`` rows from ``offset`` on: those that the end and the pace allow now."""
        if offset < 0:
            raise SourceError(f"needed an offset of 0 or more, got {offset}", where=f"partition {partition}")
        bounds = [offset + limit, *([] if self._end is None else [self._end])]
        if self._rate is not None:
            self._first = self._first or (offset, time.monotonic())
            bounds.append(self._first[0] + int(self._rate * (time.monotonic() - self._first[1])))
        end = max(offset, min(bounds))
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
            for task in pc.unique(pa.array(self._train.tasks[there])).to_pylist():
                rows = np.flatnonzero(self._test.tasks == task)
                name = self._train.name(task, segment.form)
                if name is not None and len(rows) and name not in found:
                    found[name] = self._compose(self._test, rows, segment.form)
        return found

    def close(self) -> None:
        """Nothing is open."""

    def _lay_out(self, options: ReplayOptions) -> list[Segment]:
        segments: list[Segment] = []
        for name in options.forms:
            for rows in self._train.groups(in_order=not self._shuffled and not options.classes_per_task):
                start = segments[-1].end if segments else 0
                segments.append(Segment(len(segments), start, rows, name))
        return segments

    def _rows(self, start: int, end: int) -> pa.RecordBatch:
        """Rows by offset, cut from a window that is composed once: small reads stay cheap."""
        first, window = self._window
        if start == end:
            return window.slice(0, 0)
        if not first <= start < end <= first + window.num_rows:
            stop = max(end, start + self._window_records)
            self._window = first, window = start, self._span(start, stop if self._end is None else min(stop, self._end))
        return window.slice(start - first, end - start)

    @cached_property
    def _window_records(self) -> int:
        few = self._span(0, min(16, self._round))
        return int(np.clip(WINDOW_BYTES * few.num_rows // max(1, few.nbytes), 1, WINDOW_RECORDS))

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
        return (
            pa.concat_batches(parts)
            if parts
            else self._compose(self._train, np.zeros(0, np.int64), self._segments[0].form)
        )

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
            values = table.column(column.name).combine_chunks()
            if column.kind == "tensor" and (self._changed or (column.pad and holds_lists(values.type))):
                values = self._reshape(values, column, form, draws)
            columns[column.name] = values
        noisy = part.labels
        label = table.column(self._schema.label).combine_chunks() if noisy is None else noisy.take(pa.array(rows))
        columns[self._schema.label] = label
        if self._schema.task:
            columns[self._schema.task] = part.tasks_of(rows, form)
        for name in (self._schema.producer, self._schema.id, self._schema.event_time):
            if name:
                columns[name] = table.column(name).combine_chunks()
        return pa.RecordBatch.from_pydict(columns)

    def _reshape(self, lists: pa.Array, column: InputColumn, form: str, draws: np.ndarray | None) -> pa.Array:
        """Lists as fixed-size lists of one type, so that every form has the same columns; a filled gap is NaN."""
        filled = column.missing == "fill"
        values, good = to_values(lists, column.size, column.pad, gaps=filled)
        if self._jitter is not None and draws is not None:
            values = self._jitter(values, draws)
        change = self._forms[form]
        values = values if change is None else change(values)
        kind = np.dtype(column.dtype) if filled else element_type(lists.type).to_pandas_dtype()
        return to_fixed(values.astype(kind, copy=False), good)


class LateReplay(Replay):
    """Records in the order of their labels' times, which tells who came before a label (``streamkd.records.Late``)."""

    def __init__(self, options: ReplayOptions, schema: RecordSchema) -> None:
        super().__init__(options, schema)
        assert self._train.came is not None  # the options name them
        rows = self._segments[0].rows[: self._end]
        came = self._train.came.came[rows]
        self._asked = np.argsort(came, kind="stable")  # offsets in the order in which the records came
        self._before = np.searchsorted(came[self._asked], self._train.came.labelled[rows], side="right")

    def asked(self, partition: str, start: int, offset: int) -> tuple[pa.RecordBatch, np.ndarray]:
        """The records that came no later than the label at ``offset``, from the ``start``-th on."""
        offsets = self._asked[start : self._before[offset]]
        segment = self._segments[0]
        return self._compose(self._train, segment.rows[offsets], segment.form), offsets


def _form(name: str, schema: RecordSchema, seed: int) -> variations.Form | None:
    if name != "plain" and len(schema.inputs) != 1:
        raise SourceError(f"variation {name} needs one input column, got {len(schema.inputs)}", fix="use plain")
    return variations.form(name, schema.inputs[0], seed)


def _jitter(schema: RecordSchema) -> variations.Jitter:
    if len(schema.inputs) != 1:
        raise SourceError(f"rounds: changed needs one input column, got {len(schema.inputs)}", fix="leave rounds out")
    return variations.Jitter(schema.inputs[0])
