"""The ingress process: what strangers send ends there, and what was acknowledged stays."""

import contextlib
import json
import os
import random
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pytest

from streamkd.serve.processes.channel import pair
from streamkd.state.directory import StateDirectory
from streamkd.streams.log.database import PAGE_BYTES
from streamkd.streams.log.log import Log

CONFIG: dict[str, Any] = {
    "stream": {
        "source": {"name": "flight"},
        "records": {"inputs": [{"name": "x", "shape": [6], "dtype": "uint8"}]},
    },
    "serve": {"flight_port": 0},
}
MAIN = fl.FlightDescriptor.for_path("main")
ENVIRONMENT = {"MALLOC_ARENA_MAX": "2", "ARROW_DEFAULT_MEMORY_POOL": "system"}  # as the supervisor sets it


class Process:
    """One ingress process and our end of its channel."""

    def __init__(self, state: Path, config: dict[str, Any], http_socket: Path, again: bool = False) -> None:
        self.channel, theirs = pair()
        command = [sys.executable, "-P", "-m", "streamkd.serve.processes.ingress", "--fd", str(theirs.fileno())]
        with theirs:
            self.popen = subprocess.Popen(command, pass_fds=[theirs.fileno()], env={**os.environ, **ENVIRONMENT})
        self.http_socket = http_socket
        self.heard: list[dict[str, Any]] = []
        start = {"kind": "begin", "config": config, "entry_points": [config["stream"]["source"]["name"]]}
        self.channel.send({**start, "state": str(state), "http_socket": str(http_socket), "again": again})
        self.first = self.hear("listening", "waiting", "fatal")

    def hear(self, *kinds: str, seconds: float = 20.0) -> dict[str, Any]:
        """The next message, of these kinds where some are given."""
        while (message := self.channel.receive(seconds)) is not None:
            self.heard.append(message)
            if not kinds or message["kind"] in kinds:
                return message
        raise AssertionError("nothing was said")

    @property
    def url(self) -> str:
        return str(self.first["urls"]["flight"])

    def post(self, body: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.http_socket))) as client:
            kind = {"content-type": "application/x-ndjson"}
            return client.post("http://ingress/v1/streams/main", content=body, headers={**kind, **(headers or {})})

    def end(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait(10)
        self.channel.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts an ingress over the test's state directory, as the learner leaves it at its first start."""
    StateDirectory(tmp_path).create()
    processes = []

    def make(again: bool = False, **changes: Any) -> Process:
        config = {**CONFIG, **{key: {**CONFIG.get(key, {}), **value} for key, value in changes.items()}}
        processes.append(Process(tmp_path, config, tmp_path / "h.sock", again))
        return processes[-1]

    yield make
    for process in processes:
        process.end()


def rows(first: int, count: int = 10) -> pa.RecordBatch:
    """Rows whose labels say which they are."""
    x = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(count * 6, np.uint8)), 6)
    return pa.record_batch({"x": x, "label": pa.array(np.arange(first, first + count))})


def push(url: str, batches: range, acked: list[int]) -> None:
    """Put batches ``n`` of rows n*10..n*10+9 under sequence n; notes each sequence that was acknowledged."""
    with fl.connect(url) as client:
        writer, reader = client.do_put(MAIN, rows(0).schema)

        def listen() -> None:
            try:
                while (ack := reader.read()) is not None:
                    acked.append(json.loads(ack.to_pybytes())["sequence"])
            except (fl.FlightError, pa.ArrowException):
                pass

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            for number in batches:
                note = json.dumps({"producer": "p", "sequence": number}).encode()
                writer.write_with_metadata(rows(number * 10), note)
            writer.done_writing()
        finally:
            thread.join(10)
            writer.close()


def test_flight_and_http_fill_one_log_and_deduplicate_each_other(start: Callable[..., Process], tmp_path: Path) -> None:
    """A batch put over Flight and sent again over HTTP counts once; the numbers say so; the drain is clean."""
    process = start()
    push(process.url, range(3), [])
    again = {"streamkd-producer": "p", "streamkd-sequence": "2"}
    line = b'{"x": [1, 2, 3, 4, 5, 6], "label": 99}'
    lines = b"\n".join(json.dumps({"x": [0] * 6, "label": label}).encode() for label in range(20, 30))
    told = {"sequence": 2, "accepted": 10, "rejected": 0, "offset": 30, "duplicate": True}
    assert process.post(lines, again).json() == told
    assert process.post(line, again).status_code == 409
    assert process.post(line, {**again, "streamkd-sequence": "3"}).json()["offset"] == 31
    process.channel.send({"kind": "drain"})
    counted: dict[str, float] = {}
    while (message := process.hear())["kind"] != "stopped":
        for family, _, amount in message.get("deltas", []):
            counted[family] = counted.get(family, 0) + amount
    assert process.popen.wait(10) == 0
    assert counted["source_records_total"] == 31
    assert counted["records_duplicate_total"] == 10
    assert Log(tmp_path / "log.sqlite").end() == 31


