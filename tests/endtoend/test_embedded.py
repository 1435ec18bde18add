"""`streamkd serve` without arguments: it learns at once, answers meanwhile, shows itself, and ends in order.

One server for the whole file, on a port of its own; the tests look at it from outside.
"""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sklearn.datasets import load_digits

from .conftest import Serve, Server, curled, until

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
PROMTOOL = shutil.which("promtool")
READY_SECONDS = 30.0


@pytest.fixture(scope="module")
def server(serve_in: Callable[[Path], Serve], tmp_path_factory: pytest.TempPathFactory) -> Server:
    folder = tmp_path_factory.mktemp("embedded")
    server = serve_in(folder)(None, state=folder / "state")
    until(server.ready, READY_SECONDS, "readiness")
    server.ready_seconds = time.monotonic() - server.begun
    return server


def infer(server: Server, images: list[list[int]]) -> dict[str, object]:
    """One request as curl would send it; outputs by name."""
    tensor = {"name": "image", "shape": [len(images), 8, 8], "datatype": "UINT8", "data": images}
    answer = server.post("/v2/models/student/infer", json={"inputs": [tensor]})
    assert answer.status_code == 200, answer.text
    return {**answer.json(), **{output["name"]: output["data"] for output in answer.json()["outputs"]}}


def test_it_is_ready_and_learns(server: Server) -> None:
    """Ready within 30 s; records rise, and with them what is published and what a checkpoint holds."""
    assert server.ready_seconds < READY_SECONDS
    assert server.get("/v2/health/live").json()["live"] is True
    first, samples = server.status(), server.metric("train_samples_total")
    server.trained(first["records_trained"] + 100)
    until(lambda: server.metric("train_samples_total") >= samples + 100, what="samples")
    until(lambda: server.status()["server"]["version"] > first["server"]["version"], what="a newer version")
    until(lambda: server.metric("checkpoints_total") >= 1, what="a checkpoint")
    seen = server.inspect()
    assert seen["offsets"] == {"replay/0": seen["records_trained"]}
    assert seen["records_trained"] > 0


def test_the_first_version_comes_with_the_first_records(serve: Serve) -> None:
    """However rarely versions are published, who starts a server has not to wait for the first."""
    server = serve(None, "--set", "publish.every_seconds=600")
    until(server.ready, READY_SECONDS, "readiness")


def test_it_answers_while_it_learns(server: Server) -> None:
    """Digits that it has just met are told apart, with version, time of publication and lag in each answer."""
    digits = load_digits()
    server.trained(250)
    before = server.status()["server"]["version"]
    until(lambda: server.status()["server"]["version"] > before + 1, what="a version that was cut since")
    known = set(server.status()["classes"][:2])  # those of the first task; the second may have begun
    rows = [index for index, label in enumerate(digits.target) if label in known][:60]
    answer = infer(server, digits.data[rows].astype(int).tolist())
    labels = answer["label"]
    assert isinstance(labels, list)
    assert sum(int(got) == digits.target[row] for got, row in zip(labels, rows, strict=True)) > 40
    said = answer["parameters"]
    assert isinstance(said, dict)
    assert said["version"] >= 1
    assert abs(time.time() - said["published_timestamp_seconds"]) < 60
    assert 0 <= said["lag_records"] < 1_000


def test_the_requests_of_the_readmes_are_answered(server: Server, tmp_path: Path) -> None:
    """What the README sends by curl is one digit, and one label comes back; deploy's asks whether it is ready."""
    [answer] = curled("README.md", server, tmp_path)
    assert [len(output["data"]) for output in answer["outputs"] if output["name"] == "label"] == [1]
    assert [answer["ready"] for answer in curled("deploy/README.md", server, tmp_path)] == [True]


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool: Debian's package prometheus has it")
def test_promtool_has_nothing_to_say(server: Server) -> None:
    """`promtool check metrics` finds no fault in /metrics, and there are fewer than 500 series."""
    text = server.get("/metrics").text
    checked = subprocess.run([str(PROMTOOL), "check", "metrics"], input=text, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    assert len(server.metrics()) < 500


@pytest.mark.skipif(BROWSER is None, reason="no chromium to open the page with")
def test_the_page_shows_the_live_learner(server: Server, tmp_path: Path) -> None:
    """A browser shows accuracy, tasks and teachers of the running server, complains of nothing and asks nobody else."""
    until(lambda: len(server.status().get("history") or []) >= 4, what="a history to draw")
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
    shown = subprocess.run(
        [
            *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", *quiet),
            *("--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path / 'profile'}"),
            *(f"--log-net-log={tmp_path / 'net.json'}", "--virtual-time-budget=6000", "--dump-dom", server.url + "/"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert [line for line in shown.stderr.splitlines() if "CONSOLE" in line] == []
    for text in ("ema", "memory", "accuracy", "Teachers", 'class="line"'):
        assert text in shown.stdout, text
    assert re.search(r"\d\d\.\d %", shown.stdout)
    events = json.loads((tmp_path / "net.json").read_text())["events"]
    requests = [event["params"] for event in events if "url" in event.get("params", {})]
    asked = {request["url"] for request in requests if request.get("initiator") == server.url}
    assert f"{server.url}/v1/status" in asked
    assert all(url.startswith((server.url, "data:")) for url in asked), asked


def test_it_ends_in_order(server: Server) -> None:
    """SIGTERM: not ready at once and still answering, a last checkpoint with all that was trained, exit 0."""
    digits = load_digits().data[:1].astype(int).tolist()
    server.process.terminate()
    until(lambda: not server.ready(), 5, "the end of readiness")
    assert server.get("/v2/health/ready").json()["reason"] == "the server is stopping"
    assert infer(server, digits)["label"]
    before = server.status()["records_trained"]
    assert server.wait() == 0
    seen = server.inspect()
    assert seen["records_trained"] >= before
    assert seen["version"] == json.loads(_models(server))[-1]["version"]


def _models(server: Server) -> str:
    from .conftest import streamkd

    return streamkd("models", "list", "--state", server.state, "--json").stdout
