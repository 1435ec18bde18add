"""The codec: what fits a schema, which rows are good, and the numbers they become."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from streamkd.errors import LimitExceeded, SchemaMismatch
from streamkd.records import InputColumn, RecordSchema
from streamkd.streams.encoding import codec
from streamkd.streams.encoding.arrays import encode_inputs
from streamkd.students.networks import Normalise

VALUES = np.arange(12, dtype=np.float32)
SQUARE = RecordSchema(inputs=(InputColumn(name="x", shape=(2, 3)),))
BYTES = RecordSchema(inputs=(InputColumn(name="x", shape=(3,), dtype="uint8"),))


def no_fault(*fault: Any) -> None:
    pytest.fail(str(fault))


def with_labels(x: pa.Array, labels: Any = (0, 1)) -> pa.RecordBatch:
    return pa.record_batch({"x": x, "label": labels if isinstance(labels, pa.Array) else pa.array(list(labels))})


FORMS: dict[str, Callable[[], pa.Array]] = {
    "flat list": lambda: pa.array(VALUES.reshape(2, 6).tolist(), pa.list_(pa.float32())),
    "large list": lambda: pa.array(VALUES.reshape(2, 6).tolist(), pa.large_list(pa.float64())),
    "nested list": lambda: pa.array(VALUES.reshape(2, 2, 3).tolist(), pa.list_(pa.list_(pa.float32()))),
    "fixed in list": lambda: pa.array(VALUES.reshape(2, 2, 3).tolist(), pa.list_(pa.list_(pa.float32(), 3))),
    "fixed size": lambda: pa.FixedSizeListArray.from_arrays(pa.array(VALUES), 6),
    "integers": lambda: pa.FixedSizeListArray.from_arrays(pa.array(VALUES.astype(np.int64)), 6),
    "tensor": lambda: pa.FixedShapeTensorArray.from_numpy_ndarray(VALUES.reshape(2, 2, 3)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_tensor_becomes_the_same_canonical_column(form: str) -> None:
    """Lists, nested lists, fixed-size lists, fixed-shape tensors and integers of the same values are one thing."""
    rows, rejects = codec.sift(with_labels(FORMS[form]()), SQUARE)
    assert rejects == []
    assert rows.schema.equals(codec.arrow_schema(SQUARE))
    records, _ = codec.encode(rows, SQUARE, 0)
    np.testing.assert_array_equal(records.inputs, VALUES.reshape(2, 2, 3))
    assert records.inputs.dtype == np.float32


PIXELS = np.arange(2 * 3 * 2 * 4, dtype=np.uint8).reshape(2, 3, 2, 4)  # channels first
FIRST = InputColumn(name="x", shape=(3, 2, 4), dtype="uint8", layout="CHW", mean=(1, 2, 3))
LAYOUTS: dict[str, Callable[[], pa.Array]] = {
    "flat list": lambda: pa.array(PIXELS.reshape(2, -1).tolist(), pa.list_(pa.uint8())),
    "nested list": lambda: pa.array(PIXELS.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8())))),
    "tensor": lambda: pa.FixedShapeTensorArray.from_numpy_ndarray(PIXELS),
}


@pytest.mark.parametrize("form", LAYOUTS)
def test_images_that_come_channels_first_are_kept_channels_last(form: str) -> None:
    """In every form, from a stream and from a request; mean goes by channel."""
    schema = RecordSchema(inputs=(FIRST,))
    records, rejects = codec.encode(with_labels(LAYOUTS[form]()), schema, 0)
    assert rejects == []
    assert schema.shape == (2, 4, 3)
    np.testing.assert_array_equal(records.inputs, np.moveaxis(PIXELS, 1, -1))
    np.testing.assert_array_equal(encode_inputs({"x": PIXELS}, schema, no_fault), records.inputs)
    assert Normalise(schema)(torch.from_numpy(records.inputs))[0, 0, 0].tolist() == [0 - 1, 8 - 2, 16 - 3]


@pytest.mark.parametrize("column", [{"shape": (12,)}, {"shape": (3, 2, 4), "kind": "image"}])
def test_a_layout_is_for_numbers_of_three_axes(column: dict[str, Any]) -> None:
    """Anything else is refused with what it is for."""
    with pytest.raises(ValueError, match="layout"):
        InputColumn(name="x", layout="CHW", **column)


def test_a_plain_number_is_a_tensor_of_one_element() -> None:
    """A numeric column fits a column of shape ()."""
    schema = RecordSchema(inputs=(InputColumn(name="x"),))
    records, rejects = codec.encode(with_labels(pa.array([1.5, 2.5])), schema, 0)
    assert rejects == []
    np.testing.assert_array_equal(records.inputs, [[1.5], [2.5]])


MISFITS: dict[str, tuple[RecordSchema, pa.RecordBatch, str]] = {
    "no column": (SQUARE, pa.record_batch({"y": pa.array([1]), "label": pa.array([1])}), "no such column"),
    "no label": (SQUARE, pa.record_batch({"x": pa.array([[1.0] * 6])}), "needed int64, got no such column"),
    "strings for numbers": (SQUARE, with_labels(pa.array(["a", "b"])), "got string"),
    "another fixed size": (SQUARE, with_labels(pa.array([[1.0] * 5] * 2, pa.list_(pa.float32(), 5))), "[5]"),
    "another depth": (SQUARE, with_labels(pa.array([[[[1.0]]]] * 2)), "got list"),
    "floats for bytes": (BYTES, with_labels(pa.array([[1.0, 2.0, 3.0]] * 2)), "got list<item: double>"),
    "another tensor": (SQUARE, with_labels(pa.FixedShapeTensorArray.from_numpy_ndarray(VALUES.reshape(2, 3, 2))), "3"),
    "text labels": (SQUARE, with_labels(pa.array([[1.0] * 6] * 2), ["a", "b"]), "needed int64, got string"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_schema_that_does_not_fit_is_refused_with_column_needed_and_got(case: str) -> None:
    """The whole batch is refused, and the message names the column, what it needs and what came."""
    schema, rows, said = MISFITS[case]
    with pytest.raises(SchemaMismatch, match=r"column '(x|label)'") as caught:
        codec.sift(rows, schema)
    assert said in str(caught.value)
    assert "needed" in str(caught.value)


def test_a_column_that_is_there_twice_is_refused() -> None:
    """Which of two columns of one name is meant cannot be known."""
    rows = pa.RecordBatch.from_arrays([pa.array([1]), pa.array([1]), pa.array([1])], ["x", "x", "label"])
    with pytest.raises(SchemaMismatch, match="2 columns of that name"):
        codec.check_schema(rows.schema, RecordSchema(inputs=(InputColumn(name="x"),)))


GOOD = [1.0, 2.0, 3.0]
FLOATS = RecordSchema(inputs=(InputColumn(name="x", shape=(3,)),))
BAD_ROWS: dict[str, tuple[RecordSchema, pa.Array, pa.Array, str]] = {
    "null input": (FLOATS, pa.array([None, GOOD]), pa.array([1, 2]), "missing_input"),
    "null element": (FLOATS, pa.array([[1.0, None, 3.0], GOOD]), pa.array([1, 2]), "missing_input"),
    "short": (FLOATS, pa.array([[1.0], GOOD]), pa.array([1, 2]), "wrong_shape"),
    "long": (FLOATS, pa.array([[1.0] * 4, GOOD]), pa.array([1, 2]), "wrong_shape"),
    "NaN": (FLOATS, pa.array([[1.0, float("nan"), 3.0], GOOD]), pa.array([1, 2]), "not_finite"),
    "infinite": (FLOATS, pa.array([[1.0, float("inf"), 3.0], GOOD]), pa.array([1, 2]), "not_finite"),
    "too large for float32": (FLOATS, pa.array([[1.0, 1e300, 3.0], GOOD]), pa.array([1, 2]), "not_finite"),
    "too large for uint8": (BYTES, pa.array([[1, 2, 256], [1, 2, 3]]), pa.array([1, 2]), "decode"),
    "negative for uint8": (BYTES, pa.array([[1, 2, -1], [1, 2, 3]]), pa.array([1, 2]), "decode"),
    "null label": (FLOATS, pa.array([GOOD, GOOD]), pa.array([None, 2]), "missing_label"),
    "NaN label": (FLOATS, pa.array([GOOD, GOOD]), pa.array([float("nan"), 2.0]), "missing_label"),
    "half a label": (FLOATS, pa.array([GOOD, GOOD]), pa.array([0.5, 2.0]), "decode"),
    "a label past int64": (FLOATS, pa.array([GOOD, GOOD]), pa.array([2**63, 2], pa.uint64()), "decode"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_refused_alone_with_its_reason(case: str) -> None:
    """The first row of each batch is bad in one way; the second is taken."""
    schema, x, labels, reason = BAD_ROWS[case]
    rows, rejects = codec.sift(with_labels(x, labels), schema)
    assert [(reject.row, reject.reason) for reject in rejects] == [(0, reason)]
    assert rows.column("label").to_pylist() == [2]


def test_a_row_past_the_row_limit_is_too_large() -> None:
    """Strings and bytes count by what they hold."""
    schema = RecordSchema(inputs=(InputColumn(name="x", kind="text", shape=(8,)),))
    rows, rejects = codec.sift(with_labels(pa.array(["a" * 100, "b"])), schema, row_bytes=50)
    assert [(reject.row, reject.reason) for reject in rejects] == [(0, "too_large")]
    assert rows.num_rows == 1


def test_a_missing_task_is_refused_and_tasks_of_any_type_are_text() -> None:
    """Tasks are strings everywhere."""
    schema = RecordSchema(inputs=(InputColumn(name="x"),), task="task")
    rows = pa.record_batch({"x": pa.array([1.0, 2.0]), "label": pa.array([1, 2]), "task": pa.array([None, 7])})
    records, rejects = codec.encode(rows, schema, 10)
    assert [reject.reason for reject in rejects] == ["missing_task"]
    assert records.tasks == ["7"]
    assert records.offsets.tolist() == [11]


@given(st.lists(st.sampled_from(["good", "short", "null", "nan", "label"]), max_size=20), st.integers(0, 5))
def test_bad_rows_never_disturb_good_ones(kinds: list[str], skip: int) -> None:
    """For any mixture, also in a slice: good rows keep value and order, the others are refused, none is both."""
    row = {"good": GOOD, "short": [1.0], "null": None, "nan": [float("nan")] * 3, "label": GOOD}
    x = pa.array([row[kind] for kind in kinds], pa.list_(pa.float32()))
    labels = pa.array([None if kind == "label" else place for place, kind in enumerate(kinds)], pa.int64())
    batch, kinds = with_labels(x, labels).slice(skip), kinds[skip:]
    rows, rejects = codec.sift(batch, FLOATS)
    good = [place for place, kind in enumerate(kinds) if kind == "good"]
    assert rows.column("label").to_pylist() == [place + skip for place in good]
    assert [reject.row for reject in rejects] == [place for place in range(len(kinds)) if place not in good]
    assert all(values == GOOD for values in rows.column("x").to_pylist())


def test_dictionaries_are_read_as_their_values() -> None:
    """A categorical label column, as pandas writes it, fits."""
    schema = RecordSchema(inputs=(InputColumn(name="x"),), label_type="string")
    rows, _ = codec.sift(with_labels(pa.array([1.0, 2.0]), pa.array(["a", "b"]).dictionary_encode()), schema)
    assert rows.column("label").to_pylist() == ["a", "b"]


def test_a_dictionary_that_unfolds_past_all_bounds_is_refused() -> None:
    """One large value named by many rows is a bomb."""
    schema = RecordSchema(inputs=(InputColumn(name="x"),), label_type="string")
    indices = pa.array(np.zeros(60_000, np.int32))
    labels = pa.DictionaryArray.from_arrays(indices, pa.array(["a" * 100_000]))
    with pytest.raises(LimitExceeded, match="dictionary"):
        codec.sift(with_labels(pa.array(np.ones(60_000)), labels), schema)


def test_event_times_become_utc_microseconds() -> None:
    """Zones are converted, times without a zone are UTC."""
    schema = RecordSchema(inputs=(InputColumn(name="x"),), event_time="at")
    times = pa.array([0, 1_000_000_001], pa.timestamp("ns", "Europe/Berlin"))
    batch = pa.record_batch({"x": pa.array([1.0, 2.0]), "label": pa.array([1, 2]), "at": times})
    rows, rejects = codec.sift(batch, schema)
    assert rejects == []
    assert rows.column("at").type == pa.timestamp("us", "UTC")
    assert rows.column("at").cast(pa.int64()).to_pylist() == [0, 1_000_000]


def test_several_inputs_become_one_flat_vector() -> None:
    """Columns are joined in the schema's order; different element types become float32."""
    columns = (InputColumn(name="b", shape=(2,), dtype="uint8"), InputColumn(name="a", dtype="float64"))
    schema = RecordSchema(inputs=columns)
    batch = pa.record_batch({"a": pa.array([9.5]), "b": pa.array([[1, 2]]), "label": pa.array([0])})
    records, _ = codec.encode(batch, schema, 0)
    np.testing.assert_array_equal(records.inputs, np.array([[1, 2, 9.5]], np.float32))


