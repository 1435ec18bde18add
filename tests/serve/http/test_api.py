"""The HTTP port: protocol, refusals, authentication, administration, metrics; a real server each time."""

import contextlib
import gzip
import json
import shutil
import socket
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import torch
import tritonclient.http as triton

from streamkd.errors import RecordError
from streamkd.producer.push import push
from streamkd.records import InputColumn, RecordSchema
from streamkd.streams.ingest.tokens import create

from ..conftest import Publisher, Running, make_student, until

IMAGES = np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20
INFER = "/v2/models/student/infer"


def body(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "image", "datatype": "UINT8", "shape": [2, 2, 3], "data": IMAGES.tolist(), **changes}
    return {"inputs": [{key: value for key, value in tensor.items() if value is not None}]}


def expected(images: np.ndarray = IMAGES, seed: int = 1) -> np.ndarray:
    with torch.inference_mode():
        return torch.softmax(make_student(seed)(torch.from_numpy(images)), 1).numpy()


def outputs(reply: httpx.Response) -> dict[str, Any]:
    assert reply.status_code == 200, reply.text
    return {tensor["name"]: tensor["data"] for tensor in reply.json()["outputs"]}


@pytest.fixture
def client(shared: Running) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(shared.url.removeprefix("http://"))
    yield client
    client.close()


def test_a_json_request_is_answered_with_label_probability_and_parameters(running: Running) -> None:
    """JSON in, JSON out: labels by arrival order, probabilities of the published student, id echoed, parameters."""
    running.services.status.tell({"records_trained": 140})
    reply = running.client.post(INFER, json={"id": "abc", **body()})
    probabilities = expected()
    assert np.allclose(np.reshape(outputs(reply)["probability"], (2, 3)), probabilities, atol=1e-6)
    assert outputs(reply)["label"] == [(7, 3, 5)[i] for i in probabilities.argmax(1)]
    said = reply.json()
    assert (said["id"], said["model_name"], said["model_version"]) == ("abc", "student", "1")
    assert said["parameters"]["version"] == 1
    assert said["parameters"]["lag_records"] == 40
    assert said["parameters"]["published_timestamp_seconds"] > 1e9
    assert len(said["parameters"]["prediction_id"]) == 32


def test_tritonclient_with_its_defaults_is_answered_in_binary(client: triton.InferenceServerClient) -> None:
    """tritonclient's HTTP client, used as its documentation says, gets what JSON gets."""
    tensor = triton.InferInput("image", [2, 2, 3], "UINT8")
    tensor.set_data_from_numpy(IMAGES)
    result = client.infer("student", [tensor], request_id="r1")
    assert np.allclose(result.as_numpy("probability"), expected(), atol=1e-6)
    assert result.as_numpy("label").dtype == np.int64
    assert result.get_response()["id"] == "r1"
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("student")
    assert client.is_model_ready("student", "1")
    assert client.get_model_metadata("student")["classes"] == [7, 3, 5]
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]


def test_a_version_says_which_records_it_has_seen(shared: Running) -> None:
    """In its metadata and in the list: the offsets before which all are learned, of the stream and of a broker."""
    seen = {"offsets": {"main/0": 100}, "positions": {"orders/0": 200}}
    assert shared.client.get("/v2/models/student/versions/1").json()["seen"] == {"records": 100, **seen}
    assert seen.items() <= shared.client.get("/v1/models").json()["versions"][0].items()


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compressed_requests_are_unpacked(client: triton.InferenceServerClient, compression: str) -> None:
    """tritonclient's request compression works."""
    tensor = triton.InferInput("image", [2, 2, 3], "UINT8")
    tensor.set_data_from_numpy(IMAGES)
    result = client.infer("student", [tensor], request_compression_algorithm=compression)
    assert np.allclose(result.as_numpy("probability"), expected(), atol=1e-6)


@pytest.mark.parametrize(("sent", "wanted"), [(True, True), (True, False), (False, True), (False, False)])
def test_binary_and_json_mix_in_both_directions(client: triton.InferenceServerClient, sent: bool, wanted: bool) -> None:
    """Each input and each output may be binary or JSON."""
    tensor = triton.InferInput("image", [2, 2, 3], "UINT8")
    tensor.set_data_from_numpy(IMAGES, binary_data=sent)
    wants = [
        triton.InferRequestedOutput("probability", binary_data=wanted),
        triton.InferRequestedOutput("label", binary_data=not wanted),
    ]
    result = client.infer("student", [tensor], outputs=wants)
    assert np.allclose(result.as_numpy("probability"), expected(), atol=1e-6)
    assert result.as_numpy("label").tolist() == [(7, 3, 5)[i] for i in expected().argmax(1)]


