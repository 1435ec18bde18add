"""Files of text in pieces of whole lines: CSV and JSON lines, each piece parsed by pyarrow when it is asked for.

    file ─► (a plain copy, where it is packed or not UTF-8) ─► pieces by byte offset ─► tables of one schema

The types are those of samples from all over the file, so that a fraction after a million whole numbers is no surprise.
"""

import codecs
import gzip
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json

from streamkd.errors import SourceError, first_line
from streamkd.streams.encoding.types import is_number, is_text
from streamkd.streams.files.dialect import CsvDialect
from streamkd.streams.files.flat import flatten

PIECE_BYTES = 4 << 20
SAMPLES, SAMPLE_BYTES = 8, 1 << 20
WHOLE_BYTES = SAMPLES * SAMPLE_BYTES  # a smaller file is its own sample
Meant = Literal["number", "text"]
"""What the configuration says of a column: numbers may have fractions later, words may be digits at first."""


class Parser(Protocol):
    """One kind of text. ``data`` is whole records; ``first``: it begins the file."""

    def infer(self, data: bytes, first: bool) -> pa.Schema: ...

    def parse(self, data: bytes, first: bool, schema: pa.Schema) -> pa.Table: ...

    def type(self, found: pa.DataType, meant: Meant | None) -> pa.DataType:
        """The type of a column, of which the samples have ``found``."""
        ...

    def cut(self, data: bytes) -> int:
        """How many bytes are whole records; 0: not one ends here."""
        ...


