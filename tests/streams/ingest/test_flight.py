"""The source flight: a real server and real clients on loopback."""

import contextlib
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pytest

from streamkd.errors import ConfigError, Overloaded
from streamkd.records import InputColumn, RecordSchema
from streamkd.settings import Tls
from streamkd.streams.encoding import codec
from streamkd.streams.ingest import connections as callers
from streamkd.streams.ingest import tokens
from streamkd.streams.ingest.acks import Acks, fold
from streamkd.streams.ingest.flight import FlightListener, FlightOptions
from streamkd.streams.ingest.tokens import Tokens
from streamkd.streams.log.receipts import Receipt

Pictures = Callable[..., pa.RecordBatch]
MAIN = fl.FlightDescriptor.for_path("main")


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Starts a listener on a free port; returns its URL."""
    listeners = []

    def start(way: Any, streams: int = 8, idle_seconds: float = 60.0, **where: Any) -> str:
        listener = FlightListener(FlightOptions(streams=streams, idle_seconds=idle_seconds), way.ingest(**where))
        listeners.append(listener)
        return listener.start()["flight"]

    yield start
    for listener in listeners:
        listener.close()


def put(url: str, *batches: pa.RecordBatch, producer: str | None = "p", first: int = 0, **client: Any) -> list[Any]:
    """Put batches on one stream, the way of the client without streamkd; the acks."""
    acks: list[Any] = []
    options = client.pop("options", None)
    with fl.connect(url, **client) as connection:
        writer, reader = connection.do_put(client.get("descriptor", MAIN), batches[0].schema, options)

        def listen() -> None:
            with contextlib.suppress(fl.FlightError):  # the writer raises it too
                while (ack := reader.read()) is not None:
                    acks.append(json.loads(ack.to_pybytes()))

        listening = threading.Thread(target=listen)
        listening.start()
        with writer:
            try:
                for sequence, batch in enumerate(batches, first):
                    if producer is None:
                        writer.write_batch(batch)
                    else:
                        note = {"producer": producer, "sequence": sequence}
                        writer.write_with_metadata(batch, json.dumps(note).encode())
            finally:  # else the close would wait for the reader, and the reader for the server's last word
                with contextlib.suppress(fl.FlightError, pa.ArrowException):
                    writer.done_writing()
                listening.join()
    return acks


def refusal(url: str, batch: pa.RecordBatch, descriptor: Any = MAIN, note: bytes = b"", **client: Any) -> Exception:
    """The error that a put of one batch ends with."""
    with pytest.raises((fl.FlightError, pa.ArrowInvalid)) as caught:
        _put_one(url, batch, descriptor, note, **client)
    assert "/" not in re.sub("ipv[46]:|grpc[^ ]*/", "", str(caught.value).replace("pyarrow/_flight.pyx", ""))
    return caught.value


def _put_one(url: str, batch: pa.RecordBatch, descriptor: Any, note: bytes, options: Any = None) -> None:
    with fl.connect(url) as connection:
        writer, reader = connection.do_put(descriptor, batch.schema, options)
        with writer:
            writer.write_with_metadata(batch, note)
            writer.done_writing()
            reader.read()


def code(fault: Exception) -> str:
    """As which gRPC status it came, where pyarrow's client says the number, or by what the server says beside it."""
    if isinstance(fault, fl.FlightError) and fault.extra_info.startswith(b"{"):
        return str(json.loads(fault.extra_info)["code"])
    number = re.search(r"grpc_status:(\d+)", str(fault))
    assert number
    return {"3": "invalid_argument", "14": "unavailable"}[number[1]]


def test_everything_put_is_acknowledged_and_in_the_log(open_way: Callable, serve: Callable, pictures: Pictures) -> None:
    """The acks' sums and the last offset are those of all batches; the log has the rows in order."""
    way = open_way()
    acks = put(serve(way), *(pictures(10, first=first) for first in range(0, 500, 10)))
    assert sum(ack["accepted"] for ack in acks) == 500
    assert acks[-1] == {
        "sequence": 49,
        "accepted": acks[-1]["accepted"],
        "rejected": 0,
        "offset": 500,
        "duplicate": False,
    }
    assert way.labels() == list(range(500))


def test_a_client_may_wait_for_each_ack(open_way: Callable, serve: Callable, pictures: Pictures) -> None:
    """One batch, its ack, the next batch: no ack waits for the end of the stream."""
    with fl.connect(serve(open_way())) as client:
        writer, reader = client.do_put(MAIN, pictures(1).schema)
        with writer:
            for sequence in range(3):
                writer.write_with_metadata(pictures(2), json.dumps({"producer": "p", "sequence": sequence}).encode())
                assert json.loads(reader.read().to_pybytes())["sequence"] == sequence