def _picture(size: tuple[int, int], form: str = "PNG") -> bytes:
    sink = io.BytesIO()
    Image.new("L", size, 7).save(sink, form)
    return sink.getvalue()


def test_images_are_decoded_and_broken_ones_refused() -> None:
    """PNG of the right size becomes uint8; another size, another format and garbage are rejects of their rows."""
    schema = RecordSchema(inputs=(InputColumn(name="x", kind="image", shape=(2, 3)),))
    images = [_picture((3, 2)), _picture((2, 3)), b"not a picture", _picture((3, 2), "BMP"), _picture((3, 2))]
    records, rejects = codec.encode(with_labels(pa.array(images), range(5)), schema, 100)
    assert [(reject.row, reject.reason) for reject in rejects] == [(1, "wrong_shape"), (2, "decode"), (3, "decode")]
    assert records.offsets.tolist() == [100, 104]
    np.testing.assert_array_equal(records.inputs, np.full((2, 2, 3), 7, np.uint8))


def test_text_is_hashed_into_features_of_norm_near_one() -> None:
    """Equal texts get equal numbers, different texts different ones."""
    schema = RecordSchema(inputs=(InputColumn(name="x", kind="text", shape=(256,)),))
    inputs = codec.encode(with_labels(pa.array(["lost card", "lost card"])), schema, 0)[0].inputs
    other = encode_inputs({"x": ["exchange rate"]}, schema, no_fault)
    assert inputs.shape == (2, 256)
    np.testing.assert_array_equal(inputs[0], inputs[1])
    assert 0.5 < np.linalg.norm(inputs[0]) < 1.5
    assert inputs[0] @ other[0] < 0.5 * inputs[0] @ inputs[1]


