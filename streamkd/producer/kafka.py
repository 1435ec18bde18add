"""Kafka as a transport of ``push``: rows as messages of a topic, until all brokers that keep it have them.

    kafka://HOST:PORT[,HOST:PORT...]/TOPIC[?format=json|arrow&key=COLUMN&SETTING=VALUE...]

``json``: a message a row. ``arrow``: an Arrow IPC stream of as many rows as one message may hold, or with a ``key`` of
those that have the same. Rows of one key go to one partition, in order. The client sends again by itself, and the
brokers drop what comes twice (an idempotent producer); a second ``push`` of the same is new to them.
"""

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from streamkd.errors import LimitExceeded, RecordError, SchemaMismatch, SourceError, StreamkdError
from streamkd.producer.outbox import Outbox, Piece
from streamkd.producer.transport import Target, Transport
from streamkd.streams.brokers import client
from streamkd.streams.brokers.client import Setting
from streamkd.streams.ingest.jsonl import in_json

MESSAGE_BYTES = 900_000  # of an Arrow message; brokers take 1 MiB by default
POLL_SECONDS = 0.1
_FORM = "kafka://HOST:PORT/TOPIC, with ?format=arrow&key=COLUMN and further settings of librdkafka where needed"
logger = logging.getLogger(__name__)
Keyed = tuple[str | None, bytes]


@dataclass(frozen=True)
class Topic:
    """Where messages go, and what each of them is."""

    servers: str
    name: str
    format: Literal["json", "arrow"] = "json"
    key: str | None = None
    settings: dict[str, Setting] = field(default_factory=dict)


def transport(url: str, patience_seconds: float, named: bool = False) -> Transport:
    """The transport of one topic. ``named``: the producer has a name, by which nothing could be compared here.

    Raises:
        SourceError: the address is none of a topic. MissingExtra: the client is not installed.
    """
    if named:
        said = "a topic compares nothing: what is pushed to it again is there twice"
        raise SourceError(said, where=url, fix="leave --producer out")
    topic = read(url)
    client.load("push --to kafka://")
    return partial(deliver, topic=topic, patience_seconds=patience_seconds)


def read(url: str) -> Topic:
    """The topic of an address.

    Raises:
        SourceError: it is none.
    """
    parts = urlsplit(url)
    name, given = parts.path.strip("/"), dict(parse_qsl(parts.query, keep_blank_values=True))
    format, key = given.pop("format", "json"), given.pop("key", None)
    if not parts.netloc or not name or "/" in name or format not in ("json", "arrow"):
        raise SourceError(f"needed {_FORM}", where=url, fix="kafka://127.0.0.1:9092/orders?format=json")
    try:
        settings = client.check_settings(given)
    except ValueError as fault:
        raise SourceError(str(fault), where=url, fix="kafka://...?sasl.password=env:NAME") from None
    return Topic(parts.netloc, name, "arrow" if format == "arrow" else "json", key, dict(settings))


def deliver(outbox: Outbox, target: Target, topic: Topic, patience_seconds: float) -> None:
    """Send all pieces and wait until they are kept.

    Raises:
        SourceError: the brokers stay away, or refuse. RecordError: a message that no broker takes.
    """
    kafka = client.load("push --to kafka://")
    faults = client.ClientFaults(lambda: None)
    producer = client.make(
        kafka.Producer, {**_settings(topic, target, patience_seconds), "error_cb": faults.tell}, target.url
    )
    deliveries = Deliveries(outbox)
    ended = threading.Event()
    polling = threading.Thread(target=_poll, args=[producer, ended], name="push-deliveries", daemon=True)
    polling.start()
    try:
        while (piece := outbox.next(lambda: deliveries.failure is None)) is not None:
            _produce(kafka, producer, topic, piece, deliveries)
        deliveries.finish()
    finally:
        ended.set()
        polling.join()
        if deliveries.failure is not None:
            producer.purge()
            producer.flush(POLL_SECONDS)
    if deliveries.failure is not None:
        raise _told(deliveries.failure, topic, target.url, outbox.acknowledged)


