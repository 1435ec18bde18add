"""Kafka brokers: the mock cluster inside the client's own library, one on disk, or real ones that somebody runs.

``Cluster`` is on loopback, through the library's C functions. Records are kept in memory, 5 MB of each partition. Its
interface is experimental, so the client is pinned (constraints.txt). ``OnDisk`` is a process on loopback that may end
and come back, and knows transactions. ``Kafka`` is at ``STREAMKD_TEST_KAFKA``; its topics have names of their own, and
are gone afterwards. Tests for any are marked ``kafka``.
"""

import contextlib
import ctypes
import importlib.util
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

confluent_kafka = pytest.importorskip("confluent_kafka", reason='no Kafka client: pip install "streamkd[kafka]"')

BROKERS = 3
FETCH, LIST_OFFSETS, METADATA, COMMIT = 1, 2, 3, 8  # keys of the protocol's requests
_TIMED_OUT = 7  # the protocol's REQUEST_TIMED_OUT


def _library() -> ctypes.CDLL:
    folder = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
    [file] = folder.glob("librdkafka-*.so*")
    library = ctypes.CDLL(str(file))  # the one that the client has loaded
    for name in ("rd_kafka_new", "rd_kafka_conf_new", "rd_kafka_mock_cluster_new"):
        getattr(library, name).restype = ctypes.c_void_p
    library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    return library


class Brokers:
    """Topics of ``servers``, each made by ``create`` and called as ``named`` says."""

    servers: str
    faults: Sequence[str]
    """What can be done to them, as ``test_kafka`` calls it."""

    def named(self, topic: str) -> str:
        return topic

    @property
    def main(self) -> Sequence[str]:
        """What a source of the stream ``main`` has to be told as its topics: nothing, where they have its name."""
        return () if self.named("main") == "main" else (self.named("main"),)

    def create(self, topic: str, partitions: int = 3) -> str:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def produce(self, topic: str, values: Iterable[Any], partition: Callable[[int], int] = lambda n: n % 3) -> None:
        """Values in order, each bytes, ``None``, or keywords of ``Producer.produce``."""
        producer = confluent_kafka.Producer({"bootstrap.servers": self.servers, "linger.ms": 1, "log_level": 0})
        errors: list[Any] = []
        for number, value in enumerate(values):
            message = value if isinstance(value, dict) else {"value": value}
            to = {"partition": partition(number), "on_delivery": lambda error, _: errors.append(error)}
            producer.produce(self.named(topic), **message, **to)
            producer.poll(0)
        assert producer.flush(20) == 0
        assert not any(errors)

    def transaction(self, name: str, topic: str, values: Iterable[bytes]) -> Any:
        """A producer of this name whose transaction is open: the brokers have its values, dealt out in turn."""
        settings = {"bootstrap.servers": self.servers, "transactional.id": self.named(name), "log_level": 0}
        producer = confluent_kafka.Producer(settings)
        producer.init_transactions(20)
        producer.begin_transaction()
        for number, value in enumerate(values):
            producer.produce(self.named(topic), value, partition=number % 3)
        assert producer.flush(20) == 0
        return producer

    def messages(self, topic: str, partitions: int = 3) -> list[list[Any]]:
        """Those of each partition."""
        ends = self.ends(topic, partitions)
        with _consumer(self.servers, "messages") as consumer:
            consumer.assign(self._places(topic, partitions))
            found: list[list[Any]] = [[] for _ in range(partitions)]
            while sum(map(len, found)) < sum(ends):
                [message] = consumer.consume(1, timeout=10)
                assert message.error() is None
                found[message.partition()].append(message)
        return found

    def ends(self, topic: str, partitions: int = 3) -> list[int]:
        """The offset after the last one of each partition, a mark of a transaction's end too."""
        with _consumer(self.servers, "ends") as consumer:
            places = self._places(topic, partitions)
            return [consumer.get_watermark_offsets(place, timeout=10)[1] for place in places]

    def _places(self, topic: str, partitions: int) -> list[Any]:
        return [confluent_kafka.TopicPartition(self.named(topic), number, 0) for number in range(partitions)]

    def committed(self, topic: str, partition: int, group: str) -> int:
        with _consumer(self.servers, group) as consumer:
            [found] = consumer.committed([confluent_kafka.TopicPartition(self.named(topic), partition)], timeout=10)
            return int(found.offset)