def test_a_request_becomes_the_numbers_that_the_learner_saw() -> None:
    """``encode_inputs`` and ``encode`` agree."""
    records, _ = codec.encode(with_labels(FORMS["fixed size"]()), SQUARE, 0)
    np.testing.assert_array_equal(encode_inputs({"x": VALUES.reshape(2, 2, 3)}, SQUARE, no_fault), records.inputs)


def test_labels_and_tasks_are_names_not_texts() -> None:
    """A label or task of more than 256 bytes is refused at the door: it would be kept for ever."""
    schema = RecordSchema(inputs=(InputColumn(name="x"),), label_type="string", task="task")
    labels, tasks = ["a" * 256, "a" * 257, "a", "a"], ["t", "t", "t" * 257, "é" * 129]
    batch = pa.record_batch({"x": pa.array([1.0] * 4), "label": pa.array(labels), "task": pa.array(tasks)})
    rows, rejects = codec.sift(batch, schema, row_bytes=4096)
    assert rows.num_rows == 1
    assert [(reject.row, reject.reason) for reject in rejects] == [(1, "too_large"), (2, "too_large"), (3, "too_large")]


TIMED = RecordSchema(inputs=(InputColumn(name="x"),), id="id", event_time="t")
TIMES: list[tuple[str, pa.DataType, int, str | None]] = [
    # title, type, the value as its integer, what the log then holds (None: the row is refused)
    ("2^62 microseconds", pa.timestamp("us", "UTC"), 2**62, None),
    ("-2^63 microseconds", pa.timestamp("us", "UTC"), -(2**63), None),
    ("2^63 - 1 microseconds", pa.timestamp("us"), 2**63 - 1, None),
    ("seconds that wrap to 1970", pa.timestamp("s"), 2**62, None),
    ("seconds at their least", pa.timestamp("s", "UTC"), -(2**63), None),
    ("milliseconds that wrap", pa.timestamp("ms"), 2**63 - 1, None),
    ("the first second of the year 10000", pa.timestamp("s"), 253_402_300_800, None),
    ("the last second before the year 1", pa.timestamp("s"), -62_135_596_801, None),
    ("the last day that Arrow has", pa.date32(), 2**31 - 1, None),
    ("the last second of 9999", pa.timestamp("s"), 253_402_300_799, "9999-12-31 23:59:59"),
    ("the first of the year 1", pa.timestamp("ms"), -62_135_596_800_000, "0001-01-01 00:00:00"),
    ("the last nanosecond that there is", pa.timestamp("ns"), 2**63 - 1, "2262-04-11 23:47:16.854775"),
    ("the first nanosecond", pa.timestamp("ns", "UTC"), -(2**63), "1677-09-21 00:12:43.145225"),
    ("a zone that nobody knows", pa.timestamp("us", "Mars/Phobos"), 0, "1970-01-01 00:00:00"),
    ("a day", pa.date32(), 1, "1970-01-02 00:00:00"),
]


