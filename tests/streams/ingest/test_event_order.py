"""Records by event time over the doors: who is ahead waits, who is behind finds room, the silent are not waited for."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pytest

from streamkd.errors import Overloaded
from streamkd.records import InputColumn, RecordSchema
from streamkd.settings import OrderSettings
from streamkd.streams.ingest.admission import admit_batch
from streamkd.streams.ingest.http import LINES, HttpListener, HttpOptions
from streamkd.streams.log.event_order import ANYBODY

from ..conftest import Way

SCHEMA = RecordSchema(inputs=(InputColumn(name="x"),), event_time="at")
Open = Callable[..., Way]


def rows(times: Sequence[int]) -> pa.RecordBatch:
    """A record for each time, in seconds since 1970, which is its label too."""
    moments = pa.array([each * 10**6 for each in times], pa.timestamp("us", "UTC"))
    return pa.record_batch({"x": pa.array(times, pa.float32()), "label": pa.array(times, pa.int64()), "at": moments})


def put(way: Way, sender: str, *times: int, patient: Any = None) -> Any:
    sifted = admit_batch(rows(times), SCHEMA, way.intake.limits, sender)
    return way.intake.take(sifted, None, None, sender, patient).result(10)


def met(way: Way, *senders: str) -> None:
    """Those that are waited for; nobody else any more."""
    for sender in senders:
        put(way, sender)
    with way.log.file.writing() as connection:
        connection.execute("UPDATE senders SET heard = 0 WHERE name = ?", (ANYBODY,))


def test_who_is_ahead_is_held_back_and_who_is_behind_is_not(open_way: Open) -> None:
    """Beyond its share, over a queue that is full of its records: the other one brings them to the log."""
    way = open_way(SCHEMA, order=OrderSettings(lateness_seconds=0), queue_records=40)
    met(way, "early", "late")
    put(way, "early", *range(3_600, 3_607))
    with pytest.raises(Overloaded, match="'early' is ahead of others by event time"):
        put(way, "early", 3_607)
    for first in range(0, 3_600, 400):
        put(way, "late", *range(first, first + 400, 40))
        way.intake.committed(way.log.end())
    put(way, "late", 4_000)
    put(way, "early", 3_607, 4_001)
    assert way.labels() == [*range(0, 3_600, 40), *range(3_600, 3_608), 4_000]
    assert way.log.standing().counts["full"] == 0


def test_senders_far_apart_end_in_one_order(open_way: Open) -> None:
    """Three of them, each waiting for room with its stream unread, an hour apart, over a queue of fifty records."""
    way = open_way(SCHEMA, order=OrderSettings(lateness_seconds=2, idle_seconds=600), queue_records=50)
    times = {name: [first + 3 * n + place for n in range(60)] for place, (name, first) in enumerate(HOURS)}
    met(way, *times)

    def send(name: str) -> None:
        for at in range(0, 60, 4):
            put(way, name, *times[name][at : at + 4], patient=lambda: True)
        with contextlib.suppress(Overloaded):
            while not done.wait(0.01):  # it goes on with the others, so that nobody waits for it
                put(way, name, 20_000, patient=lambda: not done.is_set())

    done = threading.Event()
    sending = [threading.Thread(target=send, args=[name]) for name in times]
    for thread in sending:
        thread.start()
    expected = sorted(time for mine in times.values() for time in mine)
    deadline = time.monotonic() + 20
    while way.log.end() < len(expected):
        assert time.monotonic() < deadline, "nobody goes on any more"
        way.intake.committed(way.log.end())
        time.sleep(0.01)
    done.set()
    for thread in sending:
        thread.join()
    assert way.labels()[: len(expected)] == expected
    assert way.log.standing().counts["full"] == way.log.standing().counts["train"] == 0


HOURS = (("a", 0), ("b", 3_600), ("c", 7_200))


def test_the_silent_are_not_waited_for(open_way: Open) -> None:
    """The look of the ingress releases what is held for them; the watermark, what is held and who is idle are told."""
    way = open_way(SCHEMA, order=OrderSettings(lateness_seconds=0, idle_seconds=0.3))
    met(way, "early", "late")
    put(way, "late", 10)
    put(way, "early", 20, 30)
    told = way.intake.standing()
    assert told is not None
    assert (told.told()["held"], told.told()["waits_for"], way.labels()) == (2, "late", [10])
    assert told.told()["watermark_timestamp_seconds"] == 10
    deadline = time.monotonic() + 10
    while way.labels() != [10, 20, 30]:
        assert time.monotonic() < deadline
        way.intake.tidy()
        time.sleep(0.02)
    put(way, "early", 25)
    assert way.counted("order_exceptions_total", "train") == 1
    told = way.intake.standing()
    assert told is not None
    assert told.told()["senders"] == {"active": 1, "idle": 2}


def test_a_full_queue_makes_nobody_silent(open_way: Open) -> None:
    """While there is no room nobody can be heard, and that time does not count."""
    way = open_way(SCHEMA, order=OrderSettings(lateness_seconds=0, idle_seconds=0.3), queue_records=4)
    met(way, "early", "late")
    put(way, "late", 10, 11)
    put(way, "early", 20)
    for _ in range(10):
        with pytest.raises(Overloaded, match="2 records wait to be learned, at most 2"):
            put(way, "late", 12)
        time.sleep(0.06)
        way.intake.tidy()
    assert way.labels() == [10, 11]
    way.intake.committed(2)
    put(way, "late", 12)
    assert way.labels() == [10, 11, 12]


@pytest.mark.parametrize(("late", "status", "accepted"), [("train", 200, 2), ("drop", 200, 1), ("dead-letter", 200, 1)])
def test_a_late_row_is_told_with_its_place(open_way: Open, late: Any, status: int, accepted: int) -> None:
    """Among rows that cannot be decoded: the number is that in the body."""
    way = open_way(SCHEMA, order=OrderSettings(lateness_seconds=0, late=late))
    http = HttpListener(HttpOptions(), way.ingest())
    met(way, "http")
    lines = [{"x": 0, "label": at, "at": at} for at in (100, 200)]
    http.receive({"content-type": LINES}, "\n".join(map(json.dumps, lines)).encode())
    body = "\n".join(["nonsense", *(json.dumps({"x": 0, "label": at, "at": at}) for at in (150, 300))])
    answer = http.receive({"content-type": LINES}, body.encode())
    assert (answer.status, answer.body["accepted"]) == (status, accepted)
    told = [(each["row"], each["reason"]) for each in answer.body["reasons"]]
    assert told == [(0, "decode"), *[(1, "late")] * (late != "train")]
    assert way.labels() == [100, 200, *[150] * (late == "train"), 300]
    assert way.log.letters.count() == 1 + (late == "dead-letter")
    assert way.counted("records_rejected_total", "main", "late") == (late != "train")