def test_batches_sent_again_count_once(open_way: Callable, serve: Callable, pictures: Pictures) -> None:
    """On another stream, overlapping: the acks count them as the first time, the log does not."""
    way = open_way()
    url = serve(way)
    put(url, pictures(5), pictures(5))
    acks = put(url, pictures(5), pictures(5), first=1)
    assert sum(ack["accepted"] for ack in acks) == 10
    assert way.log.end() == 15


def test_without_metadata_there_is_no_deduplication(open_way: Callable, serve: Callable, pictures: Pictures) -> None:
    """Every batch counts, and the acks have no sequence."""
    way = open_way()
    url = serve(way)
    put(url, pictures(5), producer=None)
    assert put(url, pictures(5), producer=None)[-1]["sequence"] is None
    assert way.log.end() == 10


def test_a_bad_row_is_dead_lettered_and_the_others_taken(
    open_way: Callable, serve: Callable, pictures: Pictures
) -> None:
    """Missing labels and NaN; the ack counts both kinds."""
    way = open_way()
    x = np.ones((4, 6), np.float32)
    x[1, 2] = np.nan
    images = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 6)
    batch = pa.record_batch({"x": images, "label": pa.array([0, 1, None, 3])})
    (ack,) = put(serve(way), batch)
    assert ack == {"sequence": 0, "accepted": 2, "rejected": 2, "offset": 2, "duplicate": False}
    assert [letter.reason for letter in way.log.letters.list()] == ["not_finite", "missing_label"]


MISFITS = {
    "shape": {"x": pa.array([[1.0]], pa.list_(pa.float32(), 1)), "label": pa.array([1])},
    "type": {"x": pa.array(["a"]), "label": pa.array([1])},
    "column": {"y": pa.array([[1.0] * 6]), "label": pa.array([1])},
    "label type": {"x": pa.array([[1.0] * 6]), "label": pa.array(["cat"])},
    "label": {"x": pa.array([[1.0] * 6])},
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_schema_that_does_not_fit_is_refused_whole(case: str, open_way: Callable, serve: Callable) -> None:
    """With a Flight error that names the column, what it needs and what came."""
    way = open_way()
    fault = refusal(serve(way), pa.record_batch(MISFITS[case]))
    assert code(fault) == "invalid_argument"
    assert "column '" in str(fault)
    assert "needed" in str(fault)
    assert way.log.end() == 0
    assert way.counted("source_errors_total", "main", "schema") == 1


def test_a_schema_changed_in_mid_stream_is_refused(open_way: Callable, serve: Callable, pictures: Pictures) -> None:
    """The client's own Arrow refuses it on one stream; on the producer's next stream we do. What was taken stays."""
    way = open_way()
    url = serve(way)
    changed = pa.record_batch({"x": pa.array(["a"]), "label": pa.array([1])})
    with pytest.raises(pa.ArrowInvalid, match="different schema"):
        put(url, pictures(3), changed)
    assert code(refusal(url, changed, note=b'{"producer": "p", "sequence": 1}')) == "invalid_argument"
    assert way.log.end() == 3
    assert put(url, pictures(2), first=1)[-1]["accepted"] == 2


def test_batches_past_the_limits_are_refused(open_way: Callable, serve: Callable, pictures: Pictures) -> None:
    """Rows, bytes, columns, and 2³¹ rows declared in a few bytes; the server goes on."""
    url = serve(open_way(batch_rows=100, batch_bytes=10_000, columns=3))
    wide = pa.record_batch({**dict(zip("abc", [pa.array([1])] * 3, strict=True)), "label": pa.array([1])})
    long = pa.record_batch({"x": pa.array([["a" * 20_000]]).cast(pa.list_(pa.string())), "label": pa.array([1])})
    many = pictures(101)
    heavy = pa.record_batch({"x": pa.array([[1.0] * 6]), "label": pa.array([1]), "more": pa.array(["a" * 20_000])})
    for batch, said in ((wide, "4 columns"), (long, "needed"), (many, "101 rows"), (heavy, "bytes, at most 10000")):
        fault = refusal(url, batch)
        assert code(fault) == "invalid_argument"
        assert said in str(fault)
    assert put(url, pictures(5))[-1]["accepted"] == 5


def test_two_to_the_31_rows_are_refused_by_their_number(open_way: Callable, serve: Callable) -> None:
    """Nulls take no bytes on the wire; a schema of them fits nothing, and a fixed-size list of none takes none."""
    schema = RecordSchema(inputs=(InputColumn(name="x", kind="text", shape=(4,)),), label_type="string")
    way = open_way(schema)
    empty = pa.record_batch({"x": pa.nulls(2**31 - 1), "label": pa.nulls(2**31 - 1)})
    assert "needed string, got null" in str(refusal(serve(way), empty))


def test_a_compressed_bomb_is_refused(open_way: Callable, serve: Callable) -> None:
    """A few KB of zstd that unpack past the limit on bytes."""
    bomb = pa.record_batch({"x": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(12_000_000, np.float32)), 6)})
    bomb = bomb.append_column("label", pa.array(np.zeros(2_000_000, np.int64)))
    packed = fl.FlightCallOptions(write_options=pa.ipc.IpcWriteOptions(compression="zstd"))
    fault = refusal(serve(open_way(batch_rows=10_000_000, batch_bytes=1 << 20)), bomb, options=packed)
    assert "at most 1048576" in str(fault)


