"""`streamkd push`: every record arrives once, whatever happens to the connection, the server or an ack."""

import contextlib
import importlib.util
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl
import pytest
from click.testing import CliRunner

from streamkd.cli import cli
from streamkd.errors import RecordError, SchemaMismatch, SourceError
from streamkd.producer import http as http_client
from streamkd.producer import outbox
from streamkd.producer.push import Ack, push
from streamkd.settings import LateLabels, Limits
from streamkd.streams.ingest import tokens

SCRIPT = Path(__file__).with_name("log_server.py")
_spec = importlib.util.spec_from_file_location("streams_log_server", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
log_server = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(log_server)


def batches(count: int, size: int = 10, start: int = 0) -> Iterator[pa.RecordBatch]:
    for first in range(start, start + count, size):
        values = list(range(first, min(first + size, start + count)))
        yield pa.RecordBatch.from_pydict({"x": values, "label": [value % 7 for value in values]})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Any]:
    opened = log_server.Server(tmp_path / "log.sqlite")
    yield opened
    opened.close()


def _url(server: Any, transport: str) -> str:
    return server.flight if transport == "flight" else server.http


@pytest.mark.parametrize("transport", ["flight", "http"])
def test_all_records_arrive_in_order_and_are_acknowledged(server: Any, transport: str) -> None:
    """What is pushed is what the log holds, and the acks count every record once, in increasing sequences."""
    acks: list[Ack] = []
    summary = push(batches(1000), _url(server, transport), on_ack=acks.append)
    assert server.values() == list(range(1000))
    assert (summary.sent, summary.accepted, summary.rejected, summary.duplicates, summary.resent) == (
        1000,
        1000,
        0,
        0,
        0,
    )
    assert sum(ack.records for ack in acks) == 1000
    assert [ack.sequence for ack in acks] == sorted({ack.sequence for ack in acks})
    assert acks[-1].offset == 1000


@pytest.mark.parametrize("transport", ["flight", "http"])
def test_labels_that_are_early_are_told(tmp_path: Path, transport: str) -> None:
    """The command says how many came before their prediction, how long they wait, and what comes then."""
    labels = tmp_path / "labels.csv"
    labels.write_text("prediction_id,label\na,1\nb,2\nc,3\n")
    with contextlib.closing(log_server.Server(tmp_path / "log.sqlite", late=LateLabels(early_seconds=90))) as server:
        pushed = ["push", "--labels", str(labels), "--batch", "2", "--to", _url(server, transport)]
        said = CliRunner().invoke(cli, pushed).output
    assert "3 labels sent, 3 accepted, 0 rejected" in said
    assert "3 of them are early: a label that comes before its prediction waits 90 s for it" in said


@pytest.mark.parametrize("transport", ["flight", "http"])
def test_bad_rows_are_counted_and_the_others_arrive(server: Any, transport: str) -> None:
    """A row without label is rejected, a batch of such rows too, and the push goes on."""
    good, bad = ({"x": [n, n + 1], "label": pa.array([label, 1], pa.int64())} for n, label in ((0, 1), (2, None)))
    worse = {"x": [9], "label": pa.array([None], pa.int64())}
    rows = [pa.RecordBatch.from_pydict(columns) for columns in (good, bad, worse, good)]
    summary = push(rows, _url(server, transport))
    assert server.values() == [0, 1, 3, 0, 1]
    assert (summary.sent, summary.accepted, summary.rejected) == (7, 5, 2)


@pytest.mark.parametrize("transport", ["flight", "http"])
def test_a_named_producer_may_push_again(server: Any, transport: str) -> None:
    """The same batches from the same producer, after a crash of its own, are not stored twice."""
    push(batches(300), _url(server, transport), producer="sensor")
    summary = push(batches(500), _url(server, transport), producer="sensor")
    assert server.values() == list(range(500))
    assert summary.sent == 500


