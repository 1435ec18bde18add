"""Columns of lists as arrays: every Arrow form gives the same values, sliced or not."""

import numpy as np
import pyarrow as pa
import pytest

from streamkd.errors import SchemaMismatch
from streamkd.records import InputColumn, RecordSchema
from streamkd.streams.encoding import lists
from streamkd.streams.encoding.codec import sift
from streamkd.streams.encoding.lists import element_type, padded, to_fixed, to_values
from streamkd.streams.ingest import jsonl

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)
TENSOR = pa.FixedShapeTensorArray.from_numpy_ndarray(VALUES.reshape(3, 2, 2))
FORMS = {
    "list": pa.array(VALUES.tolist(), pa.list_(pa.float32())),
    "large list": pa.array(VALUES.tolist(), pa.large_list(pa.float32())),
    "fixed": pa.array(VALUES.tolist(), pa.list_(pa.float32(), 4)),
    "nested fixed": pa.array(VALUES.reshape(3, 2, 2).tolist(), pa.list_(pa.list_(pa.float32(), 2), 2)),
    "nested list": pa.array(VALUES.reshape(3, 2, 2).tolist(), pa.list_(pa.list_(pa.float32()))),
    "tensor": TENSOR,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("part", [slice(0, 3), slice(1, 3), slice(2, 2)])
def test_every_form_gives_its_values(form: str, part: slice) -> None:
    """Lists, fixed-size lists, nested lists and tensors give the same array, from slices too."""
    column = FORMS[form].slice(part.start, part.stop - part.start)
    values, good = to_values(column, 4)
    assert np.array_equal(values, VALUES[part])
    assert good.all()
    assert element_type(column.type) == pa.float32()


def test_there_and_back() -> None:
    """Fixed-size lists made of values give the values; rows that are not good are null."""
    column = to_fixed(VALUES, np.array([True, False, True]))
    assert column.to_pylist() == [VALUES[0].tolist(), None, VALUES[2].tolist()]
    values, good = to_values(column, 4)
    assert good.tolist() == [True, False, True]
    assert np.array_equal(values[good], VALUES[good])


def test_rows_that_do_not_fit_are_marked_and_leave_the_others() -> None:
    """Null rows, rows of another length and rows with a null inside are bad; the others keep their values."""
    column = pa.array([[1, 2], None, [3], [4, None], [5, 6]], pa.list_(pa.int16()))
    values, good = to_values(column, 2)
    assert good.tolist() == [True, False, False, False, True]
    assert values[good].tolist() == [[1, 2], [5, 6]]
    assert values.dtype == np.int16


def test_padding_fills_and_cuts() -> None:
    """With pad short rows end in zeros and long rows are cut; null rows stay bad."""
    column = pa.array([[1], [2, 3, 4], None, []], pa.list_(pa.int16())).slice(0, 4)
    values, good = to_values(column, 2, pad=True)
    assert values.tolist() == [[1, 0], [2, 3], [0, 0], [0, 0]]
    assert good.tolist() == [True, True, False, True]


def test_what_holds_no_numbers_is_refused() -> None:
    """Lists of strings are no values."""
    with pytest.raises(SchemaMismatch, match="needed numbers or lists of numbers"):
        to_values(pa.array([["a"]]), 1)


PADDED = RecordSchema(inputs=(InputColumn(name="x", shape=(3,), dtype="int16", pad=True),))
RAGGED = [[1, 2], [3, 4, 5, 6], [], [7, 8, 9]]
FITTED = [[1, 2, 0], [3, 4, 5], [0, 0, 0], [7, 8, 9]]


def test_padding_piece_by_piece_is_padding_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long column is padded in pieces, with the result of one."""
    column = pa.array([list(range(n % 5)) for n in range(100)], pa.list_(pa.int16()))
    whole = padded(column, 3)
    monkeypatch.setattr(lists, "PADDED_ELEMENTS", 21)
    assert padded(column, 3).equals(whole)
    assert padded(column.slice(0, 0), 3).equals(whole.slice(0, 0))


def test_a_padded_column_takes_lists_of_any_length_at_every_door() -> None:
    """Arrow batches and JSON lines of a padded column end in the same records."""
    for kind in (pa.list_(pa.int64()), pa.large_list(pa.int16())):
        rows = pa.RecordBatch.from_pydict({"x": pa.array(RAGGED, kind), "label": [0, 1, 2, 3]})
        good, rejects = sift(rows, PADDED)
        assert (good.column("x").to_pylist(), rejects) == (FITTED, [])
    lines = [b'{"x": %s, "label": 1}' % str(values).encode() for values in RAGGED]
    parsed, _, rejects = jsonl.parse(lines, PADDED, 1000)
    assert (parsed.column("x").to_pylist(), rejects) == (FITTED, [])


def test_a_padded_column_still_refuses_what_is_no_list_of_numbers() -> None:
    """A null list, a null inside and a number too large are refused row by row."""
    column = pa.array([[1], None, [1, None], [70_000]], pa.list_(pa.int64()))
    good, rejects = sift(pa.RecordBatch.from_pydict({"x": column, "label": [0, 1, 2, 3]}), PADDED)
    assert good.column("x").to_pylist() == [[1, 0, 0]]
    assert [(reject.row, reject.reason) for reject in rejects] == [
        (1, "missing_input"),
        (2, "missing_input"),
        (3, "decode"),
    ]
