"""The cutter: the same batches on every replay, whatever the clock does."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkd.errors import Overloaded, SourceError
from streamkd.records import Chunk, InputColumn, RecordSchema
from streamkd.streams.batcher import Batcher
from streamkd.streams.log.log import Log, LogSource


class Numbers:
    """A source of numbers that grows as the test says, and gives at most ``piece`` rows a read."""

    def __init__(self, rows: int, finite: bool = False, piece: int = 1_000, partitions: tuple[str, ...] = ("n/0",)):
        self.rows, self.finite, self.piece, self.partitions = rows, finite, piece, partitions

    def read(self, partition: str, offset: int, limit: int) -> Chunk:
        stop = min(offset + min(limit, self.piece), self.rows)
        values = pa.array(range(offset, max(offset, stop)), pa.int64())
        return Chunk(pa.record_batch({"n": values}), partition, offset, offset + len(values))

    def end(self, partition: str) -> int | None:
        return self.rows

    def tests(self) -> Mapping[str, pa.RecordBatch]:
        return {}

    def close(self) -> None: ...


class Clock:
    """Time as the test says."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def drain(cutter: Batcher, partition: str = "n/0", start: int = 0) -> list[list[int]]:
    """Batches until none is due."""
    batches = []
    while (chunk := cutter.next({partition: start})) is not None:
        batches.append(chunk.rows.column(0).to_pylist())
        start = chunk.next_offset
    return batches


def test_batches_are_cut_by_count_and_the_rest_waits() -> None:
    """Without a journal the clock has no say: fewer than ``size`` rows are never handed out."""
    clock = Clock()
    cutter = Batcher(Numbers(7), 3, 1.0, None, clock)
    assert drain(cutter) == [[0, 1, 2], [3, 4, 5]]
    clock.now = 100.0
    assert cutter.next({"n/0": 6}) is None


def test_a_finite_source_gives_its_remainder() -> None:
    """At the end the last batch is shorter, and then there is none."""
    cutter = Batcher(Numbers(7, finite=True), 3, 1.0)
    assert drain(cutter) == [[0, 1, 2], [3, 4, 5], [6]]
    assert cutter.next({"n/0": 7}) is None


def test_short_reads_are_gathered() -> None:
    """A source may give its rows in pieces; the batches are the same."""
    assert drain(Batcher(Numbers(7, finite=True, piece=2), 3, 1.0)) == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.fixture
def log(tmp_path: Path, schema: RecordSchema) -> Log:
    return Log(tmp_path / "log.sqlite", schema)


def test_rows_that_wait_are_journaled_and_handed_out(log: Log, pictures: Callable[..., pa.RecordBatch]) -> None:
    """After flush_seconds the cut is on disk before the batch is out."""
    clock = Clock()
    cutter = Batcher(LogSource(log), 10, 1.0, log, clock)
    log.append(pictures(4))
    assert cutter.next({"main/0": 0}) is None
    clock.now = 0.9
    assert cutter.next({"main/0": 0}) is None
    clock.now = 1.0
    chunk = cutter.next({"main/0": 0})
    assert chunk is not None
    assert (chunk.rows.num_rows, chunk.next_offset) == (4, 4)
    assert log.cut_at(0) == 4
    assert cutter.next({"main/0": 4}) is None


def test_a_journaled_cut_wins_over_what_came_later(log: Log, pictures: Callable[..., pa.RecordBatch]) -> None:
    """Resumed with a full batch waiting, the cutter still cuts where it cut before."""
    log.append(pictures(4))
    log.put_cut(0, 4)
    log.append(pictures(20))
    chunk = Batcher(LogSource(log), 10, 1.0, log).next({"main/0": 0})
    assert chunk is not None
    assert chunk.next_offset == 4


def test_a_slow_trickle_is_not_held_for_ever(log: Log, pictures: Callable[..., pa.RecordBatch]) -> None:
    """The wait counts from the first waiting row, not from the last."""
    clock = Clock()
    cutter = Batcher(LogSource(log), 10, 1.0, log, clock)
    for moment in (0.0, 0.5, 1.0):
        clock.now = moment
        log.append(pictures(1))
        chunk = cutter.next({"main/0": 0})
    assert chunk is not None
    assert chunk.next_offset == 3


@given(
    arrivals=st.lists(st.tuples(st.integers(1, 8), st.floats(0.0, 2.0)), min_size=1, max_size=12),
    stop=st.integers(0, 11),
)
def test_resumed_batches_equal_undisturbed_ones(
    arrivals: list[tuple[int, float]], stop: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Cut while rows trickle in; then again over the whole log from any batch on: the same cuts."""
    schema = RecordSchema(inputs=(InputColumn(name="x"),))
    log, clock, offset = Log(tmp_path_factory.mktemp("log") / "log.sqlite", schema), Clock(), 0
    cutter, live = Batcher(LogSource(log), 5, 1.0, log, clock), [0]
    for rows, wait in arrivals:
        x = pa.FixedSizeListArray.from_arrays(pa.array([0.0] * rows, pa.float32()), 1)
        log.append(pa.RecordBatch.from_arrays([x, pa.array([0] * rows)], schema=log.arrow_schema))
        clock.now += wait
        while (chunk := cutter.next({"main/0": offset})) is not None:
            offset = chunk.next_offset
            live.append(offset)
    start = live[min(stop, len(live) - 1)]
    again, cuts = Batcher(LogSource(log), 5, 1.0, log, Clock()), [start]
    while (chunk := again.next({"main/0": cuts[-1]})) is not None:
        cuts.append(chunk.next_offset)
    assert cuts == live[live.index(start) :]
    log.close()


def test_partitions_of_a_finite_source_take_turns_by_offset() -> None:
    """The order depends on the offsets alone."""
    cutter = Batcher(Numbers(4, finite=True, partitions=("n/0", "n/1")), 2, 1.0)
    offsets = {"n/0": 0, "n/1": 0}
    order = []
    while (chunk := cutter.next(offsets)) is not None:
        order.append((chunk.partition, chunk.offset))
        offsets[chunk.partition] = chunk.next_offset
    assert order == [("n/0", 0), ("n/1", 0), ("n/0", 2), ("n/1", 2)]


def test_several_partitions_without_end_are_refused() -> None:
    """Their interleaving would depend on time and is not journaled."""
    with pytest.raises(SourceError, match="needed one partition, got 2"):
        Batcher(Numbers(4, partitions=("n/0", "n/1")), 2, 1.0)


class FullDisk:
    """A journal without room, until the test says."""

    full = True

    def __init__(self) -> None:
        self.cuts: dict[int, int] = {}

    def put_cut(self, start: int, stop: int) -> None:
        if self.full:
            raise Overloaded("the log cannot be written: disk full")
        self.cuts[start] = stop

    def cut_at(self, start: int) -> int | None:
        return self.cuts.get(start)

    def paces(self) -> list[tuple[int, int]]:
        return []


def test_a_cut_that_cannot_be_journaled_waits() -> None:
    """While the journal's disk is full nothing is handed out; when there is room the rows go, under a journaled cut."""
    clock, journal = Clock(), FullDisk()
    cutter = Batcher(Numbers(7), 10, 1.0, journal, clock)
    for clock.now in (0.0, 1.0, 2.0, 3.0):
        assert cutter.next({"n/0": 0}) is None
    journal.full = False
    assert [cutter.next({"n/0": 0}) for clock.now in (3.5, 4.0)] == [None, None]
    clock.now = 4.5
    assert drain(cutter) == [[0, 1, 2, 3, 4, 5, 6]]
    assert journal.cuts == {0: 7}
