"""The source `replay`: what it plays, in which order and form, and that an offset always means the same record."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from streamkd.errors import SourceError
from streamkd.plugins import Registry
from streamkd.records import InputColumn, RecordSchema
from streamkd.streams.encoding import codec
from streamkd.streams.files import rows as files
from streamkd.streams.files import texts
from streamkd.streams.replay import datasets
from streamkd.streams.replay import source as replay
from streamkd.streams.replay import splits as halves
from streamkd.streams.replay.source import PARTITION, Replay, ReplayOptions

FORMS = {
    "split": {"classes_per_task": 2},
    "given": {"classes_per_task": 3, "order": "given"},
    "changed": {"classes_per_task": 5, "variations": ["plain", "rotate-90", "invert", "rotate-20", "permute-3"]},
    "noisy": {"label_noise": 0.3, "per_class": 20, "classes_per_task": 2},
    "repeated": {"repeat": True, "per_class": 4},
    "other rounds": {"repeat": 3, "per_class": 4, "rounds": "changed", "variations": ["plain", "rotate-90"]},
    "twice": {"repeat": 2, "per_class": 7, "rotated": [0, 30]},
}


WORDS = RecordSchema(inputs=(InputColumn(name="x"),), label_type="string")


def make(**options: Any) -> Replay:
    checked = ReplayOptions.model_validate({"dataset": "digits", "seed": 5, **options})
    schema = replay.describe(checked)
    assert schema is not None
    return replay.Replay(checked, schema)


def read_all(source: Replay, chunk: int = 512) -> pa.Table:
    parts, offset, end = [], 0, source.end(PARTITION)
    assert end is not None
    while offset < end:
        chunk_read = source.read(PARTITION, offset, chunk)
        parts.append(chunk_read.rows)
        offset = chunk_read.next_offset
    return pa.Table.from_batches(parts).combine_chunks()


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pa.parquet.write_table(pa.table(columns), path, **options)
    return path


def from_file(path: Path, schema: RecordSchema | None = None, **options: Any) -> Replay:
    schema = schema or RecordSchema(inputs=(InputColumn(name="x"),))
    return replay.Replay(ReplayOptions.model_validate({"path": path, "test_ratio": 0, "seed": 5, **options}), schema)


@pytest.mark.parametrize("form", FORMS)
def test_a_chunk_is_the_concatenation_of_single_reads(form: str) -> None:
    """Any chunk equals its records read one by one by another instance, at block, task and round boundaries too."""
    source, again = make(**FORMS[form]), make(**FORMS[form])
    length = source._round
    for offset in (0, 1, 17, 1020, length - 3, length + 11, 5 * length - 2):
        whole = source.read(PARTITION, offset, 7)
        singles = [again.read(PARTITION, offset + step, 1).rows for step in range(whole.rows.num_rows)]
        assert whole.offset == offset
        assert whole.next_offset == offset + whole.rows.num_rows
        assert whole.rows.to_pylist() == [row for single in singles for row in single.to_pylist()]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 4000), st.lists(st.integers(1, 700), min_size=1, max_size=5))
def test_content_does_not_depend_on_how_it_is_read(offset: int, sizes: list[int]) -> None:
    """From any offset, any sequence of chunk sizes gives the records of one long read."""
    options = {"classes_per_task": 2, "per_class": 30, "repeat": True, "variations": ["plain", "rotate-20"]}
    source, again = make(**options), make(**options)
    parts, at = [], offset
    for size in sizes:
        chunk = source.read(PARTITION, at, size)
        parts.append(chunk.rows)
        at = chunk.next_offset
    assert pa.concat_batches(parts).equals(again.read(PARTITION, offset, sum(sizes)).rows)


def test_every_training_record_is_played_once_a_round() -> None:
    """One round holds every training record exactly once, in whatever order."""
    played = read_all(make(classes_per_task=2)).select(["image", "label"]).to_pylist()
    train = datasets.load("digits").train.to_pylist()

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return (*row["image"], row["label"])

    assert sorted(map(key, played)) == sorted(map(key, train))


def test_rounds_repeat_tasks_but_not_the_order_of_records() -> None:
    """A second round has the tasks of the first, under the same names, shuffled anew."""
    table = read_all(make(classes_per_task=2, repeat=2))
    half = table.num_rows // 2
    first, second = table.slice(0, half), table.slice(half)
    assert first["task"].to_pylist() == second["task"].to_pylist()
    assert not first["image"].combine_chunks().equals(second["image"].combine_chunks())


def test_tasks_hold_so_many_classes_in_the_order_of_the_seed() -> None:
    """Class-incremental: each task has its own classes, and the seed decides which."""
    orders = []
    for seed in (0, 1):
        rows = read_all(make(classes_per_task=2, seed=seed))
        tasks, labels = np.array(rows["task"].to_pylist()), rows["label"].to_numpy()
        classes = [set(labels[tasks == str(task)].tolist()) for task in range(5)]
        assert [len(some) for some in classes] == [2] * 5
        assert set().union(*classes) == set(range(10))
        assert tasks.tolist() == sorted(tasks.tolist())
        orders.append(classes)
    assert orders[0] != orders[1]


def test_given_order_takes_classes_and_records_as_they_are() -> None:
    """With order: given classes come ascending and records in the dataset's order."""
    rows = read_all(make(classes_per_task=3, order="given"))
    train = datasets.load("digits").train.to_pandas()
    expected = [label for low in (0, 3, 6, 9) for label in train[(train.label >= low) & (train.label < low + 3)].label]
    assert rows["label"].to_pylist() == expected
    assert rows["task"].unique().to_pylist() == ["0", "1", "2", "3"]