@pytest.mark.parametrize(("title", "kind", "value", "held"), TIMES, ids=[row[0] for row in TIMES])
def test_an_event_time_keeps_its_value_or_refuses_its_row(
    title: str, kind: pa.DataType, value: int, held: str | None
) -> None:
    """What ``datetime`` cannot hold, or would wrap, is refused with its number; the row beside it is taken."""
    integers = pa.array([0, value], pa.int32() if pa.types.is_date32(kind) else pa.int64())
    columns = {"x": pa.array([1.0, 2.0], pa.float32()), "label": pa.array([0, 1]), "id": pa.array(["a", "b"])}
    rows, rejects = codec.sift(pa.record_batch({**columns, "t": integers.view(kind)}), TIMED)
    times = [str(moment.replace(tzinfo=None)) for moment in rows.column("t").to_pylist()]
    assert times == ["1970-01-01 00:00:00", *([held] if held else [])]
    assert [(each.row, each.reason) for each in rejects] == ([] if held else [(1, "decode")])
    assert all("years 1 to 9999" in each.detail for each in rejects)


@pytest.mark.parametrize("strange", [pa.array([pa.MonthDayNano([1, 2, 3])]), pa.array([0], pa.timestamp("s", "Mars"))])
def test_an_id_that_cannot_be_written_out_is_a_schema_that_does_not_fit(strange: pa.Array) -> None:
    """An interval, and a time of a zone that nobody knows, are refused by the name of their column."""
    columns = {"x": pa.array([1.0], pa.float32()), "label": pa.array([0]), "t": pa.array([0], pa.timestamp("us"))}
    with pytest.raises(SchemaMismatch, match="column 'id': needed string, got"):
        codec.sift(pa.record_batch({**columns, "id": strange}), TIMED)