def test_records_that_the_server_has_from_before_are_duplicates() -> None:
    """A duplicate that was sent once is the server's from before; one that was sent twice may be our own."""
    box = outbox.Outbox(batches(40), None, lambda ack: None)
    for _ in range(2):
        box.next(lambda: True)
    box.again()
    for _ in range(2):
        box.next(lambda: True)
    box.acknowledge(1, {"accepted": 20, "rejected": 0, "offset": 20, "duplicate": True})
    box.acknowledge(2, {"accepted": 10, "rejected": 0, "offset": 30, "duplicate": True})
    box.acknowledge(3, {"accepted": 9, "rejected": 1, "offset": 40})
    assert box.done
    assert (box.acknowledged, box.accepted, box.rejected) == (40, 29, 1)


@pytest.mark.parametrize("transport", ["flight", "http"])
def test_other_records_under_a_used_name_are_refused(server: Any, transport: str) -> None:
    """`--producer day` with another file: nothing of it is stored, and the message says the way out."""
    push(batches(30), _url(server, transport), producer="day")
    with pytest.raises(RecordError, match=r"sequence 0 of producer 'day' was used[\s\S]*another --producer"):
        push(batches(60, start=100), _url(server, transport), producer="day")
    assert server.values() == list(range(30))
    assert push(batches(60, start=100), _url(server, transport), producer="day-2").accepted == 60


