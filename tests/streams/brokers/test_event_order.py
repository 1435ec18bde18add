"""Topics and posts as one stream by event time: a partition that is ahead is left unread, and no other for it."""

import json
import time
from collections.abc import Callable, Sequence

import pytest
from kafka_brokers import Cluster

from streamkd.records import InputColumn, RecordSchema
from streamkd.settings import OrderSettings
from streamkd.streams.brokers import partitions
from streamkd.streams.brokers.kafka import KafkaListener
from streamkd.streams.brokers.partitions import NEARER
from streamkd.streams.ingest.http import LINES, HttpListener, HttpOptions

from ..conftest import Way
from .conftest import until

SCHEMA = RecordSchema(inputs=(InputColumn(name="x"),), event_time="at")
Open, Read = Callable[..., Way], Callable[..., KafkaListener]


def lines(times: Sequence[int]) -> list[bytes]:
    """A record as JSON for each time, in seconds since 1970, which is its label too."""
    return [json.dumps({"x": 0, "label": at, "at": at}).encode() for at in times]


class Clock:
    """Seconds as a test sets them: nobody is silent before it says so."""

    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def learned(way: Way, count: int, seconds: float = 30.0) -> list[int]:
    """The labels in the log once there are so many, with a learner that learns all of it at once."""

    def enough() -> bool:
        way.intake.committed(way.log.end())  # which tidies
        return way.log.end() >= count

    until(enough, seconds)
    return [int(label) for label in way.labels()]


def is_still(way: Way) -> bool:
    """Whether nothing is read for a while."""
    before = way.log.positions()
    time.sleep(0.3)
    return way.log.positions() == before


def test_two_topics_and_posts_are_one_stream_in_order(cluster: Cluster, open_way: Open, read: Read) -> None:
    """One topic and the posts are there at once, the other comes later with older records; each record once."""
    way = open_way(SCHEMA, order=OrderSettings(lateness_seconds=5), clock=(clock := Clock()))
    for topic in ("orders", "returns"):
        cluster.create(topic, 2)
    http = HttpListener(HttpOptions(), way.ingest())
    cluster.produce("orders", lines(range(1_000, 1_060, 2)), lambda n: n % 2)
    read(way, topics=("orders", "returns"))
    answer = http.receive({"content-type": LINES}, b"\n".join(lines(range(1_000, 1_060, 3))))
    assert answer.body["accepted"] == 20
    until(lambda: way.log.standing().counts["held"] == 50 and len(way.log.positions()) == 4)
    assert way.log.end() == 0
    cluster.produce("returns", lines(range(1_001, 1_060, 4)), lambda n: n % 2)
    until(lambda: way.log.standing().counts["held"] == 65)
    clock.now += 1_000
    assert learned(way, 65) == sorted([*range(1_000, 1_060, 2), *range(1_000, 1_060, 3), *range(1_001, 1_060, 4)])
    assert way.log.standing().counts["train"] == way.log.standing().counts["full"] == 0


def test_a_partition_that_is_ahead_is_left_unread(
    cluster: Cluster, open_way: Open, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight times what may be held of it; the other one is read meanwhile by the same consumer, and then both are."""
    for name, value in {"MESSAGE_BYTES": 1.0, "POLL_SECONDS": 0.1}.items():  # it comes as one batch, with its end
        monkeypatch.setattr(partitions, name, value)
    way = open_way(SCHEMA, order=OrderSettings(lateness_seconds=0), clock=(clock := Clock()), queue_records=400)
    cluster.create("sales", 2)
    early, late = range(5_000, 5_400), range(0, 5_200, 8)
    half = len(late) // 2
    cluster.produce("sales", lines(early), lambda _: 0)
    source = read(way, topics=("sales",), options={"fetch.wait.max.ms": 1})
    until(lambda: not way.intake.may_bring("sales/0", NEARER))  # it is left, or is about to be
    until(lambda: is_still(way))
    assert 0 < way.log.standing().counts["held"] == way.log.positions()["sales/0"] < 100
    clock.now += 29  # anybody else is not waited for any longer
    way.log.knock("sales/0")
    way.log.knock("sales/1")
    clock.now += 1
    cluster.produce("sales", lines(late[:half]), lambda _: 1)
    learned(way, half)
    cluster.produce("sales", lines(late[half:]), lambda _: 1)
    learned(way, len(late) + 193)  # those of 5,192 and before
    clock.now += 1_000
    assert learned(way, len(early) + len(late)) == sorted([*early, *late])
    counts = way.log.standing().counts
    assert (counts["train"], counts["full"]) == (0, 0)
    source.drain(10)
