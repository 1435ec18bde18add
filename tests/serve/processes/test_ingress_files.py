"""An ingress that watches files: killed in the middle of one, and ended by one."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamkd.state.directory import StateDirectory
from streamkd.streams.log.log import Log

from .test_ingress import CONFIG, Process


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts an ingress that watches ``in/``."""
    StateDirectory(tmp_path / "state").create()
    (tmp_path / "in").mkdir()
    processes: list[Process] = []

    def make(**limits: int) -> Process:
        source = {"name": "files", "path": str(tmp_path / "in"), "every_seconds": 0.05, "settle_seconds": 0.1}
        config = {**CONFIG, "stream": {**CONFIG["stream"], "source": source, "limits": limits}}
        processes.append(Process(tmp_path / "state", config, tmp_path / "h.sock", again=bool(processes)))
        return processes[-1]

    yield make
    for process in processes:
        process.end()


def put(folder: Path, name: str, labels: range) -> None:
    """A file that is there all at once."""
    x = pa.FixedSizeListArray.from_arrays(pa.array([0] * 6 * len(labels), pa.uint8()), 6)
    rows = pa.table({"x": x, "label": pa.array(labels)})
    if name.endswith(".parquet"):
        pq.write_table(rows, folder / f".{name}")
    else:
        lines = (f'{{"x": [0, 0, 0, 0, 0, 0], "label": {label}}}\n' for label in labels)
        (folder / f".{name}").write_text("".join(lines))
    (folder / f".{name}").rename(folder / name)


def test_kills_in_the_middle_of_files_lose_and_double_nothing(start: Callable[..., Process], tmp_path: Path) -> None:
    """kill -9, twice while rows of a file are on their way: each once, and in order."""
    process, total, sizes = start(batch_rows=500), 0, [20_000, 6_000]
    log = Log(tmp_path / "state" / "log.sqlite", read_only=True)
    for turn, size in enumerate(sizes):
        put(tmp_path / "in", f"{turn}.{'jsonl' if turn == 1 else 'parquet'}", range(total, total + size))
        until(lambda before=total: log.end() > before)
        os.kill(process.popen.pid, signal.SIGKILL)
        process.end()
        total += size
        assert log.end() < total
        process = start(batch_rows=500)
    until(lambda: log.end() >= total)
    assert log.read(0, total + 1).rows.column("label").to_pylist() == list(range(total))
    assert set(log.positions().values()) == set(sizes)
    log.close()


def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def test_a_file_that_needs_too_much_memory_is_refused_within_the_process(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    """600 MB of zeros in 60 KB, where the limits would let them: the address space ends it, the others are read."""
    x = pa.ListArray.from_arrays([0, 600_000_000], pa.array(np.zeros(600_000_000, np.uint8)))
    rows = pa.table({"x": x, "label": pa.array([1])})
    with pa.ipc.new_file(tmp_path / "bomb", rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as out:
        out.write_table(rows)
    (tmp_path / "bomb").rename(tmp_path / "in" / "bomb.feather")
    put(tmp_path / "in", "good.parquet", range(10))
    process = start(ingress_bytes=768 << 20, batch_bytes=1 << 30)
    told = process.hear("status")["status"]["files"]
    while told["read"] + told["refused"] < 2:
        told = process.hear("status")["status"]["files"]
    assert told["read"] == 1
    assert "needs more memory than there is" in told["refusals"][0]["reason"]
    assert process.popen.poll() is None
