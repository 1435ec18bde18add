"""Records by event time: merged in their order whatever order they come in, and nothing lost where that cannot be."""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkd.errors import LogDamaged
from streamkd.records import InputColumn, RecordSchema
from streamkd.settings import OrderSettings
from streamkd.streams.log import event_order
from streamkd.streams.log.event_order import ANYBODY, Room
from streamkd.streams.log.log import Entry, Log, OrderReceipt
from streamkd.streams.log.positions import Move

SCHEMA = RecordSchema(inputs=(InputColumn(name="x"),), id="key", event_time="at")
BEGUN = 1_700_000_000  # the second from which times are counted
RELEASE = Entry(pa.record_batch({"nothing": pa.array([], pa.int8())}), kind="release")


class Clock:
    """Seconds as a test sets them."""

    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def rows(times: Sequence[float | None], name: str = "a", first: int = 0) -> pa.RecordBatch:
    """A record for each time, in seconds; its key says whose it is, and the how manieth."""
    moments = [None if each is None else round((BEGUN + each) * 1e6) for each in times]
    columns = {
        "x": pa.FixedSizeListArray.from_arrays(pa.array([0.0] * len(times), pa.float32()), 1),
        "label": pa.array([0] * len(times)),
        "key": pa.array([f"{name}{first + at}" for at in range(len(times))], pa.string()),
        "at": pa.array(moments, pa.timestamp("us", "UTC")),
    }
    return pa.record_batch(columns)


def said(*times: float | None, by: str = "a", first: int = 0, **more: Any) -> Entry:
    return Entry(rows(times, by, first), heard=by, **more)


@dataclass
class Case:
    """A log with a clock of its own, which can be opened again."""

    folder: Path
    order: OrderSettings | None
    room: Room
    clock: Clock = field(default_factory=Clock)

    def open(self) -> None:
        self.log = Log(self.folder / "log.sqlite", SCHEMA, order=self.order, order_room=self.room, clock=self.clock)

    def again(self) -> None:
        self.log.close()
        self.open()

    def put(self, *entries: Entry) -> OrderReceipt:
        outcome = self.log.append_many(entries)[-1]
        assert isinstance(outcome, OrderReceipt)
        return outcome

    def release_all(self) -> None:
        """When nobody has said anything for long."""
        self.clock.now += 1_000
        assert self.log.order_is_due() or not self.told()["held"]
        self.put(RELEASE)
        assert not self.log.order_is_due()

    def keys(self) -> list[str]:
        return list(self.log.read(0, max(1, self.log.end())).rows.column("key").to_pylist())

    def told(self) -> dict[str, Any]:
        return self.log.standing().told()


@contextmanager
def a_case(room: Room = Room(), known: Sequence[str] = (), **order: Any) -> Iterator[Case]:  # noqa: B008
    """``known``: senders that have been heard, so that nobody else is waited for."""
    with tempfile.TemporaryDirectory() as folder:
        case = Case(Path(folder), OrderSettings(**order), room)
        case.open()
        for name in known:
            case.put(said(by=name))
        case.clock.now += 1_000 if known else 0
        yield case
        case.log.close()


def test_two_senders_one_an_hour_late_are_merged() -> None:
    """What comes first is held for the other's hour, and the log has both in the order of time."""
    with a_case(lateness_seconds=10) as case:
        case.put(said(by="b"))
        for hour in range(2):
            case.put(said(*range(3_600 * hour, 3_600 * (hour + 1), 300), by="a", first=12 * hour))
            if hour:
                case.put(said(*range(0, 3_600, 300), by="b"))
        case.release_all()
        in_order = [f"{name}{n}" for n in range(12) for name in "ab"] + [f"a{n}" for n in range(12, 24)]
        assert case.keys() == in_order


moves = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 6), st.booleans(), st.booleans()), min_size=6, max_size=25
)


STEPS = {
    "data": st.data(),
    "steps": moves,
    "lateness": st.integers(0, 20),
    "late": st.sampled_from(["train", "drop", "dead-letter"]),
}


