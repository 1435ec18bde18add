"""Files of records: every format gives the same rows, whole or by number, held or by row group."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest

from streamkd.errors import SourceError
from streamkd.streams.files import formats, parquet, texts
from streamkd.streams.files import rows as files

TABLE = pa.table({"x": pa.array(np.arange(1000) / 8), "label": pa.array([f"c{n % 7}" for n in range(1000)])})


def _stream(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=300)


def _file(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=300)


WRITERS: dict[str, Callable[[pa.Table, Path], Any]] = {
    "rows.parquet": lambda table, path: pa.parquet.write_table(table, path, row_group_size=300),
    "rows.arrow": _file,
    "rows.arrows": _stream,
    "rows.feather": lambda table, path: pa.feather.write_feather(table, path),
    "rows.csv": lambda table, path: pa.csv.write_csv(table, path),
    "rows.jsonl": lambda table, path: path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist())),
}


@pytest.fixture(params=WRITERS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    WRITERS[request.param](TABLE, tmp_path / request.param)
    return tmp_path / request.param


def test_batches_are_the_rows_in_order(path: Path) -> None:
    """The batches of every format hold all rows in order, none longer than asked."""
    batches = list(formats.batches(path, 128))
    assert pa.Table.from_batches(batches).equals(TABLE)
    assert max(batch.num_rows for batch in batches) <= 128


WAYS = [{"held_bytes": 1 << 30}, {"held_bytes": 1}, {"held_bytes": 1, "in_order": True}]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a thousand rows are many pieces."""
    monkeypatch.setattr(parquet, "DECODED_BYTES", 500)
    monkeypatch.setattr(texts, "PIECE_BYTES", 500)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("way", WAYS)
def test_rows_by_number_are_the_same_rows(path: Path, way: dict[str, Any]) -> None:
    """Rows by number equal the table's rows, whether the file is held, copied, or read piece by piece."""
    rows = files.open_rows(path, **way)
    assert len(rows) == 1000
    assert [v for chunk in rows.chunks("label") for v in chunk.to_pylist()] == TABLE["label"].to_pylist()
    for picked in (
        np.arange(290, 310),
        np.arange(10, 30),
        np.random.default_rng(0).integers(0, 1000, 50),
        np.zeros(0, np.int64),
    ):
        assert rows.take(picked, ["label", "x"]).to_pylist() == TABLE.select(["label", "x"]).take(picked).to_pylist()


def test_a_large_parquet_file_keeps_few_row_groups(tmp_path: Path) -> None:
    """Reading a large file from end to end never keeps more than the last row groups."""
    pa.parquet.write_table(TABLE, tmp_path / "rows.parquet", row_group_size=50)
    rows = files.open_rows(tmp_path / "rows.parquet", held_bytes=1, in_order=True)
    assert isinstance(rows, files.PieceRows)
    assert not rows.scattered
    for start in range(0, 1000, 20):
        rows.take(np.arange(start, start + 20), ["x"])
        assert rows._piece.cache_info().currsize <= files.KEPT_PIECES


def test_count_is_known_without_reading(tmp_path: Path) -> None:
    """Parquet and Arrow files say their number of rows; CSV and streams do not."""
    said = {}
    for name, write in WRITERS.items():
        write(TABLE, tmp_path / name)
        said[name] = formats.count(tmp_path / name)
    known = dict.fromkeys(("rows.parquet", "rows.arrow", "rows.feather"), 1000)
    assert said == {**known, "rows.arrows": None, "rows.csv": None, "rows.jsonl": None}


def test_structs_and_dictionaries_become_plain_columns(tmp_path: Path) -> None:
    """A struct column becomes outer.inner, a dictionary column its values."""
    image = pa.array([{"bytes": b"a", "path": "p"}, {"bytes": b"b", "path": "q"}])
    table = pa.table({"image": image, "label": pa.array(["x", "y"]).dictionary_encode()})
    pa.parquet.write_table(table, tmp_path / "rows.parquet")
    for way in WAYS:
        rows = files.open_rows(tmp_path / "rows.parquet", **way)
        assert rows.schema.names == ["image.bytes", "image.path", "label"]
        assert [v for chunk in rows.chunks("image.bytes") for v in chunk.to_pylist()] == [b"a", b"b"]
        assert rows.take(np.array([1]), ["image.bytes", "label"]).to_pylist() == [{"image.bytes": b"b", "label": "y"}]


def test_what_is_no_file_of_records_is_refused(tmp_path: Path) -> None:
    """A missing file, an unknown format and a truncated file are refused with the path."""
    with pytest.raises(SourceError, match=r"none\.parquet: there is no such file"):
        files.open_rows(tmp_path / "none.parquet")
    (tmp_path / "odd.bin").write_bytes(b"GIF89a..")
    with pytest.raises(
        SourceError, match=r"odd\.bin: needed Parquet, Arrow IPC, Feather, CSV or JSON lines, got .*GIF89a"
    ):
        files.open_rows(tmp_path / "odd.bin")
    pa.parquet.write_table(TABLE, tmp_path / "short.parquet")
    (tmp_path / "short.parquet").write_bytes((tmp_path / "short.parquet").read_bytes()[:-40])
    with pytest.raises(SourceError, match=r"short\.parquet: cannot be read"):
        list(formats.batches(tmp_path / "short.parquet", 10))


