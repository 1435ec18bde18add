"""Duplicates: what comes again is not new.

    rows ─► marks (64 bits of their bytes) ─► did they come before? ─► kept from being held out, or from being learned

A stream that repeats its records brings back those that are held out, and those that were learned. The first may not be
learned now, the second not be held out any more. A record is known by its inputs alone: with another label it teaches
as much about them. What is kept of each is a mark and when it came last, in a table of a fixed size, where a new one
may take the place of an old one: of the last ``PLACES`` / 2 records nearly all are known again.

Where inputs have few values (three columns of yes and no), the same ones are other records as well. That is seen by
how soon they come again: a source that begins anew does so after more records than the memory has places (or 1,000, of
a larger one), chance does not wait. So where more than ``COMMON`` of the records had come within that many, inputs tell
no records apart, and nothing is kept from anybody. Below that little is lost: of inputs that come again by chance, one
in fifty at most is held out (a tenth of the fifth of the memory that holds out).
"""

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

PLACES = 1 << 17  # marks of 16 bytes each, with the time: 2 MiB, of which a checkpoint has those that are filled
COMMON = 0.1  # part of the records that come again soon: beyond, inputs tell no records apart
NEVER = np.iinfo(np.int64).min


def marks(x: Tensor) -> np.ndarray:
    """int64 [batch]: one number for the bytes of each row of x [batch, *shape], never 0."""
    rows = x.detach().cpu().contiguous().flatten(1).view(torch.uint8).numpy()
    digests = b"".join(hashlib.blake2b(row, digest_size=8).digest() for row in rows)
    found = np.frombuffer(digests, np.int64)
    return np.where(found == 0, 1, found)


class Duplicates:
    """The marks of what came; ``soon`` records are too few for a source to have begun anew.

    ``repeats`` counts the records that had come before, ``share`` is their part of the last ``soon`` records or so, and
    ``common`` the part that had come within ``soon`` records.
    """

    def __init__(self, soon: int) -> None:
        self.soon = max(1, soon)
        self.records = self.repeats = 0
        self.share = self.common = 0.0
        self._marks = np.zeros(PLACES, np.int64)
        self._last = np.full(PLACES, NEVER, np.int64)

    @property
    def tells_apart(self) -> bool:
        """Whether the same inputs are the same record here."""
        return self.common <= COMMON

    def arrive(self, marks: np.ndarray) -> np.ndarray:
        """bool [batch]: which of the rows had come before; all of them have come now."""
        now, places = self.records + np.arange(len(marks)), self._places(marks)
        gaps = self._gaps(marks, places, now)
        self._marks[places], self._last[places] = marks, now
        again, left = gaps > 0, (1 - 1 / self.soon) ** len(marks)
        self.share = left * self.share + (1 - left) * float(again.mean())
        self.common = left * self.common + (1 - left) * float((again & (gaps <= self.soon)).mean())
        self.records += len(marks)
        self.repeats += int(again.sum())
        return again

    def learn(self, marks: np.ndarray) -> None:
        """Know these rows, as if they had come long ago."""
        places = self._places(marks)
        self._marks[places], self._last[places] = marks, self.records - self.soon - 1

    def _gaps(self, marks: np.ndarray, places: np.ndarray, now: np.ndarray) -> np.ndarray:
        """How many records ago each row came last; 0 where it is not known."""
        gaps = np.where(self._marks[places] == marks, now - self._last[places], 0)
        if len(set(marks.tolist())) < len(marks):
            before: dict[int, int] = {}
            for row, mark in enumerate(marks.tolist()):
                gaps[row] = row - before[mark] if mark in before else gaps[row]
                before[mark] = row
        return gaps

    def _places(self, marks: np.ndarray) -> np.ndarray:
        """Where each mark is, or would go: of its two places the empty one, or that of the older mark."""
        first, second = marks & (PLACES - 1), (marks >> 32) & (PLACES - 1)
        older = self._last[second] < self._last[first]
        elsewhere = (self._marks[first] != marks) & ((self._marks[second] == marks) | older)
        return np.where(elsewhere, second, first)

    def state_dict(self) -> dict[str, Any]:
        filled = np.flatnonzero(self._marks)
        return {
            "marks": torch.from_numpy(self._marks[filled]),
            "places": torch.from_numpy(filled),
            "last": torch.from_numpy(self._last[filled]),
            **{name: getattr(self, name) for name in ("records", "repeats", "share", "common")},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._marks[:], self._last[:] = 0, NEVER
        places = state["places"].numpy()
        self._marks[places], self._last[places] = state["marks"].numpy(), state["last"].numpy()
        self.records, self.repeats = state["records"], state["repeats"]
        self.share, self.common = state["share"], state["common"]
