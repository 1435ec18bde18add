"""The source http: the rules of a request, without a web framework."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkd.records import InputColumn, RecordSchema
from streamkd.settings import Limits
from streamkd.streams.ingest import tokens
from streamkd.streams.ingest.http import ARROW, LINES, Answer, HttpListener, HttpOptions
from streamkd.streams.ingest.intake import Ingest, Intake
from streamkd.streams.ingest.tokens import Tokens
from streamkd.streams.log.log import Log
from streamkd.telemetry import Recorder

Pictures = Callable[..., pa.RecordBatch]
GOOD_LINE = b'{"x": [1, 2, 3, 4, 5, 6], "label": 1}'


def listener(way: Any, **where: Any) -> HttpListener:
    return HttpListener(HttpOptions(), way.ingest(**where))


def stream(*batches: pa.RecordBatch, compression: str | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def post(way: Any, body: bytes, kind: str = ARROW, producer: str | None = None, sequence: str | None = None) -> Answer:
    headers = {"content-type": kind}
    if producer is not None:
        headers["streamkd-producer"] = producer
    if sequence is not None:
        headers["streamkd-sequence"] = sequence
    return listener(way).receive(headers, body)


def test_an_arrow_stream_is_one_batch(open_way: Callable, pictures: Pictures) -> None:
    """All its record batches have one receipt, which comes when they are on disk."""
    way = open_way()
    answer = post(way, stream(pictures(3), pictures(4, first=3), compression="zstd"), producer="p", sequence="7")
    assert answer == Answer(200, {"sequence": 7, "accepted": 7, "rejected": 0, "offset": 7, "duplicate": False})
    assert way.labels() == list(range(7))


def test_json_lines_are_taken_and_bad_ones_named(open_way: Callable) -> None:
    """200 while a row was accepted; each refused row with its reason; the line itself is dead-lettered."""
    way = open_way()
    answer = post(way, GOOD_LINE + b"\n" + b'{"x": [1], "label": 2}' + b"\n" + GOOD_LINE, f"{LINES}; charset=utf-8")
    assert (answer.status, answer.body["accepted"], answer.body["rejected"]) == (200, 2, 1)
    assert answer.body["reasons"] == [
        {"row": 1, "reason": "wrong_shape", "detail": "x: needed shape [2, 3], got [1]"},
    ]
    assert way.log.letters.list()[0].record == b'{"x": [1], "label": 2}'


@pytest.mark.parametrize("body", [b"{broken", b'{"label": 1}\n{"x": []}'])
def test_a_body_of_bad_lines_only_is_422_with_reasons(body: bytes, open_way: Callable) -> None:
    """Nothing was accepted; every reason is told."""
    way = open_way()
    answer = post(way, body, LINES)
    assert answer.status == 422
    assert len(answer.body["reasons"]) == body.count(b"\n") + 1
    assert way.log.end() == 0


def test_an_empty_body_of_lines_is_no_error(open_way: Callable) -> None:
    """Nothing came, nothing is refused."""
    told = post(open_way(), b"\n", LINES).body
    assert told == {"sequence": None, "accepted": 0, "rejected": 0, "offset": 0, "duplicate": False}


def test_an_empty_stream_is_no_error(open_way: Callable, pictures: Pictures) -> None:
    """A schema without batches, and a batch without rows."""
    sink = pa.BufferOutputStream()
    pa.ipc.new_stream(sink, pictures(1).schema).close()
    assert post(open_way(), bytes(sink.getvalue())).body["accepted"] == 0
    assert post(open_way(), stream(pictures(0))).status == 200


def test_a_request_sent_again_is_answered_as_the_first_time(open_way: Callable, pictures: Pictures) -> None:
    """Also when the first came over Flight: the log is one."""
    way = open_way()
    first = post(way, stream(pictures(3)), producer="p", sequence="1")
    again = post(way, stream(pictures(3)), producer="p", sequence="1")
    assert again == Answer(200, {**first.body, "duplicate": True})
    assert way.log.end() == 3


REFUSED: dict[str, tuple[Callable[[Pictures], bytes], int, str]] = {
    "not Arrow": (lambda pictures: b"hello", 400, "needed an Arrow IPC stream"),
    "broken off": (lambda pictures: stream(pictures(100))[:-600], 400, ""),
    "two streams": (lambda pictures: stream(pictures(1)) + stream(pictures(1)), 400, "after the end"),
    "another schema": (lambda pictures: stream(pa.record_batch({"x": ["a"], "label": [1]})), 422, "column 'x'"),
    "a name that is no text": (
        lambda pictures: stream(pictures(1)).replace(b"label", b"l\xffbel"),
        422,
        "names that are not UTF-8",
    ),
    "too many rows": (lambda pictures: stream(pictures(600), pictures(600)), 413, "1200 rows, at most 1000"),
    "a bomb": (lambda pictures: stream(_bomb(), compression="zstd"), 413, "bytes unpacked"),
    "2^31 rows": (lambda pictures: _declaring(stream(pictures(777)), 777, 2**31), 413, "2147483648 rows"),
    "2^62 rows": (lambda pictures: _declaring(stream(pictures(777)), 777, 2**62), 413, "rows, at most 1000"),
    "-1 rows": (lambda pictures: _declaring(stream(pictures(777)), 777, -1), 400, "-1 rows"),
    "another length": (lambda pictures: _declaring(stream(pictures(777)), 777, 778), 400, ""),
}


def _bomb() -> pa.RecordBatch:
    return _one().append_column("more", pa.array(["a" * 20_000_000]))


def _one() -> pa.RecordBatch:
    x = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(6, np.float32)), 6)
    return pa.record_batch({"x": x, "label": pa.array([1])})


def _declaring(data: bytes, rows: int, others: int) -> bytes:
    """The stream with another number of rows in its metadata."""
    assert struct.pack("<q", rows) in data
    return data.replace(struct.pack("<q", rows), struct.pack("<q", others))


@pytest.mark.parametrize("case", REFUSED)
def test_a_body_that_cannot_be_taken_is_refused_whole(case: str, open_way: Callable, pictures: Pictures) -> None:
    """With the status, what was needed and what came; nothing is written, and the next request is served."""
    body, status, said = REFUSED[case]
    way = open_way(batch_rows=1_000, batch_bytes=1 << 20)
    answer = post(way, body(pictures), producer="p", sequence="1")
    assert answer.status == status
    assert said in str(answer.body["error"])
    assert "Traceback" not in json.dumps(answer.body)
    assert (way.log.end(), way.log.letters.count()) == (0, 0)
    assert post(way, stream(pictures(2)), producer="p", sequence="1").body["accepted"] == 2


@given(places=st.lists(st.integers(0, 10_000), min_size=1, max_size=4), value=st.integers(0, 255))
@settings(max_examples=100)
def test_a_damaged_body_is_an_answer_of_2xx_or_4xx(
    places: list[int], value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever bytes are wrong: never a 500, never the end of the process."""
    body = bytearray(_mixed())
    for place in places:
        body[place % len(body)] = value
    schema = RecordSchema(inputs=(InputColumn(name="x", shape=(2, 3)),), label_type="string", task="task")
    log = Log(tmp_path_factory.mktemp("log") / "log.sqlite", schema)
    intake = Intake(log, Limits(), Recorder())
    answer = HttpListener(HttpOptions(), Ingest(intake, Tokens(None))).receive({"content-type": ARROW}, bytes(body))
    intake.close()
    log.close()
    assert answer.status in (200, 400, 413, 422)


