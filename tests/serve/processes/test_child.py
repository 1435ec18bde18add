"""Keeping a child alive: real processes that die, hang, cannot be started, or say what nobody expects."""

import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamkd.serve.processes.child import LOOK_SECONDS, ChildProcess, HeartbeatAge, Started, started
from streamkd.serve.processes.messages import Begin
from streamkd.serve.processes.server_status import ServerStatus
from streamkd.telemetry import Exposition, Recorder

from ..conftest import until


class Kept:
    """One child with what it writes to."""

    def __init__(
        self, folder: Path, hang_seconds: float, hear: Callable[[Any], None], manner: str, first: Started | None
    ) -> None:
        self.lives = folder / "lives"
        self.status, self.recorder, self.exposition = ServerStatus("test", "replay"), Recorder(), Exposition()
        start = Begin({"lives": str(self.lives), "manner": manner}, "")
        environment = {"PYTHONPATH": str(Path(__file__).parent)}
        self.child = ChildProcess(
            "child", "fake_child", lambda: start, hear, self.status, self.recorder, hang_seconds, environment, first
        )

    def pids(self) -> list[int]:
        return [int(line) for line in self.lives.read_text().split()] if self.lives.exists() else []

    def process(self) -> dict[str, Any]:
        return dict(self.status.status(None, None, "", {})["server"]["processes"].get("child", {}))

    def metric(self, family: str) -> float | None:
        self.exposition.apply(self.recorder.drain())
        return self.exposition.value(family, process="child")


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Callable[..., Kept]]:
    made: list[Kept] = []

    def make(
        hang_seconds: float = 60.0,
        hear: Callable[[Any], None] = lambda message: None,
        manner: str = "",
        first: Started | None = None,
    ) -> Kept:
        made.append(Kept(tmp_path, hang_seconds, hear, manner, first))
        made[-1].child.start()
        return made[-1]

    yield make
    for kept in made:
        kept.child.kill()
        assert kept.child.join(10)


def test_a_child_is_named_from_the_beginning(keep: Callable[..., Kept]) -> None:
    """Whoever asks before it runs finds it starting, not missing."""
    assert keep().process()["state"] in ("starting", "running")


def test_one_that_runs_already_is_the_first(keep: Callable[..., Kept], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told to begin, Ctrl-C does not reach it meanwhile, and another follows when it dies."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with started("fake_child") as first:
        os.kill(first[0].pid, signal.SIGINT)
        kept = keep(first=first)
        until(kept.pids)
        assert kept.pids() == [first[0].pid]
        first[0].kill()
        until(lambda: len(kept.pids()) == 2)


def test_one_that_nobody_takes_is_gone() -> None:
    """After the block there is no process, and Ctrl-C is again what it was."""
    before = signal.getsignal(signal.SIGINT)
    with started("fake_child") as (process, _):
        assert process.poll() is None
    assert process.returncode == -signal.SIGKILL
    assert signal.getsignal(signal.SIGINT) is before


def test_a_child_that_is_stopped_is_seen_killed_and_started_again(keep: Callable[..., Kept]) -> None:
    """SIGSTOP: its age rises, and past the limit it is killed, counted, said, and another one beats."""
    kept = keep(hang_seconds=1.5)
    until(lambda: kept.process().get("doing") == "learning")
    os.kill(kept.pids()[0], signal.SIGSTOP)
    until(lambda: (kept.metric("process_heartbeat_age_seconds") or 0) > 0.5)
    until(lambda: len(kept.pids()) == 2 and kept.process()["doing"] == "learning")
    assert "was silent for" in kept.process()["reason"]
    assert kept.metric("process_hangs_total") == kept.metric("process_restarts_total") == 1


def test_what_may_take_long_may_take_longer(keep: Callable[..., Kept]) -> None:
    """A child that has not begun yet has five times the limit, and no more."""
    kept = keep(hang_seconds=0.5, manner="quiet")
    until(lambda: kept.process().get("silent_seconds", 0) > 1.0)
    assert len(kept.pids()) <= 1
    until(lambda: kept.metric("process_hangs_total") == 1)


def test_the_keeper_outlives_a_lack_of_descriptors(keep: Callable[..., Kept]) -> None:
    """No descriptor for a socket or a process: said, not "running", tried again, and there once there are some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        kept = keep()
        until(lambda: kept.process().get("restarts", 0) >= 2)
        assert kept.process()["state"] == "restarting"
        assert "could not be started" in kept.process()["reason"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    until(lambda: kept.process()["state"] == "running")


def test_the_keeper_outlives_a_listener_that_fails(keep: Callable[..., Kept]) -> None:
    """Whatever hearing a message raises, the child does not stay behind unheard: it is ended and started again."""
    failures = [
        BrokenPipeError("stdout is closed"),
        AttributeError("nobody thought of that"),
        RuntimeError("no thread"),
    ]

    def hear(message: Any) -> None:
        if failures:
            raise failures.pop()

    kept = keep(hear=hear)
    until(lambda: len(kept.pids()) == 4 and kept.process()["doing"] == "learning")
    for pid in kept.pids()[:3]:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_child_that_ends_is_started_again_until_told_otherwise(keep: Callable[..., Kept]) -> None:
    """Each end is counted with its code; after ``finish`` there is no further life."""
    kept = keep(manner="dead")
    until(lambda: kept.process().get("restarts", 0) >= 2)
    assert kept.process()["reason"] == "ended with code 3"
    kept.child.finish()
    assert kept.child.join(10)
    lives = len(kept.pids())
    assert kept.process()["state"] == "stopped"
    assert kept.metric("process_heartbeat_age_seconds") is None
    assert len(kept.pids()) == lives


def test_time_in_which_nobody_looked_is_no_silence() -> None:
    """A machine that slept for an hour has no child that hangs; seconds that were watched count."""
    now = [0.0]
    silence = HeartbeatAge(lambda: now[0])
    for _ in range(5):
        now[0] += LOOK_SECONDS
        silence.look()
    now[0] += 3_600
    assert silence.look() == 7 * LOOK_SECONDS
    silence.heard()
    assert silence.look() == 0