def test_variations_are_tasks_with_the_change_in_their_names() -> None:
    """Each variation repeats the tasks in changed form, and tests come in the same forms."""
    source = make(classes_per_task=5, variations=["plain", "invert"])
    rows = read_all(source)
    assert rows["task"].unique().to_pylist() == ["0", "1", "0/invert", "1/invert"]
    tests = source.tests()
    assert list(tests) == ["0", "1", "0/invert", "1/invert"]
    plain, inverted = (tests[name].column("image").flatten().to_numpy() for name in ("1", "1/invert"))
    assert np.array_equal(inverted, 16 - plain)
    assert tests["1"].column("label").equals(tests["1/invert"].column("label"))
    assert set(tests["1"].column("task").to_pylist()) == {"1"}


def test_tests_are_the_test_records_of_the_tasks_classes() -> None:
    """The tests of a task hold exactly the dataset's test records of its classes."""
    source = make(classes_per_task=2)
    rows = read_all(source)
    labels = datasets.load("digits").test["label"].to_numpy()
    for task, test in source.tests().items():
        own = set(rows.filter(pa.compute.equal(rows["task"], task))["label"].to_pylist())
        assert set(test.column("label").to_pylist()) == own
        assert test.num_rows == np.isin(labels, list(own)).sum()
        assert test.schema == rows.schema


def test_permuted_and_rotated_are_written_out() -> None:
    """permuted: K makes K tasks, the first plain; rotated: makes one task for each angle."""
    assert list(make(permuted=3).tests()) == ["0", "0/permute-1", "0/permute-2"]
    assert list(make(rotated=[0, 45, 90]).tests()) == ["0", "0/rotate-45", "0/rotate-90"]


def test_label_noise_changes_its_share_of_train_labels_within_the_task() -> None:
    """Noise changes about its ratio of training labels, to classes of the same task, and no test label."""
    clean, noisy = make(classes_per_task=5), make(classes_per_task=5, label_noise=0.4)
    before, after = read_all(clean), read_all(noisy)
    assert before["image"].equals(after["image"])
    changed = np.array(before["label"]) != np.array(after["label"])
    assert changed.mean() == pytest.approx(0.4, abs=0.05)
    for task in ("0", "1"):
        here = np.array(before["task"]) == task
        assert set(np.array(after["label"])[here]) == set(np.array(before["label"])[here])
    for task, test in clean.tests().items():
        assert test.equals(noisy.tests()[task])


