"""One ingress for several tenants, as a process of its own: what is broken of one hurts no other."""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from streamkd import letters
from streamkd.serve.processes.channel import pair
from streamkd.state.directory import StateDirectory
from streamkd.streams.log.log import Log

CONFIG: dict[str, Any] = {
    "stream": {
        "source": {"name": "http"},
        "records": {"inputs": [{"name": "x", "shape": [2]}]},
        "limits": {"queue_records": 10},
    },
}


class Shared:
    """The process and our end of its channel."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.socket = folder, folder / "i.sock"
        self.channel, theirs = pair()
        command = [sys.executable, "-P", "-m", "streamkd.serve.processes.ingresses", "--fd", str(theirs.fileno())]
        with theirs:
            self.popen = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env={**os.environ, "MALLOC_ARENA_MAX": "2"}
            )
        self.channel.send(
            {"kind": "begin", "config": CONFIG, "state": "", "entry_points": ["http"], "http_socket": str(self.socket)}
        )
        self.hear("listening")

    def hear(self, *kinds: str, seconds: float = 20.0) -> dict[str, Any]:
        """The next message of these kinds; of a tenant's what is in it, with its name."""
        while (message := self.channel.receive(seconds)) is not None:
            said = {**message["said"], "tenant": message["tenant"]} if message["kind"] == "of" else message
            if said["kind"] in kinds:
                return said
        raise AssertionError("nothing was said")

    def tell(self, name: str, kind: str, **fields: Any) -> None:
        self.channel.send({"kind": "of", "tenant": name, "said": {"kind": kind, **fields}})

    def open(self, name: str) -> dict[str, Any]:
        self.tell(name, "begin", config=CONFIG, state=str(self.folder / name))
        return self.hear("listening", "fatal")

    def post(self, name: str, *labels: int) -> httpx.Response:
        body = "\n".join(json.dumps({"x": [0, 1], "label": label}) for label in labels)
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.socket))) as client:
            headers = {"content-type": "application/x-ndjson"}
            return client.post(f"http://ingress/t/{name}/v1/streams/main", content=body, headers=headers)


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Shared]:
    process = Shared(tmp_path)
    yield process
    process.popen.kill()
    process.popen.wait(10)
    process.channel.close()


def read(path: Path) -> list[int]:
    """The labels in a tenant's log."""
    log = Log(path / "log.sqlite", read_only=True)
    try:
        return [int(label) for label in log.read(0, 100).rows.column("label").to_pylist()]
    finally:
        log.close()


def test_each_has_its_own_log_limits_and_end(shared: Shared, tmp_path: Path) -> None:
    """Records go to the log of the tenant that the path names; a full one is 429 for it alone, and so is an end."""
    assert [shared.open(name)["kind"] for name in ("a", "b")] == ["listening", "listening"]
    assert shared.post("a", 1, 2).json()["accepted"] == 2
    assert shared.post("b", 3).json()["offset"] == 1
    assert shared.post("nobody", 3).status_code == 503
    assert shared.post("a", *range(9)).status_code == 429
    assert shared.post("b", 4).status_code == 200
    shared.tell("a", "committed", offsets={"main/0": 2}, oldest={"main/0": 2})
    shared.tell("a", "drain")
    assert shared.hear("stopped")["tenant"] == "a"
    assert shared.post("a", 5).status_code == 503
    assert shared.post("b", 5).status_code == 200
    shared.channel.send({"kind": "drain"})
    assert shared.hear("stopped")["tenant"] == "b"
    assert shared.hear("stopped").get("tenant") is None
    assert shared.popen.wait(20) == 0
    assert (read(tmp_path / "a"), read(tmp_path / "b")) == ([1, 2], [3, 4, 5])


def test_a_state_that_does_not_fit_is_said_and_left(shared: Shared, tmp_path: Path) -> None:
    """A tenant without the database that knew its checkpoints is refused, unchanged; another is taken."""
    (tmp_path / "torn" / "checkpoints" / "7").mkdir(parents=True)
    said = shared.open("torn")
    assert (said["kind"], said["tenant"]) == ("fatal", "torn")
    assert "DOES NOT FIT" in said["message"]
    assert not StateDirectory(tmp_path / "torn").exists()
    shared.open("good")
    assert shared.post("good", 1).status_code == 200
    assert letters.letters(tmp_path / "good") == []  # what a learner would have made is there
    assert shared.post("torn", 1).status_code == 503


def test_a_log_that_breaks_while_it_is_written_is_laid_to_its_tenant(shared: Shared, tmp_path: Path) -> None:
    """A committer that meets a damaged file ends the process with its tenant's name: the next life goes without."""
    for name in ("a", "b"):
        shared.open(name)
        assert shared.post(name, 1).status_code == 200
    with sqlite3.connect(tmp_path / "a" / "log.sqlite") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        page_bytes = connection.execute("PRAGMA page_size").fetchone()[0]
    connection.close()
    with (tmp_path / "a" / "log.sqlite").open("r+b") as file:
        file.seek(page_bytes)
        file.write(b"\xff" * page_bytes * (pages - 1))
    with contextlib.suppress(httpx.TransportError):  # the process may end before it has answered
        shared.post("a", 2)
    said = shared.hear("fatal")
    assert (said["tenant"], said["damage"]) == ("a", True)
