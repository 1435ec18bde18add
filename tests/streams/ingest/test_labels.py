"""Labels of predictions at the doors: who may send them, what is taken, what each of the others is told."""

import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pytest

from streamkd.errors import Overloaded
from streamkd.records import InputColumn, RecordSchema
from streamkd.settings import LateLabels
from streamkd.streams.ingest import tokens
from streamkd.streams.ingest.flight import FlightListener, FlightOptions
from streamkd.streams.ingest.http import ARROW, LINES, Answer, HttpListener, HttpOptions
from streamkd.streams.ingest.tokens import Tokens
from streamkd.streams.log.joins import told
from streamkd.streams.log.predictions import KeptRequest, kept_schema, with_requests

SCHEMA = RecordSchema(inputs=(InputColumn(name="x", shape=(2,)),))
LATE = LateLabels(early_seconds=0)
LABELS = fl.FlightDescriptor.for_path("main", "labels")


def predictions(*asked: tuple[str, int], schema: RecordSchema = SCHEMA) -> pa.RecordBatch:
    """Requests by id and rows, that were asked a minute ago."""
    count = sum(rows for _, rows in asked)
    x = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(2 * count, dtype=np.float32)), 2)
    moment = pa.array([int((time.time() - 60) * 1e6)] * count, pa.timestamp("us", "UTC"))
    columns = [x, pa.array([1] * count), pa.array([0.5] * count, pa.float32()), moment]
    rows = pa.RecordBatch.from_arrays(columns, schema=kept_schema(schema))
    return with_requests(rows, [KeptRequest(id, rows, 3) for id, rows in asked])


def ipc(rows: pa.RecordBatch) -> bytes:
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, rows.schema) as writer:
        writer.write_batch(rows)
    return buffer.getvalue()


def label(way: Any, body: bytes, kind: str = LINES, **headers: str) -> Answer:
    listener = HttpListener(HttpOptions(), way.ingest())
    return listener.receive({"content-type": kind, **headers}, body, "labels")


def line(key: Any, value: Any = 1) -> bytes:
    return json.dumps({"prediction_id": key, "label": value}).encode()


@pytest.fixture
def way(open_way: Callable) -> Any:
    """A log that keeps the predictions `one` (a row), `two` (two rows) and `done`, which has its label."""
    way = open_way(SCHEMA, late=LATE)
    way.intake.keep(predictions(("one", 1), ("two", 2), ("done", 1))).result(10)
    assert label(way, line("done")).status == 200
    return way


ANSWERS: list[tuple[str, bytes, int, str]] = [
    ("a label", line("one"), 200, '"accepted": 1'),
    ("a label of a row", line("two/1"), 200, '"accepted": 1'),
    ("a row of a request that has one", line("one/0"), 200, '"accepted": 1'),
    ("two rows of a request", line("two/0") + b"\n" + line("two/1"), 200, '"accepted": 2'),
    ("no row of a request that has two", line("two"), 422, "unknown.*has 2 rows: name one, two/0 to two/1"),
    ("a row that the request has not", line("two/2"), 422, "unknown.*has 2 rows, from 0 on, and no row 2"),
    ("an id that nobody was given", line("none"), 422, "unknown.*no prediction 'none' is known"),
    ("a second label", line("done"), 422, "repeated.*has its label already"),
    ("the same prediction twice", line("one") + b"\n" + line("one", 2), 200, "repeated"),
    ("no id", b'{"label": 1}', 422, "missing_input.*prediction_id: missing"),
    ("a number as id", line(7), 422, "decode.*prediction_id: needed text, got int"),
    ("an empty id", line(""), 422, "unknown.*'' is no prediction's id"),
    ("an id of 200 characters", line("i" * 200), 422, "unknown.*is no prediction's id"),
    ("a row that is no number", line("two/first"), 422, "unknown.*is no prediction's id"),
    ("a row of twenty digits", line("two/" + "9" * 20), 422, "unknown.*is no prediction's id"),
    ("half of a surrogate pair as id", b'{"prediction_id": "\\ud800", "label": 1}', 422, "decode.*is not Unicode"),
    ("no label", b'{"prediction_id": "one"}', 422, "missing_label.*label: missing"),
    ("a null as label", line("one", None), 422, "missing_label.*label: missing"),
    ("text as label", line("one", "yes"), 422, "decode.*label: needed int"),
    ("a half as label", line("one", 0.5), 422, "decode.*label: needed int"),
    ("a record", b'{"x": [1, 2], "label": 1}', 422, "missing_input.*prediction_id: missing"),
    ("no JSON", b"one,1", 422, "decode.*broken JSON"),
    ("nothing", b"", 200, '"accepted": 0'),
]


