"""Formats of files of records: Parquet, Arrow IPC (file or stream), Feather, CSV, JSON lines, by first bytes or suffix.

``open_pieces`` is a file that is read piece by piece, ``batches`` gives the rows once, in order, for ``push`` and
``predict``: never the whole file in memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet

from streamkd.errors import SourceError, first_line
from streamkd.streams.files.dialect import CsvDialect, look_at
from streamkd.streams.files.flat import flatten
from streamkd.streams.files.parquet import ParquetPieces
from streamkd.streams.files.texts import CsvParser, JsonParser, Meant, TextPieces, open_plain

Format = Literal["parquet", "file", "stream", "csv", "json"]
SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
}
"""Of formats that have no first bytes of their own."""


class Pieces(Protocol):
    """The rows of a file in pieces: ``starts`` has the first row of each, and at last the number of rows.

    ``bytes``: about what all of it is in memory.
    """

    schema: pa.Schema
    bytes: int

    @property
    def starts(self) -> np.ndarray: ...

    def read(self, piece: int, columns: Sequence[str]) -> pa.Table:
        """These columns of one piece."""
        ...

    def all(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The pieces in order; nothing is kept for it."""
        ...


def sniff(path: Path) -> Format:
    """The format of a file: by its first bytes, of text by its suffix.

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
    kind = SUFFIXES.get(suffix.lower())
    if kind == "json" and head.lstrip().startswith(b"["):
        raise SourceError(
            "needed one JSON object a line, got one array", where=str(path), fix="`jq -c '.[]' FILE > FILE.jsonl`"
        )
    if kind is not None:
        return kind
    raise SourceError(
        f"needed Parquet, Arrow IPC, Feather, CSV or JSON lines, got a file that begins with {head!r}",
        where=str(path),
        fix="name a CSV file *.csv and JSON lines *.jsonl; "
        "write Parquet with pandas' to_parquet or pyarrow.parquet.write_table",
    )


def dialect_of(path: Path, header: bool | None = None) -> CsvDialect | None:
    """How a CSV file is written, by looking at it; ``None`` for another format.

    Raises:
        SourceError: the file cannot be read.
    """
    return look_at(path, open_plain, header) if sniff(path) == "csv" else None


def plain_dialect(path: Path) -> CsvDialect:
    """What a CSV file is taken for of which nothing is said: commas, or tabs where its name says so."""
    return CsvDialect(delimiter="\t" if ".tsv" in path.suffixes else ",")


def open_pieces(
    path: Path, dialect: CsvDialect | None = None, meant: Mapping[str, Meant] | None = None
) -> Pieces | None:
    """A Parquet or text file by pieces; ``None`` for Arrow's own formats, which are mapped.

    Raises:
        SourceError: the file cannot be read, or is of no known format.
    """
    kind = sniff(path)
    try:
        if kind == "parquet":
            return ParquetPieces(path)
        if kind == "csv":
            dialect = dialect or plain_dialect(path)
            return TextPieces(path, CsvParser(dialect), dialect.encoding, meant or {})
        return TextPieces(path, JsonParser(), "utf-8", meant or {}) if kind == "json" else None
    except (pa.ArrowException, OSError, LookupError) as fault:
        raise unreadable(path, fault) from None


def batches(path: Path, size: int) -> Iterator[pa.RecordBatch]:
    """The rows of a file in order, as record batches of at most ``size`` rows; CSV is looked at first.

    Raises:
        SourceError: the file cannot be read, or is of no known format.
    """
    try:
        pieces = open_pieces(path, dialect_of(path))
        for table in pieces.all() if pieces else _mapped(path):
            yield from table.combine_chunks().to_batches(max_chunksize=size)
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


def unreadable(path: Path, fault: Exception) -> SourceError:
    """What a library says of a file, as ours."""
    if isinstance(fault, FileNotFoundError):
        return SourceError("there is no such file", where=str(path), fix="check the path")
    said = first_line(fault)
    fix = "copy it again: it is cut or damaged" if "Parquet" in said else "write it again, or convert it to Parquet"
    return SourceError(f"cannot be read: {said}", where=str(path), fix=fix)


def _mapped(path: Path) -> Iterator[pa.Table]:
    """The batches of one of Arrow's own formats."""
    if sniff(path) == "stream":
        with pa.OSFile(str(path)) as file:
            yield from (flatten(pa.Table.from_batches([batch])) for batch in pa.ipc.open_stream(file))
        return
    with pa.memory_map(str(path)) as mapped:
        reader = pa.ipc.open_file(mapped)
        for index in range(reader.num_record_batches):
            yield flatten(pa.Table.from_batches([reader.get_batch(index)]))
