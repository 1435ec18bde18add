"""Two producers an hour apart by event time, and kill -9: one stream in the order of time, each record once."""

import contextlib
import random
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pytest

from streamkd.streams.log.log import Log

from .conftest import PUSHED, Serve, Server, merged, records, until
from .test_kills import by_a_learner, differences, kill, learned, leaves
from .test_push import arrow_stream

LATENESS, IDLE = 20, 6
IN_ORDER = merged(
    PUSHED,
    {
        "stream": {
            "source": {"name": "flight"},
            "also": [{"name": "http"}],
            "records": {**PUSHED["stream"]["records"], "event_time": "at"},
            "order": {"lateness_seconds": LATENESS, "idle_seconds": IDLE, "late": "dead-letter"},
            "batch": {"flush_seconds": 0.02},
        },
        "device": "cpu",
    },
)
BATCH = 10


def timed(rows: int, first: int, begun: int, seed: int) -> pa.RecordBatch:
    """Records of one time each from ``begun`` on, a second apart and out of order by less than the lateness."""
    times = begun + np.arange(rows) + np.random.default_rng(seed).permutation(rows) / (2 * rows)
    order = np.argsort(np.arange(rows) + np.random.default_rng(seed).uniform(0, LATENESS - 1, rows), kind="stable")
    moments = pa.array(((1_700_000_000 + times) * 1e6).astype(np.int64)[order], pa.timestamp("us", "UTC"))
    return records(rows, first).append_column("at", moments)


class Producer(threading.Thread):
    """Posts numbered batches, each until there is an ack."""

    def __init__(self, server: Server, name: str, rows: pa.RecordBatch) -> None:
        super().__init__(name=name, daemon=True)
        self.url, self.rows, self.acknowledged, self.fault = server.url, rows, 0, ""
        self.goes_on = threading.Event()

    def run(self) -> None:
        for first in range(self.acknowledged, self.rows.num_rows, BATCH):
            while not self.post(first) and not self.fault:
                time.sleep(0.05)
            time.sleep(0.02)

    def post(self, first: int) -> bool:
        kind = "application/vnd.apache.arrow.stream"
        headers = {"Content-Type": kind, "Streamkd-Producer": self.name, "Streamkd-Sequence": str(first)}
        body = arrow_stream(self.rows.slice(first, BATCH))
        with contextlib.suppress(httpx.TransportError):
            reply = httpx.post(f"{self.url}/v1/streams/main", content=body, headers=headers, timeout=5)
            if reply.status_code == 200 and reply.json()["accepted"] == BATCH:
                self.acknowledged = first + BATCH
                return True
            self.fault = "" if reply.status_code in (429, 502, 503, 504) else reply.text
        return False


def check(serve: Serve, folder: Path, rows: int, blows: Sequence[str], seed: int) -> None:
    """Both send while the server is killed; the log is the merged stream, and the learner has the bits of it."""
    moments = random.Random(seed)
    server = serve(IN_ORDER)
    producers = [
        Producer(server, "early", timed(rows, 0, 3_600, seed)),
        Producer(server, "late", timed(rows, rows, 3_600 - rows // 2, seed + 1)),
    ]
    for producer in producers:  # so that both are known, and waited for
        until(lambda one=producer: one.post(0), 30, "the first ack")
    for producer in producers:
        producer.start()
    for blow in blows:
        time.sleep(moments.uniform(0.1, 1.0))
        kill(server, blow)
    for producer in producers:
        producer.join(200)
        assert (producer.fault, producer.acknowledged) == ("", rows)
    server.trained(2 * rows, 120)
    until(lambda: server.status()["order"]["held"] == 0, 10, "a status of after the last release")
    order = server.status()["order"]
    assert (order["full"], order["untimed"], sum(order["late"].values())) == (0, 0, 0)
    assert server.metric("order_exceptions_total") == 0
    assert server.stop() == 0

    with contextlib.closing(Log(server.state / "log.sqlite", read_only=True)) as log:
        found = log.read(0, 3 * rows).rows
    assert found.num_rows == 2 * rows
    together = pa.Table.from_batches([producer.rows for producer in producers])
    assert found.column("at").to_pylist() == sorted(together["at"].to_pylist())
    assert sorted(map(tuple, found.column("x").to_pylist())) == sorted(map(tuple, together["x"].to_pylist()))
    assert server.inspect()["order"]["held"] == 0
    (folder / "alone").mkdir()
    for file in server.state.glob("log.sqlite*"):
        shutil.copy(file, folder / "alone")
    assert differences(learned(server.state), leaves(by_a_learner(folder / "alone", 2 * rows, IN_ORDER))) == []


@pytest.mark.soak
@pytest.mark.timeout(200)
def test_kills_leave_one_order(serve: Serve, tmp_path: Path) -> None:
    """Everything is killed once."""
    check(serve, tmp_path, 200, ["group"], 0)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_many_kills_leave_one_order(serve: Serve, tmp_path: Path, seed: int) -> None:
    """Any process, again and again, over more records."""
    whats = random.Random(seed).choices(["ingress", "learner", "group", "supervisor"], k=12)
    check(serve, tmp_path, 3_000, whats, seed)
