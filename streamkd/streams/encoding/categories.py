"""Categories as one-hot vectors, whatever comes: nothing is fitted, and every process makes the same numbers.

value ─┬─► one of `values`: its own place
       ├─► anything else: one of the places behind them, by its hash
       └─► a gap: the last place, where gaps are filled
"""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np

from streamkd.records import InputColumn

REMEMBERED = 1 << 14  # values that are not hashed again; ids that stand as categories are more


def one_hot(values: Sequence[str | None], column: InputColumn) -> np.ndarray:
    """float32 [rows, places] of canonical values; what is ``None`` or empty is a gap."""
    known = _places(column)
    found = np.zeros((len(values), column.width), np.float32)
    found[np.arange(len(values)), [known[value or ""] for value in values]] = 1.0
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


class _Places(dict[str, int]):
    """The place of each of a column's values; what is asked for the first time is hashed."""

    def __init__(self, column: InputColumn) -> None:
        self._known = {value: place for place, value in enumerate(column.values)}
        self._known[""] = column.width - 1
        self._spare = column.width - len(column.values) - len(column.indicators)
        super().__init__(self._known)

    def __missing__(self, value: str) -> int:
        if len(self) > REMEMBERED:
            self.clear()
            self.update(self._known)
        digest = blake2b(value.encode(), digest_size=8).digest()
        self[value] = place = len(self._known) - 1 + int.from_bytes(digest, "little") % self._spare
        return place


@lru_cache(256)
def _places(column: InputColumn) -> _Places:
    return _Places(column)
