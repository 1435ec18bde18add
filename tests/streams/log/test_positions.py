"""How far a broker's partitions are: with the records, or not at all."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkd.streams.log.dead_letters import DeadLetter
from streamkd.streams.log.log import Entry, Log
from streamkd.streams.log.positions import Move, OffsetConflict

from ..conftest import SCHEMA, make_pictures


def moved(first: int | None, then: int, rows: int = 1, partition: str = "t/0", **more: object) -> Entry:
    return Entry(make_pictures(rows, first=then - rows), moves=[Move(partition, first, then)], **more)  # type: ignore[arg-type]


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log.sqlite", SCHEMA)


def test_records_and_their_position_are_one_transaction(log: Log, tmp_path: Path) -> None:
    """Both are there when the file is opened again; refused rows moved it too, with their letter's own offset."""
    letter = DeadLetter("t/0", "decode", "broken", offset=5, record=b"x", form="message")
    log.append_many([moved(None, 3, rows=3), moved(3, 6, rows=2, letters=[letter])])
    log.close()
    again = Log(tmp_path / "log.sqlite", SCHEMA)
    assert (again.end(), again.positions()) == (5, {"t/0": 6})
    assert [(each.source, each.offset) for each in again.letters.list()] == [("t/0", 5)]


@pytest.mark.parametrize("first", [None, 0, 2, 4])
def test_a_batch_that_begins_elsewhere_is_not_written(log: Log, first: int | None) -> None:
    """Before the position it would count twice, behind it others would be missing; both are named."""
    log.append_many([moved(None, 3)])
    [conflict] = log.append_many([moved(first, 9)])
    assert isinstance(conflict, OffsetConflict)
    assert str(conflict) == f"t/0: needed a batch from offset 3 on, got one from {first}"
    assert (log.end(), log.positions()) == (1, {"t/0": 3})


def test_several_partitions_move_all_or_none(log: Log) -> None:
    """The first positions of a topic: a crash between two of them would make the others later ones."""
    nothing = make_pictures(0)
    log.append_many([Entry(nothing, moves=[Move("t/0", None, 4), Move("t/1", None, 7)])])
    [conflict] = log.append_many([Entry(nothing, moves=[Move("t/2", None, 1), Move("t/1", 6, 9)])])
    assert isinstance(conflict, OffsetConflict)
    assert log.positions() == {"t/0": 4, "t/1": 7}


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 3)), max_size=30))
def test_however_often_messages_are_read_again_each_counts_once(
    tmp_path_factory: pytest.TempPathFactory, reads: list[tuple[int, int, int]]
) -> None:
    """Readers that begin anywhere, of three partitions: what is written is a prefix of each, once, in order."""
    log = Log(tmp_path_factory.mktemp("log") / "log.sqlite", SCHEMA)
    for partition, first, count in reads:
        rows = make_pictures(count, first=100 * partition + first)
        log.append_many([Entry(rows, moves=[Move(str(partition), first or None, first + count)])])
    found = log.read(0, max(1, log.end())).rows.column("label").to_pylist()
    for partition, offset in log.positions().items():
        mine = [label for label in found if label // 100 == int(partition)]
        assert mine == [100 * int(partition) + n for n in range(offset)]
    log.close()


def test_where_partitions_stood_at_an_offset_is_known(log: Log) -> None:
    """Up to the newest whole batch before it, as far back as the log goes."""
    log.append_many([moved(None, 3, rows=3), moved(None, 7, partition="t/1"), moved(3, 9, rows=4)])
    assert [log.positions(offset) for offset in (0, 3, 4, 7, 8)] == [
        {},
        {"t/0": 3},
        {"t/0": 3, "t/1": 7},
        {"t/0": 3, "t/1": 7},
        {"t/0": 9, "t/1": 7},
    ]
    log.append_many([moved(9, 10)])
    log.trim(8)
    assert log.begin() == 8
    assert log.positions(8) == {"t/0": 9, "t/1": 7}
    assert log.positions(7) == {"t/1": 7}


def test_of_partitions_with_notes_the_last_one_is_known(log: Log) -> None:
    """Files, of which there may be very many, one after the other; what is forgotten is told no more."""
    log.append_many([moved(None, 5, partition="t/0", rows=1)])
    for number in range(3):
        rows = make_pictures(2)
        log.append_many([Entry(rows, moves=[Move(f"f{number}", None, 2, "read")])])
    assert log.notes() == {"f0": "read", "f1": "read", "f2": "read"}
    assert [log.positions(offset) for offset in (1, 4, 7)] == [{"t/0": 5}, {"t/0": 5, "f0": 2}, {"t/0": 5, "f2": 2}]
    log.append_many([Entry(make_pictures(0), moves=[Move("f0", 2, None), Move("mark", None, 9, "{}")])])
    assert log.positions() == {"t/0": 5, "f1": 2, "f2": 2, "mark": 9}
    assert log.positions(7) == {"t/0": 5, "f2": 2}