def test_how_labels_stand_is_told_before_anything_is_taken(start: Callable[..., Process]) -> None:
    """So that a status that is asked for at any later time has it."""
    told = [
        message["status"]["labels"] for message in start(stream={"labels": {}}).heard if message["kind"] == "status"
    ]
    assert [labels["joined"] for labels in told] == [0]


def test_the_ingress_never_loads_torch() -> None:
    """Nor the packages that would, with every push source's entry point loaded."""
    script = (
        "import sys, streamkd.serve.processes.ingress as i; from streamkd.plugins import Registry;"
        "r = Registry.load(only=['flight', 'http']); assert not any(s.error for s in r.report()), r.report();"
        "print(sorted({'torch', 'avalanche', 'sklearn', 'ray', 'pandas', 'prometheus_client'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_address_space_is_bounded(start: Callable[..., Process]) -> None:
    """By limits.ingress_bytes, of which an idle process takes a fraction."""
    process = start(stream={"limits": {"ingress_bytes": 1 << 30}})
    limits = Path(f"/proc/{process.popen.pid}/limits")
    if not limits.exists():
        pytest.skip("needs /proc")
    assert f"Max address space         {1 << 30}" in limits.read_text()
    status = Path(f"/proc/{process.popen.pid}/status").read_text()
    size_kb = int(next(line for line in status.splitlines() if line.startswith("VmSize")).split()[1])
    assert size_kb < 640_000


def test_kills_in_mid_push_lose_and_double_nothing(start: Callable[..., Process], tmp_path: Path) -> None:
    """Killed at three random moments, the producer resends what was not acknowledged: each record once, in order."""
    moments = random.Random(0)
    acked: list[int] = []
    for _ in range(3):
        process = start()
        seen: list[int] = []
        killer = threading.Timer(moments.uniform(0.02, 0.15), process.popen.kill)
        begin = max(acked, default=-1) + 1
        killer.start()
        with pytest.raises((fl.FlightError, pa.ArrowException)):
            push(process.url, range(begin, begin + 100_000), seen)
        killer.join()
        process.end()
        acked += seen
        log = Log(tmp_path / "log.sqlite")
        assert log.end() >= 10 * (max(acked, default=-1) + 1)
        log.close()
    begin = max(acked, default=-1) + 1
    push(start().url, range(begin, begin + 50), acked)
    log = Log(tmp_path / "log.sqlite")
    labels = log.read(0, log.end()).rows.column("label").to_pylist()
    assert labels == list(range(log.end()))
    assert log.end() >= 10 * (begin + 50)


def test_a_bomb_past_the_address_space_loses_nothing(start: Callable[..., Process], tmp_path: Path) -> None:
    """A clean refusal, or the end of this process: what was acknowledged is there, and another goes on."""
    process = start(stream={"limits": {"ingress_bytes": 700 << 20}})
    push(process.url, range(5), [])
    bomb = pa.record_batch({"x": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(420_000_000, np.uint8)), 6)})
    bomb = bomb.append_column("label", pa.array(np.zeros(bomb.num_rows, np.int64)))
    options = fl.FlightCallOptions(write_options=pa.ipc.IpcWriteOptions(compression="zstd"))
    with fl.connect(process.url) as client, pytest.raises((fl.FlightError, pa.ArrowException)) as caught:
        _put_one(client, bomb, options)
    assert 'File "/' not in str(caught.value)
    if process.popen.poll() is not None:
        process = start()
    push(process.url, range(5, 10), [])
    assert Log(tmp_path / "log.sqlite").end() == 100


def test_a_checkpoint_makes_room(start: Callable[..., Process]) -> None:
    """The queue is full for HTTP until the learner has committed."""
    process = start(stream={"limits": {"queue_records": 5}}, checkpoint={"keep": 1})
    line = b'{"x": [1, 2, 3, 4, 5, 6], "label": 1}\n'
    assert process.post(line * 5).status_code == 200
    full = process.post(line)
    assert (full.status_code, full.headers["retry-after"]) == (429, "1")
    process.channel.send({"kind": "committed", "offsets": {"main/0": 5}})
    deadline = time.monotonic() + 5
    while (answer := process.post(line)).status_code == 429:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert answer.json()["offset"] == 6


