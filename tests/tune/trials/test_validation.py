"""What a search may look at: never a record that the report tests on, nor its class orders."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from streamkd import config as configuration
from streamkd.errors import ConfigError
from streamkd.hookspecs import Options, SourceKind, hookimpl
from streamkd.plugins import Registry
from streamkd.records import Chunk, InputColumn, RecordSchema
from streamkd.tune.trials import validation
from streamkd.wiring import open_source, schema_of

REGISTRY = Registry.load()
FORMS: dict[str, dict[str, Any]] = {
    "split": {"dataset": "digits", "classes_per_task": 2},
    "few": {"dataset": "digits", "classes_per_task": 5, "per_class": 40},
    "rest": {"dataset": "digits", "classes_per_task": 5, "per_class": 60, "test": "rest"},
    "turned": {"dataset": "digits", "rotated": [0, 30], "per_class": 30},
    "twice": {"dataset": "digits", "repeat": 2, "per_class": 20},
    "pinned": {"dataset": "digits", "classes_per_task": 2, "seed": 1},
}


def config_of(source: dict[str, Any], seed: int = 0, **stream: Any) -> configuration.Config:
    tree = {"seed": seed, "stream": {"source": {"name": "replay", **source}, **stream}}
    return configuration.from_tree(tree, REGISTRY)


def parts(config: configuration.Config, seed: int = 100) -> tuple[pa.RecordBatch, dict[str, pa.RecordBatch]]:
    rows, tests = validation.parts(config, REGISTRY, schema_of(config, REGISTRY), seed)
    return rows, dict(tests)


def plain(config: configuration.Config) -> configuration.Config:
    """The same records, each as it is: a changed form is no other record."""
    values = {**config.stream.source.values, "rotated": []}
    source = configuration.Choice.model_validate({"name": "replay", **values})
    return config.model_copy(update={"stream": config.stream.model_copy(update={"source": source})})


def records_of(*batches: pa.RecordBatch) -> set[bytes]:
    """The records by what they hold."""
    rows = [row for batch in batches for row in batch.column("image").flatten().to_numpy().reshape(batch.num_rows, -1)]
    return {row.astype(np.uint8).tobytes() for row in rows}


def reported(config: configuration.Config, seed: int = 0) -> set[bytes]:
    """The test records of the report of that seed."""
    source, _ = open_source(config.model_copy(update={"seed": seed}), REGISTRY, schema_of(config, REGISTRY))
    return records_of(*source.tests().values())


@pytest.mark.parametrize("form", FORMS)
def test_no_test_record_of_the_report_is_trained_on_or_measured_by(form: str) -> None:
    """Train, validation and the report's test records have none in common, under any order, form and repetition."""
    config = plain(config_of(FORMS[form]))
    rows, tests = parts(config)
    train, validated, tested = records_of(rows), records_of(*tests.values()), reported(config)
    assert validated
    assert not validated & tested
    assert not train & tested
    assert not train & validated


def test_a_record_is_held_out_of_every_form_that_it_comes_in() -> None:
    """What one form of the stream validates with, no other form trains on: 30 of each label in both, apart by row."""
    rows, tests = parts(config_of(FORMS["turned"]))
    plainly, _ = parts(config_of({"dataset": "digits", "per_class": 30}))
    first = rows.slice(0, 300)
    assert rows.num_rows == 600
    assert records_of(first) == records_of(plainly)
    assert len({batch.num_rows for batch in tests.values()}) == 1


def test_validation_records_are_the_same_share_of_each_label() -> None:
    """A fifth of the train records of each label, within one record."""
    rows, tests = parts(config_of(FORMS["split"]))
    held = np.bincount(np.concatenate([batch.column("label").to_numpy() for batch in tests.values()]))
    kept = np.bincount(rows.column("label").to_numpy())
    assert (np.abs(held - (held + kept) / 5) <= 1).all()


def test_a_stream_is_as_long_as_the_reports_where_there_are_records_enough() -> None:
    """Validation records are taken from those that `per_class` leaves, if it leaves any."""
    rows, _ = parts(config_of(FORMS["few"]))
    assert rows.num_rows == 400


@pytest.mark.parametrize("form", ["split", "pinned"])
def test_the_seed_decides_the_order_of_classes_whatever_the_configuration_pins(form: str) -> None:
    """Two seeds of a search see other classes first; so does the report, whose source may have a seed of its own."""
    config = config_of(FORMS[form])
    firsts = [set(parts(config, seed)[0].column("label").to_pylist()[:200]) for seed in (100, 101, 102)]
    source, _ = open_source(config, REGISTRY, schema_of(config, REGISTRY))
    firsts.append(set(source.read("replay/0", 0, 200).rows.column("label").to_pylist()))
    assert len({frozenset(first) for first in firsts}) == 4


def test_a_reports_seed_is_refused() -> None:
    """A seed below 100 would be the report's class order."""
    with pytest.raises(ConfigError, match="belong to reports"):
        parts(config_of(FORMS["split"]), 4)


def numbers(*batches: pa.RecordBatch) -> list[float]:
    """The column ``x``, whether it holds numbers or lists of one."""
    return [float(np.squeeze(x)) for batch in batches for x in batch.column("x").to_pylist()]


