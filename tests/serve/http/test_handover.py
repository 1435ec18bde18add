"""Predictions on their way to the log: kept as they were asked and answered, and never waited for."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from streamkd.serve.http import handover
from streamkd.serve.processes.ingress import application
from streamkd.settings import LateLabels, Limits
from streamkd.streams.ingest.http import HttpListener, HttpOptions
from streamkd.streams.ingest.intake import Ingest, Intake
from streamkd.streams.ingest.tokens import Tokens
from streamkd.streams.log.log import Log
from streamkd.telemetry import Recorder

from ..conftest import SCHEMA, Publisher, Running, until

INFER = "/v2/models/student/infer"


@contextlib.contextmanager
def behind(path: Path, app: Starlette) -> Iterator[None]:
    """A server on a unix socket."""
    server = uvicorn.Server(uvicorn.Config(app, uds=str(path), log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    yield
    server.should_exit = True
    thread.join(10)


@contextlib.contextmanager
def ingress(path: Path) -> Iterator[Log]:
    """What the ingress does with requests, over a log of its own."""
    log = Log(path.with_name("log.sqlite"), SCHEMA, labels=LateLabels())
    intake = Intake(log, Limits(), Recorder())
    with behind(path, application(HttpListener(HttpOptions(), Ingest(intake, Tokens(None))))):
        yield log
    intake.close()
    log.close()


@pytest.fixture
def keeping(publisher: Publisher, start: Callable[..., Running], tmp_path: Path) -> Running:
    """A server with version 1 published that hands its predictions over to the socket `s`."""
    version = publisher.publish(seed=1)
    server = start(socket=tmp_path / "s", keep=True, body_bytes=4 << 20)
    server.wait_for(version)
    return server


def ask(server: Running, values: np.ndarray, **more: Any) -> Mapping[str, Any]:
    image = {"name": "image", "shape": list(values.shape), "datatype": "UINT8", "data": values.ravel().tolist()}
    reply = server.client.post(INFER, json={"inputs": [image], **more})
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def pictures(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, 2, 3), np.uint8)


def label(server: Running, *lines: str) -> Mapping[str, Any]:
    headers = {"Content-Type": "application/x-ndjson"}
    return dict(server.client.post("/v1/labels", content="\n".join(lines), headers=headers).json())


def test_a_prediction_becomes_a_record_by_its_label(keeping: Running, tmp_path: Path) -> None:
    """Inputs as they were asked, the answer and the version that were told, for one row and for several."""
    with ingress(tmp_path / "s") as log:
        one, three = pictures(1), pictures(3, seed=1)
        told = [ask(keeping, one), ask(keeping, three)]
        keys = [each["parameters"]["prediction_id"] for each in told]
        assert all(each["parameters"]["kept"] is True for each in told)
        until(lambda: log.label_counts()["kept"] == 4)
        asked = (f"{keys[1]}/2", keys[0], f"{keys[1]}/0")
        said = label(keeping, *(f'{{"prediction_id": "{key}", "label": {n}}}' for n, key in enumerate(asked)))
        assert (said["accepted"], said["offset"]) == (3, 3)
        rows = log.read(0, 3).rows
        expected = np.stack([three[2], one[0], three[0]]).reshape(3, 6)
        assert np.array_equal(rows.column("image").flatten().to_numpy().reshape(3, 6), expected)
        assert rows.column("label").to_pylist() == [0, 1, 2]
        given = [told[1]["outputs"][0]["data"][2], told[0]["outputs"][0]["data"][0], told[1]["outputs"][0]["data"][0]]
        answers = log.answers(0, 3)
        assert [answers[at].label for at in range(3)] == given
        assert {answers[at].version for at in range(3)} == {1}
        assert answers[1].probability == pytest.approx(max(told[0]["outputs"][1]["data"]), abs=1e-6)


def test_a_client_may_choose_the_key(keeping: Running, tmp_path: Path) -> None:
    """Its `prediction_id` is told back, and is what its label names; a second request of it changes nothing."""
    with ingress(tmp_path / "s") as log:
        for seed in range(2):
            said = ask(keeping, pictures(1, seed), parameters={"prediction_id": "flight 12"})
            assert said["parameters"]["prediction_id"] == "flight 12"
            until(lambda: keeping.services.handover is not None and keeping.services.handover._empty.is_set())
        assert log.label_counts()["kept"] == 1
        assert label(keeping, '{"prediction_id": "flight 12", "label": 1}')["accepted"] == 1
        assert log.read(0, 1).rows.column("image").to_pylist() == [pictures(1).ravel().tolist()]


@pytest.mark.parametrize("key", [7, None, "a/0", "k" * 129])
def test_what_is_no_key_is_refused(key: Any, keeping: Running) -> None:
    """With what was needed."""
    inputs = [{"name": "image", "shape": [1, 2, 3], "datatype": "UINT8", "data": [0] * 6}]
    reply = keeping.client.post(INFER, json={"inputs": inputs, "parameters": {"prediction_id": key}})
    assert reply.status_code == 400
    assert "needed a prediction_id of at most 128 characters without /" in reply.json()["error"]


def test_a_large_request_is_kept_as_it_was_asked(keeping: Running, tmp_path: Path) -> None:
    """What a process of its own has read comes with its columns."""
    many = pictures(500, seed=3)
    padding = " " * 60_000  # so that it counts as large
    with ingress(tmp_path / "s") as log:
        said = ask(keeping, many, padding=padding)
        until(lambda: log.label_counts()["kept"] == 500)
        key = said["parameters"]["prediction_id"]
        assert label(keeping, f'{{"prediction_id": "{key}/499", "label": 1}}')["accepted"] == 1
        assert log.read(0, 1).rows.column("image").to_pylist() == [many[499].ravel().tolist()]


def test_predictions_wait_for_an_ingress_and_nobody_for_them(
    keeping: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are answered while it is away, and kept once it is there."""
    monkeypatch.setattr(handover, "AGAIN_SECONDS", 0.05)
    for seed in range(3):
        assert ask(keeping, pictures(2, seed))["parameters"]["kept"] is True
    with ingress(tmp_path / "s") as log:
        until(lambda: log.label_counts()["kept"] == 6)


