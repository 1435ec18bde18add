"""The source over NATS JetStream: each message once and in order, whatever server, readers and messages do."""

import contextlib
import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nats_server import Server
from pydantic import ValidationError
from schema_registry import Registry, framed

from streamkd.errors import ConfigError
from streamkd.records import InputColumn, RecordSchema
from streamkd.settings import Limits
from streamkd.streams.brokers import nats
from streamkd.streams.brokers.nats import NatsListener, NatsOptions
from streamkd.streams.ingest.intake import Intake
from streamkd.streams.log.log import Log
from streamkd.telemetry import Recorder

from ..conftest import Way
from .conftest import lines, until

Open, Read = Callable[..., Way], Callable[..., NatsListener]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """With a stream ``main``."""
    with contextlib.ExitStack() as stack:
        found = Server(tmp_path / "jetstream")
        stack.callback(found.kill)
        found.make("main")
        yield found


@pytest.fixture
def begin(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Read]:
    """Starts a source on the way into a log, which waits less than it should."""
    for name, seconds in {"LOOK": 0.3, "BACK_OFF": 0.1, "POLL": 0.05, "TELL": 0.1}.items():
        monkeypatch.setattr(nats, f"{name}_SECONDS", seconds)
    with contextlib.ExitStack() as stack:

        def start(way: Way, **options: Any) -> NatsListener:
            listener = NatsListener(NatsOptions(**{"servers": server.url, **options}), way.ingest())
            listener.start()
            stack.callback(listener.drain, 10)
            return listener

        yield start


def written(way: Way, count: int) -> list[int]:
    """The labels in the log, once there are so many; a moment later there are no more."""
    until(lambda: way.log.end() >= count)
    time.sleep(0.3)
    assert way.log.end() == count
    return way.labels()


def test_every_message_is_a_record_in_order(server: Server, open_way: Open, begin: Read) -> None:
    """Once each; a second start reads what has come since, and nothing else."""
    way = open_way()
    server.publish("main.a", lines(range(300)))
    source = begin(way)
    assert written(way, 300) == list(range(300))
    source.drain(10)
    assert way.log.positions() == {"main": 301}
    server.publish("main.a", lines(range(300, 320)))
    begin(way)
    assert written(way, 320) == list(range(320))


def test_a_killed_server_is_waited_for(server: Server, open_way: Open, begin: Read) -> None:
    """Nothing is lost or doubled over two of them; the faults are counted."""
    way = open_way()
    begin(way)
    for round in range(3):
        server.publish("main.a", lines(range(100 * round, 100 * round + 100)))
        if round < 2:
            until(lambda round=round: way.log.end() > 100 * round)
            server.kill()
            time.sleep(0.3)
            server.start()
    assert written(way, 300) == list(range(300))


def test_two_readers_of_one_log_write_each_message_once(server: Server, open_way: Open, begin: Read) -> None:
    """As while a killed server's ingress has not ended yet and the next one has begun."""
    way = open_way()
    other = Intake(log := Log(way.log.path, way.log.schema), Limits(), recorder := Recorder())
    sources = [begin(way), begin(Way(log, other, recorder))]
    for first in range(0, 300, 50):
        server.publish("main.a", lines(range(first, first + 50)))
    assert written(way, 300) == list(range(300))
    for source in sources:
        source.drain(10)
    other.close()
    log.close()


@pytest.mark.parametrize("reset", [None, "stop"])
def test_what_has_expired_is_told(server: Server, open_way: Open, begin: Read, reset: str | None) -> None:
    """The stream keeps ten messages; those that went before they were read are counted, or it stops."""
    server.make("short", max_msgs=10)
    way = open_way()
    server.publish("short.a", lines(range(10)))
    source = begin(way, stream="short")
    written(way, 10)
    source.drain(10)
    server.publish("short.a", lines(range(10, 40)))
    begin(way, stream="short", reset=reset)
    if reset == "stop":
        until(lambda: way.intake.stopped)
        assert "they have expired" in way.intake.stopped
        return
    assert written(way, 20)[10:] == list(range(30, 40))
    assert way.counted("source_lost_messages_total", "main") == 20


