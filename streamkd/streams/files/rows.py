"""The rows of a file by number, for ``replay``.

Arrow's own formats are mapped. Others are held while small, those columns that are asked for. A larger file is read
piece by piece where its own order is enough; in another order it is read from a nameless copy, which is mapped too.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from streamkd.streams.files.dialect import CsvDialect
from streamkd.streams.files.flat import flatten
from streamkd.streams.files.formats import Pieces, open_pieces, sniff, unreadable
from streamkd.streams.files.texts import Meant

HELD_BYTES = 128 << 20
KEPT_PIECES = 4


class Rows(Protocol):
    """Rows by number. ``scattered``: any row is as cheap as the next one."""

    schema: pa.Schema
    scattered: bool

    def __len__(self) -> int: ...

    def chunks(self, name: str) -> Iterator[pa.Array]:
        """One whole column, piece by piece."""
        ...

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """All rows in order, once, so nothing is kept for it."""
        ...

    def take(self, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """These rows, in this order."""
        ...

    def pick(self, rows: np.ndarray) -> pa.Table:
        """Every column of these rows, whose numbers rise; once, so nothing is kept for it."""
        ...


def open_rows(
    path: Path,
    dialect: CsvDialect | None = None,
    meant: Mapping[str, Meant] | None = None,
    in_order: bool = False,
    held_bytes: int = HELD_BYTES,
) -> Rows:
    """The rows of a file, by number; ``in_order``: their numbers will rise, ``meant``: what a text file's columns are.

    Raises:
        SourceError: the file cannot be read, or is of no known format.
    """
    pieces = open_pieces(path, dialect, meant)
    if pieces is not None:
        large = pieces.bytes > held_bytes
        return PieceRows(pieces) if large and in_order else ColumnRows(pieces, spooled=large)
    try:
        mapped = pa.memory_map(str(path))
        reader = pa.ipc.open_file(mapped) if sniff(path) == "file" else pa.ipc.open_stream(mapped)
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

    def chunks(self, name: str) -> Iterator[pa.Array]:
        yield from self._table.column(name).chunks

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        yield self._table.select(list(columns))

    def take(self, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
        return _taken(self._table.select(list(columns)), rows)

    def pick(self, rows: np.ndarray) -> pa.Table:
        return _taken(self._table, rows)


class ColumnRows:
    """Rows whose columns are decoded when they are first asked for, and held from then on: in memory, or on disk."""

    scattered = True

    def __init__(self, pieces: Pieces, spooled: bool) -> None:
        self._pieces, self._spooled = pieces, spooled
        self._held: dict[str, pa.ChunkedArray] = {}
        self.schema = pieces.schema

    def __len__(self) -> int:
        return int(self._pieces.starts[-1])

    def chunks(self, name: str) -> Iterator[pa.Array]:
        yield from self._columns([name]).column(name).chunks

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        return self._pieces.all(columns)

    def take(self, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
        return _taken(self._columns(columns), rows)

    def pick(self, rows: np.ndarray) -> pa.Table:
        return _picked(self._pieces, rows)

    def _columns(self, names: Sequence[str]) -> pa.Table:
        missing = [name for name in dict.fromkeys(names) if name not in self._held]
        if missing:
            empty = pa.schema([self.schema.field(name) for name in missing]).empty_table()
            tables = self._pieces.all(missing)
            table = _spool(tables, empty.schema) if self._spooled else pa.concat_tables([empty, *tables])
            self._held |= {name: table.column(name) for name in missing}
        return pa.table({name: self._held[name] for name in names})


class PieceRows:
    """Rows of a large file: the last pieces that were read are kept."""

    scattered = False

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._piece = lru_cache(KEPT_PIECES)(pieces.read)
        self.schema = pieces.schema

    def __len__(self) -> int:
        return int(self._pieces.starts[-1])

    def chunks(self, name: str) -> Iterator[pa.Array]:
        for table in self._pieces.all([name]):
            yield from table.column(name).chunks

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        return self._pieces.all(columns)

    def take(self, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
        starts = self._pieces.starts
        places = np.searchsorted(starts, rows, side="right") - 1
        cuts = np.flatnonzero(np.diff(places)) + 1
        parts = [
            _taken(self._piece(int(places[part[0]]), tuple(columns)), rows[part] - starts[places[part[0]]])
            for part in np.split(np.arange(len(rows)), cuts)
            if len(part)
        ]
        return pa.concat_tables(parts) if parts else self.schema.empty_table().select(list(columns))

    def pick(self, rows: np.ndarray) -> pa.Table:
        return _picked(self._pieces, rows)


def _picked(pieces: Pieces, rows: np.ndarray) -> pa.Table:
    """Rows whose numbers rise, from those pieces alone that have some."""
    starts = pieces.starts
    places = np.searchsorted(starts, rows, side="right") - 1
    parts = [pieces.schema.empty_table()]
    for place in np.unique(places):
        parts.append(pieces.read(int(place), pieces.schema.names).take(pa.array(rows[places == place] - starts[place])))
    return pa.concat_tables(parts)


def _taken(table: pa.Table, rows: np.ndarray) -> pa.Table:
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and np.all(np.diff(rows) == 1):
        return table.slice(int(rows[0]), len(rows))  # neighbours need no copy
    return table.take(pa.array(rows))


def _spool(tables: Iterable[pa.Table], schema: pa.Schema) -> pa.Table:
    """Columns mapped from a temporary Arrow file without a name."""
    with tempfile.TemporaryDirectory(prefix="streamkd-rows-") as folder:
        spooled = Path(folder) / "rows.arrow"
        with pa.ipc.new_file(str(spooled), schema) as writer:
            for table in tables:
                writer.write_table(table)
        return pa.ipc.open_file(pa.memory_map(str(spooled))).read_all()
