"""Stretches of a stream that are never learned: batches end before one, and the next begins behind it.

    Skip("main/0", 400, 700)      offsets 390 … 399 ─► a batch; 700 … 709 ─► the next

They are part of a state (``streamkd.state.rollback``), so that who resumes passes over the same records.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Skip:
    """The records of a partition from ``start`` to before ``stop``."""

    partition: str
    start: int
    stop: int


class Skips:
    """All of a stream, in any order; they may overlap."""

    def __init__(self, skips: Sequence[Skip] = ()) -> None:
        self._skips = sorted(skips, key=lambda skip: skip.start)

    def past(self, partition: str, offset: int) -> int:
        """Where learning goes on that has come to ``offset``."""
        for skip in self._skips:
            if skip.partition == partition and skip.start <= offset < skip.stop:
                offset = skip.stop
        return offset

    def next(self, partition: str, offset: int) -> int | None:
        """Where the first one behind ``offset`` begins."""
        starts = [skip.start for skip in self._skips if skip.partition == partition and offset < skip.start < skip.stop]
        return min(starts, default=None)