class Deliveries:
    """Which messages are kept, told to the outbox by whole pieces, in order."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._changed = threading.Condition()
        self._owed: deque[list[int]] = deque()  # of each piece its sequence, its rows, and the messages not yet kept
        self.failure: Any = None

    def expect(self, piece: Piece, messages: int) -> Callable[[Any, Any], None]:
        """A callback for each message of a piece."""
        owed = [piece.sequence, piece.rows.num_rows, messages]
        with self._changed:
            self._owed.append(owed)

        def delivered(error: Any, message: Any) -> None:
            with self._changed:
                self.failure = self.failure or error
                owed[2] -= error is None
                self._acknowledge(message)
                self._changed.notify_all()
            self._outbox.wake()

        return delivered

    def finish(self) -> None:
        """Wait until everything is kept, or something never will be."""
        with self._changed:
            self._changed.wait_for(lambda: not self._owed or self.failure is not None)

    def _acknowledge(self, message: Any) -> None:
        while self._owed and not self._owed[0][2]:
            sequence, rows, _ = self._owed.popleft()
            self._outbox.acknowledge(sequence, {"accepted": rows, "rejected": 0, "offset": message.offset()})


def _settings(topic: Topic, target: Target, patience_seconds: float) -> dict[str, Any]:
    tls = target.tls
    files = {"ssl.ca.location": tls.ca, "ssl.certificate.location": tls.certificate, "ssl.key.location": tls.key}
    given: dict[str, Setting] = {"message.timeout.ms": max(1, int(patience_seconds * 1e3)), "linger.ms": 5}
    given |= {name: str(path) for name, path in files.items() if path}
    return client.settings(
        {**given, **topic.settings}, {"bootstrap.servers": topic.servers, "enable.idempotence": True}
    )


def _poll(producer: Any, ended: threading.Event) -> None:
    while not ended.is_set():
        producer.poll(POLL_SECONDS)


def _produce(kafka: Any, producer: Any, topic: Topic, piece: Piece, deliveries: Deliveries) -> None:
    messages = list(_messages(piece.rows, topic))
    delivered = deliveries.expect(piece, len(messages))
    for key, value in messages:
        while deliveries.failure is None:
            try:
                producer.produce(topic.name, value, key, on_delivery=delivered)
                break
            except BufferError:  # the client holds as much as it may
                time.sleep(POLL_SECONDS)
            except kafka.KafkaException as fault:
                deliveries.failure = fault.args[0]


def _messages(rows: pa.RecordBatch, topic: Topic) -> Iterator[Keyed]:
    """The messages of a piece, with their keys."""
    if topic.key is not None and topic.key not in rows.schema.names:
        raise SchemaMismatch(f"there is no column {topic.key!r}: {', '.join(rows.schema.names)}", where="key")
    if topic.format == "json":
        for row in rows.to_pylist():
            yield _key(row[topic.key]) if topic.key else None, json.dumps(row, default=in_json).encode()
        return
    for key, part in _by_key(rows, topic.key):
        most = max(1, MESSAGE_BYTES * part.num_rows // max(1, part.nbytes))
        for first in range(0, part.num_rows, most):
            yield key, _stream(part.slice(first, most))


def _by_key(rows: pa.RecordBatch, key: str | None) -> Iterator[tuple[str | None, pa.RecordBatch]]:
    if key is None:
        yield None, rows
        return
    column = rows.column(key)
    for value in pc.unique(column):
        same = pc.equal(column, value) if value.is_valid else pc.is_null(column)
        yield _key(value.as_py()), rows.filter(same)


def _key(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, default=in_json)


def _stream(rows: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    return bytes(sink.getvalue().to_pybytes())


def _told(error: Any, topic: Topic, url: str, acknowledged: int) -> StreamkdError:
    """Why a message is not kept, as ours."""
    name, said = error.name(), f"{client.said(error)}; {acknowledged} records are kept"
    if name == "MSG_SIZE_TOO_LARGE":
        return LimitExceeded(said, where=url, fix="send smaller batches with --batch, or set message.max.bytes")
    if "UNKNOWN_TOPIC" in name or "UNKNOWN_PARTITION" in name:
        return SourceError(said, where=url, fix=f"make the topic {topic.name!r}")
    if name in ("TOPIC_AUTHORIZATION_FAILED", "INVALID_RECORD"):
        return RecordError(said, where=url)
    return SourceError(said, where=url, fix="see whether the brokers run, and that its settings are theirs")
