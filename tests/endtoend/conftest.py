"""A real `streamkd serve` as a process of its own: free ports, state in the test's directory, its output kept.

``serve(...)`` starts one and waits until it listens; ``Server`` is what a user would see of it: URLs, status,
metrics, the processes' numbers, the exit code. Every server and what it started is gone when its test ends.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import yaml
from click.testing import CliRunner
from toys import TEACHERS

from streamkd.cli import cli

ROOT = Path(__file__).parents[2]
STREAMKD = [sys.executable, "-m", "streamkd"]
START_SECONDS = 60.0  # on a machine that is busy with other tests
Serve = Callable[..., "Server"]
# made once: httpx makes one for each request else, which takes 20 ms of the processor that the server waits for
TRUST = ssl.create_default_context()

PUSHED: dict[str, Any] = {
    "name": "pushed",
    "stream": {
        "source": {"name": "flight"},
        "records": {"inputs": [{"name": "x", "shape": [8]}], "task": "task"},
        "batch": {"size": 10, "flush_seconds": 0.2},
    },
    "student": {"name": "mlp", "hidden": [16]},
    "memory": {"size": 100},
    "teachers": TEACHERS,
    "checkpoint": {"every_seconds": 0.5},
    "publish": {"every_seconds": 0.5},
    "serve": {"drain_seconds": 0.1},
}
"""A small pushed stream: eight numbers, a label and a task; checkpoints and versions in quick succession."""


BLOCK = 500  # records of one task


def records(rows: int, first: int = 0) -> pa.RecordBatch:
    """Rows ``first`` and on of one endless stream: eight numbers, a label of two new ones per task, the task."""
    numbers = range(first // BLOCK, (first + rows - 1) // BLOCK + 1)
    x, y = (np.concatenate(parts) for parts in zip(*map(_block, numbers), strict=True))
    mine = slice(first % BLOCK, first % BLOCK + rows)
    tasks = [f"t{number % 3}" for number in numbers for _ in range(BLOCK)]
    images = pa.FixedSizeListArray.from_arrays(pa.array(x[mine].ravel()), 8)
    return pa.record_batch({"x": images, "label": pa.array(y[mine]), "task": pa.array(tasks[mine])})


def _block(number: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(number)
    y = generator.integers(0, 2, BLOCK) + 2 * (number % 3)
    x = generator.normal(size=(BLOCK, 8)) * 0.5 + np.eye(8)[y] * 3
    return x.astype(np.float32), y


def until(condition: Callable[[], Any], seconds: float = 30.0, what: str = "a condition") -> Any:
    """Wait for something true and return it; fail with ``what`` was waited for."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain for {what}"
        time.sleep(0.03)
    return found


def streamkd(*arguments: object, timeout: float = 60, **environment: str) -> "subprocess.CompletedProcess[str]":
    """One command of the command line, to its end."""
    return subprocess.run(
        [*STREAMKD, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **environment},
    )


