"""An ingress that reads Kafka: killed, held back, and stopped."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from kafka_brokers import Cluster

from streamkd.state.directory import StateDirectory
from streamkd.streams.log.log import Log

from .test_ingress import CONFIG, Process


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    brokers = Cluster()
    brokers.create("main")
    yield brokers
    brokers.close()


@pytest.fixture
def start(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts an ingress that reads the topic ``main`` into the test's log."""
    StateDirectory(tmp_path).create()
    processes: list[Process] = []

    def make(limits: dict[str, int] | None = None, **options: Any) -> Process:
        source = {"name": "kafka", "servers": cluster.servers, **options}
        config = {**CONFIG, "stream": {**CONFIG["stream"], "source": source, "limits": limits or {}}}
        processes.append(Process(tmp_path, config, tmp_path / "h.sock", again=bool(processes)))
        return processes[-1]

    yield make
    for process in processes:
        process.end()


def lines(labels: range) -> list[bytes]:
    return [json.dumps({"x": [0] * 6, "label": label}).encode() for label in labels]


def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_a_killed_ingress_goes_on_where_the_log_is(
    start: Callable[..., Process], cluster: Cluster, tmp_path: Path
) -> None:
    """kill -9, twice, while a topic grows: each message once, in the order of its partition."""
    process, total = start(), 0
    log = Log(tmp_path / "log.sqlite", read_only=True)
    for turn in range(2):
        cluster.produce("main", lines(range(total, total + 300)))
        total += 300
        until(lambda before=total - 300: log.end() > before)
        time.sleep(0.1 * turn)
        os.kill(process.popen.pid, signal.SIGKILL)
        process.end()
        process = start()
    until(lambda: log.end() >= total)
    labels = log.read(0, total + 1).rows.column("label").to_pylist()
    assert sorted(labels) == list(range(total))
    for number in range(3):
        mine = [label for label in labels if label % 3 == number]
        assert mine == sorted(mine)
    log.close()


def test_what_waits_at_the_broker_takes_no_memory(start: Callable[..., Process], cluster: Cluster) -> None:
    """200 MB are there and the learner stands: the ingress holds what its queue may, and then reads the rest."""
    x = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(60_000 * 6, np.uint8)), 6)
    batch = pa.record_batch({"x": x, "label": pa.array(np.arange(60_000))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    options = {"queued.max.messages.kbytes": 8_192}
    cluster.create("wide", 48)  # these brokers keep 5 MB of a partition
    process = start({"queue_records": 120_000}, format="arrow", topics=["wide"], options=options)
    before = psutil.Process(process.popen.pid).memory_info().rss
    cluster.produce("wide", [bytes(sink.getvalue())] * 240, lambda n: n % 48)
    until(lambda: _ends(process) == 120_000)
    time.sleep(1.0)
    assert _ends(process) == 120_000
    assert psutil.Process(process.popen.pid).memory_info().rss - before < 110 << 20
    process.channel.send({"kind": "committed", "offsets": {"main/0": 120_000}, "oldest": {}})
    until(lambda: _ends(process) == 240_000)


def _ends(process: Process) -> int:
    return int(process.hear("beat")["ends"].get("main/0", 0))


def test_a_source_that_stops_is_told(start: Callable[..., Process], cluster: Cluster) -> None:
    """Once, with the reason; the process and its other doors go on."""
    process = start({"bad_in_a_row": 10})
    cluster.produce("main", [b"poison"] * 60)
    assert "refused rows in a row" in process.hear("waiting")["reason"]
    assert process.post(lines(range(1))[0]).json()["accepted"] == 1
    process.channel.send({"kind": "drain"})
    assert process.hear("stopped", "waiting")["kind"] == "stopped"
    assert process.popen.wait(10) == 0