class TextPieces:
    """The pieces of a CSV file or of JSON lines.

    Raises:
        SourceError: a piece that cannot be parsed, with the number of its first record.
    """

    def __init__(self, path: Path, parser: Parser, encoding: str, meant: Mapping[str, Meant]) -> None:
        self._path, self._parser = path, parser
        self._file = open_plain(path, encoding)
        self.bytes = self._file.size()
        self._raw = pa.schema([f.with_type(parser.type(f.type, meant.get(f.name))) for f in self._sampled()])
        self.schema = flatten(self._raw.empty_table()).schema

    @cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        """``(byte offsets, row numbers)`` of the pieces' beginnings and of the end."""
        offsets, rows = [0], [0]
        narrow = pa.schema([self._raw.field(0)])
        for begin, data in self._walk():
            offsets.append(begin + len(data))
            rows.append(rows[-1] + len(self._parsed(data, begin, narrow, rows[-1])))
        return np.array(offsets, np.int64), np.array(rows, np.int64)

    @property
    def starts(self) -> np.ndarray:
        return self._index[1]

    def read(self, piece: int, columns: Sequence[str]) -> pa.Table:
        begin, end = map(int, self._index[0][piece : piece + 2])
        data = self._file.read_at(end - begin, begin)
        return self._chosen(data, begin, columns, int(self.starts[piece]))

    def all(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        row = 0
        for begin, data in self._walk():
            table = self._chosen(data, begin, self.schema.names if columns is None else columns, row)
            row += len(table)
            yield table

    def _chosen(self, data: bytes, begin: int, columns: Sequence[str], row: int) -> pa.Table:
        """These columns, decoded with no more beside them than their outermost names ask for."""
        names = list(columns)
        fields = [
            field
            for field in self._raw
            if any(name == field.name or name.startswith(f"{field.name}.") for name in names)
        ]
        return flatten(self._parsed(data, begin, pa.schema(fields or [self._raw.field(0)]), row)).select(names)

    def _parsed(self, data: bytes, begin: int, schema: pa.Schema, row: int) -> pa.Table:
        try:
            return self._parser.parse(data, begin == 0, schema)
        except pa.ArrowException as fault:
            raise _unparsed(self._path, fault, row) from None

    def _walk(self, begin: int = 0, size: int = 0) -> Iterator[tuple[int, bytes]]:
        """Pieces of whole records, each with its offset; one record may make a piece larger than ``size``."""
        wanted = size = size or PIECE_BYTES
        while data := self._file.read_at(wanted, begin):
            end = self._parser.cut(data) if begin + len(data) < self.bytes else len(data)
            if not end:
                wanted *= 2
                continue
            yield begin, data[:end]
            begin, wanted = begin + end, size

    def _sampled(self) -> pa.Schema:
        """What the types are in samples of the file, together."""
        found = None
        for place in range(SAMPLES if self.bytes > WHOLE_BYTES else 1):
            begin = self.bytes * place // SAMPLES
            if place:
                begin += self._file.read_at(SAMPLE_BYTES, begin).find(b"\n") + 1
            data = next(self._walk(begin, SAMPLE_BYTES if self.bytes > WHOLE_BYTES else WHOLE_BYTES + 1), (0, b""))[1]
            try:
                schema = self._parser.infer(data, begin == 0)
            except pa.ArrowException as fault:
                if place:  # it may have begun within a quoted cell
                    continue
                raise _unparsed(self._path, fault, 0) from None
            found = schema if found is None else _together(found, schema)
        assert found is not None
        return found


class CsvParser:
    """CSV as ``dialect`` says it is written."""

    def __init__(self, dialect: CsvDialect) -> None:
        self._dialect = dialect
        self._names: list[str] = []

    def infer(self, data: bytes, first: bool) -> pa.Schema:
        try:
            table = self._read(
                data, first, {}, [], lambda _: "skip"
            )  # a line that does not fit is told when it is read
            self._names = self._names or table.column_names
        except UnicodeDecodeError:
            zeros = " and holds \0" if b"\0" in data else ""
            raise pa.ArrowInvalid(f"CSV parse error: it is no UTF-8{zeros}") from None
        if self._dialect.thousands:
            return pa.schema([self._number(field, table.column(place)) for place, field in enumerate(table.schema)])
        return table.schema

    def _number(self, field: pa.Field, column: pa.ChunkedArray) -> pa.Field:
        """Words that are numbers in groups of digits."""
        try:
            return field.with_type(_ungrouped(column, self._dialect).type) if is_text(field.type) else field
        except pa.ArrowException:
            return field

    def parse(self, data: bytes, first: bool, schema: pa.Schema) -> pa.Table:
        grouped = [f.name for f in schema if pa.types.is_floating(f.type)] if self._dialect.thousands else []
        types = {f.name: pa.string() if f.name in grouped else f.type for f in schema}
        twice = len(set(self._names)) < len(self._names)
        table = self._read(data, first, {} if twice else types, [] if twice else schema.names)
        for name in grouped:
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, _ungrouped(table.column(place), self._dialect))
        return table

    def type(self, found: pa.DataType, meant: Meant | None) -> pa.DataType:
        return pa.string() if meant == "text" else _fractional(found, meant)

    def cut(self, data: bytes) -> int:
        """The end of the last line; where cells hold line ends, of the last one that lies outside of quotes."""
        end = data.rfind(b"\n") + 1
        if not self._dialect.newlines:
            return end
        quotes = data.count(b'"', 0, end)
        while end and quotes % 2:
            before = data.rfind(b"\n", 0, end - 1) + 1
            quotes -= data.count(b'"', before, end)
            end = before
        return end

    def _read(
        self,
        data: bytes,
        first: bool,
        types: Mapping[str, pa.DataType],
        names: Sequence[str],
        unfit: Callable[[pa_csv.InvalidRow], str] | None = None,
    ) -> pa.Table:
        given = self._dialect
        return pa_csv.read_csv(
            pa.BufferReader(data),
            read_options=pa_csv.ReadOptions(
                use_threads=False,
                block_size=len(data) + 1,
                column_names=None if first and given.header else self._names or None,
                autogenerate_column_names=not given.header and not self._names,
            ),
            parse_options=pa_csv.ParseOptions(
                delimiter=given.delimiter, newlines_in_values=given.newlines, invalid_row_handler=unfit
            ),
            convert_options=pa_csv.ConvertOptions(
                column_types=types,
                include_columns=names,
                null_values=list(given.nulls),
                strings_can_be_null=True,
                decimal_point=given.decimal,
                timestamp_parsers=[pa_csv.ISO8601, *given.times] if given.times else None,
            ),
        )


