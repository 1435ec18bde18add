"""A server that is started again: on the same state with another configuration, beside another, after damage."""

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import PUSHED, Serve, Server, merged, records, streamkd, until
from .test_push import json_lines, post

LEARNED = 1_200  # records in the state that these tests start from
# nothing is retained beyond need: what an older checkpoint has to read again must be needed
LEFT = merged(PUSHED, {"stream": {"retain": {"bytes": 0, "age_seconds": 0}}})


@pytest.fixture(scope="module")
def left(serve_in: Callable[[Path], Serve], tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A server that has learned three tasks and has ended, with its state."""
    folder = tmp_path_factory.mktemp("left")
    server = serve_in(folder)(LEFT)
    for number in range(3):
        post(server, records(LEARNED // 3, first=number * LEARNED // 3), "arrow", f"before-{number}", size=50)
        until(lambda: server.metric("checkpoints_total") > number, what="a checkpoint")  # noqa: B023
    server.trained(LEARNED)
    assert server.stop() == 0
    return server


@pytest.fixture
def state(left: Server, tmp_path: Path) -> Path:
    """A copy of its state."""
    import shutil

    return Path(shutil.copytree(left.state, tmp_path / "copied"))


def refused(serve: Serve, changes: dict[str, Any], state: Path) -> str:
    """What a server says that may not start with these changes; its exit code is 3."""
    server = serve(merged(PUSHED, changes), state=state, listen=False)
    assert server.wait(60) == 3
    assert "Traceback" not in server.err, server.err
    return server.err


def test_what_may_change_is_taken(serve: Serve, state: Path) -> None:
    """Rates, gate, pool, batch size, ports and tokens change over a restart; said, and what was learned goes on."""
    token = streamkd("tokens", "add", state / "tokens.json", "me", "--scope", "ingest", "--scope", "predict")
    header = {"Authorization": f"Bearer {token.stdout.split()[-1]}"}
    changes = {
        "optimizer": {"learning_rate": 0.01},
        "gate": {"name": "fixed", "hard": 0.6},
        "pool": {"limit": 3},
        "memory": {"replay": 5},
        "serve": {"tokens": str(state / "tokens.json")},
    }
    server = serve(merged(PUSHED, changes), state=state)
    until(server.ready, 60, "readiness")
    assert server.get("/v1/status").status_code == 401
    body = json_lines(records(20, first=LEARNED))
    kind = {"Content-Type": "application/x-ndjson"}
    for wrong, code in (({}, 401), ({"Authorization": "Bearer nonsense"}, 401), (header, 200)):
        answer = server.post("/v1/streams/main", content=body, headers={**kind, **wrong})
        assert answer.status_code == code, answer.text
    until(lambda: server.get("/v1/status", headers=header).json().get("records_trained") == LEARNED + 20)
    for said in ("gate has changed", "optimizer has changed", "pool has changed"):
        assert said in server.err
    teachers = server.get("/v1/status", headers=header).json()["teachers"]
    present = ("linear", "crossed", "forgetting")  # take no place
    assert len([teacher for teacher in teachers if teacher["teaches"] and teacher["kind"] not in present]) <= 3
    assert server.stop() == 0
    seen = server.inspect()
    assert seen["records_trained"] == LEARNED + 20
    assert seen["config"]["optimizer"]["learning_rate"] == 0.01


CONFLICTS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("student", {"student": {"hidden": [32]}}, ("student", "16", "32")),
    ("shape", {"stream": {"records": {"inputs": [{"name": "x", "shape": [2, 4]}]}}}, ("(8,)", "(2, 4)")),
    ("size", {"stream": {"records": {"inputs": [{"name": "x", "shape": [9]}]}}}, ("[8]", "[9]")),
    ("label type", {"stream": {"records": {"label_type": "string"}}}, ("'label': was int64, is string",)),
    ("memory", {"memory": {"holdout_ratio": 0.5}}, ("memory", "0.2", "0.5")),
]


@pytest.mark.soak
def test_another_student_is_refused(serve: Serve, state: Path) -> None:
    """Another student on the same state: both are named, and the way out; nothing in the state has changed."""
    said = refused(serve, {"student": {"hidden": [32]}}, state)
    assert "student" in said
    assert "[16]" in said
    assert "[32]" in said
    assert "--state" in said
    assert streamkd("inspect", state, "--json").returncode == 0


@pytest.mark.soak
@pytest.mark.parametrize(("changes", "words"), [c[1:] for c in CONFLICTS], ids=[c[0] for c in CONFLICTS])
def test_what_may_not_change_is_refused(
    serve: Serve, state: Path, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    """Student, shape, label type and what is held out: refused with both values and the way out."""
    said = refused(serve, changes, state)
    for word in (*words, "--state"):
        assert word in said, said


def test_half_a_restore_is_refused_before_a_record_is_taken(serve: Serve, state: Path) -> None:
    """Without the database the server ends, says what is there and what is missing, and leaves it all where it was."""
    (state / "state.sqlite").unlink()
    folders = sorted(str(path) for kind in ("checkpoints", "published") for path in (state / kind).rglob("*"))
    said = refused(serve, {}, state)
    for line in ("state.sqlite .*is missing", "checkpoints/ .*has .*does not know", "published/ .*has ", "log.sqlite "):
        assert re.search(rf"\n  {line}", said), said
    assert sorted(str(path) for kind in ("checkpoints", "published") for path in (state / kind).rglob("*")) == folders


def test_a_state_that_is_taken_is_named(serve: Serve) -> None:
    """The second server ends, names the process that owns the directory and says what to do; the first goes on."""
    first = serve()
    owner = first.pid("learner")
    second = serve(listen=False)
    assert second.wait(60) == 1
    assert f"process {owner} owns this state directory" in second.err
    assert "--state" in second.err
    assert "Traceback" not in second.err
    assert first.pid("learner") == owner  # the first has noticed nothing


@pytest.mark.soak  # `test_supervisor` and `test_ingress` below tests/serve have it of each process alone
def test_a_port_that_is_taken_is_named(serve: Serve, tmp_path: Path) -> None:
    """HTTP port or Flight port taken: the second server ends, names what is taken and what to do instead."""
    first = serve()
    flight = serve(PUSHED, "--flight-port", first.flight.rpartition(":")[2], state=tmp_path / "flight", listen=False)
    taken = serve(None, "--port", first.url.rpartition(":")[2], state=tmp_path / "elsewhere", listen=False)
    assert taken.wait(30) == 2
    assert "is taken" in taken.err
    assert "--port 0" in taken.err
    assert flight.wait(60) == 2
    assert "Flight cannot listen" in flight.err
    assert "serve.flight_port" in flight.err
    assert "Traceback" not in taken.err + flight.err


def test_damaged_checkpoints_fall_back_to_a_whole_one(serve: Serve, state: Path) -> None:
    """The newest is cut short, the one before has a wrong byte: both are said, the third serves, nothing is lost."""
    newest, second = sorted((int(folder.name) for folder in (state / "checkpoints").iterdir()), reverse=True)[:2]
    for number, spoil in ((newest, _truncated), (second, _flipped)):
        file = state / "checkpoints" / str(number) / "tensors.safetensors"
        file.write_bytes(spoil(file.read_bytes()))
    server = serve(LEFT, state=state)
    server.trained(LEARNED)
    for number in (newest, second):
        assert f"checkpoint {number} is damaged" in server.err
    assert "going on from the one before" in server.err
    until(lambda: server.metrics().get('streamkd_checkpoint_failures_total{reason="damaged"}') == 2, 10)
    assert server.stop() == 0
    assert server.inspect()["records_trained"] == LEARNED


def _truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.soak  # `tests/serve/test_supervisor.py` has it of the supervisor alone
def test_a_second_signal_skips_the_checkpoint(serve: Serve) -> None:
    """SIGTERM twice: exit 0 at once, and what was trained since the last checkpoint is left to be redone."""
    server = serve(merged(PUSHED, {"checkpoint": {"every_seconds": 3600}, "serve": {"drain_seconds": 30}}))
    post(server, records(200), "arrow", "p")
    server.trained(200)
    server.process.send_signal(signal.SIGTERM)
    until(lambda: not server.ready(), 5, "the end of readiness")
    begun = time.monotonic()
    assert server.stop(signal.SIGTERM, 20) == 0
    assert time.monotonic() - begun < 15
    assert not any((server.state / "checkpoints").iterdir())
