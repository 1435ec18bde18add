"""``streamkd predict``: columns that do not fit the model, and answers that no server of ours gives."""

import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from streamkd.errors import RecordError, StreamkdError
from streamkd.serve.predictions import client
from streamkd.serve.predictions.tensors import Faults

COLUMNS: list[tuple[str, str, int, pa.Array, str | list[Any]]] = [
    # title, the model's type, values a record, the file's column, the words (or the values that are sent)
    ("numbers that fit", "UINT8", 1, pa.array([0, 255]), [[0], [255]]),
    ("whole floats", "UINT8", 1, pa.array([0.0, 255.0]), [[0], [255]]),
    ("truth values", "FP32", 1, pa.array([True, False]), [[1], [0]]),
    ("float64 that float32 rounds", "FP32", 1, pa.array([0.1, 1e-60]), [[np.float32(0.1)], [0]]),
    ("lists", "INT64", 2, pa.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    ("256 for a byte", "UINT8", 1, pa.array([0, 256]), "row 1: needed finite numbers that fit UINT8, got"),
    ("-1 for a byte", "UINT8", 1, pa.array([-1, 0]), "row 0: needed finite numbers that fit UINT8, got [-1]"),
    ("a half for a byte", "UINT8", 1, pa.array([1.0, 0.5]), "row 1: needed finite numbers that fit UINT8, got [0.5]"),
    ("2^63 for int64", "INT64", 1, pa.array([1, 2**63], pa.uint64()), "row 1: needed finite numbers that fit INT64"),
    ("2^31 for int32", "INT32", 1, pa.array([2**31, 1]), "row 0: needed finite numbers that fit INT32"),
    (
        "1e300 for float32",
        "FP32",
        1,
        pa.array([1.0, 1e300]),
        "row 1: needed finite numbers that fit FP32, got [1e+300]",
    ),
    ("NaN", "FP32", 1, pa.array([float("nan"), 1.0]), [[np.nan], [1]]),
    ("a null", "FP32", 1, pa.array([1.0, None]), [[1], [np.nan]]),
    ("a null in a list of floats", "FP32", 2, pa.array([[1, None], None]), [[1, np.nan], [np.nan, np.nan]]),
    ("nothing but nulls", "FP32", 1, pa.nulls(1), [[np.nan]]),
    ("infinity", "FP32", 1, pa.array([float("inf"), 1.0]), "row 0: needed finite numbers that fit FP32, got [inf]"),
    ("a null for a byte", "UINT8", 1, pa.array([None, 1]), "row 0: needed 1 numbers, got None"),
    ("text", "FP32", 1, pa.array(["a", "b"]), "column 'x': needed numbers or lists of numbers, got string"),
    ("numbers as text", "FP32", 1, pa.array(["1", "2"]), "column 'x': needed numbers or lists of numbers, got string"),
    ("dates", "FP32", 1, pa.array([0, 1], pa.date32()), "needed numbers or lists of numbers, got date32"),
    ("objects", "FP32", 1, pa.array([{"a": 1}, None]), "needed numbers or lists of numbers, got struct"),
    ("a number for a list", "FP32", 4, pa.array([1.0, 2.0]), "row 0: needed 4 numbers, got 1.0"),
    ("short lists", "FP32", 2, pa.array([[1.0, 2.0], [1.0]]), "row 1: needed 2 numbers, got [1.0]"),
    ("a null in a list", "UINT8", 2, pa.array([[1, 2], [1, None]]), "row 1: needed 2 numbers, got [1, None]"),
    ("lists of text", "FP32", 1, pa.array([["a"], ["b"]]), "needed numbers or lists of numbers, got list"),
]


@pytest.mark.parametrize(("title", "datatype", "size", "column", "said"), COLUMNS, ids=[row[0] for row in COLUMNS])
def test_a_column_is_sent_as_it_is_or_refused(
    title: str, datatype: str, size: int, column: pa.Array, said: str | list[Any]
) -> None:
    """What would reach the model as another value, or cannot be a value, refuses its row; another type the column."""
    tensor, faults = {"name": "x", "datatype": datatype, "shape": [-1, size]}, Faults()
    rows = pa.record_batch({"x": column})
    if isinstance(said, str) and not said.startswith("row"):
        with pytest.raises(RecordError, match=re.escape(said)):
            client._raw(rows, tensor, faults)
        return
    sent = np.frombuffer(client._raw(rows, tensor, faults), client._ELEMENT[datatype]).reshape(-1, size)
    if isinstance(said, list):
        assert not faults
        np.testing.assert_array_equal(sent, said)
    else:
        row = int(said[4])
        assert said[7:] in faults[row]
        assert not sent[row].any()


ELEMENTS: list[tuple[str, pa.Array, list[bytes]]] = [
    ("text", pa.array(["a", None, ""]), [b"a", b"", b""]),
    ("whole numbers", pa.array([5, None]), [b"5", b""]),
    ("the floats that pandas makes of them", pa.array([5.0, float("nan")]), [b"5", b""]),
    ("booleans", pa.array([True, False]), [b"1", b"0"]),
    ("dates", pa.array([0, None], pa.date32()), [b"1970-01-01", b""]),
    ("times", pa.array([1_500_000_001], pa.timestamp("ns")), [b"1970-01-01T00:00:01.500000"]),
    ("times of a zone", pa.array([0], pa.timestamp("s", "UTC")), [b"1970-01-01T00:00:00+00:00"]),
    ("bytes", pa.array([b"\xff"]), [b"\xff"]),
    ("a dictionary", pa.array(["a", "a"]).dictionary_encode(), [b"a", b"a"]),
]


@pytest.mark.parametrize(("title", "column", "said"), ELEMENTS, ids=[row[0] for row in ELEMENTS])
def test_a_value_is_written_out_as_the_learner_reads_it(title: str, column: pa.Array, said: list[bytes]) -> None:
    """Categories, times and texts of whatever type; what is missing is empty."""
    raw = client._raw(pa.record_batch({"x": column}), {"name": "x", "datatype": "BYTES", "shape": [-1, 1]}, Faults())
    assert raw == b"".join(len(each).to_bytes(4, "little") + each for each in said)


REPLIES: list[tuple[str, int, bytes, str]] = [
    ("a page for humans", 200, b"<html>welcome</html>", "200, and no JSON object: '<html>welcome</html>'"),
    ("nothing", 200, b"", "200, and no JSON object"),
    ("a list", 200, b"[]", "200, and no JSON object: '[]'"),
    ("another's JSON", 200, b'{"hello": 1}', "is no model of ours"),
    ("another's 503", 503, b"busy", "503, and no JSON object: 'busy'"),
    ("our 503", 503, b'{"error": "no version is published"}', "no version is published"),
    ("another's 404", 404, b"not found", "404, and no JSON object: 'not found'"),
    ("our 401", 401, b'{"error": "needed a token"}', "401: needed a token"),
    ("a list of errors", 400, b'["no"]', "400, and no JSON object"),
]


@pytest.fixture(scope="module")
def stranger() -> Iterator[http.server.HTTPServer]:
    """A server that says one thing to everybody: its ``reply``."""

    class Says(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = self.server.reply  # type: ignore[attr-defined]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None: ...

    server = http.server.HTTPServer(("127.0.0.1", 0), Says)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("title", "status", "body", "said"), REPLIES, ids=[row[0] for row in REPLIES])
def test_what_no_server_of_ours_says_is_said(
    title: str, status: int, body: bytes, said: str, stranger: http.server.HTTPServer, tmp_path: Path
) -> None:
    """Whoever listens there, the answer is an error in words with the URL."""
    pa.parquet.write_table(pa.table({"x": [1.0]}), tmp_path / "x.parquet")
    stranger.reply = (status, body)  # type: ignore[attr-defined]
    url = f"http://127.0.0.1:{stranger.server_port}"
    with pytest.raises(StreamkdError) as caught:
        next(client.predict_file(tmp_path / "x.parquet", url))
    assert said in str(caught.value)
    assert caught.value.where == url