@settings(max_examples=15, deadline=None)
@given(**STEPS)
def test_any_interleaving_gives_the_merged_stream(data: st.DataObject, steps: Any, lateness: int, late: Any) -> None:
    """Senders whose records are out of order by no more than the lateness: stable order by time over all of them.

    The log is opened again anywhere between two transactions, which is all that a kill leaves; batches of any size, a
    transaction each or together.
    """
    check_merged(data, steps, lateness, late)


@pytest.mark.soak
@settings(max_examples=500, deadline=None)
@given(**STEPS)
def test_many_interleavings_give_the_merged_stream(data: st.DataObject, steps: Any, lateness: int, late: Any) -> None:
    """The same at length."""
    check_merged(data, steps, lateness, late)


def check_merged(data: st.DataObject, steps: Any, lateness: int, late: Any) -> None:
    """What is in the log is before the watermark at any time, and in the end all of it in order."""
    with a_case(known="abc", lateness_seconds=lateness, late=late) as case:
        case.put(*(said(0, by=name) for name in "abc"))
        arrived: list[tuple[float, str]] = [(0, f"{name}0") for name in "abc"]
        newest, counts = dict.fromkeys("abc", 0), dict.fromkeys("abc", 1)
        together: list[Entry] = []
        for name, count, reopen, alone in steps:
            times = []
            for _ in range(count):
                time_ = max(0, newest[name] + data.draw(st.integers(-lateness, 15)))
                newest[name] = max(newest[name], time_)
                arrived.append((time_, f"{name}{counts[name] + len(times)}"))
                times.append(time_)
            together.append(said(*times, by=name, first=counts[name]))
            counts[name] += count
            if alone:
                case.put(*together)
                together.clear()
                known = [time_ for time_, _ in sorted(arrived, key=lambda each: each[0])][: case.log.end()]
                assert all(time_ <= min(newest.values()) - lateness for time_ in known)
            if reopen:
                case.again()
        case.put(*together, RELEASE)
        case.release_all()
        assert case.keys() == [key for _, key in sorted(arrived, key=lambda each: each[0])]
        told = case.told()
        assert (told["held"], told["held_bytes"], told["full"], told["late"][late]) == (0, 0, 0, 0)


@pytest.mark.parametrize("treatment", ["train", "drop", "dead-letter"])
def test_late_records_are_treated_as_they_should(treatment: Any) -> None:
    """Learned where they come; or refused with the row and the reason, without or with a dead letter. Counted."""
    trained, letters = treatment == "train", treatment == "dead-letter"
    with a_case(known="a", late=treatment) as case:
        case.put(said(10, 20))
        case.release_all()
        receipt = case.put(said(5, 20, first=2))
        case.release_all()
        assert case.keys() == ["a0", "a1", *["a2"] * trained, "a3"]
        assert case.told()["late"] == {name: int(name == treatment) for name in ("train", "drop", "dead-letter")}
        assert [(each.row, each.reason) for each in receipt.late] == [(0, "late")] * (not trained)
        assert (receipt.accepted, receipt.rejected) == (1 + trained, 1 - trained)
        kept = [(each.reason, each.source, key_of(each.record)) for each in case.log.letters.list()]
        assert kept == [("late", "a", "a2")] * letters


def key_of(record: bytes | None) -> str:
    return str(pa.ipc.open_stream(record).read_all()["key"][0])


def test_what_is_not_behind_anything_written_is_not_late() -> None:
    """The watermark may have passed its time: as long as nothing newer is in the log, it has its place."""
    with a_case(known="a", lateness_seconds=1) as case:
        case.put(said(0, 100))
        assert case.keys() == ["a0"]
        case.put(said(50, first=2))
        case.release_all()
        assert case.keys() == ["a0", "a2", "a1"]


