"""The source over Kafka: each message once and in its partition's order, whatever brokers, readers and messages do."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kafka_brokers
import pyarrow as pa
import pytest
from kafka_brokers import Cluster
from pydantic import ValidationError

from streamkd.errors import ConfigError, RecordError
from streamkd.records import InputColumn, RecordSchema
from streamkd.settings import LateLabels, Limits
from streamkd.streams.brokers import client, partitions
from streamkd.streams.brokers.kafka import KafkaListener, KafkaOptions
from streamkd.streams.ingest.intake import Intake
from streamkd.streams.log.log import Log
from streamkd.streams.log.predictions import KeptRequest, kept_schema, with_requests
from streamkd.telemetry import Recorder

from ..conftest import Way
from .conftest import lines, until

Open, Read = Callable[..., Way], Callable[..., KafkaListener]
Pictures = Callable[..., pa.RecordBatch]


def streams(*batches: pa.RecordBatch) -> list[bytes]:
    """Each batch as a whole Arrow IPC stream."""
    found = []
    for batch in batches:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        found.append(bytes(sink.getvalue()))
    return found


def in_order(labels: list[int], partitions: int = 3) -> bool:
    """Whether the labels of each partition go up; the test's producer deals them out in turn."""
    parts = [[label for label in labels if label % partitions == number] for number in range(partitions)]
    return all(part == sorted(part) for part in parts)


def written(way: Way, count: int) -> list[int]:
    """The labels in the log, once there are so many; a moment later there are no more."""
    until(lambda: way.log.end() >= count)
    time.sleep(0.2)
    assert way.log.end() == count
    return way.labels()


@pytest.mark.kafka
def test_every_message_of_every_partition_is_a_record_in_order(cluster: Cluster, open_way: Open, read: Read) -> None:
    """Once each; the log knows the positions, the broker is told them for the group, and what waits there is none."""
    way = open_way()
    cluster.produce("main", lines(range(300)))
    source = read(way, group="learners")
    labels = written(way, 300)
    assert sorted(labels) == list(range(300))
    assert in_order(labels)
    assert way.log.positions() == {f"{cluster.named('main')}/{number}": 100 for number in range(3)}
    source.drain(10)
    assert [cluster.committed("main", number, "learners") for number in range(3)] == [100] * 3
    assert way.counted("source_records_total", "main") == 300


@pytest.mark.kafka
def test_a_source_goes_on_where_the_log_is(cluster: Cluster, open_way: Open, read: Read) -> None:
    """Whatever the broker was told: a second start reads what has come since, and nothing else."""
    way = open_way()
    cluster.produce("main", lines(range(30)))
    source = read(way)
    written(way, 30)
    source.drain(10)
    cluster.produce("main", lines(range(30, 60)))
    read(way)
    assert sorted(written(way, 60)) == list(range(60))


@pytest.mark.kafka
def test_two_readers_of_one_log_write_each_message_once(
    cluster: Cluster, open_way: Open, read: Read, tmp_path: Path
) -> None:
    """As while a killed server's ingress has not ended yet and the next one has begun."""
    way = open_way()
    other = Intake(log := Log(way.log.path, way.log.schema), Limits(), recorder := Recorder())
    sources = [read(way), read(Way(log, other, recorder))]
    for first in range(0, 600, 60):
        cluster.produce("main", lines(range(first, first + 60)))
        time.sleep(0.05)
    labels = written(way, 600)
    assert sorted(labels) == list(range(600))
    assert in_order(labels)
    for source in sources:
        source.drain(10)
    other.close()
    log.close()


