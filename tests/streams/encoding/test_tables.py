"""Columns of tables: categories, times, booleans and gaps, from Arrow to numbers."""

import math
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from streamkd.errors import SchemaMismatch
from streamkd.records import InputColumn, RecordSchema
from streamkd.streams.encoding import codec, times
from streamkd.streams.encoding.categories import one_hot

NUMBER = InputColumn(name="x", missing="fill")
COLOUR = InputColumn(name="x", kind="category", shape=(6,), values=("red", "green"), missing="fill")
WHEN = InputColumn(name="x", kind="time", parts=("hour", "weekday", "age"), missing="fill")


def encoded(column: InputColumn, values: pa.Array) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """What becomes of a column's values, and which rows are refused."""
    rows = pa.record_batch({"x": values, "label": pa.array([0] * len(values))})
    records, rejects = codec.encode(rows, RecordSchema(inputs=(column,)), 0)
    return records.inputs, [(reject.row, reject.reason) for reject in rejects]


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.int64(), pa.bool_()])
def test_a_number_that_is_missing_is_zero_and_its_indicator_one(kind: pa.DataType) -> None:
    """A null of any type of number is a gap where gaps are filled; whatever is there has an indicator of 0."""
    values, bad = encoded(NUMBER, pa.array([1, None, 0]).cast(kind))
    np.testing.assert_array_equal(values, [[1, 0], [0, 1], [0, 0]])
    assert (values.dtype, bad) == (np.float32, [])


def test_nan_is_a_gap_and_infinity_is_none() -> None:
    """NaN is how many write a gap; what is infinite is refused still."""
    values, bad = encoded(NUMBER, pa.array([math.nan, math.inf, 2.0]))
    np.testing.assert_array_equal(values, [[0, 1], [2, 0]])
    assert bad == [(1, "not_finite")]


def test_each_number_of_a_list_has_its_own_indicator() -> None:
    """Nulls within a list are told by place; a null in place of the list is all gaps; lengths are still held."""
    column = InputColumn(name="x", shape=(2,), missing="fill")
    values, bad = encoded(column, pa.array([[1.0, None], None, [3.0, 4.0], [5.0]]))
    np.testing.assert_array_equal(values, [[1, 0, 0, 1], [0, 0, 1, 1], [3, 4, 0, 0]])
    assert bad == [(3, "wrong_shape")]


def test_a_padded_list_has_gaps_where_it_has_nulls() -> None:
    """What a short list lacks at its end is zero and no gap."""
    column = InputColumn(name="x", shape=(3,), pad=True, missing="fill")
    values, bad = encoded(column, pa.array([[1.0], [None, 2.0], None]))
    np.testing.assert_array_equal(values, [[1, 0, 0, 0, 0, 0], [0, 2, 0, 1, 0, 0], [0, 0, 0, 1, 1, 1]])
    assert not bad


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (InputColumn(name="x"), pa.array([1.0, None])),
        (InputColumn(name="x", kind="text", shape=(4,)), pa.array(["a", None])),
        (InputColumn(name="x", kind="category", shape=(4,)), pa.array(["a", ""])),
        (InputColumn(name="x", kind="time"), pa.array(["2024-01-01", ""])),
    ],
)
def test_without_fill_a_gap_is_refused(column: InputColumn, values: pa.Array) -> None:
    """`missing: refuse` is the default of every kind, also for rows that are in canonical form as they come."""
    found, bad = encoded(column, values)
    assert (len(found), bad) == (1, [(1, "missing_input")])


def test_what_is_canonical_by_type_alone_is_looked_at_all_the_same() -> None:
    """A file may have the very types of the log, and nulls and NaN that the log never has."""
    lists = pa.array([[1.0, math.nan], None, [1.0, 2.0]], pa.list_(pa.float32(), 2))
    found, bad = encoded(InputColumn(name="x", shape=(2,)), lists)
    np.testing.assert_array_equal(found, [[1, 2]])
    assert bad == [(0, "not_finite"), (1, "missing_input")]


def test_text_that_is_missing_has_an_indicator() -> None:
    """A null and the empty text are a gap: no features, and a 1."""
    column = InputColumn(name="x", kind="text", shape=(4,), missing="fill")
    values, _ = encoded(column, pa.array(["word", None, ""]))
    assert values[0, :4].any()
    np.testing.assert_array_equal(values[:, 4], [0, 1, 1])
    np.testing.assert_array_equal(values[1:, :4], 0)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (NUMBER, pa.array([1.5, None, math.nan])),
        (COLOUR, pa.array(["red", None, ""])),
        (WHEN, pa.array(["2024-05-06T07:08:09", None, ""])),
        (InputColumn(name="x", kind="text", shape=(4,), missing="fill"), pa.array(["a", None, ""])),
    ],
)
def test_the_canonical_form_keeps_gaps(column: InputColumn, values: pa.Array) -> None:
    """What the log holds becomes the same numbers as what came."""
    schema = RecordSchema(inputs=(column,))
    rows = pa.record_batch({"x": values, "label": pa.array([0] * len(values))})
    canonical, _ = codec.sift(rows, schema)
    assert canonical.schema.equals(codec.arrow_schema(schema))
    np.testing.assert_array_equal(codec.encode(canonical, schema, 0)[0].inputs, encoded(column, values)[0])