def test_records_without_an_event_time_are_learned_where_they_come() -> None:
    """A gap, or a time more than a day ahead, which would make all others late: at once, and counted."""
    with a_case(known="a", lateness_seconds=5, late="drop") as case:
        tomorrow = time.time() - BEGUN + 90_000
        receipt = case.put(said(0, None, tomorrow, 1))
        assert (receipt.accepted, case.keys()) == (4, ["a1", "a2"])
        case.put(said(3, first=4))
        case.release_all()
        assert case.keys() == ["a1", "a2", "a0", "a3", "a4"]
        assert case.told()["untimed"] == 2


def test_the_first_senders_wait_for_others_to_come() -> None:
    """Who is first ever cannot know who else there is: nothing is written until it has waited."""
    with a_case(lateness_seconds=0, idle_seconds=30) as case:
        case.put(said(0, 100))
        assert (case.keys(), case.told()["waits_for"]) == ([], "anybody")
        case.clock.now += 29
        case.put(said(50, by="b"))
        assert not case.log.order_is_due()
        case.clock.now += 1
        assert case.log.order_is_due()
        case.put(RELEASE)
        assert case.keys() == ["a0", "b0"]


def test_a_silent_sender_is_not_waited_for() -> None:
    """After so long, in which it could have been heard: a restart begins no new wait."""
    with a_case(known="ab", lateness_seconds=0, idle_seconds=30) as case:
        case.put(said(10, by="b"))
        case.put(said(20, 30))
        assert (case.keys(), case.told()["waits_for"]) == (["b0"], "b")
        case.clock.now += 20
        case.put(said(40, first=2))
        case.again()
        case.clock.now += 9
        assert not case.log.order_is_due()
        case.clock.now += 1
        case.put(RELEASE)
        assert case.keys() == ["b0", "a0", "a1", "a2"]
        assert case.told()["senders"] == {"active": 1, "idle": 2}
        case.put(said(35, by="b", first=1), said(50, first=3))
        assert case.told()["late"]["train"] == 1
        assert case.keys()[-1] == "b1"  # where it came; and b is waited for again
        assert case.told()["waits_for"] == "b"


def test_who_speaks_and_is_not_taken_is_not_silent() -> None:
    """A sender that is held back for others keeps its lateness when these fall silent."""
    with a_case(known="ab", lateness_seconds=10, idle_seconds=30) as case:
        case.put(said(0, by="b"))
        case.put(said(100, 105))
        case.clock.now += 25
        case.log.knock("a")
        case.clock.now += 10
        case.put(RELEASE)
        assert case.keys() == ["b0"]
        assert case.told()["senders"]["active"] == 1
        case.put(said(99, first=2))
        case.release_all()
        assert case.keys() == ["b0", "a2", "a0", "a1"]


def test_time_in_which_nobody_could_be_heard_does_not_count() -> None:
    """``stand_still`` of the log's own clock: a full queue makes nobody silent."""
    with tempfile.TemporaryDirectory() as folder:
        log = Log(Path(folder) / "log.sqlite", SCHEMA, order=OrderSettings(idle_seconds=0.05, lateness_seconds=0))
        log.append_many([said(1, by="b"), said(2)])
        time.sleep(0.1)
        log.stand_still(60)
        assert not log.order_is_due()
        log.stand_still(-60)
        assert log.order_is_due()
        log.close()


def test_the_oldest_go_where_there_is_no_room() -> None:
    """Before their turn, in their order, and counted; the room is what is held at most afterwards."""
    with a_case(Room(records=10), known="a", lateness_seconds=1_000) as case:
        case.put(said(*range(0, 16, 2)))
        assert case.keys() == []
        case.put(said(*range(1, 17, 2), first=8))
        assert case.told()["held"] <= 10
        assert case.told()["full"] == case.log.end() >= 6
        case.release_all()
        assert case.keys() == [key for n in range(8) for key in (f"a{n}", f"a{8 + n}")]