def test_a_batch_without_a_good_row_has_no_records() -> None:
    """Of several columns too: every row is refused, and nothing is left, in the right shape."""
    schema = RecordSchema(inputs=(InputColumn(name="x"), InputColumn(name="y", shape=(2,))))
    rows = pa.record_batch({"x": [1.0, 2.0], "y": [[1.0], [2.0]], "label": [0, 1]})
    records, rejects = codec.encode(rows, schema, 0)
    assert (records.inputs.shape, len(records), [reject.row for reject in rejects]) == ((0, 3), 0, [0, 1])


def raw(size: int, **options: Any) -> InputColumn:
    return InputColumn.model_validate({"name": "x", "kind": "text", "raw": True, "shape": [size], **options})


def test_a_raw_text_comes_as_its_bytes() -> None:
    """UTF-8 as int8, ended in zeros, cut between two characters; a zero in it is a space, for it ends a text."""
    texts = ["card", "größer", "a\0b", ""]
    found = encode_inputs({"x": texts}, RecordSchema(inputs=(raw(6),)), no_fault)
    assert found.dtype == np.int8
    assert [row.tobytes() for row in found] == [b"card\0\0", "größ".encode(), b"a b\0\0\0", b"\0" * 6]


def test_a_gap_of_raw_texts_is_told_beside_them() -> None:
    """With `missing: fill` the last number is 1, and all others are 0."""
    schema = RecordSchema(inputs=(raw(3, missing="fill"),))
    found = encode_inputs({"x": ["abc", None]}, schema, no_fault)
    assert found.tolist() == [[97, 98, 99, 0], [0, 0, 0, 1]]
    assert schema.shape == found.shape[1:]


def test_bytes_beside_numbers_keep_their_values() -> None:
    """Several columns are float32, in which every byte is exact."""
    schema = RecordSchema(inputs=(raw(2), InputColumn(name="y")))
    found = encode_inputs({"x": ["é"], "y": np.array([[0.5]], np.float32)}, schema, no_fault)
    assert found.dtype == np.float32
    assert found.astype(np.float64).tolist() == [[-61.0, -87.0, 0.5]]  # 0xC3, 0xA9


@pytest.mark.parametrize("option", [{"kind": "tensor"}, {"scale": 2.0}, {"mean": 1.0}, {"fit": 5}])
def test_what_bytes_of_a_text_cannot_be_is_refused(option: dict[str, Any]) -> None:
    """They are no amounts, and a tensor has none."""
    with pytest.raises(ValueError, match=r"raw is for kind: text|no amounts"):
        raw(6, **option)
