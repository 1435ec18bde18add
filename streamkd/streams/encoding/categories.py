"""Categories as one-hot vectors, whatever comes: nothing is fitted, and every process makes the same numbers.

    value ─┬─► one of `values`: its own place
           ├─► anything else: two of the places behind them, by its hash (one where there is one)
           └─► a gap: the last place, where gaps are filled

Two places each, so that two values which meet in one of them differ in the other: of a hundred values in 64 places two
that are told apart by nothing are one in a hundred pairs in two places, and one in 64 in one (Bloom 1970).
"""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np

from streamkd.records import InputColumn

REMEMBERED = 1 << 14  # values whose places are known without hashing them again; ids that stand as categories are more


def one_hot(values: Sequence[str | None], column: InputColumn) -> np.ndarray:
    """float32 [rows, places] of canonical values; what is ``None`` or empty is a gap."""
    known = _places(column)
    places = np.array([known[value or ""] for value in values], np.int64).reshape(-1, 2)
    found = np.zeros((len(values), column.width), np.float32)
    rows = np.arange(len(values))
    found[rows, places[:, 0]] = found[rows, places[:, 1]] = 1.0
    return found


def category_of(value: object) -> str | None:
    """A value of JSON or Python as canonical text, of a boolean 0 or 1; a gap is ``None``.

    Raises:
        ValueError: a list or an object, which names no category.
    """
    if value is None or value == "" or value != value:
        return None
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    if not isinstance(value, str | int | float):
        raise ValueError(f"needed text, a number or a boolean, got {type(value).__name__}")
    return str(value)


class _Places(dict[str, tuple[int, int]]):
    """The places of a column's values; what is asked for the first time is hashed."""

    def __init__(self, column: InputColumn) -> None:
        self._known = {value: (place, place) for place, value in enumerate(column.values)}
        self._known[""] = (column.width - 1, column.width - 1)
        self._first = len(column.values)
        self._spare = column.width - self._first - len(column.indicators)
        super().__init__(self._known)

    def __missing__(self, value: str) -> tuple[int, int]:
        if len(self) > REMEMBERED:
            self.clear()
            self.update(self._known)
        self[value] = places = self._hashed(value)
        return places

    def _hashed(self, value: str) -> tuple[int, int]:
        digest = blake2b(value.encode(), digest_size=16).digest()
        one = int.from_bytes(digest[:8], "little") % self._spare
        if self._spare == 1:
            return self._first, self._first
        other = int.from_bytes(digest[8:], "little") % (self._spare - 1)
        return self._first + one, self._first + other + (other >= one)


@lru_cache(256)
def _places(column: InputColumn) -> _Places:
    return _Places(column)
