"""Following the published versions: swaps, refusals, rollbacks; real state directories."""

import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from streamkd.plugins import Registry
from streamkd.serve.predictions.follower import VersionFollower
from streamkd.serve.predictions.predictor import Predictor
from streamkd.state.directory import StateDirectory
from streamkd.students.networks import Student
from streamkd.telemetry import Recorder

from ..conftest import Publisher, Running, until

REQUEST = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 2, 3], "data": [1, 2, 3, 4, 5, 6]}]}


def not_finite(student: Student) -> None:
    with torch.no_grad():
        student.body.head.weight[0, 0] = float("nan")


def metric(running: Running, line: str) -> bool:
    return line in running.client.get("/metrics").text


def test_versions_are_followed_without_being_told(running: Running) -> None:
    """A version that appears in the state directory answers soon after, with no message."""
    running.publisher.publish(seed=2)
    running.wait_for(2)
    assert metric(running, "streamkd_model_version 2.0")


def test_a_version_that_answers_nonsense_is_refused(running: Running) -> None:
    """Weights that are not finite are not swapped in: counted, and the version before goes on."""
    running.publisher.publish(seed=2, spoil=not_finite)
    until(lambda: metric(running, 'streamkd_model_swaps_rejected_total{reason="failed_trial"} 1.0'))
    assert running.client.post("/v2/models/student/infer", json=REQUEST).json()["model_version"] == "1"
    running.publisher.publish(seed=3)
    running.wait_for(3)


def test_a_damaged_version_is_refused(publisher: Publisher, start: Callable[..., Running]) -> None:
    """A version whose files do not have their hash is not loaded; a server that starts then takes the one before."""
    for seed in (1, 2):
        publisher.publish(seed=seed)
    weights = publisher.directory.published / "2" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\1\2\3")
    server = start()
    server.wait_for(1)
    assert metric(server, 'streamkd_model_swaps_rejected_total{reason="damaged"} 1.0')
    assert server.client.get("/v2/models/student/versions/2").status_code == 404
    publisher.publish(seed=3)
    server.wait_for(3)


def test_a_server_that_starts_later_finds_the_served_version(
    publisher: Publisher, start: Callable[..., Running]
) -> None:
    """A restarted server serves the newest version at once, also with no learner."""
    for seed in (1, 2, 3):
        publisher.publish(seed=seed)
    start().wait_for(3)


def test_50_published_versions_under_load_drop_no_request(running: Running) -> None:
    """While 50 versions are published and swapped in, every request is answered, by versions that only rise."""
    done = threading.Event()
    seen: list[list[int]] = [[], []]

    def ask(mine: list[int]) -> None:
        with httpx.Client(base_url=running.url, timeout=20) as client:
            while not done.is_set():
                reply = client.post("/v2/models/student/infer", json=REQUEST)
                assert reply.status_code == 200, reply.text
                mine.append(reply.json()["parameters"]["version"])

    clients = [threading.Thread(target=ask, args=(mine,)) for mine in seen]
    for client in clients:
        client.start()
    for seed in range(2, 52):
        running.publisher.publish(seed=seed)
        running.services.follower.poke()
        running.wait_for(seed)
    done.set()
    for client in clients:
        client.join()
    for mine in seen:
        assert np.all(np.diff(mine) >= 0)
        assert len(mine) > 10


def test_a_state_directory_that_cannot_be_read_is_said_once(
    tmp_path: Path, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is no database of ours is said once, and the server goes on without a version."""
    (tmp_path / "state.sqlite").write_bytes(b"no database" * 100)
    predictor = Predictor(8, 8, Recorder())
    follower = VersionFollower(
        StateDirectory(tmp_path),
        registry,
        predictor,
        Recorder(),
        10,
        0.01,
    )
    looks, look = [], follower._look
    follower._look = lambda seen: looks.append(seen) or look(seen)  # type: ignore[func-returns-value, method-assign]
    until(lambda: "cannot be read" in caplog.text and len(looks) > 5)
    follower.close()
    predictor.close()
    assert caplog.text.count("cannot be read") == 1