class Cluster(Brokers):
    """Three brokers in this process; each partition is led by one of them."""

    faults = ("down", "lead", "fail", "slow", "restart", "commit")

    def __init__(self) -> None:
        self._library = _library()
        said = ctypes.create_string_buffer(512)
        configuration = ctypes.c_void_p(self._library.rd_kafka_conf_new())
        self._library.rd_kafka_conf_set(configuration, b"log_level", b"0", said, ctypes.c_size_t(len(said)))
        handle = self._library.rd_kafka_new(0, configuration, said, ctypes.c_size_t(len(said)))
        assert handle, said.value
        self._handle = ctypes.c_void_p(handle)
        self._cluster = ctypes.c_void_p(self._library.rd_kafka_mock_cluster_new(self._handle, BROKERS))
        self.servers = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def create(self, topic: str, partitions: int = 3) -> str:
        self._tell("topic_create", topic.encode(), partitions, 1)
        return topic

    def broker_down(self, broker: int) -> None:
        self._tell("broker_set_down", broker)

    def broker_up(self, broker: int) -> None:
        self._tell("broker_set_up", broker)

    def lead(self, topic: str, partition: int, broker: int) -> None:
        self._tell("partition_set_leader", topic.encode(), partition, broker)

    def slow(self, broker: int, milliseconds: int) -> None:
        self._tell("broker_set_rtt", broker, milliseconds)

    def forget(self, topic: str, partition: int, before: int) -> None:
        """What retention does: records before an offset are gone."""
        self._tell("partition_delete_records", topic.encode(), partition, ctypes.c_int64(before))

    def fail(self, request: int, times: int = 1, error: int = _TIMED_OUT) -> None:
        """So many of the next requests of a kind are answered with an error."""
        errors = [ctypes.c_int(error)] * times
        push = self._library.rd_kafka_mock_push_request_errors
        push(self._cluster, ctypes.c_int16(request), ctypes.c_size_t(times), *errors)

    def close(self) -> None:
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._handle)

    def _tell(self, what: str, *arguments: Any) -> None:
        code = getattr(self._library, f"rd_kafka_mock_{what}")(self._cluster, *arguments)
        if code:
            raise confluent_kafka.KafkaException(confluent_kafka.KafkaError(code))


class Kafka(Brokers):
    """Brokers that are there already, which nobody here takes down."""

    faults = ("restart",)

    def __init__(self, servers: str) -> None:
        from confluent_kafka import admin

        self.servers, self._prefix = servers, f"streamkd-test-{uuid.uuid4().hex[:8]}"
        self._admin, self._new = admin.AdminClient({"bootstrap.servers": servers, "log_level": 0}), admin.NewTopic
        self._topics: list[str] = []

    def named(self, topic: str) -> str:
        return f"{self._prefix}-{topic}"

    def create(self, topic: str, partitions: int = 3) -> str:
        name = self.named(topic)
        self._admin.create_topics([self._new(name, partitions, 1)])[name].result(30)
        self._topics.append(name)
        return name

    def forget(self, topic: str, partition: int, before: int) -> None:
        place = confluent_kafka.TopicPartition(self.named(topic), partition, before)
        [told] = self._admin.delete_records([place]).values()
        told.result(30)

    def close(self) -> None:
        for told in self._admin.delete_topics(self._topics).values() if self._topics else ():
            told.result(30)


class OnDisk(Kafka):
    """One broker, `noida-db`, whose topics are in a folder: ``stop`` and ``start`` take it away and bring it back.

    It writes half a second later than it acknowledges, and what it is told while it ends may be gone: nobody produces
    then, and it is never killed. After a transaction that was aborted it says so for good, so that a client which
    begins behind it drops what the same producer commits next.
    """

    def __init__(self, folder: Path) -> None:
        package = importlib.util.find_spec("noida_db")
        if package is None or package.origin is None:
            pytest.skip("no Kafka broker that keeps its records: pip install noida-db")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._binary, self.folder = Path(package.origin).with_name("noida-db"), folder
        self.start()
        super().__init__(f"127.0.0.1:{self._port}")

    def start(self) -> None:
        there: list[str | Path] = ["--host", "127.0.0.1", "--kafka-port", str(self._port), "--data-dir", self.folder]
        command = [self._binary, "start", "--only", "kafka", *there]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
                return
            assert self._process.poll() is None, "the broker has ended"
            assert time.monotonic() < deadline, "the broker does not start"
            time.sleep(0.02)

    def stop(self) -> None:
        self._process.terminate()
        assert self._process.wait(10) == 0

    close = stop


def brokers(folder: Path | None = None) -> Brokers:
    """Those that somebody runs, where they are named, else of our own: one that keeps its topics there, or three."""
    if there := os.environ.get("STREAMKD_TEST_KAFKA"):
        return Kafka(there)
    return OnDisk(folder) if folder else Cluster()


@contextlib.contextmanager
def _consumer(servers: str, group: str) -> Iterator[Any]:
    consumer = confluent_kafka.Consumer({"bootstrap.servers": servers, "group.id": group, "enable.auto.commit": False})
    try:
        yield consumer
    finally:
        consumer.close()