def test_a_body_past_the_limit_is_cut_off(start: Callable[..., Process]) -> None:
    """Also when its length was not announced."""
    process = start(stream={"limits": {"batch_bytes": 1_000}})
    announced = process.post(b"x" * 2_000)
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(process.http_socket))) as client:
        chunked = client.post(
            "http://ingress/v1/streams/main",
            content=(b"x" * 500 for _ in range(5)),
            headers={"content-type": "application/x-ndjson"},
        )
    assert (announced.status_code, chunked.status_code) == (413, 413)


def test_the_ingress_ends_with_its_supervisor(start: Callable[..., Process]) -> None:
    """The end of the channel is the end of the process, open streams or not."""
    process = start()
    with fl.connect(process.url) as client:
        writer, reader = client.do_put(MAIN, rows(0).schema)
        writer.write_batch(rows(0))
        reader.read()
        process.channel.close()
        assert process.popen.wait(5) == 1
        with pytest.raises((fl.FlightError, pa.ArrowException)):
            writer.close()


def test_a_drain_does_not_wait_for_idle_producers_for_ever(start: Callable[..., Process]) -> None:
    """A stream that is open and silent is cut off at the deadline, everything acknowledged being on disk."""
    process = start()
    with fl.connect(process.url) as client:
        writer, reader = client.do_put(MAIN, rows(0).schema)
        writer.write_batch(rows(0))
        reader.read()
        process.channel.send({"kind": "drain"})
        process.hear("stopped")
        assert process.popen.wait(5) == 0
        with pytest.raises((fl.FlightError, pa.ArrowException)):
            writer.close()


@pytest.mark.parametrize("case", ["port", "schema", "log"])
def test_what_cannot_start_says_why(case: str, start: Callable[..., Process], tmp_path: Path) -> None:
    """A fatal message with the fix, and the exit code of its kind."""
    if case == "port":
        other = start()
        failed = start(serve={"flight_port": int(other.url.rpartition(":")[2])})
        said, exit_code = "Flight cannot listen", 2
    elif case == "schema":
        failed = start(stream={"records": None})
        said, exit_code = "stream.records", 2
    else:
        (tmp_path / "log.sqlite").write_bytes(b"no database" * 1_000)
        failed = start()
        said, exit_code = "cannot be opened as a log", 3
    assert failed.first["kind"] == "fatal"
    assert said in failed.first["message"]
    assert failed.first["exit_code"] == exit_code
    assert failed.popen.wait(10) == exit_code


@pytest.mark.parametrize("table", ["batches", "receipts"])
def test_a_broken_page_is_told_once_and_ends_the_process(
    table: str, start: Callable[..., Process], tmp_path: Path
) -> None:
    """A start over it is refused in words that name the part, and no second one would be better."""
    process = start()
    push(process.url, range(20), [])
    process.end()
    log = tmp_path / "log.sqlite"
    with contextlib.closing(sqlite3.connect(log)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    data = bytearray(log.read_bytes())
    data[(page - 1) * PAGE_BYTES : page * PAGE_BYTES] = b"\xff" * PAGE_BYTES
    log.write_bytes(data)
    process = start()
    assert process.first["kind"] == "fatal"
    assert "log.sqlite   DOES NOT FIT" in process.first["message"]
    assert "--state" in process.first["message"]
    assert process.popen.wait(10) == process.first["exit_code"] == 3
    with pytest.raises(EOFError):
        process.hear("fatal")


def test_the_source_http_opens_no_flight_port(start: Callable[..., Process]) -> None:
    """Only the socket that the supervisor passes requests to."""
    process = start(stream={"source": {"name": "http"}})
    assert process.first == {"kind": "listening", "urls": {}}
    assert process.post(b'{"x": [1, 2, 3, 4, 5, 6], "label": 1}').json()["accepted"] == 1


def _put_one(client: fl.FlightClient, batch: pa.RecordBatch, options: fl.FlightCallOptions) -> None:
    writer, reader = client.do_put(MAIN, batch.schema, options)
    with writer:
        writer.write_batch(batch)
        writer.done_writing()
        reader.read()


def test_a_taken_port_is_fatal_at_the_first_start_alone(start: Callable[..., Process]) -> None:
    """Later it is said, HTTP takes records meanwhile, and Flight opens once the port is free."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = {"flight_port": taken.getsockname()[1]}
        first = start(serve=port)
        assert first.first["kind"] == "fatal"
        assert first.popen.wait(10) == 2
        process = start(again=True, serve=port)
        assert process.first["kind"] == "waiting"
        assert "Flight cannot listen" in process.first["reason"]
        assert process.post(b'{"x": [1, 2, 3, 4, 5, 6], "label": 99}').status_code == 200
        while process.hear("beat")["ends"] != {"main/0": 1}:
            pass
    flight = process.hear("listening")["urls"]["flight"]
    push(flight, range(1), [])
    assert process.post(b'{"x": [1, 2, 3, 4, 5, 6], "label": 99}').json()["offset"] == 12