def test_an_output_that_is_not_asked_for_is_not_sent(shared: Running) -> None:
    """`outputs` picks."""
    assert set(outputs(shared.client.post(INFER, json={**body(), "outputs": [{"name": "label"}]}))) == {"label"}


def test_string_labels_and_text_inputs_travel_as_bytes(publisher: Publisher, start: Callable[..., Running]) -> None:
    """Text goes in as BYTES, in JSON and in binary alike, and string labels come out as BYTES."""
    schema = RecordSchema(inputs=(InputColumn(name="text", kind="text", shape=(64,)),), label_type="string")
    publisher.publish(schema=schema, classes=("süß", "b"))
    server = start()
    server.wait_for(1)
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2, 1], "data": ["grüße", "good bye"]}
    in_json = server.client.post(INFER, json={"inputs": [tensor]})
    client = triton.InferenceServerClient(server.url.removeprefix("http://"))
    binary = triton.InferInput("text", [2], "BYTES")
    binary.set_data_from_numpy(np.array(["grüße", "good bye"], dtype=object))
    result = client.infer("student", [binary])
    client.close()
    assert [label.decode() for label in result.as_numpy("label")] == outputs(in_json)["label"]
    assert set(outputs(in_json)["label"]) <= {"süß", "b"}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "name": (body(name="picture"), "needed the inputs image, got picture"),
    "no inputs": ({"inputs": []}, "got none"),
    "inputs no list": ({"inputs": {}}, "needed a list"),
    "input twice": ({"inputs": body()["inputs"] * 2}, "needed the inputs image"),
    "datatype": (body(datatype="FP32"), "needed datatype UINT8, got 'FP32'"),
    "shape": (body(shape=[2, 6]), "needed shape [records, 2, 3]"),
    "no records": (body(shape=[0, 2, 3], data=[]), "1 record or more"),
    "shape of text": (body(shape=["2", 2, 3]), "whole numbers"),
    "negative": (body(shape=[-2, 2, 3]), "1 record or more"),
    "too few": (body(data=[1, 2]), "needed 12 numbers"),
    "ragged": (body(data=[[1, 2], [3]]), "needed 6 numbers, got 2"),
    "range": (body(data=[300] * 12), "fit uint8, got 300"),
    "fraction": (body(data=[0.5] * 12), "needed numbers of type uint8"),
    "strings": (body(data=["1"] * 12), "needed numbers"),
    "nulls": (body(data=[None] * 12), "needed numbers"),
    "no data": (body(data=None), "needed a list as data"),
    "output": ({**body(), "outputs": [{"name": "logits"}]}, "needed one of the outputs label, probability"),
    "outputs": ({**body(), "outputs": 3}, "needed a list as outputs"),
    "classification": (
        {**body(), "outputs": [{"name": "label", "parameters": {"classification": 2}}]},
        "classification",
    ),
    "id": ({**body(), "id": 3}, "needed a string"),
    "parameters": ({**body(), "parameters": []}, "needed a JSON object as parameters"),
    "shared memory": (body(parameters={"shared_memory_region": "x"}), "shared memory"),
    "binary size": (body(data=None, parameters={"binary_data_size": 5}), "needed binary_data_size of at most 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_request_is_told_what_was_needed(shared: Running, name: str) -> None:
    """400 says what was needed and what came, has an id, and no traceback."""
    request, message = BAD[name]
    reply = shared.client.post(INFER, json=request)
    assert reply.status_code == 400, reply.text
    assert message in reply.json()["error"]
    assert len(reply.json()["id"]) == 16
    assert "Traceback" not in reply.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "needed JSON"),
        (b"{", "needed JSON"),
        (b"[]", "needed a JSON object"),
        (b'{"inputs": NaN}', "needed JSON"),
        (b"\xff\xfe", "needed JSON"),
        (b'{"inputs":' + b"[" * 10_000 + b"]" * 10_000 + b"}", "recursion limit"),
    ],
)
def test_broken_and_too_deep_json_is_refused(shared: Running, content: bytes, message: str) -> None:
    """What is no JSON, or nested beyond any use, is 400."""
    reply = shared.client.post(INFER, content=content)
    assert (reply.status_code, message in reply.json()["error"]) == (400, True), reply.text