class Disturbed:
    """A topic that grows while seeded faults happen, and how far its three partitions are."""

    def __init__(self, cluster: Cluster, way: Way, read: Read, seed: int) -> None:
        self.cluster, self.way, self.read, self.dice = cluster, way, read, random.Random(seed)
        self.sent = self.poison = 0
        self.down: set[int] = set()
        self.source = self.begin()

    def begin(self) -> KafkaListener:
        return self.read(self.way, group="g", options={"reconnect.backoff.max.ms": 100, "retry.backoff.ms": 20})

    def grow(self) -> None:
        """Records dealt out in turn; now and then something else between them."""
        values: list[bytes] = []
        for line in lines(range(self.sent, self.sent + 30)):
            values.append(line)
            if self.dice.random() < 0.1:
                values.append(b"poison")
        places = iter([self.sent + n for n in range(30)])
        partitions = [next(places) % 3 if value != b"poison" else self.dice.randrange(3) for value in values]
        for broker in sorted(self.down):  # the test's own producer needs all leaders
            self.up(broker)
        self.cluster.produce("main", values, lambda n: partitions[n])
        self.sent, self.poison = self.sent + 30, self.poison + values.count(b"poison")

    def up(self, broker: int) -> None:
        self.cluster.broker_up(broker)
        self.down.discard(broker)

    def fault(self) -> None:
        kind, broker = self.dice.choice(self.cluster.faults), self.dice.randint(1, 3)
        if kind == "down":
            self.cluster.broker_down(broker)
            self.down.add(broker)
        elif kind == "lead":
            self.cluster.lead("main", self.dice.randrange(3), broker)
        elif kind == "fail":
            request = self.dice.choice([kafka_brokers.FETCH, kafka_brokers.LIST_OFFSETS, kafka_brokers.METADATA])
            self.cluster.fail(request, self.dice.randint(1, 4))
        elif kind == "commit":
            self.cluster.fail(kafka_brokers.COMMIT, 2)
        elif kind == "slow":
            self.cluster.slow(broker, self.dice.randint(0, 60))
        else:
            self.source.drain(10)
            self.source = self.begin()
        time.sleep(self.dice.uniform(0.0, 0.15))


def check_faults(disturbed: Disturbed, turns: int) -> None:
    """Each record once and in its partition's order, each other message a letter, and nothing lost."""
    for _ in range(turns):
        disturbed.grow()
        disturbed.fault()
    disturbed.grow()
    labels = written(disturbed.way, disturbed.sent)
    assert sorted(labels) == list(range(disturbed.sent))
    assert in_order(labels)
    until(lambda: sum(disturbed.way.log.positions().values()) == disturbed.sent + disturbed.poison)
    assert disturbed.way.log.letters.count() == disturbed.poison
    assert disturbed.way.counted("source_lost_messages_total", "main") == 0


@pytest.mark.parametrize("seed", range(3))
def test_faults_of_brokers_and_starts_lose_and_double_nothing(
    cluster: Cluster, open_way: Open, read: Read, seed: int
) -> None:
    """Brokers go and come, leaders move, requests fail and are slow, the source begins anew, poison is between."""
    check_faults(Disturbed(cluster, open_way(), read, seed), 4)


@pytest.mark.kafka
@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 120))
def test_many_faults_lose_and_double_nothing(cluster: Cluster, open_way: Open, read: Read, seed: int) -> None:
    """The same, at length."""
    check_faults(Disturbed(cluster, open_way(), read, seed), 60)