def test_bad_messages_are_dead_letters(server: Server, open_way: Open, begin: Read) -> None:
    """With the stream and their sequence; their neighbours are taken."""
    way = open_way()
    good = lines(range(4))
    server.publish("main.a", [good[0], b"no JSON", good[1], b"", good[2], b'{"x": 1}', good[3]])
    begin(way)
    assert written(way, 4) == list(range(4))
    found = [(letter.source, letter.offset, letter.reason) for letter in way.log.letters.list()]
    assert [each[:2] for each in found] == [("main", 2), ("main", 4), ("main", 6)]


def test_a_stream_made_anew_is_another(server: Server, open_way: Open, begin: Read) -> None:
    """Its sequences are others: the source stops and says so."""
    way = open_way()
    server.publish("main.a", lines(range(5)))
    begin(way)
    written(way, 5)
    server.remove("main")
    server.make("main")
    server.publish("main.a", lines(range(5)))
    until(lambda: way.intake.stopped)
    assert "needed the stream that the log was read from" in way.intake.stopped
    assert way.log.end() == 5


def test_subject_time_and_headers_may_be_columns(server: Server, open_way: Open, begin: Read) -> None:
    """And only messages of a subject are read; a message cannot say another subject of itself."""
    columns = (InputColumn(name="x"), InputColumn(name="shop", kind="category", shape=(4,)))
    way = open_way(schema=RecordSchema(inputs=columns, event_time="at", task="channel", label="y"))
    for number, subject in enumerate(("main.north.a", "main.south.a", "main.north.b")):
        headers = {"shop": f"s{number}", "Nats-Subject": "main.lie"}
        server.publish(subject, [json.dumps({"x": 1.0, "y": number}).encode()], headers)
    begin(way, filter="main.north.>", subject="channel", time="at", headers={"shop": "shop"})
    until(lambda: way.log.end() == 2)
    rows = way.log.read(0, 2).rows.to_pydict()
    assert (rows["channel"], rows["shop"]) == (["main.north.a", "main.north.b"], ["s0", "s2"])
    assert all(abs(time.time() - at.timestamp()) < 60 for at in rows["at"])


def test_schemas_may_be_in_a_registry(server: Server, open_way: Open, begin: Read) -> None:
    """The message names its own, as over Kafka; without a registry for them the configuration is refused."""
    avro = pytest.importorskip("fastavro", reason='no Avro: pip install "streamkd[nats]"')
    fields = [{"name": name, "type": "double"} for name in ("x", "label")]
    schema = {"type": "record", "name": "Order", "fields": fields}
    avro.schemaless_writer(sink := io.BytesIO(), avro.parse_schema(schema), {"x": 1.5, "label": 2.0})
    way = open_way(schema=RecordSchema(inputs=(InputColumn(name="x"),)))
    with contextlib.closing(Registry({"/schemas/ids/7": {"schema": json.dumps(schema)}})) as registry:
        server.publish("main.a", [framed(7, sink.getvalue())])
        begin(way, format="avro", registry=registry.url)
        until(lambda: way.log.end() == 1)
    assert way.labels() == [2]
    with pytest.raises(ValidationError, match="registry is needed"):
        NatsOptions(format="protobuf")


def test_secrets_are_named_and_certificates_read(tmp_path: Path, open_way: Open, begin: Read) -> None:
    """What is written out is refused; a variable that is not set, and a file that is not there, are said."""
    with pytest.raises(ValidationError, match="env:"):
        NatsOptions(token="secret")
    for options, said in (({"token": "env:NOBODY_SET_THIS"}, "NOBODY_SET_THIS"), ({"ca": tmp_path / "ca"}, "ca")):
        with pytest.raises(ConfigError, match=said):
            begin(open_way(), **options)