def binary_request(raw: bytes, size: int, length: str | None = None) -> tuple[bytes, dict[str, str]]:
    head = json.dumps(body(data=None, parameters={"binary_data_size": size})).encode()
    return head + raw, {"Inference-Header-Content-Length": length or str(len(head))}


@pytest.mark.parametrize(
    ("raw", "size", "length", "message"),
    [
        (b"x" * 12, 11, None, "needed 12 bytes"),
        (b"x" * 12, 13, None, "at most 12 (what came)"),
        (b"x" * 15, 12, None, "needed no bytes after the tensors, got 3"),
        (b"x" * 12, 12, "-1", "needed Inference-Header-Content-Length"),
        (b"x" * 12, 12, "99999", "needed Inference-Header-Content-Length"),
        (b"x" * 12, 12, "9" * 5_000, "needed Inference-Header-Content-Length"),
    ],
)
def test_wrong_binary_sizes_are_refused(
    shared: Running, raw: bytes, size: int, length: str | None, message: str
) -> None:
    """Binary tensors must have the bytes that they say and that their shape needs."""
    content, headers = binary_request(raw, size, length)
    reply = shared.client.post(INFER, content=content, headers=headers)
    assert (reply.status_code, message in reply.json()["error"]) == (400, True), reply.text


def test_broken_byte_elements_are_refused(publisher: Publisher, start: Callable[..., Running]) -> None:
    """A BYTES tensor whose lengths lead beyond it, or whose text is no UTF-8, is 400."""
    schema = RecordSchema(inputs=(InputColumn(name="text", kind="text", shape=(64,)),))
    publisher.publish(schema=schema)
    server = start()
    server.wait_for(1)
    for raw in (struct.pack("<I", 1 << 31) + b"a", b"\x01", struct.pack("<I", 1) + b"\xff", b""):
        tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(raw)}}
        head = json.dumps({"inputs": [tensor]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        assert server.client.post(INFER, content=head + raw, headers=headers).status_code == 400


def test_a_body_beyond_the_limit_is_413_while_it_streams(shared: Running) -> None:
    """A body is counted as it comes: with a length it is refused at once, without one when the limit is passed."""
    assert shared.client.post(INFER, content=b"x" * (2 << 20)).status_code == 413
    chunks = (b"x" * 65536 for _ in range(64))
    assert shared.client.post(INFER, content=chunks).status_code == 413


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_compressed_bomb_is_413(shared: Running, encoding: str) -> None:
    """A body that unpacks beyond the limit is refused before it is unpacked."""
    packed = (gzip.compress if encoding == "gzip" else zlib.compress)(bytes(200 << 20), 9)
    reply = shared.client.post(INFER, content=packed, headers={"Content-Encoding": encoding})
    assert reply.status_code == 413


@pytest.mark.parametrize(
    ("encoding", "content", "status"),
    [("gzip", b"no gzip", 400), ("gzip", gzip.compress(b"{}" * 99, mtime=0)[:-9], 400), ("br", b"{}", 415)],
)
def test_an_encoding_that_cannot_be_read_is_said(shared: Running, encoding: str, content: bytes, status: int) -> None:
    """Broken, cut off and unknown encodings are refused."""
    assert shared.client.post(INFER, content=content, headers={"Content-Encoding": encoding}).status_code == status


def test_more_records_than_the_queue_holds_is_413(shared: Running) -> None:
    """A request of more records than can ever wait is too large."""
    reply = shared.client.post(INFER, json=body(shape=[600, 2, 3], data=[1] * 3600))
    assert (reply.status_code, "at most 512 records" in reply.json()["error"]) == (413, True)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/models/other", 404),
        ("/v2/models/student/versions/99", 404),
        ("/v2/models/student/versions/x", 404),
        ("/nothing", 404),
        (INFER, 405),
    ],
)
def test_what_is_not_there_is_said_in_json(shared: Running, path: str, status: int) -> None:
    """Unknown models, versions and paths are 404, other methods 405, each with an error and an id."""
    reply = shared.client.get(path)
    assert reply.status_code == status
    assert set(reply.json()) == {"error", "id"}