def test_an_empty_batch_is_acknowledged(open_way: Callable, serve: Callable, pictures: Pictures) -> None:
    """Nothing accepted, nothing refused."""
    (ack,) = put(serve(open_way()), pictures(0))
    assert ack == {"sequence": 0, "accepted": 0, "rejected": 0, "offset": 0, "duplicate": False}


def test_another_stream_is_refused(open_way: Callable, serve: Callable, pictures: Pictures) -> None:
    """The error names the stream that there is."""
    url = serve(open_way())
    assert "['main']" in str(refusal(url, pictures(1), fl.FlightDescriptor.for_path("other")))
    assert "['main']" in str(refusal(url, pictures(1), fl.FlightDescriptor.for_command(b"main")))


@pytest.mark.parametrize(
    "note",
    [b"{", b"[1]", b'{"producer": "p"}', b'{"producer": "", "sequence": 1}', b'{"producer": "p", "sequence": -1}'],
)
def test_metadata_that_is_no_name_is_refused(
    note: bytes, open_way: Callable, serve: Callable, pictures: Pictures
) -> None:
    """Guessing a sequence would lose or double a batch."""
    way = open_way()
    assert "batch metadata" in str(refusal(serve(way), pictures(1), note=note))
    assert way.log.end() == 0


def test_bad_rows_in_a_row_end_the_stream(open_way: Callable, serve: Callable, pictures: Pictures) -> None:
    """A producer that sends nothing good is stopped, not drained into the dead letters."""
    way = open_way(bad_in_a_row=20)
    bad = pictures(5).set_column(1, "label", pa.nulls(5, pa.int64()))
    with pytest.raises(pa.ArrowInvalid, match="20 refused rows in a row"):
        put(serve(way), *[bad] * 10)
    assert way.log.letters.count() == 15


def test_a_full_queue_leaves_the_stream_unread(open_way: Callable, serve: Callable, pictures: Pictures) -> None:
    """No error: the acks stop, and come when a checkpoint has made room."""
    way = open_way(queue_records=20)
    url = serve(way)
    acks: list[Any] = []
    thread = threading.Thread(target=lambda: acks.extend(put(url, *(pictures(10) for _ in range(5)))))
    thread.start()
    for offset in (20, 40):
        _until(lambda offset=offset: way.log.end() == offset)
        time.sleep(0.15)
        assert way.log.end() == offset
        way.intake.committed(offset)
    thread.join(10)
    assert sum(ack["accepted"] for ack in acks) == 50


def test_more_streams_than_places_wait(open_way: Callable, serve: Callable, pictures: Pictures) -> None:
    """The second is served when the first has ended."""
    way = open_way()
    url = serve(way, streams=1)
    with fl.connect(url) as client:
        writer, reader = client.do_put(MAIN, pictures(1).schema)
        writer.write_batch(pictures(1))
        reader.read()
        thread = threading.Thread(target=put, args=[url, pictures(3)])
        thread.start()
        time.sleep(0.2)
        assert way.log.end() == 1
        writer.close()
    thread.join(10)
    assert way.log.end() == 4


@contextlib.contextmanager
def silent(url: str, schema: pa.Schema) -> Iterator[tuple[Any, Any]]:
    """A put stream of a connection of its own that sends nothing; its end, however it comes, is no error."""
    with contextlib.suppress(fl.FlightError, pa.ArrowException), fl.connect(url) as client:
        writer, reader = client.do_put(MAIN, schema)
        yield writer, reader
        writer.close()


