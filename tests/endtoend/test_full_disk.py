"""A disk that is full: said and counted, nothing acknowledged is lost, and all goes on when there is room again."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import PUSHED, Serve, merged, records, until
from .test_push import arrow_stream, post

ARROW = {"Content-Type": "application/vnd.apache.arrow.stream"}
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")


class Disk:
    """A file system of some megabytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self) -> None:
        """Leave no room at all."""
        with self._ballast.open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                try:
                    while file.write(b"\0" * size):
                        pass
                except OSError:
                    continue

    def free(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(path)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.decode().strip()}")
    yield Disk(path)
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.mark.soak
def test_the_learner_goes_on_without_checkpoints(serve: Serve, disk: Disk) -> None:
    """No room for checkpoints and versions: counted and said; training and predictions go on, and saving comes back."""
    fast = ("--set", "checkpoint.every_seconds=0.5", "--set", "stream.source.rate=200")
    server = serve(None, *fast, state=disk.path / "state")
    until(lambda: server.metric("checkpoints_total") >= 1, 60, "a checkpoint")
    until(server.ready, 30, "readiness")
    learner = server.pid("learner")
    disk.fill()
    until(lambda: server.metric("checkpoint_failures_total") >= 2, 20, "failures that are counted")
    server.trained(server.status()["records_trained"] + 200)
    assert server.ready()
    assert "the checkpoint was not saved, the one before is intact" in server.err
    disk.free()
    before = server.metric("checkpoints_total")
    until(lambda: server.metric("checkpoints_total") >= before + 2, 20, "checkpoints again")
    version = server.status()["server"]["version"]
    until(lambda: server.status()["server"]["version"] > version, 20, "a version again")
    assert server.pid("learner") == learner
    assert server.stop() == 0
    assert "Traceback" not in server.err
    assert server.inspect()["skipped"] == []


@pytest.mark.soak  # a cut that cannot be journaled, and a log that cannot be written, have quick tests of their own
def test_a_full_log_refuses_and_takes_again(serve: Serve, disk: Disk) -> None:
    """No room for the log: 429 and nothing is lost; a batch that waits for its time waits on; then all are learned."""
    slow = merged(PUSHED, {"stream": {"batch": {"flush_seconds": 2.0}}})
    server = serve(slow, state=disk.path / "state")
    assert post(server, records(200), "arrow", "p") == 200
    server.trained(200)
    until(lambda: server.metric("checkpoints_total") >= 1, 20, "a checkpoint")
    assert post(server, records(5, first=200), "arrow", "q") == 5
    learner = server.pid("learner")
    disk.fill()
    body = arrow_stream(records(20, first=205))
    answer = server.post("/v1/streams/main", content=body, headers=ARROW)
    assert answer.status_code == 429, answer.text
    assert "cannot be written" in answer.json()["error"]
    until(lambda: server.metric("source_errors_total") >= 1, 10, "an error that is counted")
    until(lambda: "cut" in server.err or "flush" in server.err, 10, "a word of the learner's")
    disk.free()
    assert server.post("/v1/streams/main", content=body, headers=ARROW).status_code == 200
    server.trained(225)
    assert server.pid("learner") == learner
    assert server.stop() == 0
    assert server.inspect()["records_trained"] == 225