@pytest.mark.parametrize(("what", "body", "status", "said"), ANSWERS)
def test_an_answer_to_labels(what: str, body: bytes, status: int, said: str, way: Any) -> None:
    """What makes a record is accepted; whatever else comes is told why, by its row."""
    answer = label(way, body)
    assert answer.status == status, answer
    assert re.search(said, json.dumps(dict(answer.body)), re.S), answer


def test_arrow_and_lines_are_the_same_labels(way: Any) -> None:
    """A batch that is sent again over the other form is known; its ack tells what became of it the first time."""
    rows = pa.record_batch({"prediction_id": ["one", "none"], "label": [1, 2]})
    sent = {"streamkd-producer": "p", "streamkd-sequence": "0"}
    first = label(way, ipc(rows), ARROW, **sent)
    assert (first.status, first.body["accepted"], first.body["rejected"]) == (200, 1, 1)
    assert first.body["reasons"][0]["row"] == 1
    again = label(way, line("one") + b"\n" + line("none", 2), LINES, **sent)
    assert (again.body["duplicate"], again.body["accepted"], again.body["rejected"]) == (True, 1, 1)
    assert label(way, line("two/0"), **sent).status == 409
    assert way.log.end() == 2


def test_labels_are_counted(way: Any) -> None:
    """Joined, unmatched by reason, the delay, and what is pending; a joined label is a record of the source."""
    label(way, line("one") + b"\n" + line("done") + b"\n" + line("none"))
    assert way.counted("labels_joined_total") == 2
    assert way.counted("source_records_total", "main") == 2
    assert [way.counted("labels_unmatched_total", reason) for reason in ("repeated", "unknown", "late")] == [1, 1, 0]
    assert told(way.log.label_counts())["pending"] == 2


def test_the_delay_is_from_the_prediction(way: Any) -> None:
    """A minute, by the time of day at both ends."""
    found = [value for family, _, value in way.recorder.drain() if family == "label_delay_seconds"]
    assert 59 < found[0][0] < 90


def test_a_server_that_keeps_no_predictions_takes_no_labels(open_way: Callable) -> None:
    """It says what to set."""
    answer = label(open_way(SCHEMA), line("one"))
    assert answer.status == 400
    assert "set stream.labels to {}" in answer.body["error"]


def test_labels_that_wait_count_as_records_that_wait(open_way: Callable) -> None:
    """So the log never gets more to learn than it has room for; when they are given up there is room again."""
    way = open_way(SCHEMA, late=LateLabels(early_seconds=0.3), queue_records=10)
    assert label(way, b"\n".join(line(f"early-{n}") for n in range(8))).body["waiting"] == 8
    assert label(way, b"\n".join(line(f"more-{n}") for n in range(3))).status == 429
    deadline = time.monotonic() + 10
    while way.log.label_counts()["unknown"] < 8:
        way.intake.tidy()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert label(way, b"\n".join(line(f"more-{n}") for n in range(3))).status == 200


def test_a_label_that_is_early_is_told_so(open_way: Callable) -> None:
    """How many are, how long they wait and what comes then; of others nothing is said."""
    way = open_way(SCHEMA, late=LateLabels(early_seconds=90))
    way.intake.keep(predictions(("one", 1))).result(10)
    said = label(way, line("one") + b"\n" + line("soon") + b"\n" + line("never")).body
    assert (said["accepted"], said["waiting"], said["early"]) == (3, 2, 2)
    assert "waits 90 s for it; after that it is unknown" in said["note"]
    assert way.log.label_counts()["early"] == 2
    way.intake.keep(predictions(("two", 1))).result(10)
    assert not {"early", "note"} & set(label(way, line("two")).body)


def test_a_full_log_keeps_no_predictions(open_way: Callable) -> None:
    """They are refused before they are written."""
    way = open_way(SCHEMA, late=LATE, quota_bytes=1_000)
    with pytest.raises(Overloaded, match="the log holds"):
        way.intake.keep(predictions(("one", 1)))


