"""Files of records: Parquet, Arrow IPC (file or stream), Feather and CSV, by their first bytes or suffix.

``open_rows`` gives rows by number for ``replay``: mapped, held in memory while small (of Parquet those columns that
are asked for), else read from Parquet one row group at a time. ``batches`` gives the rows once, in order, for ``push``:
never the whole file in memory. Struct columns become columns ``outer.inner``, booleans 0 and 1.
"""

import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from streamkd.errors import SourceError, first_line

Format = Literal["parquet", "file", "stream", "csv"]
SUFFIXES: dict[str, Format] = {".csv": "csv", ".tsv": "csv", ".txt": "csv"}
HELD_BYTES = 512 << 20
DECODED_BYTES = 4 << 20  # Parquet is decoded in such pieces: of lists the decoder takes 20 times what comes out
READ_BYTES = 1 << 20
KEPT_GROUPS = 2


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
            # neither mapped nor read ahead: both would hold the encoded file beside what comes out
            file = pa_parquet.ParquetFile(path, buffer_size=READ_BYTES, pre_buffer=False)
            return DecodedRows(file) if _decoded_bytes(file) <= held_bytes else ParquetRows(file)
        if kind == "csv":
            return TableRows(flatten(_spool(path, held_bytes)))
        mapped = pa.memory_map(str(path))
        reader = pa.ipc.open_file(mapped) if kind == "file" else pa.ipc.open_stream(mapped)
        return TableRows(flatten(reader.read_all()))
    except (pa.ArrowException, OSError) as fault:
        raise _unreadable(path, fault) from None


def batches(path: Path, size: int) -> Iterator[pa.RecordBatch]:
    """The rows of a file in order, as record batches of at most ``size`` rows.

    Raises:
        SourceError: the file cannot be read, or is of no known format.
    """
    kind = sniff(path)
    try:
        for batch in _read(path, kind, size):
            for rows in flatten(pa.Table.from_batches([batch])).combine_chunks().to_batches(max_chunksize=size):
                if rows.num_rows:
                    yield rows
    except (pa.ArrowException, OSError) as fault:
        raise _unreadable(path, fault) from None


def count(path: Path) -> int | None:
    """The number of rows where the file says it without being read, else ``None``."""
    kind = sniff(path)
    try:
        if kind == "parquet":
            return int(pa_parquet.read_metadata(path).num_rows)
        if kind == "file":
            with pa.memory_map(str(path)) as mapped:
                reader = pa.ipc.open_file(mapped)
                return sum(reader.get_batch(index).num_rows for index in range(reader.num_record_batches))
    except (pa.ArrowException, OSError) as fault:
        raise _unreadable(path, fault) from None
    return None


def sniff(path: Path) -> Format:
    """The format of a file: by its first bytes, CSV by its suffix.

    Raises:
        SourceError: there is no such file, or its format is unknown.
    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as fault:
        raise _unreadable(path, fault) from None
    if not head:
        raise SourceError("the file is empty", where=str(path), fix="name a file with records")
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"ARROW1"):
        return "file"
    if head.startswith(b"\xff\xff\xff\xff"):
        return "stream"
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix.lower() in SUFFIXES:
        return SUFFIXES[suffix.lower()]
    raise SourceError(
        f"needed Parquet, Arrow IPC, Feather or CSV, got a file that begins with {head!r}",
        where=str(path),
        fix="name a CSV file *.csv; write Parquet with pandas' to_parquet or pyarrow.parquet.write_table",
    )


def flatten(table: pa.Table) -> pa.Table:
    """Struct columns as columns ``outer.inner``, dictionaries as their values, booleans as 0 and 1."""
    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(index, field.name, table.column(index).cast(field.type.value_type))
        elif pa.types.is_boolean(field.type):
            table = table.set_column(index, field.name, table.column(index).cast(pa.uint8()))
    return table


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
        self._kept: OrderedDict[tuple[int, tuple[str, ...]], pa.Table] = OrderedDict()
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

    def _group(self, group: int, columns: tuple[str, ...]) -> pa.Table:
        key = (group, columns)
        if key not in self._kept:
            self._kept[key] = _decoded(self._file, columns, [group])
            while len(self._kept) > KEPT_GROUPS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


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
    widths = [width for field in file.schema_arrow for width in _widths(field.type)]
    total = 0
    for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
        chunks = map(group.column, range(group.num_columns))
        total += sum(
            chunk.total_uncompressed_size if width is None else chunk.num_values * width // 8
            for chunk, width in zip(chunks, widths, strict=True)
        )
    return total


def _widths(kind: pa.DataType) -> Iterator[int | None]:
    """Bits of a value of each leaf of a type; ``None`` where they vary."""
    if isinstance(kind, pa.ExtensionType):
        kind = kind.storage_type
    if pa.types.is_nested(kind):
        for index in range(kind.num_fields):
            yield from _widths(kind.field(index).type)
    elif pa.types.is_dictionary(kind):
        yield from _widths(kind.value_type)
    else:
        try:
            yield kind.bit_width
        except ValueError:
            yield None


def _read(path: Path, kind: Format, size: int) -> Iterator[pa.RecordBatch]:
    if kind == "parquet":
        yield from pa_parquet.ParquetFile(path, buffer_size=READ_BYTES, pre_buffer=False).iter_batches(size)
    elif kind == "csv":
        yield from _open_csv(path)
    elif kind == "stream":
        with pa.OSFile(str(path)) as file:
            yield from pa.ipc.open_stream(file)
    else:
        with pa.memory_map(str(path)) as mapped:
            reader = pa.ipc.open_file(mapped)
            yield from (reader.get_batch(index) for index in range(reader.num_record_batches))


def _open_csv(path: Path) -> pa_csv.CSVStreamingReader:
    tabs = ".tsv" in path.suffixes
    return pa_csv.open_csv(
        path,
        read_options=pa_csv.ReadOptions(block_size=16 << 20),  # the types are guessed from the first block
        parse_options=pa_csv.ParseOptions(delimiter="\t" if tabs else ","),
    )


def _spool(path: Path, held_bytes: int) -> pa.Table:
    """A CSV file as a table: in memory while small, else mapped from a temporary Arrow file without a name."""
    reader = _open_csv(path)
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


def _unreadable(path: Path, fault: Exception) -> SourceError:
    if isinstance(fault, FileNotFoundError):
        return SourceError("there is no such file", where=str(path), fix="check the path")
    return SourceError(
        f"cannot be read: {first_line(fault)}", where=str(path), fix="write it again, or convert it to Parquet"
    )
