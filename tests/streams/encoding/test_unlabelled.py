"""Records without label, where the stream distils them: on every way in, and nowhere taken for another label."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from streamkd.errors import SchemaMismatch
from streamkd.records import InputColumn, RecordSchema
from streamkd.settings import Limits
from streamkd.streams.encoding import codec
from streamkd.streams.encoding.decoder import Decoder
from streamkd.streams.ingest.admission import Sifted, admit_batch, admit_lines
from streamkd.streams.log.log import LogSource
from streamkd.streams.replay import source as replay
from streamkd.streams.replay.options import ReplayOptions

STRICT = RecordSchema(inputs=(InputColumn(name="x", shape=(6,)),))
OPEN = STRICT.model_copy(update={"unlabelled": True})
TEXT = OPEN.model_copy(update={"label_type": "string"})
X = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(18, dtype=np.float32)), 6)

FORMS: dict[str, tuple[RecordSchema, pa.Array | None, list[Any]]] = {
    "null": (OPEN, pa.array([3, None, -1]), [3, None, -1]),
    "NaN, as pandas has it": (OPEN, pa.array([3.0, float("nan"), -1.0]), [3, None, -1]),
    "unsigned": (OPEN, pa.array([3, None, 1], pa.uint64()), [3, None, 1]),
    "dictionary": (OPEN, pa.array([3, None, 3]).dictionary_encode(), [3, None, 3]),
    "nothing but nulls": (OPEN, pa.nulls(3), [None, None, None]),
    "no column": (OPEN, None, [None, None, None]),
    "text": (TEXT, pa.array(["a", None, ""]), ["a", None, ""]),
    "text, nothing but nulls": (TEXT, pa.nulls(3), [None, None, None]),
    "text, no column": (TEXT, None, [None, None, None]),
}


def batch(labels: pa.Array | None) -> pa.RecordBatch:
    return pa.record_batch({"x": X} if labels is None else {"x": X, "label": labels})


@pytest.mark.parametrize("form", FORMS)
def test_a_label_that_is_not_there_is_none(form: str) -> None:
    """Null, NaN, a column of nulls or no column at all: the record is taken, its label is ``None``."""
    schema, labels, wanted = FORMS[form]
    sifted = admit_batch(batch(labels), schema, Limits(), "p")
    assert not sifted.rejects
    assert sifted.rows.schema.equals(codec.arrow_schema(schema))
    records, rejects = codec.encode(sifted.rows, schema, 0)
    assert (records.labels, rejects) == (wanted, [])
    assert records.labelled().labels == [label for label in wanted if label is not None]


def test_what_is_wrong_with_a_label_is_still_refused() -> None:
    """A fraction or an infinite number is no missing label; the row without one beside it is taken."""
    labels = pa.array([0.5, float("inf"), None])
    records, rejects = codec.encode(batch(labels), OPEN, 0)
    assert records.labels == [None]
    assert [(reject.row, reject.reason) for reject in rejects] == [(0, "decode"), (1, "decode")]


def test_other_columns_stay_needed() -> None:
    """Only the label may be left out."""
    with pytest.raises(SchemaMismatch, match="column 'x'"):
        admit_batch(pa.record_batch({"label": pa.array([1])}), OPEN, Limits(), "p")


def test_a_stream_that_rejects_them_finds_those_of_a_log_that_took_them() -> None:
    """Canonical rows with null labels are refused one by one once the stream takes none."""
    rows = admit_batch(batch(pa.array([3, None, 1])), OPEN, Limits(), "p").rows
    records, rejects = codec.encode(rows, STRICT, 10)
    assert (records.labels, records.offsets.tolist()) == ([3, 1], [10, 12])
    assert [(reject.row, reject.reason) for reject in rejects] == [(1, "missing_label")]


def lines(*records: dict[str, Any]) -> Sifted:
    return admit_lines("\n".join(map(json.dumps, records)).encode(), OPEN, Limits(), "p")


def test_a_json_line_may_leave_its_label_out() -> None:
    """Null or no key; a label of another type is still refused."""
    x = [0.0] * 6
    sifted = lines({"x": x}, {"x": x, "label": None}, {"x": x, "label": 4}, {"x": x, "label": "a"})
    assert sifted.rows.column("label").to_pylist() == [None, None, 4]
    assert [reject.reason for reject in sifted.rejects] == ["decode"]


def test_they_go_through_the_log_in_their_places(open_way: Callable) -> None:
    """Appended with labelled ones and without, cut anywhere, they come back in order with their offsets."""
    way = open_way(OPEN)
    for sequence, labels in enumerate((pa.array([0, None, 2]), None, pa.array([6, 7, None]))):
        way.intake.take(admit_batch(batch(labels), OPEN, Limits(), "p"), "p", sequence, "p").result(10)
    wanted = [0, None, 2, None, None, None, 6, 7, None]
    assert way.labels() == wanted
    source = LogSource(way.log)
    decoder, got = Decoder(source, OPEN), []
    for start in range(0, 9, 2):
        records, rejects = decoder.decode(source.read(way.log.partition, start, 2))
        got += zip(records.offsets.tolist(), records.labels, strict=True)
        assert not rejects
    assert got == list(enumerate(wanted))


def test_a_replay_can_take_labels_away() -> None:
    """About the share that was asked for, the same at every reading, of no test record; all else stays."""
    whole, half = (_replay(unlabelled=share) for share in (0.0, 0.5))
    before, after = (source.read(replay.PARTITION, 0, 1_000).rows for source in (whole, half))
    assert before.column("image").equals(after.column("image"))
    labels = after.column("label")
    assert 0.4 < labels.null_count / len(labels) < 0.6
    pairs = zip(before.column("label").to_pylist(), labels.to_pylist(), strict=True)
    assert all(now in (None, then) for then, now in pairs)
    assert labels.equals(_replay(unlabelled=0.5).read(replay.PARTITION, 0, 1_000).rows.column("label"))
    assert all(rows.column("label").null_count == 0 for rows in half.tests().values())


def _replay(**options: Any) -> replay.Replay:
    checked = ReplayOptions(dataset="digits", classes_per_task=5, seed=5, **options)
    schema = replay.describe(checked)
    assert schema is not None
    return replay.Replay(checked, schema)