def _mixed() -> bytes:
    """Nested lists, dictionaries and numbers, packed."""
    x = pa.array([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]] * 9, pa.list_(pa.list_(pa.float32())))
    labels = pa.array(["a", "b", "c"] * 3).dictionary_encode()
    return stream(pa.record_batch({"x": x, "label": labels, "task": pa.array(range(9))}), compression="zstd")


@pytest.mark.parametrize(
    ("producer", "sequence"),
    [("p", None), (None, "1"), ("p", "x"), ("p", "-1"), ("p", "1.5"), ("p", "9" * 30), ("", "1")],
)
def test_headers_that_are_no_name_are_refused(
    producer: str | None, sequence: str | None, open_way: Callable, pictures: Pictures
) -> None:
    """Guessing would lose or double a batch."""
    answer = post(open_way(), stream(pictures(1)), producer=producer, sequence=sequence)
    assert answer.status == 400
    assert "Streamkd-Sequence" in answer.body["error"]


def test_a_full_queue_is_429_with_a_time(open_way: Callable, pictures: Pictures) -> None:
    """HTTP does not wait; after a checkpoint the same request is taken."""
    way = open_way(queue_records=10)
    post(way, stream(pictures(10)))
    answer = post(way, stream(pictures(1)), producer="p", sequence="1")
    assert (answer.status, answer.headers) == (429, {"Retry-After": "1"})
    way.intake.committed(10)
    assert post(way, stream(pictures(1)), producer="p", sequence="1").status == 200


def test_a_draining_server_answers_503(open_way: Callable, pictures: Pictures) -> None:
    """With a time to come again, before and after the body is read."""
    way = open_way()
    way.intake.drain()
    refusal = listener(way).refusal("main", {"content-type": ARROW})
    for answer in (refusal, post(way, stream(pictures(1)))):
        assert answer is not None
        assert answer.status == 503
        assert "Retry-After" in answer.headers


def test_bad_rows_in_a_row_are_refused_and_not_kept(open_way: Callable) -> None:
    """The last request is refused whole."""
    way = open_way(bad_in_a_row=3)
    assert post(way, b"{}\n{}", LINES).status == 422
    answer = post(way, b"{}\n{}", LINES)
    assert answer.status == 422
    assert "4 refused rows in a row" in answer.body["error"]
    assert way.log.letters.count() == 2


@pytest.mark.parametrize(
    ("stream_name", "headers", "status"),
    [
        ("main", {"content-type": ARROW}, None),
        ("main", {"content-type": LINES, "content-length": "10"}, None),
        ("other", {"content-type": ARROW}, 404),
        ("main", {}, 415),
        ("main", {"content-type": "text/csv"}, 415),
        ("main", {"content-type": ARROW, "content-encoding": "gzip"}, 415),
        ("main", {"content-type": ARROW, "content-length": str(1 << 40)}, 413),
        ("main", {"content-type": ARROW, "content-length": "many"}, 413),
    ],
)
def test_a_request_can_be_refused_before_its_body(
    stream_name: str, headers: dict[str, str], status: int | None, open_way: Callable
) -> None:
    """By stream, type, encoding and announced size."""
    refusal = listener(open_way()).refusal(stream_name, headers)
    assert (refusal and refusal.status) == status


def test_a_token_opens_the_door(open_way: Callable, tmp_path: Path) -> None:
    """401 without one or with a wrong one, 403 with one for something else; each is counted."""
    path = tmp_path / "tokens.json"
    right, other = tokens.create(path, "producer", ["ingest"]), tokens.create(path, "reader", ["predict"])
    way = open_way()
    door = listener(way, tokens=Tokens(path))
    for header, status in ((None, 401), ("Bearer wrong", 401), (f"Bearer {other}", 403), (f"Bearer {right}", None)):
        headers = {"content-type": ARROW} | ({"authorization": header} if header else {})
        refusal = door.refusal("main", headers)
        assert (refusal and refusal.status) == status
    assert way.counted("auth_failures_total", "http") == 3
