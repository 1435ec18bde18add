"""Sources over Kafka, on loopback brokers and over a log of the test's own."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from streamkd.records import RecordSchema
from streamkd.settings import Limits
from streamkd.streams.brokers import partitions
from streamkd.streams.brokers.kafka import KafkaListener, KafkaOptions
from streamkd.streams.brokers.messages import Decode, Form, Message
from streamkd.streams.ingest.admission import Sifted

if TYPE_CHECKING:
    from kafka_brokers import Cluster


def until(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Wait for something true and return it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return found


def lines(labels: Sequence[int]) -> list[bytes]:
    """A record as JSON for each label."""
    return [json.dumps({"x": [[0, 1, 2], [3, 4, label]], "label": label}).encode() for label in labels]


def decoding(decode: Decode, schema: RecordSchema) -> Callable[..., Sifted]:
    """Gives the rows of values, each alone or beside what its header says, at the offsets from 0 on."""

    def of(*values: Any) -> Sifted:
        messages = [
            Message(n, *((v, None, [("__value_schema_id", h)]) if h else (v,)))
            for n, (v, h) in enumerate(value if isinstance(value, tuple) else (value, None) for value in values)
        ]
        [(sifted, then)] = decode(messages, Form(schema, Limits(), "orders/0"))
        assert then == len(values)
        return sifted

    return of


@pytest.fixture
def cluster() -> "Iterator[Cluster]":
    """Three brokers, or real ones, with a topic ``main`` of three partitions."""
    from kafka_brokers import brokers  # which skips where there is no client

    with contextlib.closing(brokers()) as found:
        found.create("main")
        yield found  # tests that are not marked ``kafka`` are run on a ``Cluster`` alone


@pytest.fixture
def read(cluster: "Cluster", monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., KafkaListener]]:
    """Starts a source on the way into a log, which waits less than it should; each ends with its test, or ``drain``."""
    for name, seconds in {"LOOK_AGAIN": 0.1, "BACK_OFF": 0.1, "POLL": 0.02, "TELL_HELD": 0.2}.items():
        monkeypatch.setattr(partitions, f"{name}_SECONDS", seconds)
    with contextlib.ExitStack() as stack:

        def begin(way: Any, **options: Any) -> KafkaListener:
            listener = KafkaListener(
                KafkaOptions(**{"servers": cluster.servers, "topics": cluster.main, **options}), way.ingest()
            )
            listener.start()
            stack.callback(listener.drain, 10)
            return listener

        yield begin