PEAK = """
import pathlib, sys
import numpy as np, pyarrow as pa
from streamkd.streams.files import rows as files
rows = files.open_rows(pathlib.Path(sys.argv[1]))
list(rows.chunks(sys.argv[2]))
rows.pick(np.arange(0, len(rows), 100))
print(pa.default_memory_pool().max_memory())
"""


@pytest.mark.parametrize(("needed", "most"), [("x", 3.0), ("label", 1.5)])
def test_a_parquet_file_of_lists_takes_little_more_than_what_is_needed_of_it(
    needed: str, most: float, tmp_path: Path
) -> None:
    """One row group of lists of bytes peaks below three times what is held of it; at once it was 27 times as much."""
    rows, size = 32_000, 1_024
    values = np.random.default_rng(0).integers(0, 256, rows * size, dtype=np.uint8)
    lists = pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * size), pa.array(values))
    pa.parquet.write_table(pa.table({"x": lists, "label": np.arange(rows) % 10}), tmp_path / "rows.parquet")
    command = [sys.executable, "-c", PEAK, str(tmp_path / "rows.parquet"), needed]
    peak_bytes = int(subprocess.check_output(command, text=True, env={**os.environ, "PYTHONWARNINGS": ""}))
    assert peak_bytes < most * values.nbytes


def test_a_column_is_decoded_when_it_is_asked_for(tmp_path: Path) -> None:
    """What the schema does not name is never held, and what is held is read once."""
    pa.parquet.write_table(TABLE.append_column("more", TABLE["x"]), tmp_path / "rows.parquet")
    rows = files.open_rows(tmp_path / "rows.parquet")
    assert isinstance(rows, files.ColumnRows)
    assert rows.take(np.arange(3), ["label"]).to_pylist() == TABLE.select(["label"]).slice(0, 3).to_pylist()
    assert list(rows._held) == ["label"]


@pytest.mark.parametrize("kind", ["uint8", "int16", "float16", "int32", "float64"])
def test_few_bytes_that_decode_to_many_are_not_held(kind: str, tmp_path: Path) -> None:
    """Whether a Parquet file is held depends on what its numbers are in memory, not on how well they are packed."""
    zeros = np.zeros(1 << 20, kind)
    pa.parquet.write_table(pa.table({"x": zeros}), tmp_path / "zeros.parquet")
    assert (tmp_path / "zeros.parquet").stat().st_size < 1 << 16
    for held_bytes, rows in ((zeros.nbytes, files.ColumnRows), (zeros.nbytes - 1, files.PieceRows)):
        assert isinstance(files.open_rows(tmp_path / "zeros.parquet", in_order=True, held_bytes=held_bytes), rows)


def test_rows_are_picked_from_the_whole_file(path: Path) -> None:
    """Picked rows are the same whichever way the file is read, and nothing is kept for them."""
    picked = np.array([0, 1, 299, 300, 700, 999])
    for way in WAYS:
        rows = files.open_rows(path, **way)
        assert rows.pick(picked).to_pylist() == TABLE.take(picked).to_pylist()
        assert not isinstance(rows, files.ColumnRows) or not rows._held


MILLIONS = """
import resource, sys
from streamkd.records import InputColumn, RecordSchema
from streamkd.streams.replay.source import PARTITION, Replay, ReplayOptions
schema = RecordSchema(inputs=tuple(InputColumn(name=f"x{n}") for n in range(6)))
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
source = Replay(ReplayOptions(path=sys.argv[1], order="given", seed=0), schema)
source.tests()
for offset in (0, 1_000_000, 9_900_000):
    assert source.read(PARTITION, offset, 100).rows.num_rows == 100
print(peak() - before)
"""


@pytest.mark.soak
@pytest.mark.parametrize("name", ["rows.parquet", "rows.csv"])
def test_ten_million_records_take_less_than_500_megabytes(name: str, tmp_path: Path) -> None:
    """Opening them, their test records, and records at the beginning, in the middle and near the end."""
    draw, rows = np.random.default_rng(0), 1_000_000
    for number in range(10):
        numbers = {f"x{n}": draw.normal(size=rows).round(3) for n in range(6)}
        table = pa.table({**numbers, "label": draw.integers(0, 3, rows)})
        if not number:
            kind = pa.parquet.ParquetWriter if name.endswith("parquet") else pa.csv.CSVWriter
            writer = kind(str(tmp_path / name), table.schema)
        writer.write(table)
    writer.close()
    command = [sys.executable, "-c", MILLIONS, str(tmp_path / name)]
    assert int(subprocess.check_output(command, text=True)) < 500
    (tmp_path / name).unlink()