def test_a_row_that_can_be_no_record_has_no_prediction(open_way: Callable) -> None:
    """What the log would refuse is not kept; the request's other rows are, under their numbers."""
    way = open_way(SCHEMA, late=LATE)
    rows = predictions(("good", 1), ("bad", 2), ("also", 1))
    x = np.array([0, 0, 0, 0, np.nan, 0, 7, 0], np.float32)
    spoilt = rows.set_column(0, rows.schema.field(0), pa.FixedSizeListArray.from_arrays(pa.array(x), 2))
    listener = HttpListener(HttpOptions(), way.ingest())
    answer = listener.keep(ipc(spoilt.replace_schema_metadata(rows.schema.metadata)))
    assert answer == Answer(200, {"kept": 3})
    said = label(way, line("bad/1") + b"\n" + line("also") + b"\n" + line("bad/0")).body
    assert [(each["row"], each["reason"]) for each in said["reasons"]] == [(0, "unknown")]
    assert "row 1 of the request 'bad' was refused" in said["reasons"][0]["detail"]
    assert way.log.read(0, 2).rows.column("x").to_pylist() == [[7, 0], [0, 0]]


@pytest.fixture
def url(way: Any, tmp_path: Path) -> Any:
    """A Flight port over it, with a token for each scope in `keys`."""
    path = tmp_path / "tokens.json"
    keys = {scope: tokens.create(path, scope, [scope]) for scope in ("ingest", "label", "predict")}
    listener = FlightListener(FlightOptions(), way.ingest(tokens=Tokens(path)))
    yield listener.start()["flight"], keys
    listener.close()


def put(url: str, key: str, rows: pa.RecordBatch, descriptor: fl.FlightDescriptor) -> Any:
    options = fl.FlightCallOptions(headers=[(b"authorization", f"Bearer {key}".encode())])
    with fl.connect(url) as client:
        writer, acks = client.do_put(descriptor, rows.schema, options)
        with writer:
            writer.write_with_metadata(rows, json.dumps({"producer": "p", "sequence": 0}).encode())
            writer.done_writing()
            ack = acks.read()
        return None if ack is None else json.loads(ack.to_pybytes())


def test_labels_over_flight(way: Any, url: Any) -> None:
    """Under a descriptor of their own, by a token of the scope `label`; the schema can be asked for."""
    place, keys = url
    rows = pa.record_batch({"prediction_id": ["one", "two/0", "none"], "label": [1, 2, 3]})
    ack = put(place, keys["label"], rows, LABELS)
    assert (ack["accepted"], ack["rejected"], ack["offset"]) == (2, 1, 3)
    options = fl.FlightCallOptions(headers=[(b"authorization", f"Bearer {keys['label']}".encode())])
    with fl.connect(place) as client:
        assert client.get_schema(LABELS, options).schema.names == ["prediction_id", "label"]


@pytest.mark.parametrize(
    ("scope", "descriptor", "said"),
    [
        ("ingest", LABELS, "does not have the scope 'label'"),
        ("label", fl.FlightDescriptor.for_path("main"), "does not have the scope 'ingest'"),
        ("predict", LABELS, "does not have the scope"),
    ],
)
def test_each_door_wants_its_scope(scope: str, descriptor: fl.FlightDescriptor, said: str, url: Any) -> None:
    """A token for records opens no labels, one for labels no records."""
    place, keys = url
    rows = pa.record_batch({"prediction_id": ["one"], "label": [1]})
    with pytest.raises(fl.FlightUnauthorizedError, match=said):
        put(place, keys[scope], rows, descriptor)


def test_http_labels_want_their_scope(way: Any, tmp_path: Path) -> None:
    """401 without a token, 403 with one for records."""
    path = tmp_path / "tokens.json"
    key = tokens.create(path, "p", ["ingest"])
    listener = HttpListener(HttpOptions(), way.ingest(tokens=Tokens(path)))
    headers = {"content-type": LINES, "content-length": "1"}
    nobody, other = (listener.refusal(None, {**headers, **more}) for more in ({}, {"authorization": f"Bearer {key}"}))
    assert nobody is not None
    assert other is not None
    assert (nobody.status, other.status) == (401, 403)
    assert "scope 'label'" in other.body["error"]
