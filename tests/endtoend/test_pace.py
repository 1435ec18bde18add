"""A learner that keeps pace: pushed to faster than batches of the configuration could be learned, and then seldom."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from .conftest import PUSHED, STREAMKD, Serve, Server, merged, records, until

AUTO = merged(PUSHED, {"stream": {"batch": {"pace": "auto", "size": 4}}})


@contextmanager
def pushing(server: Server, folder: Path, rate: int, seconds: int) -> Iterator[None]:
    """At so many records a second, so long or until the end of the block."""
    path = folder / f"{rate}.parquet"
    pq.write_table(pa.Table.from_batches([records(rate * seconds)]), path)
    push = [*STREAMKD, "push", path, "--to", server.flight, "--rate", rate, "--batch", 50]
    process = subprocess.Popen([*map(str, push)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def batch(server: Server) -> int:
    return int(server.status()["batch"]["records"])


def test_batches_grow_until_the_learner_keeps_up(serve: Serve, tmp_path: Path) -> None:
    """Of a stream that batches of four are too slow for; told in status and metrics."""
    server = serve(AUTO)
    with pushing(server, tmp_path, 1_500, 60):
        until(lambda: batch(server) > 8, 60, "larger batches")
    until(lambda: server.metric("train_pace_changes_total") >= 2, 30, "the change in the metrics")
    assert server.metric("train_batch_records") >= 8


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("rate", [100, 400, 1_600])
def test_the_lag_is_bounded_for_minutes(serve: Serve, tmp_path: Path, rate: int) -> None:
    """Defaults otherwise, at a fifth, two thirds, and three times what batches of ten take: five seconds at most."""
    server = serve(merged(PUSHED, {"stream": {"batch": {"pace": "auto"}}, "memory": {"size": 500}}))
    with pushing(server, tmp_path, rate, 150):
        server.trained(10 * rate, 120)
        lags, end = [], time.monotonic() + 120
        while time.monotonic() < end:
            lags.append(server.metric("source_lag_records") / rate)
            time.sleep(1.0)
    assert max(lags) < 5.0, lags
