"""Formats of files of records: Parquet, Arrow IPC (file or stream), Feather and CSV, by their first bytes or suffix.

``batches`` gives the rows once, in order, for ``push``: never the whole file in memory. ``flatten`` makes plain columns
of any: structs become columns ``outer.inner``, booleans 0 and 1.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from streamkd.errors import SourceError, first_line

Format = Literal["parquet", "file", "stream", "csv"]
SUFFIXES = (".csv", ".tsv", ".txt")  # of CSV, which has no first bytes of its own
READ_BYTES = 1 << 20


def sniff(path: Path) -> Format:
    """The format of a file: by its first bytes, CSV by its suffix.

    Raises:
        SourceError: there is no such file, or its format is unknown.
    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as fault:
        raise unreadable(path, fault) from None
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
        return "csv"
    raise SourceError(
        f"needed Parquet, Arrow IPC, Feather or CSV, got a file that begins with {head!r}",
        where=str(path),
        fix="name a CSV file *.csv; write Parquet with pandas' to_parquet or pyarrow.parquet.write_table",
    )


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
        raise unreadable(path, fault) from None


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
        raise unreadable(path, fault) from None
    return None


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


def open_parquet(path: Path) -> pa_parquet.ParquetFile:
    """Neither mapped nor read ahead: both would hold the encoded file beside what comes out."""
    return pa_parquet.ParquetFile(path, buffer_size=READ_BYTES, pre_buffer=False)


def open_csv(path: Path) -> pa_csv.CSVStreamingReader:
    """The batches of a CSV file, or one with tabs."""
    tabs = ".tsv" in path.suffixes
    return pa_csv.open_csv(
        path,
        read_options=pa_csv.ReadOptions(block_size=16 << 20),  # the types are guessed from the first block
        parse_options=pa_csv.ParseOptions(delimiter="\t" if tabs else ","),
    )


def unreadable(path: Path, fault: Exception) -> SourceError:
    """What a library says of a file, as ours."""
    if isinstance(fault, FileNotFoundError):
        return SourceError("there is no such file", where=str(path), fix="check the path")
    return SourceError(
        f"cannot be read: {first_line(fault)}", where=str(path), fix="write it again, or convert it to Parquet"
    )


def _read(path: Path, kind: Format, size: int) -> Iterator[pa.RecordBatch]:
    if kind == "parquet":
        yield from open_parquet(path).iter_batches(size)
    elif kind == "csv":
        yield from open_csv(path)
    elif kind == "stream":
        with pa.OSFile(str(path)) as file:
            yield from pa.ipc.open_stream(file)
    else:
        with pa.memory_map(str(path)) as mapped:
            reader = pa.ipc.open_file(mapped)
            yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