@pytest.mark.parametrize(
    ("held", "asks", "ahead"),
    [
        ({"a": [10] * 3, "b": [5]}, ("a", 1), True),  # of 10 records three quarters, of which each of two may have half
        ({"a": [10] * 2, "b": [5]}, ("a", 1), False),
        ({"a": [10] * 9, "b": [5]}, ("b", 9), False),
        ({"a": [10] * 9, "b": [10]}, ("a", 9), False),
        ({"a": [10], "b": []}, ("a", 9), True),
        ({"a": [], "b": [5]}, ("a", 99), False),
        ({"a": [10], "b": [5]}, ("c", 99), False),
        ({"a": [10], "b": [10]}, ("a", 99), False),
    ],
)
def test_who_is_ahead_waits_beyond_its_share(held: Mapping[str, list[int]], asks: tuple[str, int], ahead: bool) -> None:
    """Never who is waited for, nor who has nothing held or is new: so there is always somebody who may go on."""
    with a_case(Room(records=10), known="ab", lateness_seconds=1_000) as case:
        for name, times in held.items():
            case.put(said(*times, by=name))
        assert case.log.standing().is_ahead(asks[0], records=asks[1]) is ahead


def test_partitions_are_senders_from_their_first_position_on() -> None:
    """Before anything is read of them: a topic's other partitions are waited for."""
    with a_case(lateness_seconds=0) as case:
        case.put(Entry(rows([]), moves=[Move("t/0", None, 0), Move("t/1", None, 0)]))
        assert {*case.log.standing().senders} == {ANYBODY, "t/0", "t/1"}
        case.put(Entry(rows([5]), moves=[Move("t/0", 0, 1)]))
        assert case.log.standing().senders["t/0"].newest == (BEGUN + 5) * 10**6
        assert case.log.standing().senders["t/1"].newest is None


def test_a_batch_that_is_sent_again_is_held_once() -> None:
    """Its receipt is in the transaction that holds it, though no record of it is in the log."""
    with a_case(known="p", lateness_seconds=100) as case:
        entry = said(1, 2, by="p", producer="p", sequence=0, digest=b"d")
        assert case.put(entry).accepted == 2
        case.again()
        [receipt] = case.log.append_many([entry])
        assert not isinstance(receipt, Exception)
        assert (receipt.duplicate, receipt.accepted) == (True, 2)
        case.release_all()
        assert case.keys() == ["p0", "p1"]


def test_without_an_order_what_was_held_is_written() -> None:
    """A configuration that has none any more loses nothing: all of it is due."""
    with a_case(known="a", lateness_seconds=100) as case:
        case.put(said(2, 1))
        case.order = None
        case.again()
        assert case.log.order_is_due()
        case.put(RELEASE)
        assert case.keys() == ["a1", "a0"]


def test_large_batches_are_sorted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces and groups much smaller than what is released at once give the same order, ties among them."""
    monkeypatch.setattr(event_order, "PIECE_ROWS", 7)
    monkeypatch.setattr(event_order, "GROUP_BYTES", 2_000)
    with a_case(known="ab", lateness_seconds=40) as case:
        times = [(n * 37) % 101 // 3 for n in range(300)]
        case.put(said(by="a"), said(by="b"))
        for first in range(0, 300, 50):
            case.put(said(*times[first : first + 50], by="ab"[first // 50 % 2], first=first))
        case.release_all()
        keys = case.keys()
        found = [int(key[1:]) for key in keys]
        assert found == sorted(range(300), key=lambda n: times[n])


def test_senders_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest silent is forgotten; what it brought is not."""
    monkeypatch.setattr(event_order, "SENDERS", 5)
    with a_case(lateness_seconds=1_000) as case:
        for n in range(9):
            case.clock.now += 1
            case.put(said(n, by=f"p{n}-"))
        assert {*case.log.standing().senders} == {f"p{n}-" for n in range(4, 9)}
        case.release_all()
        assert case.keys() == [f"p{n}-0" for n in range(9)]


def test_damage_of_what_is_held_is_told() -> None:
    """Another byte: the log is damaged, and nothing is learned of it."""
    with a_case(known="a", lateness_seconds=100) as case:
        case.put(said(1))
        with case.log.file.writing() as connection:
            connection.execute("UPDATE held_rows SET payload = zeroblob(length(payload))")
        case.clock.now += 1_000
        with pytest.raises(LogDamaged, match="wait for their turn is not what was written"):
            case.put(RELEASE)
