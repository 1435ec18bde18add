"""Everything that a stranger may send wrong, to one running server: a clear answer each time, and nothing else moves.

The module's server learns all the while; after each attack what was acknowledged is in the log, the learner has
the same process number, predictions are answered, and good records are taken within two seconds.
"""

import io
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pytest

from . import bare_flight
from .conftest import PUSHED, Serve, Server, merged, records, until
from .test_push import arrow_stream, json_lines

ARROW = {"Content-Type": "application/vnd.apache.arrow.stream"}
LINES = {"Content-Type": "application/x-ndjson"}
LIMITS = {"batch_rows": 2_000, "batch_bytes": 4 << 20, "ingress_bytes": 1 << 30, "row_bytes": 1 << 16}
BACK_SECONDS = 2.0


class Sender:
    """Sends good records and remembers how many were acknowledged."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.acknowledged = 0

    def good(self, rows: int = 20) -> None:
        """Good records are taken within two seconds."""
        body = arrow_stream(records(rows, first=self.acknowledged))
        deadline = time.monotonic() + BACK_SECONDS
        while (answer := self.server.post("/v1/streams/main", content=body, headers=ARROW)).status_code != 200:
            assert answer.status_code == 503, answer.text
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.05)
        self.acknowledged += rows


@pytest.fixture(scope="module")
def sender(serve_in: Callable[[Path], Serve], tmp_path_factory: pytest.TempPathFactory) -> Sender:
    folder = tmp_path_factory.mktemp("bad")
    sender = Sender(serve_in(folder)(merged(PUSHED, {"stream": {"limits": LIMITS}})))
    sender.good(200)
    until(sender.server.ready, 30, "readiness")
    return sender


@pytest.fixture(autouse=True)
def _unmoved(sender: Sender) -> Iterator[None]:
    """Before and after each attack: same learner, predictions, and every acknowledged record trained."""
    server = sender.server
    learner = server.pid("learner")
    yield
    sender.good()
    image = {"name": "x", "shape": [1, 8], "datatype": "FP32", "data": [0.0] * 8}
    assert server.post("/v2/models/student/infer", json={"inputs": [image]}).status_code == 200
    server.trained(sender.acknowledged)
    assert server.pid("learner") == learner
    assert server.status()["records_trained"] == sender.acknowledged
    assert "Traceback" not in server.err


def put(server: Server, *batches: pa.RecordBatch, note: bytes | None = None, compression: str | None = None) -> None:
    """Put batches over Flight as they are."""
    options = fl.FlightCallOptions(write_options=pa.ipc.IpcWriteOptions(compression=compression), timeout=30)
    with fl.connect(server.flight) as client:
        writer, acks = client.do_put(fl.FlightDescriptor.for_path("main"), batches[0].schema, options)
        for batch in batches:
            if note:
                writer.write_with_metadata(batch, note)
            else:
                writer.write_batch(batch)
        writer.done_writing()
        while acks.read() is not None:
            pass
        writer.close()


def fixed(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def batch(x: pa.Array, label: pa.Array | None = None, task: pa.Array | None = None) -> pa.RecordBatch:
    rows = len(x)
    columns = {"x": x, "label": label or pa.array([0] * rows), "task": task or pa.array(["t0"] * rows)}
    return pa.record_batch(columns)


ZEROS = np.zeros((3, 8), np.float32)
WHOLE: list[tuple[str, pa.RecordBatch, tuple[str, ...]]] = [
    ("shape", batch(fixed(np.zeros((3, 9), np.float32))), ("x", "8", "9")),
    ("type", batch(pa.array(["a", "b", "c"])), ("x", "string")),
    ("column", pa.record_batch({"y": fixed(ZEROS), "label": pa.array([0] * 3), "task": ["a"] * 3}), ("'x'", "y")),
    ("label type", batch(fixed(ZEROS), pa.array(["a", "b", "c"])), ("label", "string")),
    ("no label", pa.record_batch({"x": fixed(ZEROS), "task": pa.array(["a"] * 3)}), ("label",)),
]


@pytest.mark.parametrize(("rows", "words"), [w[1:] for w in WHOLE], ids=[w[0] for w in WHOLE])
def test_a_batch_that_does_not_fit_is_refused_whole(
    sender: Sender, rows: pa.RecordBatch, words: tuple[str, ...]
) -> None:
    """Shape, type, column, label type: refused over HTTP and over Flight, in words that name the column."""
    answer = sender.server.post("/v1/streams/main", content=arrow_stream(rows), headers=ARROW)
    assert answer.status_code == 422, answer.text
    with pytest.raises(pa.ArrowInvalid) as caught:
        put(sender.server, rows)
    for word in words:
        assert word in answer.json()["error"]
        assert word in str(caught.value)


def test_the_ten_lines_of_the_readme_raise_what_is_wrong(sender: Sender) -> None:
    """The bare client is told why its records are refused, not only that something was not there."""
    table = pa.Table.from_batches([records(30).drop_columns(["label"])])
    with pytest.raises(pa.ArrowInvalid, match="column 'label'"):
        bare_flight.put(sender.server.flight, table, "bare")


def test_bad_rows_are_dead_letters_with_their_reason(sender: Sender) -> None:
    """A missing label, a NaN, a null: the batch's other rows are taken, these are kept with the reason."""
    before = sender.server.metric("dead_letter_records_total")
    x = np.zeros((5, 8), np.float32)
    x[1, 3] = np.nan
    x[2, 0] = np.inf
    rows = batch(fixed(x), pa.array([0, 0, 0, None, 1]), pa.array(["t0"] * 5))
    said = sender.server.post("/v1/streams/main", content=arrow_stream(rows), headers=ARROW).json()
    assert (said["accepted"], said["rejected"]) == (2, 3)
    assert {(each["row"], each["reason"]) for each in said["reasons"]} == {
        (1, "not_finite"),
        (2, "not_finite"),
        (3, "missing_label"),
    }
    sender.acknowledged += 2
    until(lambda: sender.server.metric("dead_letter_records_total") == before + 3, 10, "three dead letters")