def test_per_class_takes_the_first_and_rest_tests_on_the_others() -> None:
    """per_class keeps the first training records of each class; test: rest tests on those that it leaves."""
    source = make(per_class=100, test="rest", order="given")
    train = datasets.load("digits").train.to_pandas()
    rank = train.groupby("label").cumcount()
    assert read_all(source)["label"].to_pylist() == train.label[rank < 100].tolist()
    rest = source.tests()["0"]
    assert rest.column("label").to_pylist() == train.label[rank >= 100].tolist()
    assert rest.column("image").to_pylist() == [list(image) for image in train.image[rank >= 100]]


def test_limit_ends_the_stream_and_leaves_out_later_tasks() -> None:
    """limit: N ends the stream after N records, and tasks that never begin have no tests."""
    source = make(classes_per_task=2, limit=300, repeat=True)
    assert source.finite
    assert source.end(PARTITION) == 300
    last = source.read(PARTITION, 295, 100)
    assert (last.rows.num_rows, last.next_offset) == (5, 300)
    beyond = source.read(PARTITION, 300, 10)
    assert (beyond.rows.num_rows, beyond.next_offset) == (0, 300)
    assert beyond.rows.schema == last.rows.schema
    assert list(source.tests()) == ["0", "1"]


def test_an_endless_stream_has_no_end() -> None:
    """repeat: true is not finite, and far offsets are as cheap as near ones."""
    source = make(classes_per_task=2, repeat=True)
    assert not source.finite
    assert source.end(PARTITION) is None
    assert source.read(PARTITION, 10**12, 3).rows.num_rows == 3


