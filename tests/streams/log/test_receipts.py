"""Receipts: a number stands for one batch; what is forgotten is said to be so; the tables stay bounded."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest

from streamkd.streams.ingest.http import ARROW, LINES, HttpListener, HttpOptions
from streamkd.streams.log.receipts import FORGET, Receipt, Receipts, SequenceConflict

Pictures = Callable[..., pa.RecordBatch]


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    opened = sqlite3.connect(":memory:", isolation_level=None)
    yield opened
    opened.close()


def receipts(connection: sqlite3.Connection, keep: int = 100) -> Receipts:
    made = Receipts(connection, keep)
    made.create()
    return made


def count(connection: sqlite3.Connection, table: str) -> int:
    return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def test_forgotten_numbers_are_a_conflict_that_says_up_to_where(connection: sqlite3.Connection) -> None:
    """What cannot be compared is neither taken nor acknowledged; the last ones are still known."""
    known = receipts(connection, keep=10)
    for sequence in range(10 + FORGET):
        known.add("p", Receipt(sequence, 1, 0, sequence + 1), b"d")
    assert count(connection, "receipts") == 10
    with pytest.raises(SequenceConflict, match=f"those up to {FORGET - 1} are forgotten") as caught:
        known.find("p", 5, b"d")
    assert caught.value.forgotten == FORGET - 1
    assert f"go on with {FORGET + 10}" in caught.value.fix
    assert known.find("p", FORGET, b"d") == Receipt(FORGET, 1, 0, FORGET + 1, duplicate=True)


def test_producers_that_come_and_go_stay_bounded(connection: sqlite3.Connection) -> None:
    """The longest silent go first, and with them their receipts: by their number, and by that of their receipts."""
    known = receipts(connection)
    for name in range(50):
        for sequence in range(3):
            known.add(f"p{name}", Receipt(sequence, 1, 0, 1), b"d")
        connection.execute("UPDATE producers SET updated = ? WHERE producer = ?", (name, f"p{name}"))
    known.forget_idle(producers=1_000, most=(20, 1_000))
    assert (count(connection, "producers"), count(connection, "receipts")) == (20, 60)
    known.forget_idle(producers=1_000, most=(20, 31))
    assert (count(connection, "producers"), count(connection, "receipts")) == (10, 30)
    assert known.find("p49", 0, b"d") is not None
    assert known.find("p0", 0, b"d") is None


YEAR = 365 * 86_400.0


def test_a_clock_that_is_set_makes_nobody_silent(connection: sqlite3.Connection, monkeypatch: Any) -> None:
    """Forward, back, and over a restart: who was just heard is remembered, so what is sent again counts once."""
    known, now = receipts(connection), time.time()
    for name in range(20):
        known.add(f"p{name:02}", Receipt(0, 1, 0, 1), b"d")
    monkeypatch.setattr(time, "time", lambda: now + YEAR)
    known.add("ahead", Receipt(0, 1, 0, 1), b"d")
    known.forget_idle(producers=10)
    receipts(connection).forget_idle(producers=10)
    assert count(connection, "producers") == 21
    monkeypatch.setattr(time, "time", lambda: now - YEAR)
    receipts(connection).add("behind", Receipt(0, 1, 0, 1), b"d")
    known.forget_idle(producers=10, most=(2, 1_000))
    left = connection.execute("SELECT producer FROM producers ORDER BY producer").fetchall()
    assert left == [("ahead",), ("behind",)]


def lines(*labels: Any) -> bytes:
    return b"\n".join(b'{"x": [1, 2, 3, 4, 5, 6], "label": %s}' % str(label).encode() for label in labels)


SENT_AGAIN: list[tuple[str, bytes, bytes, tuple[int, Any], int]] = [
    # title, first body, second body under the same number, (status, duplicate) of the second, records in the log
    ("the same", lines(1, 2), lines(1, 2), (200, True), 2),
    ("the same, with spaces", lines(1, 2), b"\n" + lines(1, 2) + b"\n\n", (200, True), 2),
    ("other labels", lines(1, 2), lines(1, 3), (409, None), 2),
    ("another order", lines(1, 2), lines(2, 1), (409, None), 2),
    ("more rows", lines(1, 2), lines(1, 2, 3), (409, None), 2),
    ("fewer rows", lines(1, 2), lines(1), (409, None), 2),
    ("a bad row corrected", lines(1, "null"), lines(1, 2), (409, None), 1),
    ("the same with its bad row", lines(1, "null"), lines(1, "null"), (200, True), 1),
    ("refused, then corrected", lines("null", "null"), lines(1, 2), (200, False), 2),
    ("refused, then refused again", lines("null"), lines("null"), (422, True), 0),
    ("refused, then other bad rows", lines("null"), lines('"a"'), (422, False), 0),
    ("broken off, then whole", b"{broken", lines(1), (200, False), 1),
    ("nothing, then something", b"\n", lines(1), (200, False), 1),
    ("something, then nothing", lines(1), b"\n", (409, None), 1),
]


@pytest.mark.parametrize(
    ("title", "first", "second", "answered", "records"), SENT_AGAIN, ids=[row[0] for row in SENT_AGAIN]
)
def test_a_number_that_is_used_again(
    title: str, first: bytes, second: bytes, answered: tuple[int, Any], records: int, open_way: Callable
) -> None:
    """The same is a duplicate, something else a conflict, and a number under which nothing was stored is free."""
    way = open_way()
    listener = HttpListener(HttpOptions(), way.ingest())
    headers = {"content-type": LINES, "streamkd-producer": "p", "streamkd-sequence": "7"}
    listener.receive(headers, first)
    answer = listener.receive(headers, second)
    assert (answer.status, answer.body.get("duplicate")) == answered
    assert way.log.end() == records
    if answer.status == 409:
        assert "sequence 7 of producer 'p' was used at 2" in answer.body["error"]
        assert "go on with 8, or name another producer" in answer.body["error"]
        assert way.counted("source_errors_total", "main", "conflict") == 1


def test_a_refused_batch_that_is_sent_for_ever_leaves_its_letters_once(open_way: Callable) -> None:
    """Its number is free, and yet it is known."""
    way = open_way()
    listener = HttpListener(HttpOptions(), way.ingest())
    headers = {"content-type": LINES, "streamkd-producer": "p", "streamkd-sequence": "0"}
    for _ in range(5):
        assert listener.receive(headers, lines("null", "null")).status == 422
    assert way.log.letters.total() == 2


def test_both_doors_know_the_same_batch(open_way: Callable, pictures: Pictures) -> None:
    """Posted as JSON lines, then as Arrow: a duplicate."""
    way = open_way()
    listener = HttpListener(HttpOptions(), way.ingest())
    headers = {"streamkd-producer": "p", "streamkd-sequence": "0"}
    first = listener.receive({**headers, "content-type": LINES}, lines(4, 5))
    sink = pa.BufferOutputStream()
    x = pa.array([[1, 2, 3, 4, 5, 6]] * 2, pa.list_(pa.int64()))
    rows = pa.record_batch({"label": pa.array([4, 5], pa.int32()), "x": x})
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    second = listener.receive({**headers, "content-type": ARROW}, sink.getvalue().to_pybytes())
    assert (first.body["duplicate"], second.body["duplicate"]) == (False, True)
    assert way.log.end() == 2
