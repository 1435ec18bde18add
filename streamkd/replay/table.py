"""A table of remembered rows: columns by place that grow as they fill, and what of them has changed since when.

    put, move ─► columns [places, ...] ─► StoredRows ─► a checkpoint, which writes the rows alone that are new to it

Places come as they are needed, half as many more at a time, so that a short stream takes little.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

FIRST = 64  # places to begin with


class Changes:
    """When each row of a table changed: ``now`` counts the looks taken at it, ``stamps`` is [places] int32.

    ``taken`` says that a table has it; that of rows which were read waits for one.
    """

    def __init__(self, rows: int = 0) -> None:
        self.now = 1
        self.stamps = torch.zeros(rows, dtype=torch.int32)
        self.taken = False

    def look(self) -> int:
        """The number of a look that is taken now: what changes from here on has a higher one."""
        self.now += 1
        return self.now - 1

    def since(self, look: int, rows: int) -> Tensor:
        """Which of the first ``rows`` rows have changed since that look, ascending."""
        return torch.nonzero(self.stamps[:rows] > look).flatten()


@dataclass(frozen=True, slots=True)
class StoredRows:
    """What a state has of a table: columns [rows, ...], and who knows which changed since the look ``taken``."""

    columns: Mapping[str, Tensor]
    changes: Changes = field(default_factory=Changes, compare=False, repr=False)
    taken: int = field(default=0, compare=False, repr=False)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


class Table:
    """Columns by name, each [places, ...]; at first without places, of the shapes and types that are given."""

    def __init__(self, **columns: Tensor) -> None:
        self.columns = columns
        self.changes = Changes()
        self.changes.taken = True

    def __getitem__(self, name: str) -> Tensor:
        return self.columns[name]

    @property
    def places(self) -> int:
        """How many there are now."""
        return len(self.changes.stamps)

    @property
    def row_bytes(self) -> int:
        """What a row takes."""
        return 4 + sum(prod(column.shape[1:]) * column.element_size() for column in self.columns.values())

    def reserve(self, places: int, most: int) -> None:
        """Have so many places at least, of at most ``most``."""
        if places > self.places:
            self._resize(min(most, max(places, FIRST, self.places * 3 // 2)))

    def cut(self, places: int) -> None:
        """Have so many places at most."""
        if places < self.places:
            self._resize(places)

    def _resize(self, places: int) -> None:
        both = min(places, self.places)
        for name, column in self.columns.items():
            self.columns[name] = column.new_zeros((places, *column.shape[1:]))
            self.columns[name][:both] = column[:both]
        stamps = self.changes.stamps
        self.changes.stamps = stamps.new_zeros(places)
        self.changes.stamps[:both] = stamps[:both]

    def widen(self, name: str, *more: int) -> None:
        """Add zeros to a column's last dimensions, so many to the last, the last but one, ..."""
        self.columns[name] = torch.nn.functional.pad(self.columns[name], [n for size in more for n in (0, size)])

    def changed(self, places: Tensor) -> None:
        """Rows in these places are other ones now."""
        self.changes.stamps[places.to(self.changes.stamps.device)] = self.changes.now

    def move(self, places: Tensor, sources: Tensor) -> None:
        """Into ``places`` the rows of ``sources``, all at once."""
        for column in self.columns.values():
            column[places] = column[sources]
        self.changed(places)

    def rows(self, filled: int) -> StoredRows:
        """The first so many rows, as they are until the table changes."""
        return StoredRows(
            {name: column[:filled] for name, column in self.columns.items()}, self.changes, self.changes.look()
        )

    def load(self, rows: StoredRows, most: int) -> None:
        """Take rows that ``rows`` once gave; columns that they have not begin with zeros."""
        self.reserve(len(rows), most)
        for name, column in rows.columns.items():
            inner = tuple(slice(min(pair)) for pair in zip(column.shape, self.columns[name].shape, strict=True))
            self.columns[name][inner] = column[inner].to(self.columns[name])
        if not rows.changes.taken:  # from here on it is this table's
            stamps, rows.changes.taken = rows.changes.stamps, True
            rows.changes.stamps = torch.nn.functional.pad(stamps, (0, self.places - len(stamps)))
            self.changes = rows.changes
