"""Fixtures for the tests of plugins: ``streamkd_run`` and ``streamkd_serve``, over a stream of a few hundred records.

    def test_a_learner_takes_it(streamkd_run):
        report = streamkd_run("teachers: [ema, my-teacher]")

Taken by ``addopts = "-p streamkd.pytest_plugin"`` under ``[tool.pytest.ini_options]``. It imports nothing of streamkd
before a fixture is asked for.
"""

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

RECORDS, CLASSES, FEATURES = 300, 4, 8
READY_SECONDS = 120.0


@pytest.fixture
def streamkd_run(tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    """Goes once through the stream under a configuration's lines; gives a seed's part of the report.

    ``streamkd run`` writes the same: ``report["student"]["accuracy"]["prequential"]``, say.
    """

    def run(text: str = "") -> dict[str, Any]:
        from streamkd import config as configuration
        from streamkd.cores import compute_on
        from streamkd.plugins import Registry
        from streamkd.run import run_seed

        registry = Registry.load()
        config = configuration.from_tree(_tree(tmp_path, text), registry)
        compute_on(config.threads)  # as the commands do: on more, steps this small take twice as long
        return run_seed(config, registry)

    return run


@pytest.fixture
def streamkd_serve(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Starts a server under a configuration's lines, waits until it answers, gives its URL; it ends with the test."""
    import yaml

    servers = []

    def serve(text: str = "") -> str:
        port, config = _free_port(), tmp_path / "config.yaml"
        tree = _tree(tmp_path, text)
        config.write_text(yaml.safe_dump({**tree, "serve": {"port": port, "flight_port": 0, **tree.get("serve", {})}}))
        command = [sys.executable, "-m", "streamkd", "serve", str(config), "--state", str(tmp_path / "state")]
        servers.append(subprocess.Popen(command))
        _wait(f"http://127.0.0.1:{port}", servers[-1])
        return f"http://127.0.0.1:{port}"

    yield serve
    for server in servers:
        server.terminate()
    for server in servers:
        server.wait(60)


def _tree(folder: Path, text: str) -> dict[str, Any]:
    """The lines over a configuration of the stream; a ``stream`` of their own takes its place."""
    import yaml

    path = folder / "stream.parquet"
    if not path.exists():
        _write(path)
    source = {"name": "replay", "path": str(path), "order": "given"}
    stream = {"source": source, "records": {"inputs": [{"name": "x", "shape": [FEATURES]}]}}
    base = {"stream": stream, "student": {"name": "mlp", "hidden": [16]}, "memory": {"size": 100}}
    return {**base, **(yaml.safe_load(text) or {})}


def _write(path: Path) -> None:
    """Clouds of points, a class each."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = np.random.default_rng(0)
    label = draw.integers(0, CLASSES, RECORDS)
    x = (2 * draw.standard_normal((CLASSES, FEATURES))[label] + draw.standard_normal((RECORDS, FEATURES))).astype("f4")
    points = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), FEATURES)
    pq.write_table(pa.table({"x": points, "label": label}), path)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _wait(url: str, server: "subprocess.Popen[bytes]") -> None:
    """Until it is ready to answer."""
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        assert server.poll() is None, f"the server has ended with {server.returncode}"
        try:
            urllib.request.urlopen(f"{url}/v2/health/ready", timeout=5).close()  # noqa: S310 - on loopback
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"the server at {url} was not ready within {READY_SECONDS:g} s")