def test_what_is_too_much_is_not_kept_and_told(keeping: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer says whether a label will find it; those that are not kept are counted."""
    monkeypatch.setattr(handover, "QUEUE_REQUESTS", 2)
    assert [ask(keeping, pictures(5))["parameters"]["kept"] for _ in range(4)] == [True, True, False, False]
    counted = keeping.client.get("/metrics").text
    assert 'streamkd_predictions_not_kept_total{reason="full"} 10.0' in counted


def test_what_the_ingress_does_not_take_holds_up_nothing(
    keeping: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a few tries those behind it have their turn; it is counted."""
    monkeypatch.setattr(handover, "AGAIN_SECONDS", 0.01)
    tried = []

    async def refuse(request: Request) -> JSONResponse:
        tried.append(len(await request.body()))
        return JSONResponse({"error": "no"}, 500) if len(tried) <= handover.TRIES else JSONResponse({"kept": 1})

    with behind(tmp_path / "s", Starlette(routes=[Route("/v1/predictions", refuse, methods=["POST"])])):
        ask(keeping, pictures(1))
        until(lambda: len(tried) == handover.TRIES)
        ask(keeping, pictures(1))
        until(lambda: "streamkd_predictions_kept_total 1.0" in keeping.client.get("/metrics").text)
        assert 'streamkd_predictions_not_kept_total{reason="refused"} 1.0' in keeping.client.get("/metrics").text


def test_predictions_are_nobodys_to_push(keeping: Running, tmp_path: Path) -> None:
    """The way that the supervisor hands them over by is not one of the HTTP port."""
    with ingress(tmp_path / "s"):
        assert keeping.client.post("/v1/predictions", content=b"x").status_code == 404