class JsonParser:
    """One JSON object a line."""

    def infer(self, data: bytes, first: bool) -> pa.Schema:
        return self._read(data).schema

    def parse(self, data: bytes, first: bool, schema: pa.Schema) -> pa.Table:
        return self._read(data, schema)

    def type(self, found: pa.DataType, meant: Meant | None) -> pa.DataType:
        return _fractional(found, meant)

    def cut(self, data: bytes) -> int:
        return data.rfind(b"\n") + 1

    def _read(self, data: bytes, schema: pa.Schema | None = None) -> pa.Table:
        return pa_json.read_json(
            pa.BufferReader(data.removeprefix(codecs.BOM_UTF8)),
            read_options=pa_json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=pa_json.ParseOptions(
                explicit_schema=schema, unexpected_field_behavior="ignore" if schema else "infer"
            ),
        )


def open_plain(path: Path, encoding: str = "utf-8") -> pa.NativeFile:
    """The file as plain UTF-8: itself, or a copy without a name where it is packed or of another encoding."""
    packed = path.suffix == ".gz"
    if not packed and encoding == "utf-8":
        return pa.OSFile(str(path))
    with tempfile.TemporaryDirectory(prefix="streamkd-plain-") as folder:
        plain = Path(folder) / "plain"
        with gzip.open(path) if packed else path.open("rb") as file, plain.open("wb") as copy:
            if encoding == "utf-8":
                shutil.copyfileobj(file, copy, 1 << 20)
            else:
                reader = codecs.getreader(encoding)(file, "replace")
                while part := reader.read(1 << 20):
                    copy.write(part.encode())
        return pa.OSFile(str(plain))


def _together(ours: pa.Schema, theirs: pa.Schema) -> pa.Schema:
    """The types that hold both: fractions where one has them, words where one has words."""
    if ours.names != theirs.names:
        return pa.unify_schemas([ours, theirs], promote_options="permissive")
    return pa.schema([_both(field, other) for field, other in zip(ours, theirs, strict=True)])


def _both(ours: pa.Field, theirs: pa.Field) -> pa.Field:
    try:
        return pa.unify_schemas([pa.schema([ours]), pa.schema([theirs])], promote_options="permissive").field(0)
    except pa.ArrowException:
        return pa.field(ours.name, pa.string())


def _fractional(found: pa.DataType, meant: Meant | None) -> pa.DataType:
    if meant == "number" and (is_number(found) or pa.types.is_null(found)):
        return pa.float64()
    return pa.string() if pa.types.is_null(found) else found


def _ungrouped(column: pa.ChunkedArray, dialect: CsvDialect) -> pa.ChunkedArray:
    """Numbers without the signs between their groups of digits."""
    plain = pc.replace_substring(column, dialect.thousands, "")
    return (pc.replace_substring(plain, ",", ".") if dialect.decimal == "," else plain).cast(pa.float64())


def _unparsed(path: Path, fault: Exception, row: int) -> SourceError:
    """What pyarrow says of a piece that begins with record ``row``, as ours."""
    said = first_line(fault)
    line, after = re.search(r"Row #(\d+): ", said), re.search(r"\.? in row (\d+)$", said)  # of CSV, of JSON
    where = f"{path}: near record {row + (int(line[1]) - 1 if line else int(after[1]) if after else 0):,}"
    fix = "write it again, or convert it to Parquet"
    if "conversion error" in said:
        fix = "if such a cell is a gap, add it to `csv: {nulls: [...]}` under stream.source; else mend the file"
    elif "\0" in said:
        fix = "`csv: {encoding: utf-16}` under stream.source, or what it is written in"
    elif "Expected" in said and "columns" in said:
        fix = "mend that line; where quoted cells hold line ends, `csv: {newlines: true}` under stream.source"
    elif "UTF8" in said or "UTF-8" in said:
        fix = "`csv: {encoding: cp1252}` under stream.source, or what it is written in"
    elif "changed from" in said:
        fix = "write values of one type under a key, and null for a gap"
    elif "JSON" in said:
        fix = "mend that line: one whole JSON object a line"
    for place in filter(None, (line, after)):
        said = said.replace(place[0], "")
    return SourceError(f"cannot be read: {said}", where=where, fix=fix)
