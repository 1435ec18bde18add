"""`streamkd tune` as a person runs it: begun, watched over HTTP, interrupted, gone on with, its result used."""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import pytest
from click.testing import CliRunner

from streamkd.cli import cli
from streamkd.tune.record import DONE, TrialRecord
from streamkd.tune.study import Study

TINY = """
name: tiny
stream: {source: {name: replay, dataset: digits, per_class: 20, classes_per_task: 5}}
teachers: [{name: ema}]
gate: {name: fixed}
vicinal: {rows: 0}
publish: {model: ema}
"""
SPACE = "optimizer.learning_rate: {loguniform: [1e-3, 1e-2]}\nmemory.replay: {uniform: [10, 40], step: 10}\n"
SEARCH = ("tiny.yaml", "--space", "space.yaml", "--search", "random", "--concurrency", "2")


def streamkd(*arguments: str) -> str:
    """A command that has to succeed, in this process; what it printed."""
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@dataclass
class Interrupted:
    """A search after Ctrl-C: its directory, what /metrics had said, the exit code, stderr, and what was over."""

    out: Path
    metrics: str
    code: int
    said: str
    over: dict[int, TrialRecord]


def over(out: Path) -> dict[int, TrialRecord]:
    return {one.number: one for one in Study.open(out).trials() if one.state in DONE}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    """A search in a process of its own that got Ctrl-C when its first trial was over."""
    place = tmp_path_factory.mktemp("tune")
    (place / "tiny.yaml").write_text(TINY)
    (place / "space.yaml").write_text(SPACE)
    with (place / "stderr").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "streamkd", "tune", *SEARCH, "--trials", "500", "--metrics-port", "0"],
            cwd=place,
            stderr=errors,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )
    metrics, deadline = "", time.monotonic() + 90
    try:
        while not re.search(r'tune_trials\{state="(finished|pruned)"\} [1-9]', metrics):
            assert process.poll() is None, (place / "stderr").read_text()
            assert time.monotonic() < deadline, metrics
            time.sleep(0.05)
            if found := re.search(r"http://\S+", (place / "stderr").read_text()):
                with urlopen(found[0], timeout=10) as answer:
                    metrics = answer.read().decode()
        process.send_signal(signal.SIGINT)
        code = process.wait(100)
    finally:
        process.kill()
        process.wait()
    out = place / "tune" / "tiny"
    return Interrupted(out, metrics, code, (place / "stderr").read_text(), over(out))


def test_a_running_search_has_metrics(interrupted: Interrupted) -> None:
    """/metrics has the trials by state and how long they take, beside each other: two run at once."""
    states = dict(re.findall(r'^streamkd_tune_trials\{state="(\w+)"\} (\d+)', interrupted.metrics, re.M))
    assert sum(map(int, states.values())) == 500
    assert int(states["running"]) <= 2
    assert int(states["waiting"]) > 400
    assert re.search(r"^streamkd_tune_trial_seconds_count [1-9]", interrupted.metrics, re.M)


def test_ctrl_c_says_what_is_kept(interrupted: Interrupted) -> None:
    """Exit code 130; the last line says where the results are and how to go on; no traceback, no control sequence."""
    assert interrupted.code == 130
    assert (
        interrupted.said.rstrip().splitlines()[-1].endswith("in tune/tiny, and the same command with --resume goes on")
    )
    assert "Traceback" not in interrupted.said
    assert "\x1b" not in interrupted.said
    assert interrupted.said.startswith("tiny: 500 trials over 2 parameters, by accuracy on seeds 100, 101")
    assert (interrupted.out / "report.html").exists()


def test_a_search_goes_on_and_its_best_is_used(
    interrupted: Interrupted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--resume keeps what was over and ends the rest; best.yaml is taken by `check` and by `run` as it is."""
    out, place = interrupted.out, interrupted.out.parent.parent
    left = json.loads(streamkd("inspect", str(out), "--json"))
    assert left["states"].get("waiting", 0) == left["trials"] - len(interrupted.over) <= 2
    monkeypatch.chdir(place)
    told = streamkd("tune", *SEARCH, "--resume", "--trials", str(left["trials"]))
    now = over(out)
    assert sorted(now) == list(range(left["trials"]))
    assert {number: now[number] for number in interrupted.over} == interrupted.over
    assert "wrote tune/tiny/best.yaml and tune/tiny/report.html" in told
    assert "next: streamkd run tune/tiny/best.yaml --report DIR" in told
    monkeypatch.chdir(tmp_path)
    best = str(out / "best.yaml")
    assert "best.yaml: fine" in streamkd("check", best)
    streamkd("run", best, "--report", "report", "--seeds", "0")
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    values = json.loads(streamkd("inspect", str(out), "--json"))["best"]["values"]
    assert report["config"]["optimizer"]["learning_rate"] == values["optimizer.learning_rate"]
    assert report["config"]["memory"]["replay"] == values["memory.replay"]
