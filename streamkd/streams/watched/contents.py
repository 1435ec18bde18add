"""The rows of one file on this machine, from a row on, as batches for the log.

    Parquet, Arrow ─► declared sizes ─► decoded piece by piece ─┐
    CSV            ─► pieces of whole records ─► parsed ────────┼─► admission, as of what is pushed ─► Sifted, next row
    JSON lines     ─► pieces of whole lines ────────────────────┘

The n-th row of a file is the same one whenever it is read, so a position is a number of rows. A row that does not fit
is a dead letter with the file's name and its number; what cannot be decoded ends the file, in words.
"""

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from streamkd.errors import LimitExceeded, SourceError, first_line
from streamkd.records import RecordSchema
from streamkd.settings import Limits
from streamkd.streams.encoding.canonical import arrow_schema, check_schema
from streamkd.streams.files.dialect import CsvDialect
from streamkd.streams.files.flat import flatten
from streamkd.streams.files.formats import plain_dialect, sniff
from streamkd.streams.files.parquet import ParquetPieces
from streamkd.streams.files.texts import JsonParser
from streamkd.streams.ingest.admission import Sifted, admit_batch, admit_objects
from streamkd.streams.ingest.envelope import declared
from streamkd.streams.ingest.jsonl import LINE_FACTOR
from streamkd.streams.watched.csv_rows import CsvRows
from streamkd.streams.watched.texts import whole_lines

Piece = tuple[int, Callable[[int], Sifted]]
"""So many rows, and what admits all but the first few of them."""
MAGIC_BYTES = 8  # of an Arrow file; what follows is a stream


@dataclass(frozen=True)
class FileForm:
    """What files are read by: the records' schema, the limits, how CSV is written (``None``: by its name)."""

    schema: RecordSchema
    limits: Limits
    csv: CsvDialect | None = None


def read(path: Path, name: str, first: int, form: FileForm) -> Iterator[tuple[Sifted, int]]:
    """Batches from row ``first`` on, each with the number of the row after it.

    Raises:
        SourceError, RecordError: the file is broken, of another form than the records, or past a limit.
        OSError: with an ``errno``: the file cannot be reached.
    """
    ways = {"parquet": _parquet, "file": _arrow, "stream": _arrow, "csv": _csv, "json": _json}
    try:
        row = 0
        for rows, admit in ways[sniff(path)](path, form, first):
            if row + rows > first:
                skipped = max(0, first - row)
                yield _placed(admit(skipped), name, row + skipped), row + rows
            row += rows
    except (pa.ArrowException, EOFError, zlib.error, struct.error, ValueError, LookupError, MemoryError) as fault:
        raise _broken(fault) from None
    except OSError as fault:  # of the system with a number, of a decoder without
        if fault.errno is not None:
            raise
        raise _broken(fault) from None


def _broken(fault: Exception) -> SourceError:
    if isinstance(fault, MemoryError):
        return SourceError("needs more memory than there is", fix="write it in smaller pieces")
    return SourceError(
        f"cannot be read: {first_line(fault).rstrip('.')}", fix="write it again, or convert it to Parquet"
    )


def _placed(sifted: Sifted, name: str, row: int) -> Sifted:
    """With the rows' numbers in the file, of which the first is ``row``."""
    pairs = zip(sifted.letters, sifted.rejects, strict=True)
    return replace(sifted, letters=[replace(letter, source=name, offset=row + reject.row) for letter, reject in pairs])


def _columnar(table: pa.Table, form: FileForm) -> Iterator[Piece]:
    """Plain columns, in batches of no more rows than may be."""
    for batch in table.combine_chunks().to_batches(max_chunksize=form.limits.batch_rows):
        yield batch.num_rows, partial(_admit_from, batch, form)


def _admit_from(batch: pa.RecordBatch, form: FileForm, skipped: int) -> Sifted:
    return admit_batch(batch.slice(skipped), form.schema, form.limits, "")


def _parquet(path: Path, form: FileForm, first: int) -> Iterator[Piece]:
    pieces = ParquetPieces(path)
    check_schema(pieces.schema, form.schema)
    columns = [name for name in arrow_schema(form.schema).names if name in pieces.schema.names]
    _refuse_past(pieces.most_bytes(columns), form.limits, "a few rows of it declare")
    begun = max(0, int(np.searchsorted(pieces.starts, first, side="right")) - 1)  # groups before it stay encoded
    if begun:
        yield int(pieces.starts[begun]), _nothing
    for piece in range(begun, len(pieces.starts) - 1):
        yield from _columnar(pieces.read(piece, columns), form)


def _nothing(_skipped: int) -> Sifted:
    raise AssertionError("rows before the first one that is asked for are not admitted")


def _arrow(path: Path, form: FileForm, _first: int) -> Iterator[Piece]:
    """Both of Arrow's formats: a file is a stream between its magic and its footer."""
    is_file = sniff(path) == "file"
    with pa.OSFile(str(path)) as file, pa.OSFile(str(path)) as ahead:
        if is_file:
            ahead.seek(MAGIC_BYTES)
        reader = pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
        check_schema(flatten(reader.schema.empty_table()).schema, form.schema)
        number = 0
        while (rows := _declared_rows(ahead, form.limits)) is not None:
            batch = reader.get_batch(number) if is_file else reader.read_next_batch()
            number += 1
            batch.validate(full=True)
            if batch.num_rows != rows:
                raise SourceError(f"batch {number} declares {rows} rows and has {batch.num_rows}")
            yield from _columnar(_chosen(batch, form), form)


def _chosen(batch: pa.RecordBatch, form: FileForm) -> pa.Table:
    table = flatten(pa.Table.from_batches([batch]))
    return table.select([name for name in arrow_schema(form.schema).names if name in table.column_names])


def _declared_rows(ahead: pa.NativeFile, limits: Limits) -> int | None:
    """The rows of the next record batch, if what it and its dictionaries declare is within the limits."""
    while True:
        try:
            message = pa.ipc.read_message(ahead)
        except EOFError:
            return None
        if message.type == "schema":
            continue
        found = declared(message)
        _refuse_past(found.held_bytes, limits, "one of its batches declares")
        if message.type == "record batch":
            return found.rows


def _refuse_past(got_bytes: int, limits: Limits, what: str) -> None:
    if got_bytes > limits.batch_bytes:
        said = f"{what} {got_bytes:,} bytes, at most {limits.batch_bytes:,}"
        raise LimitExceeded(said, fix="write smaller pieces, or raise stream.limits.batch_bytes")


def _csv(path: Path, form: FileForm, _first: int) -> Iterator[Piece]:
    rows = CsvRows(form.csv or plain_dialect(path), form.schema)
    for found in rows.read(path, form.limits.row_bytes * LINE_FACTOR):
        if isinstance(found, pa.Table):
            yield from _columnar(found, form)
        else:
            yield len(found), partial(rows.admit, found, form.limits)


def _json(path: Path, form: FileForm, _first: int) -> Iterator[Piece]:
    for data in whole_lines(path, "utf-8", JsonParser().cut, form.limits.row_bytes * LINE_FACTOR):
        lines = [line for line in data.split(b"\n") if line.strip()]
        for begin in range(0, len(lines), form.limits.batch_rows):
            some = lines[begin : begin + form.limits.batch_rows]
            yield len(some), partial(_admit_lines, some, form)


def _admit_lines(lines: Sequence[bytes], form: FileForm, skipped: int) -> Sifted:
    return admit_objects(lines[skipped:], form.schema, form.limits, "")
