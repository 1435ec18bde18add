"""The rows of a CSV file for a stream whose columns are known: each column of the type that the stream wants.

    pieces of whole records ─► parsed whole ─► table
                                    └─ a record that does not fit ─► in halves, until it is found ─► Sifted

A file's types are not guessed from its cells, since a bad cell would be taken for a sign that all are words.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from streamkd.errors import first_line
from streamkd.records import RecordSchema, Reject
from streamkd.settings import Limits
from streamkd.streams.encoding.canonical import MOMENT, Place, check_schema, places
from streamkd.streams.encoding.types import is_number
from streamkd.streams.files.dialect import NUMBER, CsvDialect
from streamkd.streams.files.texts import CsvParser
from streamkd.streams.ingest.admission import Sifted, admit_batch
from streamkd.streams.log.dead_letters import RECORD_BYTES, DeadLetter
from streamkd.streams.watched.texts import whole_lines

RECORDS = 1_000  # that are looked at together, once one of a piece does not fit


class CsvRows:
    """Reads one file."""

    def __init__(self, dialect: CsvDialect, schema: RecordSchema) -> None:
        self._dialect, self._schema = dialect, schema
        self._parser = CsvParser(dialect)
        self._names: list[str] = []
        self._types = pa.schema([])

    def read(self, path: Path, most_bytes: int) -> Iterator[pa.Table | list[bytes]]:
        """Its rows in order: as tables, or, around what does not fit, as records for ``admit``.

        Raises:
            SchemaMismatch: it lacks a column. SourceError: as ``whole_lines``.
        """
        for data in whole_lines(path, self._dialect.encoding, self._parser.cut, most_bytes):
            if not self._names:
                data = self._begin(data)
            if data.strip():
                yield from self._tables(data)

    def admit(self, records: Sequence[bytes], limits: Limits, skipped: int) -> Sifted:
        """The good and the bad of some records, but for those that are ``skipped``."""
        records = records[skipped:]
        parts, faults = [], dict[int, str]()
        for row, found in self._sound(records):
            if isinstance(found, str):
                faults[row] = found
            else:
                parts.append(found)
        good = np.delete(np.arange(len(records)), list(faults))
        table = pa.concat_tables([self._types.empty_table(), *parts]).combine_chunks()
        [batch] = table.to_batches() or [pa.RecordBatch.from_pylist([], self._types)]
        sifted = admit_batch(batch, self._schema, limits, "")
        bad = [(Reject(row, "decode", said), self._letter(records[row], said)) for row, said in faults.items()]
        pairs = zip(sifted.rejects, sifted.letters, strict=True)
        bad += [(replace(reject, row=int(good[reject.row])), letter) for reject, letter in pairs]
        bad.sort(key=lambda each: each[0].row)
        return Sifted(sifted.rows, len(records), [reject for reject, _ in bad], [letter for _, letter in bad])

    def _begin(self, data: bytes) -> bytes:
        """Learn the columns from the first piece; what comes after their names."""
        found = self._parser.infer(data, True)
        self._names = found.names
        wanted = {place.name: place for place in places(self._schema)}
        types = [_type(wanted[each.name], each.type) if each.name in wanted else each.type for each in found]
        check_schema(pa.schema(list(zip(found.names, types, strict=True))), self._schema)
        self._types = pa.schema([each for each in zip(found.names, types, strict=True) if each[0] in wanted])
        return b"\n".join(_records(data, self._dialect)[1:]) + b"\n" if self._dialect.header else data

    def _tables(self, data: bytes) -> Iterator[pa.Table | list[bytes]]:
        try:
            yield self._parser.parse(data, False, self._types)
        except pa.ArrowException:
            records = _records(data, self._dialect)
            yield from (records[begin : begin + RECORDS] for begin in range(0, len(records), RECORDS))

    def _sound(self, records: Sequence[bytes], first: int = 0) -> Iterator[tuple[int, pa.Table | str]]:
        """Runs of records that can be parsed, and what is wrong with each other one, with their numbers."""
        try:
            yield first, self._parser.parse(b"\n".join(records) + b"\n", False, self._types)
        except pa.ArrowException as fault:
            if len(records) == 1:
                yield first, first_line(fault).replace("Row #1: ", "")
                return
            half = len(records) // 2
            yield from self._sound(records[:half], first)
            yield from self._sound(records[half:], first + half)

    def _letter(self, record: bytes, said: str) -> DeadLetter:
        """A record by its cells, to be mended; as its bytes where they are not as many as the columns."""
        if len(record) > RECORD_BYTES:
            return DeadLetter("", "decode", said)
        try:
            cells = next(csv.reader([record.decode()], delimiter=self._dialect.delimiter), [])
        except (UnicodeDecodeError, csv.Error):
            cells = []
        if len(cells) != len(self._names):
            return DeadLetter("", "decode", said, record=record, form="message")
        values = {name: _value(cell, self._dialect) for name, cell in zip(self._names, cells, strict=True)}
        return DeadLetter("", "decode", said, record=json.dumps(values, ensure_ascii=False).encode(), form="json")


def _value(cell: str, dialect: CsvDialect) -> str | float | None:
    """A cell as JSON has it."""
    if cell in dialect.nulls:
        return None
    return float(cell) if NUMBER.fullmatch(cell) and "," not in cell else cell


def _type(place: Place, found: pa.DataType) -> pa.DataType:
    """What a column is read as, of which the first piece looks like ``found``."""
    if place.column is not None and place.column.kind == "tensor":
        fraction = np.dtype(place.column.dtype).kind == "f"
        return found if pa.types.is_boolean(found) else pa.float64() if fraction else pa.int64()
    if pa.types.is_int64(place.type):
        return found if is_number(found) or pa.types.is_boolean(found) else pa.int64()
    if place.type != MOMENT:
        return pa.string()
    if place.column is not None and not pa.types.is_temporal(found):
        return pa.string()  # of any form that a time may have
    return pa.timestamp("us", found.tz if pa.types.is_timestamp(found) else None)


def _records(data: bytes, dialect: CsvDialect) -> list[bytes]:
    """The lines, those together that a cell with line ends has; empty ones do not count."""
    found: list[bytes] = []
    held: list[bytes] = []
    for line in data.split(b"\n"):
        held.append(line)
        if dialect.newlines and sum(each.count(b'"') for each in held) % 2:
            continue
        record = b"\n".join(held)
        held = []
        if record.strip():
            found.append(record)
    return [*found, b"\n".join(held)] if held else found
