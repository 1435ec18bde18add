"""A Parquet file in pieces of a few megabytes, decoded in order: of a long row group never more than one piece.

Of lists the decoder takes twenty times what comes out, and files of a million rows a group are common.
"""

from collections.abc import Container, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet

from streamkd.streams.files.flat import flatten

DECODED_BYTES = 4 << 20
READ_BYTES = 1 << 20
BYTES = {"INT_8": 1, "UINT_8": 1, "INT_16": 2, "UINT_16": 2, "INT32": 4, "FLOAT": 4}
BYTES |= {"INT64": 8, "INT96": 8, "DOUBLE": 8}
"""Bytes in memory of what Parquet calls so; another width it says itself, or how much it is where it varies."""


class ParquetPieces:
    """Pieces of row groups. Reading on is cheap; going back decodes a group from its beginning."""

    def __init__(self, path: Path) -> None:
        # neither mapped nor read ahead: both would hold the encoded file beside what comes out
        self._file = pa_parquet.ParquetFile(path, buffer_size=READ_BYTES, pre_buffer=False)
        self.bytes = _decoded_bytes(self._file)
        self.schema = flatten(self._file.schema_arrow.empty_table()).schema
        self._rows = max(1, DECODED_BYTES // max(1, self.bytes // max(1, self._file.metadata.num_rows)))
        self._next: tuple[int, tuple[str, ...]] | None = None  # the piece that comes out of ``_reading``, its columns
        self._reading: Iterator[pa.Table] = iter(())

    @cached_property
    def _groups(self) -> np.ndarray:
        """First piece of each row group, and the number of pieces."""
        counts = [-(-rows // self._rows) for rows in self._sizes()]
        return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    @cached_property
    def starts(self) -> np.ndarray:
        parts, row = [], 0
        for size in self._sizes():
            parts.append(np.arange(row, row + size, self._rows))
            row += size
        return np.concatenate([*parts, [row]]).astype(np.int64)

    def read(self, piece: int, columns: Sequence[str]) -> pa.Table:
        group = int(np.searchsorted(self._groups, piece, side="right")) - 1
        wanted, first = tuple(columns), int(self._groups[group])
        if self._next is None or self._next[1] != wanted or not first <= self._next[0] <= piece:
            self._next, self._reading = (first, wanted), self._decoded(columns, [group])
        table = next(islice(self._reading, piece - self._next[0], None))
        # the next group is begun when it is asked for
        self._next = (piece + 1, wanted) if piece + 1 < self._groups[group + 1] else None
        return table

    def all(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        return self._decoded(self.schema.names if columns is None else columns)

    def most_bytes(self, columns: Sequence[str]) -> int:
        """The most that a piece declares for these columns, by the average row of its group."""
        wanted = {*columns, *(name.partition(".")[0] for name in columns)}
        groups = map(self._file.metadata.row_group, range(self._file.metadata.num_row_groups))
        sizes = (_group_bytes(self._file, group, wanted) // max(1, group.num_rows) for group in groups)
        return self._rows * max(sizes, default=0)

    def _sizes(self) -> list[int]:
        groups = map(self._file.metadata.row_group, range(self._file.metadata.num_row_groups))
        return [group.num_rows for group in groups]

    def _decoded(self, columns: Sequence[str], groups: Sequence[int] | None = None) -> Iterator[pa.Table]:
        for batch in self._file.iter_batches(self._rows, row_groups=groups, columns=list(columns)):
            yield flatten(pa.Table.from_batches([batch])).select(list(columns))


def _decoded_bytes(file: pa_parquet.ParquetFile) -> int:
    """About what all columns are in memory: a thousand equal numbers are few bytes in the file."""
    return sum(_group_bytes(file, file.metadata.row_group(n)) for n in range(file.metadata.num_row_groups))


def _group_bytes(file: pa_parquet.ParquetFile, group: pa_parquet.RowGroupMetaData, names: Container[str] = ()) -> int:
    """The same of one row group, of all columns or of those with these outermost ``names``."""
    total = 0
    for place in range(group.num_columns):
        chunk, kind = group.column(place), file.schema.column(place)
        if names and chunk.path_in_schema.partition(".")[0] not in names:
            continue
        width = BYTES.get(kind.converted_type) or BYTES.get(kind.physical_type) or kind.length
        total += chunk.num_values * width if width > 0 else chunk.total_uncompressed_size
    return total
