"""A worker: one process, one tenant after another; what is wrong with one is said, and the next one is learned."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from streamkd import config as configuration
from streamkd.serve.processes.channel import pair
from streamkd.state.checkpoint import CheckpointStore
from streamkd.state.directory import StateDirectory
from streamkd.streams.log.log import Log

TREE: dict[str, Any] = {
    "stream": {
        "source": {"name": "http"},
        "records": {"inputs": [{"name": "x", "shape": [2]}]},
        "batch": {"size": 10, "flush_seconds": 0.1},
    },
    "student": {"name": "mlp", "hidden": [4]},
    "device": "cpu",
}


class Worker:
    """The process and our end of its channel."""

    def __init__(self) -> None:
        self.channel, theirs = pair()
        command = [sys.executable, "-P", "-m", "streamkd.serve.processes.worker", "--fd", str(theirs.fileno())]
        with theirs:
            self.popen = subprocess.Popen(command, pass_fds=[theirs.fileno()])

    def hear(self, *kinds: str) -> dict[str, Any]:
        while (message := self.channel.receive(60)) is not None:
            if message["kind"] in kinds:
                return message
        raise AssertionError("nothing was said")

    def begin(self, state: Path) -> None:
        self.channel.send({"kind": "begin", "config": TREE, "state": str(state)})


@pytest.fixture
def worker() -> Iterator[Worker]:
    process = Worker()
    yield process
    process.popen.kill()
    process.popen.wait(10)
    process.channel.close()


def fill(state: Path, rows: int) -> None:
    """A log with so many records."""
    StateDirectory(state).create()
    schema = configuration.from_tree(TREE).stream.schema_of()
    x = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2 * rows, np.float32)), 2)
    with closing(Log(state / "log.sqlite", schema, stream="main")) as log:
        log.append(pa.record_batch({"x": x, "label": pa.array(np.arange(rows) % 2)}))


@pytest.mark.slow
def test_one_after_another_and_a_broken_one_between(worker: Worker, tmp_path: Path) -> None:
    """Two tenants are learned by one process, each with its checkpoint; the one between is said not to fit."""
    for name, rows in (("a", 20), ("b", 30)):
        fill(tmp_path / name, rows)
    (tmp_path / "torn" / "checkpoints" / "7").mkdir(parents=True)
    for name, rows in (("a", 20), ("torn", 0), ("b", 30)):
        worker.begin(tmp_path / name)
        said = worker.hear("ready", "fatal")
        assert said["kind"] == ("ready" if rows else "fatal")
        if rows:
            while worker.hear("beat")["offsets"].get("main/0", 0) < rows:
                pass
        worker.channel.send({"kind": "stop"})  # of the torn one it comes too late, and is nothing
        assert worker.hear("done")["exit_code"] == (0 if rows else 3)
        assert worker.hear("beat")["doing"] == "idle"
    worker.channel.send({"kind": "drain"})
    assert worker.popen.wait(20) == 0
    for name, rows in (("a", 20), ("b", 30)):
        with closing(CheckpointStore(StateDirectory(tmp_path / name), read_only=True)) as checkpoints:
            snapshot = checkpoints.latest()
        assert snapshot is not None
        assert snapshot.info.offsets == {"main/0": rows}
