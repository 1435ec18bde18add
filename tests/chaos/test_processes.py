"""Seeded blows at every process while records are pushed over both doors: acknowledged = logged = trained.

producers (HTTP, Flight): send, and send again until there is an ack ─┐
kill -9 | SIGSTOP | SIGTERM of learner, ingress, supervisor, group ───┴─► at the end every figure is the same
"""

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamkd.streams.log import Log

from ..endtoend.conftest import PUSHED, STREAMKD, Serve, Server, merged, records, serve, until

__all__ = ["serve"]
# the shortest limit that there is, so that what hangs is not waited for long
CONFIG = merged(PUSHED, {"serve": {"hang_seconds": 5}, "device": "cpu"})
ROWS = 10
BLOWS = [
    "learner KILL",
    "ingress KILL",
    "learner STOP",
    "ingress STOP",
    "supervisor KILL",
    "group KILL",
    "supervisor TERM",
    "group TERM",
    "hung TERM",
]


class Producer(threading.Thread):
    """Posts batches of ``ROWS`` rows, each until it is acknowledged, and counts what was accepted."""

    def __init__(self, server: Server, seconds_between: float) -> None:
        super().__init__(daemon=True)
        self.url = server.url + "/v1/streams/main"
        self.accepted = 0
        self._pause = seconds_between
        self._done = threading.Event()

    def run(self) -> None:
        sequence = 0
        while not self._done.is_set():
            sink = pa.BufferOutputStream()
            batch = records(ROWS, sequence * ROWS)
            with pa.ipc.new_stream(sink, batch.schema) as writer:
                writer.write_batch(batch)
            self.accepted += self._until_acknowledged(sink.getvalue().to_pybytes(), sequence)
            sequence += 1
            time.sleep(self._pause)

    def _until_acknowledged(self, body: bytes, sequence: int) -> int:
        kind = "application/vnd.apache.arrow.stream"
        headers = {"Content-Type": kind, "Streamkd-Producer": "posts", "Streamkd-Sequence": str(sequence)}
        while True:
            try:
                reply = httpx.post(self.url, content=body, headers=headers, timeout=5)
            except httpx.TransportError:
                reply = None
            if reply is not None and reply.status_code == 200:
                return int(reply.json()["accepted"])
            assert reply is None or reply.status_code in (429, 503), reply.text
            time.sleep(0.1)

    def end(self) -> int:
        """What was accepted, once the batch that is under way is."""
        self._done.set()
        self.join(60)
        assert not self.is_alive()
        return self.accepted


def strike(server: Server, blow: str) -> None:
    """One blow; what nobody is left to start again is started again, on the same ports."""
    target, _, what = blow.partition(" ")
    name = signal.Signals[f"SIG{what}"]
    if target in ("learner", "ingress"):
        os.kill(server.pid(target), name)
        return
    if target == "hung":
        os.kill(server.pid("learner"), signal.SIGSTOP)
    if target == "group":
        os.killpg(server.process.pid, name)
    else:
        server.process.send_signal(name)
    assert server.wait(45) == (0 if name == signal.SIGTERM else -name)
    server.again()


def campaign(serve: Serve, folder: Path, blows: Sequence[str], rows: int, rate: int, seed: int) -> None:
    """Push over both doors under these blows; then every figure must be the same."""
    moments = random.Random(seed)
    pq.write_table(pa.Table.from_batches([records(rows)]), folder / "rows.parquet")
    server = serve(CONFIG)
    push = [*STREAMKD, "push", folder / "rows.parquet", "--to", server.flight, "--batch", "7", "--producer", "puts"]
    pushing = subprocess.Popen([*map(str, push), "--rate", str(rate)], stdout=subprocess.PIPE, text=True)
    producer = Producer(server, 0.05)
    producer.start()
    try:
        for blow in blows:
            server.trained(server.status().get("records_trained", 0) + 1)
            time.sleep(moments.uniform(0.0, 0.5))
            strike(server, blow)
            until(server.ready, 60, f"a ready server after {blow}")
        said, _ = pushing.communicate(timeout=300)
    finally:
        pushing.kill()
        pushing.wait()
        posted = producer.end()
    assert f"{rows} records sent, {rows} accepted, 0 rejected" in said
    acknowledged = rows + posted
    server.trained(acknowledged, 120)
    assert server.stop() == 0
    logged = Log(server.state / "log.sqlite", read_only=True).end()
    seen = server.inspect()
    assert (logged, seen["records_trained"], seen["offsets"]) == (acknowledged, acknowledged, {"main/0": acknowledged})


def test_a_hang_and_a_kill_of_each_process_lose_nothing(serve: Serve, tmp_path: Path) -> None:
    """The ingress is stopped, the learner killed, the server told to end while its learner hangs: nothing is lost."""
    campaign(serve, tmp_path, ["ingress STOP", "learner KILL", "hung TERM"], 400, 40, 0)


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_long_campaigns_lose_nothing(serve: Serve, tmp_path: Path, seed: int) -> None:
    """Every blow twice, in an order and at moments of the seed."""
    blows = random.Random(seed).sample(BLOWS * 2, 2 * len(BLOWS))
    campaign(serve, tmp_path, blows, 40_000, 200, seed)
