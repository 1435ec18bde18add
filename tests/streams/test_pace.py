"""The pace: batches as large as the source asks for, and the same ones after a restart."""

import logging
from dataclasses import dataclass, field

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkd.errors import Overloaded
from streamkd.records import InputColumn, RecordSchema
from streamkd.streams.batcher import Batcher
from streamkd.streams.log.log import Log, LogSource
from streamkd.streams.log.paces import Gear
from streamkd.streams.pace import LAG_SECONDS, MORE, Gearbox, Pace

STEP, RECORD = 0.010, 0.0003  # seconds that a step costs, and each of its records
REHEARSAL = 0.004
TEN = Gear(10)


class Clock:
    """Time as the test says."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Journal:
    """A journal in memory; without room when the test says."""

    entries: dict[int, Gear] = field(default_factory=dict)
    full: bool = False

    def put_pace(self, start: int, gear: Gear) -> None:
        if self.full:
            raise Overloaded("the log cannot be written: disk full")
        self.entries[start] = gear

    def paces(self) -> list[tuple[int, Gear]]:
        return sorted(self.entries.items())


def played(rate: float, seconds: float, flush: float = 1.0) -> tuple[list[tuple[float, float]], list[Gear]]:
    """A learner at a source of so many records a second: (time, seconds of lag) at each batch, and all changes."""
    clock = Clock()
    journal = Journal()
    pace, offset, waited = Pace(TEN, journal, Gearbox(TEN, clock)), 0, 0.0
    lags, changes = [], []
    while clock.now < seconds:
        waiting = int(clock.now * rate) - offset
        rows = pace.at(offset, waiting)
        changes += [pace.gear] if not changes or pace.gear != changes[-1] else []
        if waiting >= rows or (waiting and waited >= flush):
            taken, waited = min(rows, waiting), 0.0
            pace.out(taken)
            clock.now += STEP + RECORD * taken + REHEARSAL * pace.gear.rehearsals
            offset += taken
            lags.append((clock.now, clock.now - offset / rate))
        else:
            clock.now, waited = clock.now + 0.02, waited + 0.02 if waiting else 0.0
    return lags, changes


FIRST = 10 / (STEP + 10 * RECORD)  # records a second that batches of ten take


@pytest.mark.parametrize(
    ("times", "gears"),
    [
        (0.1, {Gear(10, 8)}),
        (0.5, {Gear(10, more) for more in MORE}),
        (1.0, {TEN, Gear(20)}),
        (2.0, {Gear(20), Gear(40), Gear(80)}),
        (3.4, {Gear(160)}),
    ],
)
def test_it_keeps_up_with_the_source(times: float, gears: set[Gear]) -> None:
    """Within five minutes, at what batches of ten would take times so much: the lag is bounded, and gears are few."""
    lags, changes = played(times * FIRST, 300.0)
    assert max(lag for _, lag in lags) < LAG_SECONDS + 8
    assert max(lag for now, lag in lags if now > 30) < LAG_SECONDS + 1.5  # a batch that is flushed has waited a second
    assert changes[-1] in gears
    assert len(changes) <= 8


def test_it_is_as_fast_as_it_can_be_where_that_is_not_enough() -> None:
    """The largest batches, and the lag grows: the log's quota is what says no then."""
    lags, changes = played(20 * FIRST, 60.0)
    assert changes == [Gear(rows) for rows in (10, 20, 40, 80, 160, 320)]
    assert lags[-1][1] > 30


def test_a_stream_that_becomes_slow_is_learned_with_more_replay() -> None:
    """From the largest gear down to the smallest, one each time that most of five seconds were idle."""
    clock = Clock()
    pace, gears = Pace(Gear(160), Journal(), Gearbox(TEN, clock)), []
    for offset in range(80):
        pace.at(offset, 0)
        gears.append(pace.gear)
        pace.out(1)
        clock.now += STEP
        pace.at(offset + 1, 0)
        clock.now += 1.0
    fast = [Gear(rows) for rows in (160, 80, 40, 20, 10)]
    assert list(dict.fromkeys(gears)) == [*fast, *(Gear(10, more) for more in (1, 2, 4, 8))]


def test_what_is_journaled_stands_whatever_the_gearbox_would_say() -> None:
    """Up to the last entry; there it may change again."""
    clock = Clock()
    journal = Journal({40: Gear(20), 100: Gear(5)})  # five: of an older streamkd
    pace = Pace(TEN, journal, Gearbox(TEN, clock))
    rows = []
    for offset in (0, 30, 40, 99, 100, 101):
        rows.append(pace.at(offset, 1_000_000))
        pace.out(1)
        clock.now += 2.0
    assert rows == [10, 10, 20, 20, 20, 40]
    assert journal.entries == {40: Gear(20), 100: Gear(20), 101: Gear(40)}


def test_a_fixed_pace_goes_back_to_the_configuration() -> None:
    """After the batches that had been learned otherwise, which are cut again as they were."""
    journal = Journal({40: Gear(20), 100: Gear(10, 4)})
    pace = Pace(TEN, journal)
    assert [pace.at(offset, 0) for offset in (0, 40, 99, 100, 200)] == [10, 20, 20, 10, 10]
    assert pace.gear == TEN
    assert journal.entries == {40: Gear(20), 100: TEN}


def test_a_pace_that_cannot_be_journaled_is_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody would know of it after a restart; when there is room it is."""
    clock, journal = Clock(), Journal(full=True)
    pace = Pace(TEN, journal, Gearbox(TEN, clock))
    rows = []
    with caplog.at_level(logging.WARNING):
        for offset in range(4):
            journal.full = offset < 2
            rows.append(pace.at(offset, 1_000_000))
            pace.out(1)
            clock.now += 2.0
    assert rows == [10, 10, 20, 40]
    assert "stay at 10 records, as 20 records cannot be journaled" in caplog.text


@given(
    arrivals=st.lists(st.tuples(st.integers(1, 60), st.floats(0.0, 3.0)), min_size=1, max_size=12),
    step=st.floats(0.0, 2.0),
    stop=st.integers(0, 40),
)
@settings(max_examples=40)
def test_resumed_batches_equal_undisturbed_ones(
    arrivals: list[tuple[int, float]], step: float, stop: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Cut while rows come and steps take their time; then again over the whole log from any batch on: the same cuts."""
    schema = RecordSchema(inputs=(InputColumn(name="x"),))
    log, clock, offset = Log(tmp_path_factory.mktemp("log") / "log.sqlite", schema), Clock(), 0
    cutter, live = Batcher(LogSource(log), 5, 1.0, log, clock, Gearbox(Gear(5), clock)), [0]
    for rows, wait in arrivals:
        x = pa.FixedSizeListArray.from_arrays(pa.array([0.0] * rows, pa.float32()), 1)
        log.append(pa.RecordBatch.from_arrays([x, pa.array([0] * rows)], schema=log.arrow_schema))
        clock.now += wait
        while (chunk := cutter.next({"main/0": offset})) is not None:
            offset = chunk.next_offset
            live.append(offset)
            clock.now += step
    later = Clock()
    start = live[min(stop, len(live) - 1)]
    again, cuts = Batcher(LogSource(log), 5, 1.0, log, later, Gearbox(Gear(5), later)), [start]
    while cuts[-1] < live[-1] and (chunk := again.next({"main/0": cuts[-1]})) is not None:
        cuts.append(chunk.next_offset)
    assert cuts == live[live.index(start) :]
    log.close()