def test_rate_decides_when_and_never_what(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paced records appear at the rate from the first offset read on, and are the unpaced ones."""
    now = 100.0
    monkeypatch.setattr(replay.time, "monotonic", lambda: now)
    paced, free = make(rate=50, repeat=True), make(repeat=True)
    assert paced.read(PARTITION, 4000, 10).rows.num_rows == 0
    now += 0.11
    chunk = paced.read(PARTITION, 4000, 10)
    assert chunk.rows.equals(free.read(PARTITION, 4000, 5).rows)
    now += 100
    assert paced.read(PARTITION, 4005, 10).rows.num_rows == 10
    assert paced.read(PARTITION, 3000, 10).rows.num_rows == 10


def test_a_file_is_played_with_held_out_test_records(tmp_path: Path) -> None:
    """A file without a test file gives up evenly spaced records of each label, never the same twice."""
    columns = {"x": np.arange(100.0), "label": np.arange(100) % 4}
    source = from_file(write(tmp_path / "a.parquet", columns), test_ratio=0.2, order="given")
    played, held = read_all(source)["x"].to_pylist(), source.tests()["0"].column("x").to_pylist()
    assert sorted(played + held) == columns["x"].tolist()
    assert np.bincount(np.array(held, int) % 4).tolist() == [5, 5, 5, 5]
    assert played == sorted(played)


def test_a_test_file_is_taken_whole(tmp_path: Path) -> None:
    """With test_path all records of the file train, and all of the other test."""
    train = write(tmp_path / "a.parquet", {"x": [1.0, 2.0, 3.0], "label": ["a", "b", "a"]})
    test = write(tmp_path / "b.parquet", {"x": [4.0, 5.0], "label": ["b", "a"]})
    source = from_file(train, WORDS, test_path=test, classes_per_task=1, order="given")
    assert read_all(source)["x"].to_pylist() == [1.0, 3.0, 2.0]
    assert [batch.column("x").to_pylist() for batch in source.tests().values()] == [[5.0], [4.0]]


def test_a_files_own_task_column_makes_the_tasks(tmp_path: Path) -> None:
    """The task column of a file is kept in file order, and grouped and shuffled by the seed."""
    columns = {"x": np.arange(60.0), "label": np.arange(60) % 2, "where": [7, 8, 9] * 20}
    path = write(tmp_path / "a.parquet", columns)
    schema = RecordSchema(inputs=(InputColumn(name="x"),), task="where")
    kept = read_all(from_file(path, schema, order="given"))
    assert kept["where"].to_pylist() == ["7", "8", "9"] * 20
    grouped = read_all(from_file(path, schema, seed=1))
    names = grouped["where"].to_pylist()
    assert sorted(names) == sorted(kept["where"].to_pylist())
    assert sum(a != b for a, b in pairwise(names)) == 2
    with pytest.raises(SourceError, match="task column 'where' of its own"):
        from_file(path, schema, classes_per_task=1)


def test_records_without_label_or_task_are_played_for_the_dead_letters(tmp_path: Path) -> None:
    """A null label or task is handed on as it is: whoever reads the stream refuses it with its reason."""
    columns = {"x": [1.0, 2.0, 3.0, 4.0], "label": ["a", None, "b", "b"], "where": ["u", "u", None, "v"]}
    path = write(tmp_path / "a.parquet", columns)
    labels = read_all(from_file(path, WORDS, classes_per_task=1))["label"].to_pylist()
    assert sorted(labels, key=str) == [None, "a", "b", "b"]
    schema = WORDS.model_copy(update={"task": "where"})
    assert read_all(from_file(path, schema, order="given"))["where"].to_pylist() == ["u", "u", None, "v"]
    assert sorted(read_all(from_file(path, schema))["x"].to_pylist()) == [1.0, 2.0, 3.0, 4.0]


def test_lists_of_varying_length_are_padded_where_the_schema_says_so(tmp_path: Path) -> None:
    """pad: true fills short lists with zeros and cuts long ones, in every form of the records."""
    path = write(tmp_path / "a.parquet", {"x": [[1, 2], [3, 4, 5, 6], []], "label": [0, 1, 0]})
    column = InputColumn(name="x", shape=(3,), dtype="int64", pad=True)
    source = from_file(path, RecordSchema(inputs=(column,)), order="given")
    assert read_all(source)["x"].to_pylist() == [[1, 2, 0], [3, 4, 5], [0, 0, 0]]


def test_a_row_of_wrong_length_is_null_in_changed_form(tmp_path: Path) -> None:
    """A row that cannot be changed becomes null and leaves its neighbours alone."""
    path = write(tmp_path / "a.parquet", {"x": [[1.0, 2.0], [3.0], [5.0, 6.0]], "label": [0, 1, 0]})
    schema = RecordSchema(inputs=(InputColumn(name="x", shape=(2,)),))
    source = from_file(path, schema, order="given", variations=["invert"])
    assert read_all(source)["x"].to_pylist() == [[0.0, -1.0], None, [-4.0, -5.0]]


@pytest.mark.parametrize("options", [{"order": "given"}, {"order": "seed"}, {"order": "given", "classes_per_task": 1}])
@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.jsonl"])
def test_a_large_file_is_played_as_a_small_one(
    name: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not held has the same records at the same offsets, in its own order and in others."""
    table = pa.table({"x": np.arange(500.0), "label": np.arange(500) % 3})
    if name == "a.parquet":
        pa.parquet.write_table(table, tmp_path / name, row_group_size=64)
    elif name == "a.csv":
        pa.csv.write_csv(table, tmp_path / name)
    else:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    path = tmp_path / name
    held = read_all(from_file(path, test_ratio=0.1, **options))
    monkeypatch.setattr(halves, "open_rows", lambda *args, **more: files.open_rows(*args, **more, held_bytes=1))
    monkeypatch.setattr(texts, "PIECE_BYTES", 300)
    large = from_file(path, test_ratio=0.1, **options)
    assert read_all(large).equals(held)
    assert large.read(PARTITION, 100, 7).rows.equals(held.slice(100, 7).combine_chunks().to_batches()[0])


@pytest.mark.parametrize("held_bytes", [1, 1 << 30])
def test_a_file_can_be_played_in_the_order_of_time(
    held_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """order: time sorts by the event time, records without one last; what came last tests."""
    when = np.random.default_rng(0).permutation(500)
    times = pa.array(when, pa.timestamp("s"), mask=when == 7)
    path = write(tmp_path / "a.parquet", {"x": when * 1.0, "label": when % 3, "t": times}, row_group_size=64)
    schema = RecordSchema(inputs=(InputColumn(name="x"),), event_time="t")
    monkeypatch.setattr(
        halves, "open_rows", lambda *args, **more: files.open_rows(*args, **more, held_bytes=held_bytes)
    )
    source = from_file(path, schema, order="time", test="last", test_ratio=0.1)
    kept = [n for n in range(500) if n != 7]
    assert read_all(source)["x"].to_pylist() == kept[:450]
    assert sorted(source.tests()["0"]["x"].to_pylist()) == sorted([*kept[450:], 7])
    with pytest.raises(SourceError, match=r"order: time needs to know the time[\s\S]*records.event_time"):
        from_file(path, order="time")


def test_a_missing_column_is_named_with_the_nearest(tmp_path: Path) -> None:
    """A file without the schema's column is refused; its columns and the nearest are named."""
    path = write(tmp_path / "a.parquet", {"x": [1.0], "lable": [1]})
    with pytest.raises(SourceError, match=r"needed a column 'label', got x, lable\n.*did you mean 'lable'"):
        from_file(path)


def test_a_file_without_records_is_refused(tmp_path: Path) -> None:
    """A file with no rows has nothing to train on, and the error says so."""
    path = write(tmp_path / "a.parquet", {"x": pa.array([], pa.float64()), "label": pa.array([], pa.int64())})
    with pytest.raises(SourceError, match="the file has no records"):
        from_file(path)


def test_a_negative_offset_is_refused() -> None:
    """There is no record before the first."""
    with pytest.raises(SourceError, match="offset of 0 or more, got -1"):
        make().read(PARTITION, -1, 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "either dataset or path"),
        ({"dataset": "digits", "path": "x"}, "either dataset or path"),
        ({"dataset": "digit"}, "no dataset 'digit'"),
        ({"dataset": "digits", "variations": ["rotate"]}, "no variation 'rotate'"),
        ({"dataset": "digits", "variations": ["plain", "plain"]}, "each once"),
        ({"dataset": "digits", "variations": []}, "at least one"),
        ({"dataset": "digits", "permuted": 3, "rotated": [30]}, "one of variations, permuted and rotated"),
        ({"dataset": "digits", "test": "rest"}, "needs per_class"),
        ({"dataset": "digits", "test_path": "x"}, "test_path belongs to path"),
        ({"dataset": "digits", "rate": 0}, "greater than 0"),
        ({"dataset": "digits", "test": "last"}, "test: last belongs to path"),
        ({"path": "x", "test_path": "y", "test": "last"}, "test: last takes test records out of the train file"),
        ({"path": "x", "test_path": "y", "test": "rest", "per_class": 1}, "test: rest takes test records out"),
        ({"path": "x", "test_path": "y", "test_ratio": 0.1}, "test_ratio holds records out of a file"),
        ({"path": "x", "accept": ["all"]}, "many-labels"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], said: str) -> None:
    """Impossible options are refused with what is wrong."""
    with pytest.raises(ValidationError, match=said):
        ReplayOptions.model_validate(options)


def test_the_registry_has_it() -> None:
    """The entry point brings the source kind with its options and its schema."""
    kind = Registry.load(only=["replay"]).kind("sources", "replay")
    assert kind.options is ReplayOptions
    assert replay.describe(ReplayOptions(dataset="digits")) == datasets.describe("digits")


def test_no_record_of_a_changed_round_came_before() -> None:
    """The first round is the data as it is, every later one shows other images of the same digits; tests stay."""
    plain = read_all(make(per_class=5))
    changed, again = make(per_class=5, repeat=4, rounds="changed"), make(per_class=5, repeat=4)
    table = read_all(changed)
    assert table.slice(0, 50).equals(plain)
    images = np.array(table["image"].to_pylist()).reshape(200, 64)
    assert len(np.unique(images, axis=0)) == 200
    assert table["label"].equals(read_all(again)["label"])
    near = np.array(read_all(again)["image"].to_pylist()).reshape(200, 64)
    assert np.abs(images - near).mean() < 2.0  # of 16
    assert changed.tests()["0"].equals(again.tests()["0"])


def test_rounds_that_change_need_rounds() -> None:
    """Without ``repeat`` there is no second round to change."""
    with pytest.raises(ValidationError, match="needs repeat"):
        make(rounds="changed")


def test_the_pass_is_told() -> None:
    """Offsets of the first round are in pass 1, those behind it in pass 2; one round has none."""
    source = make(per_class=5, repeat=True)
    assert [source.turn(PARTITION, offset) for offset in (0, 49, 50, 499)] == [1, 1, 2, 10]
    assert make(per_class=5).turn(PARTITION, 3) is None


def test_test_limit_counts_beside_a_test_file(tmp_path: Path) -> None:
    """A test file is taken whole unless test_limit says how many; each label keeps its share."""
    train = write(tmp_path / "a.parquet", {"x": np.arange(100.0), "label": np.arange(100) % 4})
    test = write(tmp_path / "b.parquet", {"x": np.arange(500.0, 580.0), "label": np.arange(80) % 4})
    whole = from_file(train, test_path=test).tests()["0"]
    few = from_file(train, test_path=test, test_limit=20).tests()["0"]
    assert (whole.num_rows, few.num_rows) == (80, 20)
    assert np.bincount(few.column("label").to_numpy()).tolist() == [5, 5, 5, 5]
    assert from_file(train, test_path=test, test_limit=0).tests() == {}


def test_test_limit_counts_for_what_per_class_leaves(tmp_path: Path) -> None:
    """`test: rest` takes no more than test_limit either."""
    path = write(tmp_path / "a.parquet", {"x": np.arange(100.0), "label": np.arange(100) % 4})
    rest = from_file(path, test="rest", per_class=5, test_limit=12)
    assert rest.tests()["0"].num_rows == 12
    assert from_file(path, test="rest", per_class=5).tests()["0"].num_rows == 80


def test_the_last_records_can_be_held_out(tmp_path: Path) -> None:
    """`test: last` trains on the records before and tests on those after, also when a search validates."""
    path = write(tmp_path / "a.parquet", {"x": np.arange(100.0), "label": np.arange(100) % 4})
    source = from_file(path, order="given", test="last", test_ratio=0.2)
    assert source.tests()["0"].column("x").to_pylist() == list(np.arange(80.0, 100.0))
    assert read_all(source)["x"].to_pylist() == list(np.arange(80.0))
    few = from_file(path, order="given", test="last", test_ratio=0.2, test_limit=5)
    assert few.tests()["0"].column("x").to_pylist() == list(np.arange(95.0, 100.0))
    searched = from_file(path, order="given", test="last", test_ratio=0.2, validation_ratio=0.25)
    assert searched.tests()["0"].column("x").to_pylist() == list(np.arange(60.0, 80.0))
    assert read_all(searched)["x"].to_pylist() == list(np.arange(60.0))


def test_a_test_file_without_the_task_is_refused(tmp_path: Path) -> None:
    """A train file with tasks needs a test file with tasks."""
    train = write(tmp_path / "a.parquet", {"x": np.arange(9.0), "label": [0, 1, 2] * 3, "where": ["u", "v", "w"] * 3})
    test = write(tmp_path / "b.parquet", {"x": np.arange(9.0), "label": [0, 1, 2] * 3})
    schema = RecordSchema(inputs=(InputColumn(name="x"),), task="where")
    with pytest.raises(SourceError, match=r"b\.parquet: needed a column 'where'"):
        from_file(train, schema, test_path=test)


def test_a_padded_list_keeps_its_gaps(tmp_path: Path) -> None:
    """A null within a list that is padded is one gap, and a null in place of it nothing but gaps."""
    table = pa.table({"x": pa.array([[1.0], [None, 2.0], None, [1.0, 2.0]]), "label": [0, 1, 0, 1]})
    pa.parquet.write_table(table, tmp_path / "lists.parquet")
    column = InputColumn(name="x", shape=(2,), pad=True, missing="fill")
    schema = RecordSchema(inputs=(column,))
    options = ReplayOptions(path=tmp_path / "lists.parquet", order="given", test_ratio=0.0)
    source = Replay(options, schema)
    records, rejects = codec.encode(source.read(source.partitions[0], 0, 4).rows, schema, 0)
    assert not rejects
    np.testing.assert_array_equal(records.inputs, [[1, 0, 0, 0], [0, 2, 1, 0], [0, 0, 1, 1], [1, 2, 0, 0]])
