"""``streamkd bench ingest``: what producers send into the log, beside who takes the same and does nothing else.

    deserialise   Kafka: consume, read the Arrow stream or the JSON object, drop it
    sync          the same, and append the message to a file, which is synced every 4 MB
    ours          the source kafka: limits, full validation, sifted, in the log with its position, synced

Records a second from the first request to the last record; the best of several turns, in which each has its own. Arrow
Flight is measured by ``put``.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from streamkd.bench import book, put
from streamkd.bench.book import Row
from streamkd.errors import SourceError
from streamkd.records import InputColumn, RecordSchema
from streamkd.settings import Limits
from streamkd.streams.brokers import client
from streamkd.streams.brokers.kafka import KafkaListener, KafkaOptions
from streamkd.streams.ingest.intake import Ingest, Intake
from streamkd.streams.ingest.tokens import Tokens
from streamkd.streams.log.log import Log
from streamkd.telemetry import Recorder

TURNS, SYNC_BYTES, WAIT_SECONDS = 3, 4 << 20, 60.0
ROWS = 500  # of an Arrow message
Format = Literal["json", "arrow"]
CASES: dict[str, tuple[Format, int, str]] = {
    "arrow.784": ("arrow", 784, "uint8"),
    "arrow.8": ("arrow", 8, "float32"),
    "json.8": ("json", 8, "float32"),
}


def measure(
    servers: str | None, megabytes: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """A row for each case, and the ratios of ours to the others; Flight alone without ``servers`` of Kafka.

    On those the topics ``streamkd-bench-CASE`` are there.

    Raises:
        SourceError: a topic has messages already, or the brokers stay away.
    """
    rows: list[Row] = []
    cases = [name for name in CASES if servers or name.startswith("arrow")]
    for name in cases:
        format, width, dtype = CASES[name]
        schema = RecordSchema(inputs=(InputColumn(name="x", shape=(width,), dtype=dtype),))  # type: ignore[arg-type]
        if format == "arrow":
            put_rows = put.measure(_rows(schema), schema, megabytes << 20, TURNS)
            rows += [{"case": f"flight.{row.pop('way')}.{width}", **row} for row in put_rows]
        if servers:
            topic = f"streamkd-bench-{name}"
            rows.append({"case": name, **_measured(servers, topic, format, schema, megabytes << 20)})
        progress(cases.index(name) + 1, len(cases))
    sides = [(side, row) for row in rows for side in ("deserialise", "sync") if side in row]
    return book.result(
        "ingest", rows, figures={f"{side}.{row['case']}": row["ours"] / row[side] for side, row in sides}
    )


def _measured(servers: str, topic: str, format: Format, schema: RecordSchema, size_bytes: int) -> Row:
    records = _fill(servers, topic, format, schema, size_bytes)
    best = {"deserialise": 0.0, "sync": 0.0, "ours": 0.0}
    for _ in range(TURNS):
        with TemporaryDirectory() as folder:
            sides = {
                "deserialise": _bare(servers, topic, format, None),
                "sync": _bare(servers, topic, format, Path(folder, "bytes")),
                "ours": _ours(servers, topic, format, schema, Path(folder, "log.sqlite")),
            }
            for side, arrivals in sides.items():
                best[side] = max(best[side], _rate(arrivals, records))
    return {"records": records, **best}


def _rate(arrivals: Iterator[int], records: int) -> float:
    """Records a second; each arrival says how many there are by then."""
    begun = time.perf_counter()
    for there in arrivals:
        seconds = time.perf_counter() - begun
        if there >= records:
            return records / seconds
        if seconds > WAIT_SECONDS:
            break
    raise SourceError(f"needed {records} records, and they did not come", where="bench ingest")


def _fill(servers: str, topic: str, format: Format, schema: RecordSchema, size_bytes: int) -> int:
    """Messages of random numbers; how many records they are."""
    kafka = client.load("streamkd bench ingest")
    settings = client.settings({"queue.buffering.max.kbytes": 1 << 20}, {"bootstrap.servers": servers})
    producer = client.make(kafka.Producer, settings, "bench ingest")
    messages = _messages(format, schema)
    count = max(2, size_bytes // len(messages[0]))
    partitions = _empty_partitions(kafka, servers, topic)
    for number in range(count):
        producer.produce(topic, messages[number % len(messages)], partition=number % partitions)
        producer.poll(0)
    if producer.flush(WAIT_SECONDS):
        raise SourceError("the brokers did not take all messages", where=servers)
    return count * (ROWS if format == "arrow" else 1)


def _rows(schema: RecordSchema) -> pa.RecordBatch:
    [column] = schema.inputs
    x = (np.random.default_rng(0).random(ROWS * column.size) * 255).astype(column.dtype)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(x), column.size)
    return pa.record_batch({"x": lists, "label": pa.array(np.arange(ROWS) % 10)})


def _messages(format: Format, schema: RecordSchema) -> list[bytes]:
    rows = _rows(schema)
    return [_stream(rows)] if format == "arrow" else [json.dumps(row).encode() for row in rows.to_pylist()]


def _empty_partitions(kafka: Any, servers: str, topic: str) -> int:
    """How many a topic has, in which there is nothing yet."""
    consumer = _consumer(kafka, servers)
    try:
        numbers = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        ends = [consumer.get_watermark_offsets(kafka.TopicPartition(topic, number), timeout=10) for number in numbers]
    except kafka.KafkaException as fault:
        raise SourceError(client.said(fault), where=servers, fix="see whether the brokers run") from None
    finally:
        consumer.close()
    if not ends or any(high for _, high in ends):
        raise SourceError(f"needed an empty topic {topic}", where=servers, fix="make it, or make it anew")
    return len(ends)


def _consumer(kafka: Any, servers: str) -> Any:
    settings = client.settings({}, {"bootstrap.servers": servers, "group.id": "bench", "enable.auto.commit": False})
    return client.make(kafka.Consumer, settings, "bench ingest")


def _bare(servers: str, topic: str, format: Format, file: Path | None) -> Iterator[int]:
    kafka = client.load("streamkd bench ingest")
    consumer = _consumer(kafka, servers)
    numbers = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([kafka.TopicPartition(topic, number, 0) for number in numbers])
    there = unsynced = 0
    try:
        with (file or Path(os.devnull)).open("ab", buffering=0) as out:
            while True:
                found = consumer.consume(500, 0.1)
                for message in found:
                    there += _deserialised(message.value(), format)
                    unsynced += out.write(message.value()) if file else 0
                if unsynced > SYNC_BYTES or (unsynced and not found):
                    os.fsync(out)
                    unsynced = 0
                yield there
    finally:
        consumer.close()


def _deserialised(value: bytes, format: Format) -> int:
    if format == "json":
        json.loads(value)
        return 1
    with pa.ipc.open_stream(value) as reader:
        return sum(batch.num_rows for batch in reader)


def _ours(servers: str, topic: str, format: Format, schema: RecordSchema, file: Path) -> Iterator[int]:
    log = Log(file, schema)
    intake = Intake(log, Limits(queue_records=1 << 40, queue_bytes=1 << 50), Recorder())
    listener = KafkaListener(
        KafkaOptions(servers=servers, topics=(topic,), format=format), Ingest(intake, Tokens(None))
    )
    listener.start()
    try:
        while True:
            time.sleep(0.005)
            yield log.end()
    finally:
        intake.drain()
        listener.drain(10)
        intake.close()
        log.close()


def _stream(rows: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    return bytes(sink.getvalue().to_pybytes())