def test_every_gap_has_the_same_bits() -> None:
    """What is called NaN has many bit patterns: rows of the same gaps are the same bytes, by which they are known."""
    strange = np.array([0x7FC00001, 0xFFC00000], np.uint32).view(np.float32)
    rows = pa.record_batch({"x": pa.array(strange), "label": pa.array([0, 0])})
    canonical, _ = codec.sift(rows, RecordSchema(inputs=(NUMBER,)))
    assert canonical.column("x")[0].values.to_numpy().tobytes() == canonical.column("x")[1].values.to_numpy().tobytes()


def test_known_categories_have_their_own_places_and_a_gap_the_last() -> None:
    """The values that are named are a one-hot vector in their order; all others share the places behind them."""
    values, _ = encoded(COLOUR, pa.array(["green", "red", None, "", "blue"]))
    np.testing.assert_array_equal(values[:4], np.eye(6)[[1, 0, 5, 5]])
    assert values[4, 2:5].sum() == 1
    assert not values[4, [0, 1, 5]].any()


@given(st.lists(st.text(min_size=1), max_size=20))
def test_a_category_depends_on_itself_alone(names: list[str]) -> None:
    """Whatever came before and beside it, a value has the same places: nothing is fitted."""
    column = InputColumn(name="x", kind="category", shape=(40,), values=("a",))
    together = one_hot(names, column)
    alone = [one_hot([name], column)[0] for name in reversed(names)][::-1]
    np.testing.assert_array_equal(together, np.array(alone).reshape(len(names), 40))


def test_places_of_unknown_categories_stay_as_they_are() -> None:
    """A hash without a seed of the process: another one would make every checkpoint's weights mean something else."""
    column = InputColumn(name="x", kind="category", shape=(100,), values=("b",))
    assert one_hot(["a", "Zürich", "12345"], column).argmax(1).tolist() == PLACES


PLACES = [6, 63, 50]


def test_unknown_categories_are_spread_over_their_places() -> None:
    """Of 2,000 values in 50 places each has 40, give or take what chance does; known places and the gap's have none."""
    column = InputColumn(name="x", kind="category", shape=(52,), values=("b",), missing="fill")
    found = one_hot([f"value {number}" for number in range(2_000)], column).sum(0)
    assert not found[[0, 51]].any()
    assert ((found[1:51] > 15) & (found[1:51] < 70)).all()


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["1", "0", None]),
        pa.array([1, 0, None]),
        pa.array([1.0, 0.0, math.nan]),
        pa.array(["1", "0", None]).dictionary_encode(),
        pa.array([1, 0, None], pa.int8()),
        pa.array([True, False, None]),
    ],
)
def test_a_category_is_what_it_says_whatever_its_type(values: pa.Array) -> None:
    """Text, integers, the floats that pandas makes of integers with gaps, dictionaries: same value, same place."""
    column = InputColumn(name="x", kind="category", shape=(5,), values=("0", "1"), missing="fill")
    np.testing.assert_array_equal(encoded(column, values)[0], np.eye(5)[[1, 0, 4]])


@given(st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30)))  # noqa: DTZ001
def test_parts_of_a_time_are_what_the_calendar_says(moment: datetime) -> None:
    """Each part against datetime's own answers, in float64."""
    parts = ("minute", "hour", "weekday", "day_of_month", "day_of_year", "age")
    column = InputColumn(name="x", kind="time", parts=parts)
    seconds = moment.hour * 3600 + moment.minute * 60 + moment.second + moment.microsecond / 1e6
    shares = [
        seconds % 3600 / 3600,
        seconds / 86400,
        moment.weekday() / 7,
        (moment.day - 1) / 31,
        (moment.timetuple().tm_yday - 1) / 365.25,
    ]
    wanted = [f(2 * math.pi * share) for share in shares for f in (math.sin, math.cos)]
    wanted.append((moment - datetime(2000, 1, 1)) / timedelta(days=365.25))  # noqa: DTZ001
    found = times.features(np.array([times.microseconds(moment.isoformat())]), column)
    np.testing.assert_allclose(found[0], wanted, rtol=1e-6, atol=1e-6)