def test_an_empty_batch_is_no_error(sender: Sender) -> None:
    """Nothing is taken, and nothing is wrong, over either way."""
    empty = records(1).slice(0, 0)
    assert sender.server.post("/v1/streams/main", content=arrow_stream(empty), headers=ARROW).json()["accepted"] == 0
    assert sender.server.post("/v1/streams/main", content=b"", headers=LINES).json()["accepted"] == 0
    put(sender.server, empty)


def test_what_is_too_large_is_refused(sender: Sender) -> None:
    """Too many rows, too many bytes, a body past the limit: 413, and a Flight error that names the limit."""
    long = batch(fixed(ZEROS), task=pa.array(["t" * (2 << 20)] * 3))
    for rows, limit in ((records(2_001), "2001 rows, at most 2000"), (long, "bytes")):
        answer = sender.server.post("/v1/streams/main", content=arrow_stream(rows), headers=ARROW)
        assert (answer.status_code, limit in answer.text) == (413, True), answer.text
        with pytest.raises(pa.ArrowInvalid, match=limit):
            put(sender.server, rows)
    answer = sender.server.post("/v1/streams/main", content=b" " * (5 << 20), headers=LINES)
    assert answer.status_code == 413


def bomb(rows: int, compression: str = "zstd") -> bytes:
    """A few kilobytes that unfold into gigabytes."""
    x = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(rows * 8, np.float32)), 8)
    tasks = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int8)), pa.array(["t0"]))
    whole = batch(x, pa.array(np.zeros(rows, np.int64)), tasks)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, whole.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_batch(whole)
    return sink.getvalue()


def test_a_bomb_hurts_nobody(sender: Sender) -> None:
    """zstd that unfolds past all limits: refused, or the end of the ingress alone; good records go on within 2 s."""
    body = bomb(4_000_000)
    assert len(body) < 1 << 20
    answer = sender.server.post("/v1/streams/main", content=body, headers=ARROW)
    assert answer.status_code in (413, 503), answer.text
    sender.good()
    rows = pa.ipc.open_stream(body).read_next_batch()
    with pytest.raises((fl.FlightError, pa.ArrowException)):
        put(sender.server, rows, compression="zstd")


def test_a_killed_ingress_is_back_at_once(sender: Sender) -> None:
    """kill -9 of the ingress: records are taken again within two seconds, on the same ports."""
    flight = sender.server.flight
    os.kill(sender.server.pid("ingress"), signal.SIGKILL)
    sender.good()
    put(sender.server, records(10, first=sender.acknowledged))
    sender.acknowledged += 10
    assert sender.server.flight == flight


