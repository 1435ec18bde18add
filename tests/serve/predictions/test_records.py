"""Predictions record by record: a bad one is told, and the others are answered; a real server each time."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import tritonclient.http as triton

from streamkd.plugins import Registry
from streamkd.records import InputColumn, RecordSchema
from streamkd.serve.predictions import client

from ..conftest import Publisher, Running, serving

INFER = "/v2/models/student/infer"
TABLE = RecordSchema(
    inputs=(
        InputColumn(name="age", missing="fill"),
        InputColumn(name="pair", shape=(2,)),
        InputColumn(name="colour", kind="category", shape=(5,), values=("red",), missing="fill"),
        InputColumn(name="at", kind="time", missing="fill"),
        InputColumn(name="word", kind="text", shape=(16,)),
        InputColumn(name="count", dtype="uint8"),
    )
)
GOOD: dict[str, list[Any]] = {
    "age": [31.5, None, 2, True],
    "pair": [[1, 2], [3, 4], [0, 0], [5, 6]],
    "colour": ["red", None, 7, False],
    "at": ["2024-05-06", None, "2024-05-06T07:08:09+02:00", ""],
    "word": ["a", "b", "", "c"],
    "count": [1, 2, 3, True],
}
TYPES = {"age": "FP32", "pair": "FP32", "colour": "BYTES", "at": "BYTES", "word": "BYTES", "count": "UINT8"}
BAD_VALUES: list[tuple[str, Any, str]] = [
    ("age", "old", "needed numbers of type float32, got 'old'"),
    ("age", 1e300, "needed numbers that fit float32"),
    ("pair", [1, None], "needed numbers of type float32"),
    ("pair", [1], "needed 2 numbers, got 1"),
    ("pair", [[1], [2, 3]], "needed numbers of type float32"),
    ("colour", {}, "needed text, a number or a boolean"),
    ("at", "yesterday", "needed ISO 8601, got 'yesterday'"),
    ("at", 1_700_000_000, "epoch: s, ms, us or ns says what it counts"),
    ("word", None, "missing"),
    ("word", 3, "needed a string"),
    ("count", 256, "fit uint8, got 256"),
    ("count", 1.5, "needed numbers of type uint8"),
    ("count", None, "needed numbers of type uint8"),
]


def outputs(reply: httpx.Response) -> dict[str, Any]:
    assert reply.status_code == 200, reply.text
    return {tensor["name"]: tensor["data"] for tensor in reply.json()["outputs"]}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Iterator[Running]:
    """A server of a model over columns of every kind."""
    publisher = Publisher(tmp_path_factory.mktemp("table") / "state")
    publisher.publish(schema=TABLE, classes=("süß", "b"))
    with serving(publisher, registry) as running:
        running.wait_for(1)
        yield running
    publisher.close()


def asked(columns: dict[str, list[Any]]) -> dict[str, Any]:
    """A request in JSON."""
    rows = len(columns["age"])
    tensors = [
        {"name": name, "datatype": TYPES[name], "shape": [rows, 2 if name == "pair" else 1], "data": data}
        for name, data in columns.items()
    ]
    return {"inputs": tensors}


@pytest.mark.parametrize(("name", "value", "said"), BAD_VALUES)
def test_a_bad_record_does_not_fail_the_others(table: Running, name: str, value: Any, said: str) -> None:
    """Its row says what is wrong, and has no label; the others are answered as without it."""
    alone = outputs(table.client.post(INFER, json=asked(GOOD)))
    assert "error" not in alone
    spoilt = {column: [*data[:2], data[3], data[3]] for column, data in GOOD.items()}
    spoilt[name][2] = value
    found = outputs(table.client.post(INFER, json=asked(spoilt)))
    assert [bool(error) for error in found["error"]] == [False, False, True, False]
    assert found["error"][2].startswith(f"input '{name}': ")
    assert said in found["error"][2]
    assert found["label"][2] is None
    assert found["probability"][4:6] == [None, None]
    kept = [0, 1, 3]
    assert [found["label"][row] for row in kept] == [alone["label"][row] for row in kept]
    assert [found["probability"][2 * row] for row in kept] == [alone["probability"][2 * row] for row in kept]


def test_without_a_good_record_a_request_is_refused_unless_it_asks_for_errors(table: Running) -> None:
    """400 says what is wrong with the first; with the output `error` each record is told."""
    bad = {**{name: data[:2] for name, data in GOOD.items()}, "count": [256, -1]}
    reply = table.client.post(INFER, json=asked(bad))
    assert reply.status_code == 400
    assert "fit uint8, got 256 (the first of 2 records" in reply.json()["error"]
    found = outputs(table.client.post(INFER, json={**asked(bad), "outputs": [{"name": "error"}]}))
    assert [error[-3:] for error in found["error"]] == ["256", " -1"]


def test_bad_records_are_counted(start: Callable[..., Running], publisher: Publisher) -> None:
    """By `predict_records_rejected_total`; the request they came in is no failure."""
    publisher.publish()
    server = start()
    server.wait_for(1)
    image = {"name": "image", "datatype": "UINT8", "shape": [3, 2, 3], "data": [[1] * 6, [300] * 6, [-1] * 6]}
    assert server.client.post(INFER, json={"inputs": [image]}).status_code == 200
    told = server.client.get("/metrics").text
    assert 'streamkd_predict_records_rejected_total{protocol="http"} 2.0' in told
    assert "streamkd_predict_failures_total{" not in told


def test_errors_of_records_travel_in_binary(shared: Running) -> None:
    """A client that wants binary gets empty texts beside the good ones, NaN, and the lowest label."""
    image = {"name": "image", "datatype": "UINT8", "shape": [2, 2, 3], "data": [[1] * 6, [300] * 6]}
    request = {"inputs": [image], "parameters": {"binary_data_output": True}}
    reply = shared.client.post(INFER, json=request)
    found = triton.InferResult.from_response_body(
        reply.content, header_length=int(reply.headers["Inference-Header-Content-Length"])
    )
    assert found.as_numpy("label")[0] in (7, 3, 5)
    assert found.as_numpy("label")[1] == np.iinfo(np.int64).min
    assert np.isnan(found.as_numpy("probability")).tolist() == [[False] * 3, [True] * 3]
    assert found.as_numpy("error").tolist() == [b"", b"input 'image': needed numbers that fit uint8, got 300"]


def test_booleans_travel_as_bool(table: Running) -> None:
    """BOOL is taken for numbers and categories, in JSON and in binary, as the same 0 and 1."""
    truths = [True, False, True, True]
    answers = [outputs(table.client.post(INFER, json=asked({**GOOD, "age": truths, "colour": ["1", "0", "1", "1"]})))]
    in_json = asked({**GOOD, "age": truths, "colour": truths})
    in_binary = asked({**GOOD, "age": truths, "colour": truths})
    for place in (0, 2):
        in_json["inputs"][place]["datatype"] = in_binary["inputs"][place]["datatype"] = "BOOL"
        in_binary["inputs"][place] |= {"parameters": {"binary_data_size": 4}}
        del in_binary["inputs"][place]["data"]
    answers.append(outputs(table.client.post(INFER, json=in_json)))
    head = json.dumps(in_binary).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answers.append(outputs(table.client.post(INFER, content=head + 2 * bytes(truths), headers=headers)))
    assert answers[0] == answers[1] == answers[2]


def test_a_bad_row_of_a_file_is_an_error_in_its_row(shared: Running, tmp_path: Path) -> None:
    """`predict FILE`: what its tensor cannot hold stands in its row, and their number is told."""
    images = pa.array([[1] * 6, [300] * 6, None, [2] * 6])
    pa.parquet.write_table(pa.table({"image": images}), tmp_path / "images.parquet")
    (rows,) = client.predict_file(tmp_path / "images.parquet", shared.url)
    assert [error is None for error in rows.column("error").to_pylist()] == [True, False, False, True]
    assert [label in (7, 3, 5) for label in rows.column("label").to_pylist()] == [True, False, False, True]
    assert [p and len(p) for p in rows.column("probabilities").to_pylist()] == [3, None, None, 3]
    written = client.write([rows], tmp_path / "said.jsonl", print)
    assert (written.rows, written.bad) == (4, 2)
    assert written.error.startswith("input 'image': needed finite numbers")


def test_what_the_server_refuses_in_every_row_is_told_in_every_row(table: Running, tmp_path: Path) -> None:
    """A batch without a single good row does not end the file."""
    columns = {name: [data[0]] * 2 for name, data in GOOD.items()}
    pa.parquet.write_table(pa.table({**columns, "at": ["yesterday"] * 2}), tmp_path / "rows.parquet")
    (rows,) = client.predict_file(tmp_path / "rows.parquet", table.url)
    assert rows.column("error").to_pylist() == ["input 'at': needed ISO 8601, got 'yesterday'"] * 2
    assert rows.column("label").to_pylist() == [None, None]


def test_one_word_among_the_numbers_of_a_csv_file_is_an_error_in_its_row(registry: Registry, tmp_path: Path) -> None:
    """The others of its column are numbers as before, and a gap stays one."""
    publisher = Publisher(tmp_path / "state")
    schema = RecordSchema(inputs=tuple(TABLE.inputs[place] for place in (0, 2, 5)), label_type="string")
    publisher.publish(schema=schema, classes=("süß", "b"))
    (tmp_path / "rows.csv").write_text("age;count;colour\n31.5;1;red\n;2;\nold;3;red\n7;x;blue\n", "utf-8")
    with serving(publisher, registry) as running:
        running.wait_for(1)
        (rows,) = client.predict_file(tmp_path / "rows.csv", running.url)
    publisher.close()
    said = [None, None, "input 'age': needed a number, got 'old'", "input 'count': needed a number, got 'x'"]
    assert rows.column("error").to_pylist() == said
    assert [label is None for label in rows.column("label").to_pylist()] == [False, False, True, True]