def test_a_time_is_the_same_in_every_type() -> None:
    """Timestamps of any unit and zone, text of any offset, whole numbers where the unit is told."""
    moment = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    wanted = times.features(np.array([times.microseconds("2024-05-06T07:08:09Z")]), WHEN)
    elsewhere = moment.astimezone(timezone(timedelta(hours=5, minutes=30))).isoformat()
    told = WHEN.model_copy(update={"epoch": "ms"})
    for column, values in (
        (WHEN, pa.array([moment], pa.timestamp("ns", "Europe/Paris"))),
        (WHEN, pa.array([moment.replace(tzinfo=None)], pa.timestamp("s"))),
        (WHEN, pa.array([elsewhere])),
        (WHEN, pa.array(["2024-05-06 07:08:09"]).dictionary_encode()),
        (told, pa.array([int(moment.timestamp()) * 1000])),
    ):
        np.testing.assert_array_equal(encoded(column, values)[0], wanted)


def test_a_date_is_its_midnight() -> None:
    """Dates of either width."""
    wanted, _ = encoded(WHEN, pa.array(["2024-05-06"]))
    for kind in (pa.date32(), pa.date64()):
        np.testing.assert_array_equal(encoded(WHEN, pa.array([date(2024, 5, 6)], kind))[0], wanted)


def test_a_time_that_is_none_is_refused_alone() -> None:
    """Its row says what it was; a gap is in the middle of every circle, and told by its indicator."""
    values, bad = encoded(WHEN, pa.array(["yesterday", None, "2024-05-06"]))
    assert bad == [(0, "decode")]
    np.testing.assert_array_equal(values[0], [0, 0, 0, 0, 0, 1])
    assert values[1, 5] == 0


def test_whole_numbers_are_times_only_where_that_is_told() -> None:
    """The column is refused whole: nobody knows what its numbers count."""
    with pytest.raises(SchemaMismatch, match="int64"):
        encoded(WHEN, pa.array([1_700_000_000]))


def test_a_column_of_gaps_alone_fits_where_they_are_filled() -> None:
    """Parquet and pandas give such a column the type null."""
    for column in (NUMBER, COLOUR, WHEN):
        values, bad = encoded(column, pa.nulls(2))
        np.testing.assert_array_equal(values[:, -1], 1)
        assert not bad
    with pytest.raises(SchemaMismatch, match="null"):
        encoded(InputColumn(name="x"), pa.nulls(2))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "category", "shape": [2], "values": ["a", "b"]}, "3 or more"),
        ({"kind": "category", "shape": [3], "values": ["a", "b"], "missing": "fill"}, "4 or more"),
        ({"kind": "category"}, "1 or more"),
        ({"kind": "category", "shape": [9], "values": ["a", "a"]}, "twice"),
        ({"kind": "category", "shape": [9], "values": [""]}, "empty"),
        ({"kind": "category", "shape": [9], "fit": 10}, "fit is for"),
        ({"kind": "time", "shape": [3]}, "follows from its parts"),
        ({"kind": "time", "parts": []}, "at least 1"),
        ({"kind": "image", "shape": [8, 8], "missing": "fill"}, "nothing to fill"),
        ({"shape": [2, 2], "missing": "fill"}, "a list of numbers"),
        ({"dtype": "int64", "missing": "fill"}, "floating"),
        ({"values": ["a"]}, "values is for"),
        ({"epoch": "s"}, "epoch is for"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], said: str) -> None:
    """In words that say what was needed."""
    with pytest.raises(ValidationError, match=said):
        InputColumn.model_validate({"name": "x", **options})


def test_categories_of_a_configuration_may_be_numbers_and_booleans() -> None:
    """YAML reads 0 and true where no quotes stand: they are the values as records have them."""
    column = InputColumn.model_validate({"name": "x", "kind": "category", "shape": [9], "values": [0, True, "a"]})
    assert column.values == ("0", "1", "a")
    assert InputColumn.model_validate(column.model_dump(mode="json")) == column


def test_a_schema_says_where_its_gaps_are_told() -> None:
    """By column, in the order of an encoded record; columns without gaps are not among them."""
    pair = InputColumn(name="pair", shape=(2,), missing="fill")
    plain, colour = InputColumn(name="plain"), COLOUR.model_copy(update={"name": "colour"})
    schema = RecordSchema(inputs=(plain, pair, colour, NUMBER))
    assert schema.indicators == {"pair": slice(3, 5), "colour": slice(10, 11), "x": slice(12, 13)}
    assert schema.shape == (13,)