def test_brokers_and_topics_may_come_later(
    cluster: Cluster, open_way: Open, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start none is there, then the topic is not; both are counted, and waited for."""
    monkeypatch.setattr(partitions, "ASK_SECONDS", 0.3)
    for broker in (1, 2, 3):
        cluster.broker_down(broker)
    way = open_way()
    read(way, topics=["later"], options={"reconnect.backoff.max.ms": 200})
    until(lambda: way.counted("source_errors_total", "main", "broker") > 0)
    for broker in (1, 2, 3):
        cluster.broker_up(broker)
    time.sleep(0.5)
    cluster.create("later")
    cluster.produce("later", lines(range(9)))
    assert sorted(written(way, 9)) == list(range(9))


@pytest.mark.kafka
def test_latest_is_that_of_the_first_start(cluster: Cluster, open_way: Open, read: Read) -> None:
    """It is on disk before anything is read: what comes while the source is away is not skipped."""
    cluster.produce("main", lines(range(9)))
    way = open_way()
    source = read(way, start="latest")
    until(way.log.positions)
    source.drain(10)
    cluster.produce("main", lines(range(9, 18)))
    read(way, start="latest")
    assert sorted(written(way, 9)) == list(range(9, 18))


@pytest.mark.kafka
def test_what_has_expired_is_told_and_counted(
    cluster: Cluster, open_way: Open, read: Read, caplog: pytest.LogCaptureFixture
) -> None:
    """The source goes on at the first message that the broker still has."""
    way = open_way()
    cluster.produce("main", lines(range(30)))
    source = read(way)
    written(way, 30)
    source.drain(10)
    cluster.produce("main", lines(range(30, 60)))
    cluster.forget("main", 1, 14)
    read(way)
    labels = written(way, 56)
    assert sorted(set(range(60)) - set(labels)) == [31, 34, 37, 40]
    assert way.counted("source_lost_messages_total", "main") == 4
    assert (
        f"{cluster.named('main')}/1: the broker has the messages from 14 to 20 and the next one would be 10"
        in caplog.text
    )


@pytest.mark.parametrize(
    ("position", "reset", "said"),
    [
        (50, None, "the broker has the messages from 4 to 10 and the next one would be 50: the topic was made anew"),
        (2, "stop", "the broker has the messages from 4 to 10 and the next one would be 2: they have expired"),
    ],
)
def test_where_nobody_can_tell_how_to_go_on_the_source_stops(
    cluster: Cluster, open_way: Open, read: Read, position: int, reset: str | None, said: str
) -> None:
    """In words, with what would go on; other ways into the log are open as before."""
    way = open_way()
    cluster.produce("main", lines(range(30)))
    cluster.forget("main", 0, 4)
    source = read(way, start="latest")
    until(way.log.positions)
    source.drain(10)
    with way.log.file.writing() as writer:
        writer.execute("UPDATE positions SET offset = ? WHERE partition = 'main/0'", (position,))
    read(way, reset=reset)
    assert said in until(lambda: way.intake.stopped)
    assert "stream.source.reset" in way.intake.stopped
    assert not way.intake.draining


def test_another_cluster_is_refused(cluster: Cluster, open_way: Open, read: Read) -> None:
    """Its offsets are others, though the topic has the same name."""
    way = open_way()
    way.intake.origin("kafka elsewhere")
    read(way)
    assert "needed the cluster that the log was read from, kafka elsewhere" in until(lambda: way.intake.stopped)


@pytest.mark.kafka
def test_poison_hurts_nobody_else(cluster: Cluster, open_way: Open, read: Read) -> None:
    """Messages that are none become dead letters as they came, with partition and offset; their neighbours records."""
    way = open_way()
    good = lines(range(4))
    cluster.produce("main", [good[0], b"poison", good[1], None, b"[1]", good[2], b'{"label": 1}', good[3]], lambda _: 1)
    read(way)
    assert written(way, 4) == [0, 1, 2, 3]
    letters, partition = way.log.letters.list(), f"{cluster.named('main')}/1"
    assert [(letter.source, letter.offset, letter.reason) for letter in letters] == [
        (partition, 1, "decode"),
        (partition, 3, "decode"),
        (partition, 4, "decode"),
        (partition, 6, "missing_input"),
    ]
    assert letters[0].record == b"poison"
    assert way.log.positions()[partition] == 8


@pytest.mark.kafka
def test_arrow_streams_bring_as_many_rows_as_they_have(
    cluster: Cluster, open_way: Open, read: Read, pictures: Pictures
) -> None:
    """Bad messages are letters whole, bad rows alone, and both with the offset of their message."""
    way = open_way()
    wide, bad = pictures(2).rename_columns(["y", "label"]), pictures(3, first=7)
    bad = bad.set_column(1, "label", pa.array([7, None, 9], pa.int64()))
    good, other, some, last = streams(pictures(5), wide, bad, pictures(10, first=10))
    cluster.produce("main", [good, b"poison", other, some, last, last[:-50]], lambda _: 0)
    read(way, format="arrow")
    assert written(way, 17) == [0, 1, 2, 3, 4, 7, 9, *range(10, 20)]
    letters = way.log.letters.list()
    assert [(letter.offset, letter.reason, letter.form) for letter in letters] == [
        (1, "decode", "message"),
        (2, "decode", "message"),
        (3, "missing_label", "arrow"),
        (5, "decode", "message"),
    ]
    assert "needed fixed_size_list" in letters[1].detail
    assert letters[0].record == b"poison"


@pytest.mark.kafka
def test_too_many_bad_ones_in_a_row_stop_the_source(cluster: Cluster, open_way: Open, read: Read) -> None:
    """What came before is in the log, nothing of the batch that it was too much for; the next start is there again."""
    way = open_way(bad_in_a_row=20)
    cluster.produce("main", lines(range(3)), lambda _: 0)
    source = read(way)
    written(way, 3)
    cluster.produce("main", [b"poison"] * 50, lambda _: 0)
    assert "50 refused rows in a row" in until(lambda: way.intake.stopped)
    source.drain(10)
    assert way.log.positions()[f"{cluster.named('main')}/0"] == 3
    assert way.counted("source_records_total", "main") == 3


def waits(way: Way, partition: str) -> float | None:
    """The lag of a partition as it was last told."""
    for name, labels, value in way.recorder.drain():
        if name == "source_lag_messages":
            way.sums[name, tuple(labels)] = value
    return way.sums.get(("source_lag_messages", ("main", partition)))


def test_a_full_queue_holds_the_source_back(
    cluster: Cluster, open_way: Open, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until a checkpoint makes room; what waits at the broker is told meanwhile."""
    monkeypatch.setattr(partitions, "BATCH_MESSAGES", 20)  # of which none is larger than the queue
    way = open_way(queue_records=100)
    cluster.produce("main", lines(range(400)), lambda _: 0)
    read(way)
    until(lambda: waits(way, "main/0") == 300)
    assert way.log.end() == 100
    while way.log.end() < 400:
        way.intake.committed(way.log.end())
        time.sleep(0.02)
    assert written(way, 400) == list(range(400))


@pytest.mark.kafka
def test_a_client_that_holds_enough_is_asked_again_at_once(
    cluster: Cluster, open_way: Open, read: Read, pictures: Pictures
) -> None:
    """Many times what it may hold ahead of us: librdkafka alone would wait a second whenever it holds so much."""
    way = open_way(queue_records=1 << 30)
    cluster.produce("main", streams(pictures(10_000)) * 36)
    begun = time.monotonic()
    read(way, format="arrow", options={"queued.max.messages.kbytes": 256, "fetch.message.max.bytes": 256_000})
    until(lambda: way.log.end() == 360_000)
    assert time.monotonic() - begun < 3


def test_key_time_and_headers_become_columns(cluster: Cluster, open_way: Open, read: Read, pictures: Pictures) -> None:
    """In both forms; a header that a message has not is a gap."""
    inputs = (
        InputColumn(name="x", shape=(2, 3)),
        InputColumn(name="from", kind="category", shape=(4,), missing="fill"),
    )
    way = open_way(RecordSchema(inputs=inputs, task="shop", event_time="at"))
    beside: dict[str, Any] = {"key": "shop", "time": "at", "headers": {"origin": "from"}}
    told = {"key": b"a", "headers": [("origin", b"web"), ("other", b"?")], "timestamp": 1_700_000_000_000}
    [line], [stream] = lines([7]), streams(pictures(2))
    cluster.produce("main", [{"value": line, **told}, {"value": line, **told, "headers": []}], lambda _: 0)
    source = read(way, **beside)
    written(way, 2)
    source.drain(10)
    cluster.produce("main", [{"value": stream, **told}], lambda _: 0)
    read(way, **beside, format="arrow")
    written(way, 4)
    rows = way.log.read(0, 4).rows
    assert rows.column("shop").to_pylist() == ["a"] * 4
    assert rows.column("from").to_pylist() == ["web", None, "web", "web"]
    assert {moment.timestamp() for moment in rows.column("at").to_pylist()} == {1_700_000_000.0}


def test_labels_of_predictions_have_a_topic_of_their_own(
    cluster: Cluster, open_way: Open, read: Read, pictures: Pictures
) -> None:
    """A label makes a record of its prediction as one that is pushed does."""
    way = open_way(late=LateLabels())
    asked = [pictures(1).column("x"), [1], pa.array([0.9], pa.float32()), pa.array([0], pa.timestamp("us", "UTC"))]
    rows = pa.RecordBatch.from_arrays([pa.array(each) for each in asked], schema=kept_schema(way.log.schema))
    way.intake.keep(with_requests(rows, [KeptRequest("order-17", 1, 5)])).result(10)
    cluster.create("told")
    cluster.produce(
        "told", [b'{"prediction_id": "order-17", "label": 3}', b'{"prediction_id": "order-18", "label": 1}']
    )
    read(way, labels="told")
    until(lambda: way.log.label_counts()["early"] == 1)
    assert written(way, 1) == [3]


def test_a_stream_that_takes_no_labels_refuses_their_topic(open_way: Open, read: Read) -> None:
    """At the start, with what would make it take them."""
    with pytest.raises(RecordError, match="takes no labels"):
        read(open_way(), labels="told")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"group.id": "g"}, "group.id is not to be set"),
        ({"sasl.password": "hunter2"}, "sasl.password needs env:NAME"),
    ],
)
def test_settings_that_may_not_be_given(options: dict[str, Any], said: str) -> None:
    """Those that offsets depend on, and secrets that would be written down."""
    with pytest.raises(ValidationError, match=said):
        KafkaOptions(options=options)


def test_secrets_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is not set is named."""
    with pytest.raises(ConfigError, match="needs SHOP_KEY of the environment, which is not set"):
        client.settings({"sasl.password": "env:SHOP_KEY"}, {})
    monkeypatch.setenv("SHOP_KEY", "hunter2")
    assert client.settings({"sasl.password": "env:SHOP_KEY"}, {})["sasl.password"] == "hunter2"


def test_a_setting_that_the_client_does_not_know_is_refused(open_way: Open, read: Read) -> None:
    """At the start, in its words."""
    with pytest.raises(ConfigError, match=r'stream.source: .*No such configuration property: "fetch.sise"'):
        read(open_way(), options={"fetch.sise": 1})
