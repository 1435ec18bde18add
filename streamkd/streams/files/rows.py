"""The rows of a file by number, for ``replay``.

Mapped where the format can be; else held in memory while small (of Parquet those columns that are asked for), read from
Parquet one row group at a time, or mapped from a copy of a CSV file.
"""

import tempfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet

from streamkd.streams.files.formats import flatten, open_csv, open_parquet, sniff, unreadable

HELD_BYTES = 512 << 20
DECODED_BYTES = 4 << 20  # Parquet is decoded in such pieces: of lists the decoder takes 20 times what comes out
KEPT_GROUPS = 2
BYTES = {"INT_8": 1, "UINT_8": 1, "INT_16": 2, "UINT_16": 2, "INT32": 4, "FLOAT": 4}
BYTES |= {"INT64": 8, "INT96": 8, "DOUBLE": 8}
"""Bytes in memory of what Parquet calls so; another width it says itself, or how much it is where it varies."""


class Rows(Protocol):
    """Rows by number. ``scattered``: any row is as cheap as the next one."""

    schema: pa.Schema
    scattered: bool

    def __len__(self) -> int: ...

    def column(self, name: str) -> pa.ChunkedArray:
        """One whole column."""
        ...

    def take(self, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """These rows, in this order."""
        ...

    def pick(self, rows: np.ndarray) -> pa.Table:
        """Every column of these rows, whose numbers rise; once, so nothing is kept for it."""
        ...


def open_rows(path: Path, held_bytes: int = HELD_BYTES) -> Rows:
    """The rows of a file, by number.

    Raises:
        SourceError: the file cannot be read, or is of no known format.
    """
    kind = sniff(path)
    try:
        if kind == "parquet":
            file = open_parquet(path)
            return DecodedRows(file) if _decoded_bytes(file) <= held_bytes else ParquetRows(file)
        if kind == "csv":
            return TableRows(flatten(_spool(path, held_bytes)))
        mapped = pa.memory_map(str(path))
        reader = pa.ipc.open_file(mapped) if kind == "file" else pa.ipc.open_stream(mapped)
        return TableRows(flatten(reader.read_all()))
    except (pa.ArrowException, OSError) as fault:
        raise unreadable(path, fault) from None


class TableRows:
    """Rows of a table in memory or in a mapped file."""

    scattered = True

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self.schema = table.schema

    def __len__(self) -> int:
        return self._table.num_rows

    def column(self, name: str) -> pa.ChunkedArray:
        return self._table.column(name)

    def take(self, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
        return _taken(self._table.select(list(columns)), rows)

    def pick(self, rows: np.ndarray) -> pa.Table:
        return _taken(self._table, rows)


class DecodedRows:
    """Rows of a Parquet file: a column is decoded when it is first asked for, and held from then on."""

    scattered = True

    def __init__(self, file: pa_parquet.ParquetFile) -> None:
        self._file = file
        self._held: dict[str, pa.ChunkedArray] = {}
        self.schema = flatten(file.schema_arrow.empty_table()).schema

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def column(self, name: str) -> pa.ChunkedArray:
        return self._columns([name]).column(name)

    def take(self, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
        return _taken(self._columns(columns), rows)

    def pick(self, rows: np.ndarray) -> pa.Table:
        parts, begin = [self.schema.empty_table()], 0
        for piece in _pieces(self._file):
            end = begin + len(piece)
            mine = rows[(rows >= begin) & (rows < end)] - begin
            parts += [piece.take(pa.array(mine))] if len(mine) else []
            begin = end
        return pa.concat_tables(parts)

    def _columns(self, names: Sequence[str]) -> pa.Table:
        missing = [name for name in dict.fromkeys(names) if name not in self._held]
        if missing:
            table = _decoded(self._file, missing)
            self._held |= {name: table.column(name) for name in missing}
        return pa.table({name: self._held[name] for name in names})


class ParquetRows:
    """Rows of a Parquet file too large to hold: the last row groups read are kept."""

    scattered = False

    def __init__(self, file: pa_parquet.ParquetFile) -> None:
        self._file = file
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._group = lru_cache(KEPT_GROUPS)(self._read)
        self.schema = flatten(file.schema_arrow.empty_table()).schema

    def __len__(self) -> int:
        return int(self._starts[-1])

    def column(self, name: str) -> pa.ChunkedArray:
        return _decoded(self._file, [name]).column(name)

    def take(self, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
        groups = np.searchsorted(self._starts, rows, side="right") - 1
        cuts = np.flatnonzero(np.diff(groups)) + 1
        parts = [
            self._group(int(groups[part[0]]), tuple(columns)).take(pa.array(rows[part] - self._starts[groups[part[0]]]))
            for part in np.split(np.arange(len(rows)), cuts)
            if len(part)
        ]
        return pa.concat_tables(parts) if parts else self.schema.empty_table().select(list(columns))

    def pick(self, rows: np.ndarray) -> pa.Table:
        return self.take(rows, self.schema.names)

    def _read(self, group: int, columns: tuple[str, ...]) -> pa.Table:
        return _decoded(self._file, columns, [group])


def _taken(table: pa.Table, rows: np.ndarray) -> pa.Table:
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and np.all(np.diff(rows) == 1):
        return table.slice(int(rows[0]), len(rows))  # neighbours need no copy
    return table.take(pa.array(rows))


def _decoded(file: pa_parquet.ParquetFile, columns: Sequence[str], groups: Sequence[int] | None = None) -> pa.Table:
    """These columns, whole."""
    empty = flatten(file.schema_arrow.empty_table()).select(list(columns))
    return pa.concat_tables([empty, *(piece.select(list(columns)) for piece in _pieces(file, columns, groups))])


def _pieces(
    file: pa_parquet.ParquetFile, columns: Sequence[str] | None = None, groups: Sequence[int] | None = None
) -> Iterator[pa.Table]:
    """The rows in order, decoded piece by piece, so that what the decoder takes beside them stays small."""
    rows = max(1, DECODED_BYTES // max(1, _decoded_bytes(file) // max(1, file.metadata.num_rows)))
    names = None if columns is None else list(columns)
    for batch in file.iter_batches(rows, row_groups=groups, columns=names):
        yield flatten(pa.Table.from_batches([batch]))


def _decoded_bytes(file: pa_parquet.ParquetFile) -> int:
    """About what all columns are in memory: a thousand equal numbers are few bytes in the file."""
    total = 0
    for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
        for place in range(group.num_columns):
            chunk, kind = group.column(place), file.schema.column(place)
            width = BYTES.get(kind.converted_type) or BYTES.get(kind.physical_type) or kind.length
            total += chunk.num_values * width if width > 0 else chunk.total_uncompressed_size
    return total


def _spool(path: Path, held_bytes: int) -> pa.Table:
    """A CSV file as a table: in memory while small, else mapped from a temporary Arrow file without a name."""
    reader = open_csv(path)
    held: list[pa.RecordBatch] = []
    room_bytes = held_bytes
    for batch in reader:
        held.append(batch)
        room_bytes -= batch.nbytes
        if room_bytes < 0:
            break
    else:
        return pa.Table.from_batches(held, reader.schema)
    with tempfile.TemporaryDirectory(prefix="streamkd-csv-") as folder:
        spooled = Path(folder) / "rows.arrow"
        with pa.ipc.new_file(str(spooled), reader.schema) as writer:
            for batch in held:
                writer.write_batch(batch)
            held.clear()
            for batch in reader:
                writer.write_batch(batch)
        return pa.ipc.open_file(pa.memory_map(str(spooled))).read_all()