@dataclass
class Server:
    """A running `streamkd serve` in a session of its own, and how it looks from outside."""

    arguments: Sequence[str]
    state: Path
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[str]" = field(init=False)
    begun: float = field(init=False)
    ready_seconds: float = field(default=0.0, init=False)

    def start(self) -> "Server":
        """Start the process; its output goes to files, each start appends."""
        with (self.folder / "out").open("a") as out, (self.folder / "err").open("a") as err:
            self._said = out.tell()
            self.begun = time.monotonic()
            self.process = subprocess.Popen(
                [*STREAMKD, "serve", *self.arguments],
                stdout=out,
                stderr=err,
                text=True,
                start_new_session=True,
                env={**os.environ, **self.environment},
                cwd=self.folder,
            )
        return self

    @property
    def out(self) -> str:
        """What this start has printed."""
        return (self.folder / "out").read_text()[self._said :]

    @property
    def err(self) -> str:
        """What all starts have logged."""
        return (self.folder / "err").read_text()

    @property
    def url(self) -> str:
        """The HTTP URL."""
        return self._url(r"https?://\S+:\d+")

    @property
    def flight(self) -> str:
        """The Flight URL."""
        return self._url(r"grpc(\+tls)?://\S+:\d+")

    def _url(self, pattern: str) -> str:
        def find() -> str | None:
            found = re.search(pattern, self.out)
            assert found or self.process.poll() is None, f"exit {self.process.returncode}: {self.err[-3000:]}"
            return found[0] if found else None

        return str(until(find, START_SECONDS, f"{pattern} in the output: {self.out!r}"))

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, **{"timeout": 20, "verify": TRUST, **options})

    def post(self, path: str, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, **{"timeout": 30, "verify": TRUST, **options})

    def ready(self) -> bool:
        """Whether predictions are answered."""
        with contextlib.suppress(httpx.TransportError):
            return self.get("/v2/health/ready").status_code == 200
        return False

    def status(self) -> dict[str, Any]:
        """What the page shows."""
        return dict(self.get("/v1/status").json())

    def pid(self, name: str) -> int:
        """The process number of a child that runs."""
        processes = until(
            lambda: (p := self.status()["server"]["processes"].get(name, {})).get("state") == "running" and p,
            START_SECONDS,
            f"a running {name}",
        )
        return int(processes["pid"])

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its name with labels."""
        lines = [line for line in self.get("/metrics").text.splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def metric(self, name: str) -> float:
        """The sum of a family's samples over its labels."""
        return sum(value for key, value in self.metrics().items() if key.partition("{")[0] == f"streamkd_{name}")

    def trained(self, count: int, seconds: float = 60.0) -> None:
        """Wait until so many records are trained."""
        until(lambda: (self.status().get("records_trained") or 0) >= count, seconds, f"{count} trained records")

    def inspect(self) -> dict[str, Any]:
        """`streamkd inspect --json` of the state directory, in this process: importing torch takes 2 s."""
        done = CliRunner().invoke(cli, ["inspect", str(self.state), "--json"])
        assert done.exit_code == 0, done.output
        return dict(json.loads(done.stdout))

    def stop(self, name: signal.Signals = signal.SIGTERM, seconds: float = 60.0) -> int:
        """Send a signal to the supervisor and wait for the exit code."""
        self.process.send_signal(name)
        return self.wait(seconds)

    def wait(self, seconds: float = 60.0) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end in {seconds:g} s: {self.err[-3000:]}") from None

    def again(self) -> "Server":
        """Start it once more, with the state that is there and on the ports that it had."""
        ports = {"--port": self.url, "--flight-port": self.flight if "grpc" in self.out else ""}
        given = list(self.arguments)
        for name, url in ports.items():
            if url:
                given[given.index(name) + 1] = url.rpartition(":")[2]
        self.arguments = given
        self.kill_all()
        self.start()
        assert self.url
        assert not ports["--flight-port"] or self.flight
        return self

    def kill_all(self) -> None:
        """kill -9 of the whole group at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def serve_in() -> Iterator[Callable[[Path], Serve]]:
    """``serve`` for a directory of one's own; servers live until the module's tests are done."""
    started: list[Server] = []
    yield lambda folder: _starter(folder, started)
    for server in started:
        server.kill_all()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts servers in the test's directory: ``serve(configuration or None, *arguments, state=..., listen=True)``."""
    started: list[Server] = []
    yield _starter(tmp_path, started)
    for server in started:
        server.kill_all()


def _starter(folder: Path, started: list[Server]) -> Serve:
    def run(
        configuration: Mapping[str, Any] | Path | None = PUSHED,
        *arguments: str,
        state: Path | None = None,
        listen: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> Server:
        place = folder / f"server-{len(started)}"
        place.mkdir()
        given: list[str] = []
        if isinstance(configuration, Path):
            given = [str(configuration)]
        elif configuration is not None:
            given = [str(place / "config.yaml")]
            (place / "config.yaml").write_text(yaml.safe_dump(dict(configuration)))
        ports = [] if "--port" in arguments else ["--port", "0"]
        ports += [] if "--flight-port" in arguments else ["--flight-port", "0"]
        state = state or folder / "state"
        server = Server([*given, "--state", str(state), *ports, *arguments], state, place, environment or {})
        started.append(server.start())
        if listen:
            assert server.url
            assert not _by_flight(configuration) or server.flight
        return server

    return run


def _by_flight(configuration: Mapping[str, Any] | Path | None) -> bool:
    tree = yaml.safe_load(configuration.read_text()) if isinstance(configuration, Path) else configuration
    return bool(tree and tree["stream"]["source"]["name"] == "flight")


def merged(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with changes, mapping by mapping."""
    result = dict(tree)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def commands(page: str, program: str) -> list[str]:
    """The commands of a page that call a program, each on as many lines as its quotes and backslashes need."""
    text = (ROOT / page).read_text("utf-8")
    found = []
    for begin in re.finditer(rf"^    {program} ", text, re.M):
        lines = text[begin.start() :].splitlines()
        found.append(next(part for n in range(1, 9) if _is_whole(part := "\n".join(lines[:n]))))
    return found


def _is_whole(command: str) -> bool:
    try:
        return bool(shlex.split(command)) and not command.endswith("\\")
    except ValueError:  # a quote is open
        return False


def curled(page: str, server: Server, folder: Path) -> list[dict[str, Any]]:
    """What a server answers to each `curl` of a page, run in a shell as it stands there but for the port."""
    if shutil.which("curl") is None:
        pytest.skip("no curl: Debian's package curl has it")
    answers = []
    for command in commands(page, "curl"):
        here = command.replace("http://127.0.0.1:8470", server.url)
        done = subprocess.run(["sh", "-c", here], cwd=folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout))
    return answers


@pytest.fixture(autouse=True)
def _only_what_is_real() -> None:
    """Tokens of whoever runs the tests must not open what these tests expect to be closed."""
    os.environ.pop("STREAMKD_TOKEN", None)
