"""Very many small records with faults: none is lost, none is doubled, in the log and in what is learned."""

import os
import random
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamkd.streams.log.log import Log

from .conftest import STREAMKD, Serve, Server, streamkd
from .test_kills import kill

RECORDS = int(os.environ.get("STREAMKD_SOAK_RECORDS", 10_000_000))
PARTS, FAULTS = 12, ("learner", "ingress", "learner", "ingress", "group")
LABELS = 10
SMALL: dict[str, Any] = {
    "name": "many",
    "stream": {
        "source": {"name": "flight"},
        "records": {"inputs": [{"name": "number", "dtype": "int64", "scale": 1 / RECORDS}]},
        "batch": {"size": 2_000, "flush_seconds": 0.2},
        "retain": {"bytes": 64 << 30, "quota_bytes": 64 << 30},  # all of it is counted at the end
        "limits": {"queue_records": 1_000_000},
    },
    "student": {"name": "mlp", "hidden": [8]},
    "memory": {"size": 100, "replay": 10},
    "vicinal": {"rows": 0},
    "teachers": [],
    "device": "cpu",
    "checkpoint": {"every_seconds": 1},
    "publish": {"every_seconds": 5},
    "serve": {"drain_seconds": 0.1},
}


def part(folder: Path, number: int) -> tuple[Path, int]:
    """A file of the records' own numbers, each with a label that follows from it; and how many there are."""
    numbers = np.arange(number * RECORDS // PARTS, (number + 1) * RECORDS // PARTS)
    pq.write_table(pa.table({"number": numbers, "label": numbers % LABELS}), folder / "part.parquet")
    return folder / "part.parquet", len(numbers)


def push(server: Server, file: Path, number: int, count: int) -> list[str]:
    """Numbered batches of one producer for each part, within two seconds: what is sent again is known."""
    batches = ["--batch", "2000", "--rate", str(count // 2)]
    return ["push", str(file), "--to", server.flight, "--producer", f"p{number}", *batches]


@pytest.mark.soak
@pytest.mark.timeout(7_200)
def test_of_ten_million_records_none_is_lost_and_none_doubled(serve: Serve, tmp_path: Path) -> None:
    """In twelve parts; in each, learner, ingress or the whole group is killed, and every fourth is sent once more.

    ``STREAMKD_SOAK_RECORDS``: how many, with as many faults.
    """
    moments = random.Random(0)
    server = serve(SMALL)
    begun = time.monotonic()
    for number in range(PARTS):
        file, count = part(tmp_path, number)
        command = push(server, file, number, count)
        sending = subprocess.Popen([*STREAMKD, *command], stdout=subprocess.PIPE, text=True)
        try:
            time.sleep(moments.uniform(1.0, 3.0))  # a push takes a second to begin
            kill(server, FAULTS[number % len(FAULTS)])
            said, _ = sending.communicate(timeout=1_800)
        finally:
            sending.kill()
            sending.wait()
        assert f"{count} records sent, {count} accepted, 0 rejected" in said
        if number % 4 == 0:
            again = streamkd(*command, timeout=600)
            assert f"{count} duplicates" in again.stdout, again.stdout
    server.trained(RECORDS, 3_600)
    seconds = time.monotonic() - begun
    assert server.stop() == 0
    seen = server.inspect()
    assert (seen["records_trained"], seen["offsets"]) == (RECORDS, {"main/0": RECORDS})
    print(f"{RECORDS:,} records in {seconds:.0f} s, {PARTS} kills")
    counts = np.zeros(RECORDS, np.uint8)
    with closing(Log(server.state / "log.sqlite", read_only=True)) as log:
        assert (log.begin(), log.end()) == (0, RECORDS)
        for first in range(0, RECORDS, 100_000):
            rows = log.read(first, min(100_000, RECORDS - first)).rows
            numbers = rows.column("number").flatten().to_numpy()
            assert (rows.column("label").to_numpy() == numbers % LABELS).all()
            np.add.at(counts, numbers, 1)
    assert (counts == 1).all()