def test_silent_streams_give_way(
    open_way: Callable, serve: Callable, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all places are held by streams that send nothing, a producer with records is served."""
    monkeypatch.setattr(callers, "GRACE_SECONDS", 0.3)
    way = open_way()
    url = serve(way, streams=2)
    with silent(url, pictures(1).schema), silent(url, pictures(1).schema):
        time.sleep(0.1)
        assert sum(ack["accepted"] for ack in put(url, pictures(3))) == 3


def test_a_silent_stream_ends_in_time(open_way: Callable, serve: Callable, pictures: Pictures) -> None:
    """After `idle_seconds` without a batch, also where none ever came; who comes again is served."""
    way = open_way()
    url = serve(way, idle_seconds=0.4)
    begin = time.monotonic()
    with silent(url, pictures(1).schema) as (_, reader):
        assert reader.read() is None  # waits until the connection ends
    assert time.monotonic() - begin < 30
    assert sum(ack["accepted"] for ack in put(url, pictures(3))) == 3


def test_a_stream_that_waits_for_room_is_not_silent(open_way: Callable, serve: Callable, pictures: Pictures) -> None:
    """Its batch is in our hands: it is held back longer than `idle_seconds`, and acknowledged in the end."""
    way = open_way(queue_records=10)
    url = serve(way, idle_seconds=0.3)
    threading.Timer(1.2, lambda: way.intake.committed(10)).start()
    assert sum(ack["accepted"] for ack in put(url, pictures(10), pictures(10))) == 20


def test_calls_without_a_schema_are_bounded(
    open_way: Callable, serve: Callable, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each holds a thread of gRPC's before we hear of it: beyond the bound they end, and producers are served."""
    monkeypatch.setattr(callers, "GRACE_SECONDS", 0.1)
    way = open_way()
    url = serve(way, streams=1)
    grpc = pytest.importorskip("grpc")
    with contextlib.ExitStack() as stack:
        for number in range(2 + 16):
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.primary_user_agent", f"n{number}")]
            channel = stack.enter_context(grpc.insecure_channel(url.removeprefix("grpc://"), options))
            channel.stream_stream("/arrow.flight.protocol.FlightService/DoPut")(_nothing_for(5.0))
        time.sleep(0.5)
        begin = time.monotonic()
        while way.log.end() == 0 and time.monotonic() - begin < 10:
            with contextlib.suppress(fl.FlightError, pa.ArrowException):
                put(url, pictures(3))
    assert way.log.end() == 3


def _nothing_for(seconds: float) -> Iterator[bytes]:
    time.sleep(seconds)
    yield from ()


def test_peers_are_told_apart_as_sockets_name_them() -> None:
    """gRPC's words for an address, and the kernel's, are one peer."""
    assert callers.peer_of("ipv4:127.0.0.1:5000") == ("127.0.0.1", 5000)
    assert callers.peer_of("ipv6:%5B::1%5D:5000") == ("::1", 5000)
    assert callers.peer_of("ipv6:%5B::ffff:10.0.0.1%5D:5000") == ("10.0.0.1", 5000)
    assert callers.peer_of("unix:/tmp/x") == ("/tmp/x".rpartition(":")[0], 0)


def test_a_drain_acknowledges_what_was_taken_and_refuses_the_rest(open_way: Callable, pictures: Pictures) -> None:
    """The producer learns that it should come again, and everything acknowledged is there."""
    way = open_way()
    listener = FlightListener(FlightOptions(), way.ingest())
    acks: list[Any] = []
    with fl.connect(listener.start()["flight"]) as client:
        writer, reader = client.do_put(MAIN, pictures(1).schema)
        writer.write_batch(pictures(7))
        acks.append(json.loads(reader.read().to_pybytes()))
        way.intake.drain()
        with pytest.raises(fl.FlightUnavailableError, match="shutting down"):
            _write_until_refused(writer, reader, pictures(1))
    listener.drain(5.0)
    listener.close()
    assert acks[0]["accepted"] == way.log.end() == 7


def test_the_drain_has_a_deadline(open_way: Callable, pictures: Pictures) -> None:
    """A producer that keeps its stream open and sends nothing does not hold up the end."""
    way = open_way()
    listener = FlightListener(FlightOptions(), way.ingest())
    with fl.connect(listener.start()["flight"]) as client:
        writer, reader = client.do_put(MAIN, pictures(1).schema)
        writer.write_batch(pictures(1))
        reader.read()
        way.intake.drain()
        begun = time.monotonic()
        listener.drain(0.2)
        assert 0.2 <= time.monotonic() - begun < 1.0
        writer.done_writing()
    listener.close()


@pytest.fixture
def token_file(tmp_path: Path) -> tuple[Path, str, str]:
    """The file, a token for ingest, and one for predictions alone."""
    path = tmp_path / "tokens.json"
    return path, tokens.create(path, "producer", ["ingest"]), tokens.create(path, "reader", ["predict"])


def test_a_token_opens_the_door(open_way: Callable, serve: Callable, pictures: Pictures, token_file: Any) -> None:
    """Without one, with a wrong one, with one for something else: refused and counted; with the right one: taken."""
    way = open_way()
    path, right, other = token_file
    url = serve(way, tokens=Tokens(path))
    assert isinstance(refusal(url, pictures(1)), fl.FlightUnauthenticatedError)
    for text, kind in (("wrong", fl.FlightUnauthenticatedError), (other, fl.FlightUnauthorizedError)):
        assert isinstance(refusal(url, pictures(1), options=_bearer(text)), kind)
    assert way.counted("auth_failures_total", "flight") == 3
    assert put(url, pictures(2), options=_bearer(right))[-1]["accepted"] == 2


def test_the_schema_that_fits_can_be_asked_for(open_way: Callable, serve: Callable, schema: RecordSchema) -> None:
    """GetSchema gives the canonical schema."""
    with fl.connect(serve(open_way())) as client:
        assert client.get_schema(MAIN).schema == codec.arrow_schema(schema)


@pytest.mark.parametrize(
    "call",
    [
        lambda client: list(client.list_flights()),
        lambda client: client.get_flight_info(MAIN),
        lambda client: client.do_get(fl.Ticket(b"x")).read_all(),
        lambda client: list(client.list_actions()),
        lambda client: list(client.do_action("x")),
        lambda client: client.do_exchange(MAIN)[1].read_all(),
    ],
)
def test_what_is_not_offered_is_refused_without_a_traceback(call: Any, open_way: Callable, serve: Callable) -> None:
    """As UNIMPLEMENTED; pyarrow's own refusals would show paths."""
    url = serve(open_way())
    with fl.connect(url) as client, pytest.raises(pa.ArrowNotImplementedError, match="is not offered") as caught:
        call(client)
    assert 'File "/' not in str(caught.value)


def test_a_port_that_is_taken_is_said(open_way: Callable, serve: Callable) -> None:
    """With the port and the way out."""
    way = open_way()
    port = int(serve(way).rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"127.0.0.1:{port}") as caught:
        FlightListener(FlightOptions(), way.ingest(flight_port=port)).start()
    assert "serve.flight_port" in caught.value.fix


def test_tls_protects_the_way(open_way: Callable, serve: Callable, pictures: Pictures, tmp_path: Path) -> None:
    """A client that trusts the certificate is served; one without TLS is not."""
    tls = _certificate(tmp_path)
    way = open_way()
    url = serve(way, tls=tls)
    assert url.startswith("grpc+tls://")
    trusted = {"tls_root_certs": tls.certificate.read_bytes(), "override_hostname": "localhost"}
    assert put(url, pictures(2), **trusted)[-1]["accepted"] == 2
    with pytest.raises((fl.FlightError, pa.ArrowException)):
        put(url.replace("+tls", ""), pictures(2))
    assert way.log.end() == 2


def test_a_certificate_that_is_none_is_said(open_way: Callable, tmp_path: Path) -> None:
    """The error names the setting."""
    (tmp_path / "no.pem").write_text("nothing")
    tls = Tls(certificate=tmp_path / "no.pem", key=tmp_path / "gone.pem")
    with pytest.raises(ConfigError, match="cannot listen") as caught:
        FlightListener(FlightOptions(), open_way().ingest(tls=tls)).start()
    assert "serve.tls" in caught.value.fix


def test_folded_acks_sum_what_they_stand_for() -> None:
    """The last sequence, the sums, and the furthest offset; a batch sent again has an ack that says so."""
    sums = {"accepted": 8, "rejected": 1, "offset": 8}
    assert json.loads(fold([Receipt(1, 5, 1, 5), Receipt(2, 3, 0, 8)])) == {"sequence": 2, **sums, "duplicate": False}
    told: list[Any] = []
    acks = Acks(lambda body: told.append(json.loads(body)))
    futures = [Future() for _ in range(4)]
    for future, duplicate in zip(futures[1:], (False, True, True), strict=True):
        future.set_result(Receipt(1, 5, 0, 5, duplicate))
    for future in futures:
        acks.expect(future, 0, 1)
    futures[0].set_result(Receipt(0, 5, 0, 5))
    acks.finish()
    assert [(ack["accepted"], ack["duplicate"]) for ack in told] == [(10, False), (10, True)]


def test_thirty_thousand_records_are_acknowledged_fast_enough(open_way: Callable, serve: Callable) -> None:
    """784 bytes each in batches of 100, far below the 20,000 a second that the machine at rest must reach."""
    schema = RecordSchema(inputs=(InputColumn(name="x", shape=(28, 28), dtype="uint8"),))
    values = np.random.default_rng(0).integers(0, 256, 100 * 784, dtype=np.uint8)
    x = pa.FixedSizeListArray.from_arrays(pa.array(values), 784)
    batch = pa.record_batch({"x": x, "label": pa.array(np.arange(100))})
    url = serve(open_way(schema))
    begun = time.monotonic()
    acks = put(url, *[batch] * 300)
    assert sum(ack["accepted"] for ack in acks) == 30_000
    assert time.monotonic() - begun < 6.0


def _until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _write_until_refused(writer: Any, reader: Any, batch: pa.RecordBatch) -> None:
    writer.write_batch(batch)
    while reader.read() is not None:
        pass
    writer.close()


def _bearer(text: str) -> fl.FlightCallOptions:
    return fl.FlightCallOptions(headers=[(b"authorization", f"Bearer {text}".encode())])


def _certificate(folder: Path) -> Tls:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    tls = Tls(certificate=folder / "cert.pem", key=folder / "key.pem")
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    named = ["-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(tls.key), "-out", str(tls.certificate)]
    subprocess.run([*request, *named, *files], check=True, capture_output=True)
    return tls


def test_other_data_under_a_used_number_is_refused(open_way: Callable, serve: Callable, pictures: Pictures) -> None:
    """``already_exists``, with what was stored; nothing behind it on the stream is taken, the same is a duplicate."""
    way = open_way()
    url = serve(way)
    put(url, pictures(3), pictures(4))
    assert all(ack["duplicate"] for ack in put(url, pictures(3), pictures(4)))
    with pytest.raises(fl.FlightError, match="sequence 0 of producer 'p' was used at") as caught:
        put(url, *(pictures(3, seed=seed) for seed in range(1, 30)))
    assert code(caught.value) == "already_exists"
    assert "3 records accepted and 0 refused" in str(caught.value)
    assert way.log.end() == 7


def in_turn(url: str, *batches: pa.RecordBatch) -> list[Any]:
    """Put batches of which each waits for the ack of the one before, as the client without streamkd does."""
    acks: list[Any] = []
    with fl.connect(url) as connection:
        writer, reader = connection.do_put(MAIN, batches[0].schema, fl.FlightCallOptions(timeout=20))
        with writer:
            for sequence, batch in enumerate(batches):
                writer.write_with_metadata(batch, json.dumps({"producer": "p", "sequence": sequence}).encode())
                if (ack := reader.read()) is None:
                    break
                acks.append(json.loads(ack.to_pybytes()))
    return acks


def test_who_waits_for_each_ack_is_told_of_a_conflict(open_way: Callable, serve: Callable, pictures: Pictures) -> None:
    """At once: the server reads on, and the client sends nothing more before it has heard."""
    url = serve(open_way())
    assert len(in_turn(url, pictures(3), pictures(4))) == 2
    begun = time.monotonic()
    with pytest.raises(fl.FlightError, match="sequence 0 of producer 'p' was used at") as caught:
        in_turn(url, pictures(3, seed=1), pictures(4))
    assert code(caught.value) == "already_exists"
    assert time.monotonic() - begun < 10


def test_who_waits_for_an_ack_that_will_not_come_is_let_go(
    open_way: Callable, serve: Callable, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that could not be written, the disk being full say: the connection ends, and the client comes again."""
    monkeypatch.setattr(callers, "GRACE_SECONDS", 0.5)
    way = open_way()
    url = serve(way)

    def full(entries: Any) -> Any:
        raise Overloaded("the disk is full")

    with monkeypatch.context() as disk:
        disk.setattr(way.log, "append_many", full)
        with pytest.raises(fl.FlightUnavailableError):
            in_turn(url, pictures(3), pictures(4))
    assert len(in_turn(url, pictures(3), pictures(4))) == 2