def test_before_the_first_version_it_is_alive_and_not_ready(start: Callable[..., Running]) -> None:
    """Without a version: live, not ready with the reason, 503 with Retry-After for predictions; the page is there."""
    client = start().client
    assert client.get("/v2/health/live").json() == {"live": True, "ready": False}
    for reply in (client.get("/v2/health/ready"), client.post(INFER, json=body()), client.get("/v2/models/student")):
        assert reply.status_code == 503
        assert reply.headers["Retry-After"] == "1"
        assert "no version is published" in reply.text
    assert client.get("/").status_code == 200
    assert client.get("/v1/status").json()["server"]["ready"] is False
    assert client.get("/metrics").status_code == 200
    assert client.get("/v1/models").json() == {"served": None, "versions": []}


def test_while_draining_it_answers_and_is_not_ready(running: Running) -> None:
    """A stopping server says so in its readiness and goes on answering."""
    running.services.status.draining = True
    assert running.client.get("/v2/health/ready").status_code == 503
    assert running.client.get("/v2/health/live").status_code == 200
    assert running.client.post(INFER, json=body()).status_code == 200


def test_ready_has_both_words(shared: Running) -> None:
    """The readiness body has `live` and `ready`, since clients look for either."""
    assert shared.client.get("/v2/health/ready").json() == {"live": True, "ready": True}


def test_an_older_version_answers_by_its_number(running: Running) -> None:
    """A kept version answers under its number while another is served."""
    running.publisher.publish(seed=2)
    running.wait_for(2)
    old = running.client.post("/v2/models/student/versions/1/infer", json=body())
    assert old.json()["model_version"] == "1"
    assert np.allclose(np.reshape(outputs(old)["probability"], (2, 3)), expected(seed=1), atol=1e-6)


def test_a_rollback_serves_the_old_weights_under_a_new_number_until_unpinned(running: Running) -> None:
    """Rollback pins old weights under a new number; a later publish waits until unpin."""
    running.publisher.publish(seed=2)
    running.wait_for(2)
    reply = running.client.post("/v1/models/rollback", json={"version": 1})
    assert reply.json() == {"version": 3, "source_version": 1, "pinned": True}
    running.wait_for(3)
    assert np.allclose(
        np.reshape(outputs(running.client.post(INFER, json=body()))["probability"], (2, 3)), expected(seed=1), atol=1e-6
    )
    assert running.client.get("/v1/status").json()["server"]["pinned"] == {
        "version": 3,
        "source_version": 1,
        "newest": 2,
    }
    assert "streamkd_model_pinned 1.0" in running.client.get("/metrics").text
    running.publisher.publish(seed=4)
    until(lambda: running.client.get("/v1/status").json()["server"]["pinned"]["newest"] == 4)
    assert running.client.get("/v1/models").json()["versions"][-2]["pinned"] is True
    assert running.client.post("/v1/models/unpin").json() == {"pinned": False}
    running.wait_for(4)
    assert running.client.get("/v1/status").json()["server"]["pinned"] is None
    assert "streamkd_model_pinned 0.0" in running.client.get("/metrics").text


def test_unpin_goes_back_to_what_was_learned_last(running: Running) -> None:
    """Also where nothing was published since the rollback: its number is the highest, its weights are old."""
    running.publisher.publish(seed=2)
    running.wait_for(2)
    running.client.post("/v1/models/rollback", json={"version": 1})
    running.wait_for(3)
    running.client.post("/v1/models/unpin")
    running.wait_for(2)


@pytest.mark.parametrize(
    ("content", "status"), [('{"version": 99}', 409), ('{"version": "1"}', 400), ("{}", 400), ("x" * 5000, 413)]
)
def test_a_wrong_rollback_is_said(running: Running, content: str, status: int) -> None:
    """Unknown versions and wrong bodies are refused, and the served version stays."""
    assert running.client.post("/v1/models/rollback", content=content).status_code == status
    assert running.services.predictor.version == 1


def test_tokens_open_their_scopes_and_health_is_outside(
    tmp_path: Path, publisher: Publisher, start: Callable[..., Running]
) -> None:
    """401 without a known token, 403 without its scope, health and the page for everyone."""
    file = tmp_path / "tokens.json"
    predict = {"Authorization": f"Bearer {create(file, 'p', ['predict'])}"}
    admin = {"Authorization": f"Bearer {create(file, 'a', ['admin'])}"}
    publisher.publish()
    server = start(tokens=file)
    server.wait_for(1)
    client = server.client
    for path in ("/v2/health/live", "/v2/health/ready", "/"):
        assert client.get(path).status_code == 200
    for path in ("/v2", "/v2/models/student", "/metrics", "/v1/status", "/v1/models"):
        refused = client.get(path)
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"].startswith("Bearer")
        assert client.get(path, headers=predict).status_code == 200
    assert client.post(INFER, json=body()).status_code == 401
    assert client.post(INFER, json=body(), headers=predict).status_code == 200
    assert client.post("/v1/models/unpin", headers=predict).status_code == 403
    assert client.post("/v1/models/unpin", headers=admin).status_code == 200
    assert client.post("/v1/streams/main", headers=admin).status_code == 403
    assert 'streamkd_auth_failures_total{protocol="http"} 8.0' in client.get("/metrics", headers=predict).text


