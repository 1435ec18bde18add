"""Files of records: every format gives the same rows, whole or by number, held or by row group."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest

from streamkd.errors import SourceError
from streamkd.streams import files

TABLE = pa.table({"x": pa.array(np.arange(1000) / 8), "label": pa.array([f"c{n % 7}" for n in range(1000)])})


def _stream(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=300)


def _file(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=300)


WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    "rows.parquet": lambda table, path: pa.parquet.write_table(table, path, row_group_size=300),
    "rows.arrow": _file,
    "rows.arrows": _stream,
    "rows.feather": lambda table, path: pa.feather.write_feather(table, path),
    "rows.csv": lambda table, path: pa.csv.write_csv(table, path),
}


@pytest.fixture(params=WRITERS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    WRITERS[request.param](TABLE, tmp_path / request.param)
    return tmp_path / request.param


def test_batches_are_the_rows_in_order(path: Path) -> None:
    """The batches of every format hold all rows in order, none longer than asked."""
    batches = list(files.batches(path, 128))
    assert pa.Table.from_batches(batches).equals(TABLE)
    assert max(batch.num_rows for batch in batches) <= 128


@pytest.mark.parametrize("held_bytes", [1, 1 << 30])
def test_rows_by_number_are_the_same_rows(path: Path, held_bytes: int) -> None:
    """Rows by number equal the table's rows, whether the file is held or read piece by piece."""
    rows = files.open_rows(path, held_bytes)
    assert len(rows) == 1000
    assert rows.column("label").to_pylist() == TABLE["label"].to_pylist()
    for picked in (np.arange(290, 310), np.random.default_rng(0).integers(0, 1000, 50), np.zeros(0, np.int64)):
        assert rows.take(picked, ["label", "x"]).to_pylist() == TABLE.select(["label", "x"]).take(picked).to_pylist()


def test_a_large_parquet_file_keeps_few_row_groups(tmp_path: Path) -> None:
    """Reading a large file from end to end never keeps more than the last row groups."""
    pa.parquet.write_table(TABLE, tmp_path / "rows.parquet", row_group_size=50)
    rows = files.open_rows(tmp_path / "rows.parquet", held_bytes=1)
    assert isinstance(rows, files.ParquetRows)
    assert not rows.scattered
    for start in range(0, 1000, 20):
        rows.take(np.arange(start, start + 20), ["x"])
        assert len(rows._kept) <= files.KEPT_GROUPS


def test_count_is_known_without_reading(tmp_path: Path) -> None:
    """Parquet and Arrow files say their number of rows; CSV and streams do not."""
    said = {}
    for name, write in WRITERS.items():
        write(TABLE, tmp_path / name)
        said[name] = files.count(tmp_path / name)
    known = dict.fromkeys(("rows.parquet", "rows.arrow", "rows.feather"), 1000)
    assert said == {**known, "rows.arrows": None, "rows.csv": None}


def test_structs_and_dictionaries_become_plain_columns(tmp_path: Path) -> None:
    """A struct column becomes outer.inner, a dictionary column its values."""
    image = pa.array([{"bytes": b"a", "path": "p"}, {"bytes": b"b", "path": "q"}])
    table = pa.table({"image": image, "label": pa.array(["x", "y"]).dictionary_encode()})
    pa.parquet.write_table(table, tmp_path / "rows.parquet")
    for held_bytes in (1, 1 << 30):
        rows = files.open_rows(tmp_path / "rows.parquet", held_bytes)
        assert rows.schema.names == ["image.bytes", "image.path", "label"]
        assert rows.column("image.bytes").to_pylist() == [b"a", b"b"]
        assert rows.take(np.array([1]), ["image.bytes", "label"]).to_pylist() == [{"image.bytes": b"b", "label": "y"}]


def test_what_is_no_file_of_records_is_refused(tmp_path: Path) -> None:
    """A missing file, an unknown format and a truncated file are refused with the path."""
    with pytest.raises(SourceError, match=r"none\.parquet: there is no such file"):
        files.open_rows(tmp_path / "none.parquet")
    (tmp_path / "odd.bin").write_bytes(b"GIF89a..")
    with pytest.raises(SourceError, match=r"odd\.bin: needed Parquet, Arrow IPC, Feather or CSV, got .*GIF89a"):
        files.open_rows(tmp_path / "odd.bin")
    pa.parquet.write_table(TABLE, tmp_path / "short.parquet")
    (tmp_path / "short.parquet").write_bytes((tmp_path / "short.parquet").read_bytes()[:-40])
    with pytest.raises(SourceError, match=r"short\.parquet: cannot be read"):
        list(files.batches(tmp_path / "short.parquet", 10))
