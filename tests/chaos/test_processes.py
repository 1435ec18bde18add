"""Seeded blows at every process while three producers send over both doors: acknowledged = logged = trained.

push (Flight), push (HTTP), one that sends each try over another door: again until there is an ack ─┐
KILL | STOP | TERM of supervisor, learner, ingress, reader of large requests, the whole group ──────┴─►
at the end each row that was acknowledged is once in the log, in its producer's order, all are trained, and the
learner's whole state has the bits of a learner that nobody disturbed
"""

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.flight as fl
import pyarrow.parquet as pq
import pytest

from streamkd.inspection import weights_sha256
from streamkd.streams.log.log import Log

from ..endtoend.conftest import STREAMKD, Serve, Server, merged, records, serve, until
from ..endtoend.test_kills import DISTURBED, by_a_learner, differences, learned, leaves
from ..endtoend.test_push import arrow_stream

__all__ = ["serve"]
HANG_SECONDS = 5  # the shortest limit that there is, so that what hangs is not waited for long
CONFIG = merged(DISTURBED, {"serve": {"hang_seconds": HANG_SECONDS}})
ROWS = 10
POSTED, SWITCHED = 1_000_000, 2_000_000  # the first rows of the other producers: no row is like another
LARGE_ROWS = 1_000  # of a request whose JSON is read in a process of its own
BLOWS = [
    *("learner KILL", "learner STOP"),
    *("ingress KILL", "ingress STOP"),
    *("reader KILL", "reader STOP"),
    *("supervisor KILL", "supervisor STOP", "supervisor TERM"),
    *("group KILL", "group STOP", "group TERM"),
    "hung TERM",
]


class Switcher(threading.Thread):
    """Sends numbered batches of ``ROWS`` rows, each over one door and then the other until there is an ack."""

    def __init__(self, server: Server, seed: int) -> None:
        super().__init__(daemon=True)
        self.url, self.flight = server.url + "/v1/streams/main", server.flight
        self.sent = 0
        self.fault = ""
        self._doors = random.Random(seed)
        self._done = threading.Event()

    def run(self) -> None:
        sequence = 0
        while not self._done.is_set():
            rows = records(ROWS, SWITCHED + self.sent)
            if not self._until_acknowledged(rows, sequence):
                return
            self.sent, sequence = self.sent + ROWS, sequence + 1
            time.sleep(0.1)

    def _until_acknowledged(self, rows: pa.RecordBatch, sequence: int) -> bool:
        """Whether all of it was accepted, at last; ``fault`` says why not."""
        while True:
            accepted = (self._put if self._doors.random() < 0.5 else self._post)(rows, sequence)
            if accepted is not None:
                self.fault = "" if accepted == ROWS else f"batch {sequence}: {accepted} rows accepted"
            if accepted is not None or self.fault:
                return not self.fault
            time.sleep(0.1)

    def _post(self, rows: pa.RecordBatch, sequence: int) -> int | None:
        kind = "application/vnd.apache.arrow.stream"
        headers = {"Content-Type": kind, "Streamkd-Producer": "switches", "Streamkd-Sequence": str(sequence)}
        try:
            reply = httpx.post(self.url, content=arrow_stream(rows), headers=headers, timeout=5)
        except httpx.TransportError:
            return None
        if reply.status_code in (429, 502, 503, 504):
            return None
        if reply.status_code != 200:
            self.fault = reply.text
            return None
        return int(reply.json()["accepted"])

    def _put(self, rows: pa.RecordBatch, sequence: int) -> int | None:
        note = json.dumps({"producer": "switches", "sequence": sequence}).encode()
        try:
            with fl.connect(self.flight) as client:
                options = fl.FlightCallOptions(timeout=5)
                writer, acks = client.do_put(fl.FlightDescriptor.for_path("main"), rows.schema, options)
                with contextlib.closing(writer):
                    writer.write_with_metadata(rows, note)
                    writer.done_writing()
                    ack = acks.read()
        except (fl.FlightUnavailableError, fl.FlightTimedOutError, fl.FlightCancelledError, fl.FlightInternalError):
            return None
        except pa.ArrowException as fault:
            self.fault = str(fault)
            return None
        return None if ack is None else int(json.loads(ack.to_pybytes())["accepted"])

    def end(self) -> None:
        """Wait for the batch that is under way."""
        self._done.set()
        self.join(60)
        assert not self.is_alive()
        assert not self.fault


