"""The digest of a batch: what the log holds of it, whatever door it came through and however it was packed."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from streamkd.records import InputColumn, RecordSchema
from streamkd.settings import Limits
from streamkd.streams.ingest.admission import Sifted, admit_batch, admit_lines
from streamkd.streams.log.receipts import digest

INPUTS = (InputColumn(name="x", shape=(2,)), InputColumn(name="text", kind="text", shape=(16,)))
SCHEMA = RecordSchema(inputs=INPUTS, label_type="string", task="task", id="id", event_time="t", unlabelled=True)
X = [[1.0, 2.0], [3.0, 4.5], [5.0, 6.0]]
ROWS: dict[str, Any] = {
    "x": pa.FixedSizeListArray.from_arrays(pa.array(np.ravel(X), pa.float32()), 2),
    "text": pa.array(["one", "two", ""]),
    "label": pa.array(["a", None, "b"]),
    "task": pa.array(["t", "t", "u"]),
    "id": pa.array([None, "2", "3"]),
    "t": pa.array([0, None, 2_000_000], pa.timestamp("us", "UTC")),
}


def of(sifted: Sifted) -> bytes:
    return digest(sifted.rows, [each.row for each in sifted.rejects], sifted.letters)


def rows(**changes: Any) -> bytes:
    """The digest of the batch with other columns."""
    return of(admit_batch(pa.record_batch({**ROWS, **changes}), SCHEMA, Limits(), "p"))


def lines(**changes: Any) -> bytes:
    """The digest of the same records as JSON lines."""
    table = pa.record_batch({**ROWS, "t": pa.array([0, None, 2]), **changes})
    body = "\n".join(json.dumps(row) for row in table.to_pylist())
    return of(admit_lines(body.encode(), SCHEMA, Limits(), "p"))


def _as_one_came() -> pa.RecordBatch:
    """The rows as a slice of a longer batch that was compressed, with metadata, and read again."""
    sink = pa.BufferOutputStream()
    whole = pa.concat_batches([pa.record_batch(ROWS)] * 2).replace_schema_metadata({"made": "by somebody else"})
    with pa.ipc.new_stream(sink, whole.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(whole)
    return pa.ipc.open_stream(sink.getvalue()).read_next_batch().slice(3)


def _under_nulls() -> pa.Array:
    """The ids with other bytes under their null."""
    offsets, data = np.array([0, 4, 5, 6], np.int32), b"evil23"
    return pa.Array.from_buffers(pa.string(), 3, [pa.py_buffer(b"\x06"), pa.py_buffer(offsets), pa.py_buffer(data)])


ALIKE: list[tuple[str, Any]] = [
    ("Arrow again", rows),
    ("JSON lines", lines),
    ("float64, as pandas writes it", lambda: rows(x=pa.array(X))),
    ("dictionaries", lambda: rows(task=ROWS["task"].dictionary_encode(), label=ROWS["label"].dictionary_encode())),
    ("large strings", lambda: rows(text=ROWS["text"].cast(pa.large_string()))),
    ("seconds in another zone", lambda: rows(t=pa.array([0, None, 2], pa.timestamp("s", "Asia/Tokyo")))),
    ("a further column, which is ignored", lambda: rows(more=pa.array([1, 2, 3]))),
    ("other bytes under a null", lambda: rows(id=_under_nulls())),
    ("a slice, compressed, with metadata", lambda: of(admit_batch(_as_one_came(), SCHEMA, Limits(), "p"))),
]
OTHER: list[tuple[str, Any]] = [
    ("another value", lambda: rows(x=pa.array([[1.0, 2.0], [3.0, 4.5], [5.0, 6.5]]))),
    ("another order", lambda: of(admit_batch(pa.record_batch(ROWS).take([1, 0, 2]), SCHEMA, Limits(), "p"))),
    ("another label", lambda: rows(label=pa.array(["a", None, "c"]))),
    ("a label where there was none", lambda: rows(label=pa.array(["a", "a", "b"]))),
    ("an empty label for none", lambda: rows(label=pa.array(["a", "", "b"]))),
    ("letters that moved between rows", lambda: rows(text=pa.array(["on", "etwo", ""]))),
    ("another time", lambda: rows(t=pa.array([0, None, 2_000_001], pa.timestamp("us", "UTC")))),
    ("a row less", lambda: of(admit_batch(pa.record_batch(ROWS).slice(1), SCHEMA, Limits(), "p"))),
    ("a row that is refused", lambda: rows(task=pa.array(["t", None, "u"]))),
]


@pytest.mark.parametrize(("title", "made"), ALIKE, ids=[row[0] for row in ALIKE])
def test_the_same_rows_have_the_same_digest(title: str, made: Any) -> None:
    """However they were sent, as long as the log would hold the same."""
    assert made() == rows()


@pytest.mark.parametrize(("title", "made"), OTHER, ids=[row[0] for row in OTHER])
def test_other_rows_have_another_digest(title: str, made: Any) -> None:
    """One value, one place or one row is enough."""
    assert made() != rows()


def test_a_refused_row_counts_by_its_place_and_alone_by_what_it_holds() -> None:
    """Beside good rows its place is enough; where no row is good, what was refused tells batches apart."""
    first, second = (rows(task=pa.array(["t", None, "u"]), text=pa.array(["one", text, ""])) for text in ("a", "b"))
    assert first == second
    assert rows(task=pa.array([None, "t", "u"])) != rows(task=pa.array(["t", "t", None]))
    none = {"task": pa.nulls(3, pa.string())}
    assert rows(**none, text=pa.array(["a", "", ""])) != rows(**none, text=pa.array(["b", "", ""]))
