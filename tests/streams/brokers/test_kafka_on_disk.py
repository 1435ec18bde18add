"""The source over a broker that ends and comes back with what it had, and over transactions."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka_brokers import OnDisk, brokers, confluent_kafka

from streamkd.streams.brokers import partitions
from streamkd.streams.brokers.kafka import KafkaListener

from ..conftest import Way
from .conftest import lines, until
from .test_kafka import in_order, waits, written

Open, Read = Callable[..., Way], Callable[..., KafkaListener]
SOON: dict[str, Any] = {"options": {"reconnect.backoff.max.ms": 100}}  # the client looks for its broker again


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[OnDisk]:
    """One broker, or real ones, with a topic ``main`` of three partitions."""
    with contextlib.closing(brokers(tmp_path / "broker")) as found:
        found.create("main")
        yield found  # tests that are not marked ``kafka`` are run on an ``OnDisk`` alone


def test_a_broker_that_ends_and_comes_back_loses_and_doubles_nothing(
    cluster: OnDisk, open_way: Open, read: Read
) -> None:
    """While the source reads, and while it is away: then nobody has read what the broker has on its disk."""
    way = open_way()
    source = read(way, **SOON)
    for first, is_away in [(0, False), (300, True), (600, False)]:
        if is_away:
            source.drain(10)
        cluster.produce("main", lines(range(first, first + 300)))
        cluster.stop()
        if is_away:
            read(way, **SOON)
        cluster.start()
    cluster.produce("main", lines(range(900, 960)))
    labels = written(way, 960)
    assert sorted(labels) == list(range(960))
    assert in_order(labels)
    assert list(way.log.positions().values()) == cluster.ends("main") == [320] * 3
    assert way.counted("source_lost_messages_total", "main") == 0


def test_a_broker_that_comes_back_with_less_stops_the_source(cluster: OnDisk, open_way: Open, read: Read) -> None:
    """As a backup has it: its next messages would have offsets that are in the log already."""
    way, older = open_way(), cluster.folder.with_name("older")
    cluster.produce("main", lines(range(30)))
    cluster.stop()
    shutil.copytree(cluster.folder, older)
    cluster.start()
    cluster.produce("main", lines(range(30, 60)))
    read(way, **SOON)
    written(way, 60)
    cluster.stop()
    shutil.rmtree(cluster.folder)
    older.rename(cluster.folder)
    cluster.start()
    said = "the broker has the messages from 0 to 10 and the next one would be 20: the topic was made anew, or has lost"
    assert said in until(lambda: way.intake.stopped)
    assert sorted(way.labels()) == list(range(60))


@pytest.mark.kafka
def test_of_transactions_those_that_are_committed_are_read(
    cluster: OnDisk, open_way: Open, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once they are; those that are aborted are not, and what marks their ends is neither waited for nor lost."""
    monkeypatch.setattr(partitions, "TELL_SECONDS", 0.05)
    way = open_way()
    source = read(way)
    for first, name, then in [(0, "kept", "commit"), (9, "dropped", "abort"), (18, "kept", "commit")]:
        producer = cluster.transaction(name, "main", lines(range(first, first + 9)))
        getattr(producer, f"{then}_transaction")(20)
    last = cluster.transaction("dropped", "main", lines(range(27, 36)))
    labels = written(way, 18)
    assert sorted(labels) == [*range(9), *range(18, 27)]
    assert in_order(labels)
    last.abort_transaction(20)
    until(lambda: list(way.log.positions().values()) == cluster.ends("main"))
    until(lambda: not any(waits(way, partition) for partition in way.log.positions()))
    source.drain(10)
    for number, end in enumerate(cluster.ends("main")):
        cluster.forget("main", number, end)
    read(way)
    cluster.produce("main", lines(range(36, 39)))
    assert sorted(written(way, 21)[18:]) == [36, 37, 38]
    assert way.counted("source_lost_messages_total", "main") == 0


@pytest.mark.kafka
def test_a_fenced_producer_leaves_nothing(cluster: OnDisk, open_way: Open, read: Read) -> None:
    """One of the same name has begun since: its records are there once, the first one's never.

    Read when all has ended: a consumer that is behind an aborted transaction is told of it by ``OnDisk`` still, and so
    drops what the same producer does next.
    """
    first = cluster.transaction("shop", "main", lines(range(9)))
    second = cluster.transaction("shop", "main", lines(range(9, 18)))
    with pytest.raises(confluent_kafka.KafkaException, match="fenced"):
        first.commit_transaction(20)
    second.commit_transaction(20)
    read(way := open_way())
    assert sorted(written(way, 9)) == list(range(9, 18))