def write(path: Path, count: int) -> Path:
    table = pa.table({"x": [float(n) for n in range(count)], "label": [n % 4 for n in range(count)]})
    pa.parquet.write_table(table, path)
    return path


def test_a_test_file_is_never_opened(tmp_path: Path) -> None:
    """A test file that nobody could read does not matter to a search, and all of the train file is used."""
    tests = tmp_path / "tests.parquet"
    tests.write_bytes(b"PAR1 whoever reads this fails")
    source = {"path": str(write(tmp_path / "train.parquet", 200)), "test_path": str(tests)}
    config = config_of(source, records={"inputs": [{"name": "x"}]})
    with pytest.raises(Exception, match=r"tests\.parquet"):
        open_source(config, REGISTRY, schema_of(config, REGISTRY))
    rows, held = parts(config)
    assert rows.num_rows == 160
    assert sum(batch.num_rows for batch in held.values()) == 40


def test_of_a_file_that_is_cut_the_train_part_is_cut_again(tmp_path: Path) -> None:
    """The report's test records are neither trained on nor validated with; 160 train records become 128 and 32."""
    config = config_of(
        {"path": str(write(tmp_path / "all.parquet", 200)), "order": "given"},
        records={"inputs": [{"name": "x"}]},
    )
    source, _ = open_source(config, REGISTRY, schema_of(config, REGISTRY))
    tested = set(numbers(*source.tests().values()))
    rows, held = parts(config)
    used = [numbers(rows), numbers(*held.values())]
    assert [len(part) for part in used] == [128, 32]
    assert len(tested) == 40
    assert not tested & {x for part in used for x in part}
    assert used[0] == sorted(used[0])


def test_a_stream_that_never_ends_is_refused_with_the_way_out() -> None:
    """A trial needs an end: `limit` gives one."""
    with pytest.raises(ConfigError, match="never ends") as raised:
        parts(config_of({"dataset": "digits", "repeat": True}))
    assert "limit" in raised.value.fix
    assert parts(config_of({"dataset": "digits", "repeat": True, "limit": 500}))[0].num_rows == 500


def test_a_pushed_stream_is_refused() -> None:
    """Nobody can push the same records to every trial."""
    tree = {"stream": {"source": {"name": "http"}, "records": {"inputs": [{"name": "x"}]}}}
    with pytest.raises(ConfigError, match="pushed"):
        parts(configuration.from_tree(tree, REGISTRY))


def test_pace_and_refused_rows_cost_a_search_nothing(tmp_path: Path) -> None:
    """A stream of one record a second is read at once; rows without label are gone before a trial begins."""
    table = pa.table({"x": [1.0, 2.0, 3.0] * 20, "label": [0, 1, None] * 20})
    pa.parquet.write_table(table, tmp_path / "some.parquet")
    source = {"path": str(tmp_path / "some.parquet"), "rate": 1.0, "test_ratio": 0}
    rows, held = parts(config_of(source, records={"inputs": [{"name": "x"}]}))
    assert rows.num_rows + sum(batch.num_rows for batch in held.values()) == 40
    assert rows.column("label").null_count == 0


class Letters:
    """A plugin's source: two rounds of the same hundred records; asking for its tests is a fault."""

    partitions = ("letters",)
    finite = True

    def read(self, partition: str, offset: int, limit: int) -> Chunk:
        stop = min(offset + limit, 200)
        numbers = [n % 100 for n in range(offset, stop)]
        rows = pa.RecordBatch.from_pydict(
            {"x": pa.array([float(n) for n in numbers], pa.float32()), "label": [n % 2 for n in numbers]}
        )
        return Chunk(rows, partition, offset, stop)

    def end(self, partition: str) -> int:
        return 200

    def tests(self) -> Any:
        raise AssertionError("a search asked for the test records")

    def close(self) -> None: ...


class LettersPlugin:
    """Brings ``Letters``."""

    @hookimpl
    def streamkd_sources(self) -> list[SourceKind]:
        return [SourceKind("letters", lambda options, schema: Letters(), Options)]


def test_of_a_source_that_brings_its_own_tests_train_records_are_held_out_instead() -> None:
    """A plugin's `tests()` is not called; a held-out record is held out each time that it comes again."""
    registry = Registry.load()
    registry.register(LettersPlugin(), "letters")
    schema = RecordSchema(inputs=(InputColumn(name="x"),))
    tree = {"stream": {"source": {"name": "letters"}, "records": schema.model_dump(mode="json")}}
    rows, tests = validation.parts(configuration.from_tree(tree, registry), registry, schema, 100)
    held = numbers(tests["0"])
    assert rows.num_rows == 160
    assert sorted(held) == sorted([*set(held)] * 2)
    assert not set(held) & set(numbers(rows))


def test_a_file_may_be_gone_once_it_is_recorded(tmp_path: Path) -> None:
    """The rows are in memory: what becomes of the file does not matter to a search that goes on."""
    folder = tmp_path / "data"
    folder.mkdir()
    path = write(folder / "all.parquet", 100)
    rows, _ = parts(config_of({"path": str(path)}, records={"inputs": [{"name": "x"}]}))
    shutil.rmtree(folder)
    assert sorted(rows.column("label").unique().to_pylist()) == [0, 1, 2, 3]