def test_a_page_of_another_site_cannot_act(shared: Running) -> None:
    """A POST that a browser sends for another origin is refused."""
    reply = shared.client.post("/v1/models/unpin", headers={"Origin": "http://evil.example"})
    assert reply.status_code == 403
    assert shared.client.post("/v1/models/unpin", headers={"Origin": shared.url}).status_code == 200


def test_pushes_are_refused_where_no_source_takes_them(shared: Running) -> None:
    """A server whose source takes no pushes says so and what to do."""
    reply = shared.client.post("/v1/streams/main", content=b"x")
    assert reply.status_code == 409
    assert "takes no pushed records" in reply.json()["error"]
    with pytest.raises(RecordError, match=r"set stream\.source") as told:
        push([pa.record_batch({"x": [1]})], shared.url)
    assert "--producer" not in str(told.value)  # no number was used


def test_an_unexpected_fault_shows_an_id_and_nothing_else(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    """A fault of ours is 500 with an id that the log has beside the traceback; the next request is answered."""
    current = running.services.predictor.current()
    broken = type("Broken", (), {**{n: getattr(current, n) for n in ("classes", "version", "schema", "records")}})()
    broken.published_at = 0.0
    broken.predict = lambda inputs: 1 / 0
    running.services.predictor.swap(broken)
    reply = running.client.post(INFER, json=body())
    running.services.predictor.swap(current)
    assert reply.status_code == 500
    assert "ZeroDivision" not in reply.text
    assert reply.json()["id"] in caplog.text
    assert running.client.post(INFER, json=body()).status_code == 200


def test_metrics_show_what_happened(running: Running) -> None:
    """Requests, failures by reason, the version and its lag are in /metrics."""
    running.client.post(INFER, json=body())
    running.client.post(INFER, json=body(name="x"))
    running.services.status.tell({"records_trained": 130})
    text = running.client.get("/metrics").text
    for line in (
        'streamkd_predict_requests_total{protocol="http"} 2.0',
        'streamkd_predict_failures_total{protocol="http",reason="invalid"} 1.0',
        "streamkd_model_version 1.0",
        "streamkd_model_lag_records 30.0",
        "streamkd_model_swaps_total 1.0",
        "streamkd_ready 1.0",
    ):
        assert line in text, line


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian's prometheus) is not installed")
def test_promtool_has_nothing_to_say_about_the_server(shared: Running) -> None:
    """`promtool check metrics` passes over a live server's /metrics without a word."""
    shared.client.post(INFER, json=body())
    text = shared.client.get("/metrics").content
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_status_never_holds_what_browsers_cannot_read(running: Running) -> None:
    """Numbers that are not finite become null in /v1/status."""
    running.services.status.tell({"loss": float("nan"), "accuracy": {"served": float("inf")}})
    status = json.loads(running.client.get("/v1/status").text, parse_constant=lambda name: pytest.fail(name))
    assert status["loss"] is None
    assert status["accuracy"] == {"served": None}
    assert status["server"]["version"] == 1


def test_a_client_that_leaves_in_mid_body_hurts_nobody(shared: Running) -> None:
    """A connection that breaks inside a request gives its bytes back, and others are answered."""
    host, port = shared.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as broken:
        head = f"POST {INFER} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000\r\n\r\nabc"
        broken.sendall(head.encode())
    assert shared.client.post(INFER, json=body()).status_code == 200
    until(lambda: shared.services.predictor.in_flight == 0)


def test_a_head_without_end_is_cut_off(shared: Running) -> None:
    """A request head beyond its bound is refused, and its connection closed."""
    host, port = shared.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as endless:
        endless.sendall(b"GET / HTTP/1.1\r\nX: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(64):
                endless.sendall(b"x" * 65536)
        with contextlib.suppress(ConnectionError):
            assert endless.recv(100).startswith(b"HTTP/1.1 431")
    assert shared.client.get("/v2/health/live").status_code == 200