def declared(rows: int) -> bytes:
    """A stream of some hundred bytes whose one batch says that it has so many rows."""
    body = bytearray(arrow_stream(records(3)))
    place = body.find((3).to_bytes(8, "little"), body.find(b"task"))
    count = 0
    while place >= 0:  # every length of 3 in the batch: of the batch, and of its columns
        body[place : place + 8] = rows.to_bytes(8, "little")
        place, count = body.find((3).to_bytes(8, "little"), place + 8), count + 1
    assert count >= 3
    return bytes(body)


def test_two_billion_declared_rows_are_refused(sender: Sender) -> None:
    """2^31 rows in a few hundred bytes: 4xx in no time."""
    begun = time.monotonic()
    answer = sender.server.post("/v1/streams/main", content=declared(1 << 31), headers=ARROW)
    assert answer.status_code in (400, 413), answer.text
    assert time.monotonic() - begun < 1
    assert "rows" in answer.json()["error"]


def test_what_is_no_arrow_is_refused(sender: Sender) -> None:
    """Noise, a Parquet file and a cut stream instead of Arrow: 400, in words."""
    whole = arrow_stream(records(100))
    for body in (b"noise" * 100, b"PAR1" + bytes(100), whole[: len(whole) // 2]):
        answer = sender.server.post("/v1/streams/main", content=body, headers=ARROW)
        assert answer.status_code == 400, answer.text
        assert "Arrow" in answer.json()["error"]


def test_broken_lines_are_dead_letters(sender: Sender) -> None:
    """Broken JSON between good lines: those are taken, the broken one is kept; all broken is 422."""
    good = json_lines(records(2, first=sender.acknowledged))
    said = sender.server.post("/v1/streams/main", content=b'{"x": [1,\n' + good, headers=LINES)
    assert said.status_code == 200
    assert [(each["row"], each["reason"]) for each in said.json()["reasons"]] == [(0, "decode")]
    sender.acknowledged += 2
    all_bad = sender.server.post("/v1/streams/main", content=b"nonsense\n[]\n", headers=LINES)
    assert all_bad.status_code == 422
    assert len(all_bad.json()["reasons"]) == 2


def test_a_schema_that_changes_in_mid_stream_keeps_what_came_before(sender: Sender) -> None:
    """A producer that changes its schema is refused, on this put stream and the next; what came before counts."""
    first, changed = records(10, first=sender.acknowledged), batch(pa.array(["a"]))
    with fl.connect(sender.server.flight) as client:
        writer, acks = client.do_put(fl.FlightDescriptor.for_path("main"), first.schema)
        writer.write_batch(first)
        assert json.loads(acks.read().to_pybytes())["accepted"] == 10
        sender.acknowledged += 10
        with pytest.raises(pa.ArrowInvalid, match="different schema"):
            writer.write_batch(changed)
        writer.done_writing()
        assert acks.read() is None
        writer.close()
    with pytest.raises(pa.ArrowInvalid, match="column 'x'"):
        put(sender.server, changed)


def test_the_wrong_stream_and_the_wrong_metadata_are_named(sender: Sender) -> None:
    """Another stream's name, metadata that is no JSON, a sequence without producer: refused, in words."""
    answer = sender.server.post("/v1/streams/other", content=b"{}", headers=LINES)
    assert (answer.status_code, "'main'" in answer.text) == (404, True)
    with pytest.raises(pa.ArrowInvalid, match="producer"):
        put(sender.server, records(3), note=b"nonsense")
    alone = {**ARROW, "Streamkd-Sequence": "1"}
    assert sender.server.post("/v1/streams/main", content=arrow_stream(records(3)), headers=alone).status_code == 400


def test_predictions_of_nonsense_are_refused(sender: Sender) -> None:
    """Wrong names, shapes, types and bodies of prediction requests: 400 with a number to ask about."""

    def ask(body: Any) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return sender.server.post("/v2/models/student/infer", content=content)

    good = {"name": "x", "shape": [1, 8], "datatype": "FP32", "data": [0.0] * 8}
    for change in (
        {"name": "y"},
        {"shape": [1, 9]},
        {"shape": [1 << 31, 8]},
        {"datatype": "BYTES"},
        {"data": ["a"] * 8},
    ):
        answer = ask({"inputs": [{**good, **change}]})
        assert answer.status_code in (400, 413), (change, answer.text)
        assert answer.json()["id"]
    for body in (b"nonsense", {}, [], {"inputs": []}, b"[" * 100_000):
        assert ask(body).status_code == 400, body[:20] if isinstance(body, bytes) else body