@pytest.mark.parametrize("transport", ["flight", "http"])
def test_what_the_server_has_forgotten_is_skipped_and_the_next_compared(
    server: Any, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long push goes on after a crash of its own; other data, or too little to compare, is refused."""
    monkeypatch.setattr("streamkd.streams.log.receipts.FORGET", 1)
    server.log._receipts._keep = 5
    url = _url(server, transport)
    push(batches(200), url, producer="day")
    summary = push(batches(300), url, producer="day")
    assert server.values() == list(range(300))
    assert summary.accepted + summary.duplicates == 300
    for other in (batches(400, start=1_000), batches(100)):
        with pytest.raises(RecordError, match="producer 'day'"):
            push(other, url, producer="day")
    assert server.values() == list(range(300))


def test_the_client_of_the_page_may_be_called_twice(server: Any) -> None:
    """``put`` of two tables under one name stores both; a table that is sent again counts once."""
    page = (Path(__file__).parents[2] / "docs/how-to/push-records.md").read_text()
    names: dict[str, Any] = {}
    exec(next(block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "def put" in block), names)
    first, second = (pa.Table.from_batches(batches(1_200, 600, start=start)) for start in (0, 5_000))
    for table in (first, second, first):
        assert names["put"](server.flight, table, "me") == 1_200
    assert server.values() == [*range(1_200), *range(5_000, 6_200)]


def test_nothing_to_push_needs_no_server() -> None:
    """No batches, and empty ones, are pushed at once."""
    empty = next(batches(10)).slice(0, 0)
    assert push([empty], "grpc://127.0.0.1:1").sent == 0


def _start(path: Path, flight_port: int, http_port: int) -> tuple["subprocess.Popen[str]", str, str]:
    command = [sys.executable, str(SCRIPT), str(path), str(flight_port), str(http_port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    flight, http = process.stdout.readline().split()
    return process, flight, http


def _kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.parametrize("transport", ["flight", "http"])
def test_a_server_that_is_killed_gets_every_record_once(tmp_path: Path, transport: str) -> None:
    """A server killed twice in the middle and started again holds every record exactly once, in order."""
    path = tmp_path / "log.sqlite"
    process, flight, http = _start(path, 0, 0)
    ports = int(flight.rpartition(":")[2]), int(http.rpartition(":")[2])
    acknowledged = threading.Semaphore(0)
    results: list[Any] = []
    url = flight if transport == "flight" else http
    work = lambda: results.append(  # noqa: E731
        push(batches(4000, 5), url, rate=2500, on_ack=lambda ack: acknowledged.release(max(1, ack.records)))
    )
    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(2):
            for _ in range(1000):
                assert acknowledged.acquire(timeout=30)
            _kill(process)
            process, *_ = _start(path, *ports)
        thread.join(60)
        assert not thread.is_alive()
    finally:
        _kill(process)
    log = log_server.Server(path)
    assert log.values() == list(range(4000))
    log.close()
    assert results[0].accepted == 4000


class Moody(fl.FlightServerBase):
    """Ends each of the first streams after some batches, with an error and without its last acks."""

    def __init__(self, moods: list[Exception]) -> None:
        self.moods, self.taken, self.streams = moods, {}, 0
        super().__init__("grpc://127.0.0.1:0")

    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        self.streams += 1
        for count, chunk in enumerate(iter(lambda: _chunk(reader), None)):
            sequence = json.loads(chunk.app_metadata.to_pybytes())["sequence"]
            self.taken.setdefault(sequence, chunk.data.column("x").to_pylist())
            if count == 20 and self.moods:
                raise self.moods.pop(0)
            ack = {"sequence": sequence, "accepted": chunk.data.num_rows, "rejected": 0, "offset": 0}
            writer.write(pa.py_buffer(json.dumps(ack).encode()))


def _chunk(reader: Any) -> Any:
    try:
        return reader.read_chunk()
    except StopIteration:
        return None


@pytest.mark.parametrize(
    "mood",
    [
        fl.FlightUnavailableError("busy", extra_info=b'{"code": "unavailable", "error": "busy"}'),
        fl.FlightInternalError("odd", extra_info=b'{"code": "internal", "error": "odd"}'),
        fl.FlightUnavailableError("gone"),
        fl.FlightCancelledError("stop"),
    ],
)
def test_a_stream_that_breaks_is_taken_up_again(mood: Exception) -> None:
    """After an error that may pass, what was not acknowledged is sent again under its numbers."""
    with Moody([mood, mood]) as moody:
        summary = push(batches(1000), f"grpc://127.0.0.1:{moody.port}")
        assert [x for sequence in sorted(moody.taken) for x in moody.taken[sequence]] == list(range(1000))
        assert moody.streams == 3
    assert (summary.sent, summary.accepted) == (1000, 1000)
    assert summary.resent > 0


@pytest.mark.parametrize(
    "mood",
    [
        pa.ArrowInvalid("label: bad. Detail: Python exception: Traceback"),
        fl.FlightServerError("label: bad"),
        pa.ArrowInvalid("label: bad"),
    ],
)
def test_a_refusal_is_not_tried_again(mood: Exception) -> None:
    """An error that will not pass is raised at once with the server's words."""
    with Moody([mood]) as moody:
        with pytest.raises(RecordError, match="label: bad"):
            push(batches(1000), f"grpc://127.0.0.1:{moody.port}")
        assert moody.streams == 1


@pytest.mark.parametrize("transport", ["flight", "http"])
def test_another_schema_is_refused_naming_both(server: Any, transport: str) -> None:
    """A batch of another schema is refused with what is needed, what came, and the way out; nothing is stored."""
    rows = pa.RecordBatch.from_pydict({"x": ["a"], "label": [1]})
    with pytest.raises(RecordError, match=r"'x': needed numbers \(int64\), got string") as caught:
        push([rows], _url(server, transport))
    assert re.search(r"fix: send numbers \(int64\), or change stream.records to what is sent$", str(caught.value))
    assert server.values() == []


@pytest.mark.parametrize("transport", ["flight", "http"])
def test_a_column_that_is_missing_is_told_with_a_way_out(server: Any, transport: str) -> None:
    """It may have another name here."""
    with pytest.raises(RecordError, match=r"'x': needed numbers .* no such column") as caught:
        push([pa.RecordBatch.from_pydict({"y": [1], "label": [1]})], _url(server, transport))
    assert "--columns theirs=ours" in caught.value.fix


def test_batches_of_two_schemas_are_refused(server: Any) -> None:
    """Batches that do not have one schema are refused before they are sent."""
    rows = [next(batches(10)), pa.RecordBatch.from_pydict({"x": [1.5], "label": [1]})]
    with pytest.raises(SchemaMismatch, match="batches of one schema"):
        push(rows, server.flight)


@pytest.mark.parametrize("transport", ["flight", "http"])
def test_a_token_opens_the_door(tmp_path: Path, transport: str) -> None:
    """With a token of scope ingest records go in; without one, or with a wrong one, the push says --token."""
    path = tmp_path / "tokens.json"
    token = tokens.create(path, "producer", ["ingest"])
    server = log_server.Server(tmp_path / "log.sqlite", tokens=path)
    try:
        assert push(batches(20), _url(server, transport), token=token).accepted == 20
        for wrong in (None, "skd_wrong"):
            with pytest.raises(RecordError, match=r"refuses the token[\s\S]*--token"):
                push(batches(20), _url(server, transport), token=wrong)
    finally:
        server.close()


def test_a_full_server_holds_the_producer_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """429 with Retry-After, and an unread Flight stream, make the push wait until there is room; nothing is lost."""
    monkeypatch.setattr(http_client, "LONGEST_WAIT_SECONDS", 0.1)
    server = log_server.Server(tmp_path / "log.sqlite", limits=Limits(queue_records=100))
    try:
        for transport in ("http", "flight"):
            before = server.log.end()
            thread = threading.Thread(target=push, args=(batches(300), _url(server, transport)))
            thread.start()
            deadline = time.monotonic() + 20
            while thread.is_alive() and time.monotonic() < deadline:
                time.sleep(0.05)
                server.intake.committed(server.log.end())
            thread.join(10)
            assert server.log.end() - before == 300
    finally:
        server.close()


def test_the_rate_is_kept(server: Any) -> None:
    """300 records at 1,000 a second take 0.3 seconds, in small pieces."""
    summary = push(batches(300, 300), server.flight, rate=1000)
    assert 0.19 < summary.seconds < 2
    assert server.values() == list(range(300))


def test_a_server_that_stays_away_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    """Without progress for the time of its patience a push ends, with the way to go on; that it waits is said once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        for scheme in ("grpc", "http"):
            with pytest.raises(SourceError, match=r"no progress for 0\.3 s, 0 records.* refused\n.*--producer"):
                push(batches(10), f"{scheme}://127.0.0.1:{port}", patience_seconds=0.3)
            assert caplog.text.count(f"{scheme}://127.0.0.1:{port}: ") == 1
            assert "refused; tried again for 0.3 s" in caplog.text


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mqtt://h:1", "needed grpc://, grpc"),
        ("127.0.0.1:8815", "needed"),
        ("grpc:///v1", "needed"),
        ("http://h/v2/models", "needed no path or /v1/streams/NAME"),
        ("grpc://h:1/t/shop", "needed no path or /v1/streams/NAME"),
    ],
)
def test_urls_that_lead_nowhere_are_refused(url: str, said: str) -> None:
    """A URL of another scheme or path is refused with what is needed."""
    with pytest.raises(SourceError, match=said):
        push(batches(10), url)


def test_the_path_names_the_stream(server: Any) -> None:
    """A URL may name the stream; one that the server does not have is refused by name."""
    assert push(batches(10), f"{server.http}/v1/streams/main", stream="other").accepted == 10
    for url in (f"{server.http}/v1/streams/other", f"{server.flight}/v1/streams/other"):
        with pytest.raises(RecordError, match="other"):
            push(batches(10), url)


def test_large_batches_are_cut_and_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces stay below the size of a message, and no more than a window of them waits for acks."""
    monkeypatch.setattr(outbox, "PIECE_BYTES", 1600)
    monkeypatch.setattr(outbox, "WINDOW_PIECES", 4)
    box = outbox.Outbox(batches(1000, 1000), None, lambda ack: None)
    pieces = [box.next(lambda: True) for _ in range(4)]
    assert all(piece is not None and piece.rows.nbytes <= 1600 for piece in pieces)
    checks = iter([True, False])
    threading.Timer(0.05, box.wake).start()
    assert box.next(lambda: next(checks)) is None


def test_a_failing_callback_ends_the_push(server: Any) -> None:
    """What the caller's own callback raises is raised to the caller, not tried again."""

    def fail(ack: Ack) -> None:
        raise ZeroDivisionError("mine")

    for url in (server.flight, server.http):
        with pytest.raises(ZeroDivisionError, match="mine"):
            push(batches(10), url, on_ack=fail)