@contextlib.contextmanager
def pushing(server: Server, rows: int, rate: int, folder: Path) -> Iterator[list["subprocess.Popen[str]"]]:
    """Two `streamkd push`, over Flight and over HTTP, which are gone at the end."""
    running = []
    for name, url, first, batch in (("puts", server.flight, 0, 7), ("posts", server.url, POSTED, 5)):
        pq.write_table(pa.Table.from_batches([records(rows, first)]), folder / f"{name}.parquet")
        asked = ["push", folder / f"{name}.parquet", "--to", url, "--batch", batch, "--producer", name, "--rate", rate]
        command = [*STREAMKD, *map(str, asked)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.communicate()


def ask_much(server: Server) -> httpx.Response:
    """A prediction whose JSON is read in a process of its own."""
    data = records(LARGE_ROWS)["x"].flatten().to_pylist()
    inputs = [{"name": "x", "shape": [LARGE_ROWS, 8], "datatype": "FP32", "data": data}]
    return server.post("/v2/models/student/infer", json={"inputs": inputs})


def reader_of(server: Server) -> int:
    """The number of the process that reads large requests."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended just now
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == server.process.pid and b"serve.predictions.reader" in (place / "cmdline").read_bytes():
                found.append(int(place.name))
    assert len(found) == 1, found
    return found[0]


def strike(server: Server, blow: str) -> None:
    """One blow; what nobody is left to start again is started again, on the same ports."""
    target, _, what = blow.partition(" ")
    name = signal.Signals[f"SIG{what}"]
    if target in ("learner", "ingress"):
        os.kill(server.pid(target), name)
    elif target == "reader":
        strike_reader(server, name)
    elif what == "STOP":
        stop_a_while(server, target)
    else:
        end(server, target, name)


def strike_reader(server: Server, name: signal.Signals) -> None:
    """One that is killed is not missed; one that hangs costs the one request that it has, and no other."""
    assert ask_much(server).status_code == 200
    os.kill(reader_of(server), name)
    answer = ask_much(server)
    if name == signal.SIGSTOP:
        assert "could not be read within" in answer.json()["error"]
        answer = ask_much(server)
    assert answer.status_code == 200, answer.text


def stop_a_while(server: Server, target: str) -> None:
    """Longer than the limit for what hangs, and on."""
    send = os.killpg if target == "group" else os.kill
    send(server.process.pid, signal.SIGSTOP)
    time.sleep(HANG_SECONDS + 2)
    send(server.process.pid, signal.SIGCONT)


def end(server: Server, target: str, name: signal.Signals) -> None:
    """The server ends, and is started again."""
    if target == "hung":
        os.kill(server.pid("learner"), signal.SIGSTOP)
    if target == "group":
        os.killpg(server.process.pid, name)
    else:
        server.process.send_signal(name)
    assert server.wait(45) == (0 if name == signal.SIGTERM else -name)
    server.again()


def campaign(serve: Serve, folder: Path, blows: Sequence[str], rows: int, rate: int, seed: int) -> None:
    """Send over both doors under these blows; then every figure and every bit must be the same."""
    moments = random.Random(seed)
    server = serve(CONFIG)
    switcher = Switcher(server, seed)
    with pushing(server, rows, rate, folder) as pushes:
        switcher.start()
        try:
            for blow in blows:
                wait_for_all(server, rows)
                until(server.ready, 60, f"a ready server before {blow}")
                time.sleep(moments.uniform(0.0, 0.5))
                strike(server, blow)
                until(server.ready, 60, f"a ready server after {blow}")
            said = [push.communicate(timeout=600)[0] for push in pushes]
        finally:
            switcher.end()
    for words in said:
        assert f"{rows} records sent, {rows} accepted, 0 rejected" in words, words
    acknowledged = 2 * rows + switcher.sent
    server.trained(acknowledged, 120)
    assert server.stop() == 0
    assert "Traceback" not in server.err
    check_log(server.state, {0: rows, POSTED: rows, SWITCHED: switcher.sent})
    check_learned(server, folder / "undisturbed", acknowledged)


def wait_for_all(server: Server, rows: int) -> None:
    """Each producer gets some rows further, or is done, and so does the learner: none is struck before it is back."""
    before = taken(server.state)
    until(lambda: _further(before, taken(server.state), rows), 90, f"all three to get further than {before}")
    server.trained(server.status().get("records_trained", 0) + 1)


def _further(before: dict[str, int], now: dict[str, int], rows: int) -> bool:
    return len(now) == 3 and all(got > before.get(name, 0) or got == rows for name, got in now.items())


def taken(state: Path) -> dict[str, int]:
    """How many rows of each producer are in the log."""
    database = sqlite3.connect(f"{(state / 'log.sqlite').as_uri()}?mode=ro", uri=True)
    with contextlib.closing(database) as connection:
        return dict(connection.execute("SELECT producer, sum(count) FROM batches GROUP BY producer").fetchall())


def check_log(state: Path, sent: dict[int, int]) -> None:
    """Each producer's rows are there once, in its order, and no others; ``sent``: how many, by its first row."""
    with contextlib.closing(Log(state / "log.sqlite", read_only=True)) as log:
        end = log.end()
        logged = pa.Table.from_batches([log.read(0, end).rows])
    assert logged.num_rows == end == sum(sent.values())
    keys = keys_of(logged)
    for first, count in sent.items():
        mine = keys_of(pa.Table.from_batches([records(count, first)]))
        places = sorted(map({key: place for place, key in enumerate(keys)}.__getitem__, mine))
        assert [keys[place] for place in places] == mine


def keys_of(rows: pa.Table) -> list[tuple[object, ...]]:
    """Each row, as what tells it from all others."""
    return [(*row["x"], row["label"], row["task"]) for row in rows.select(["x", "label", "task"]).to_pylist()]


def check_learned(server: Server, undisturbed: Path, acknowledged: int, config: Mapping[str, Any] = DISTURBED) -> None:
    """Everything that was acknowledged is trained, and all that decides what is learned next has the same bits."""
    seen = server.inspect()
    assert (seen["records_trained"], seen["offsets"]) == (acknowledged, {"main/0": acknowledged})
    undisturbed.mkdir()
    for file in server.state.glob("log.sqlite*"):
        shutil.copy(file, undisturbed)
    tree = by_a_learner(undisturbed, acknowledged, config)
    assert differences(learned(server.state), leaves(tree)) == []
    assert weights_sha256(tree["learned"]["student"]) == seen["weights_sha256"]


@pytest.mark.timeout(300)  # half a minute where nothing else runs
def test_a_hang_and_a_kill_of_each_process_lose_nothing(serve: Serve, tmp_path: Path) -> None:
    """The ingress hangs, then reader, learner and the whole group are killed: nothing is lost, no bit is another."""
    campaign(serve, tmp_path, ["ingress STOP", "reader KILL", "learner KILL", "group KILL"], 300, 20, 0)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_long_campaigns_lose_nothing(serve: Serve, tmp_path: Path, seed: int) -> None:
    """Every blow, and some twice, in an order and at moments of the seed."""
    order = random.Random(seed)
    blows = order.sample([*BLOWS, *order.choices(BLOWS, k=7)], len(BLOWS) + 7)
    campaign(serve, tmp_path, blows, 12_000, 60, seed)
