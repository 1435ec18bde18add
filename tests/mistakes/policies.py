"""Mistakes of a memory's policies."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mistakes.mistake import ALOOF, Mistake


class Oldest:
    """A policy that is right: the oldest goes."""

    columns = 1

    def __init__(self, options: Any) -> None: ...

    def places(self, rows: Any, ring: Any) -> Any:
        filled, found = len(ring.y), []
        for count in range(ring.offered, ring.offered + len(rows.labels)):
            place = filled if filled < ring.capacity else int(ring.numbers[:, 0].argmin())
            filled += filled < ring.capacity
            ring.numbers[place, 0] = count
            found.append(place)
        return found


class Uncounted(Oldest):
    columns: Any = None


class Single(Oldest):
    """Gives every row of a batch the same free place, one too far from the second on."""

    def places(self, rows: Any, ring: Any) -> Any:
        return [min(len(ring.y) + 2 * row, ring.capacity - 1) for row in range(len(rows.labels))]


class Short(Oldest):
    """Leaves out the rows that it does not keep."""

    def places(self, rows: Any, ring: Any) -> Any:
        return [place for place in super().places(rows, ring) if place < 10]


class Forgetful(Oldest):
    """Counts for itself, and has no state."""

    def __init__(self, options: Any) -> None:
        self.count = 0

    def places(self, rows: Any, ring: Any) -> Any:
        found = []
        for _ in rows.labels:
            self.count += 1
            found.append(self.count % len(ring.y) if len(ring.y) == ring.capacity else None)
        return found if len(ring.y) == ring.capacity else super().places(rows, ring)


class Deaf(Oldest):
    """Counts its free places, and does not hear that rows are withdrawn."""

    def __init__(self, options: Any) -> None:
        self.filled = 0

    def places(self, rows: Any, ring: Any) -> Any:
        found = []
        for _ in rows.labels:
            self.filled += 1
            found.append((self.filled - 1) % ring.capacity)
        return found


class Scaling(Oldest):
    """Normalises the rows in place."""

    def places(self, rows: Any, ring: Any) -> Any:
        rows.x.sub_(rows.x.mean())
        return super().places(rows, ring)


class Relabelling(Oldest):
    """Corrects remembered labels."""

    def places(self, rows: Any, ring: Any) -> Any:
        ring.y.zero_()
        return super().places(rows, ring)


class Gambling(Oldest):
    def places(self, rows: Any, ring: Any) -> Any:
        free = len(ring.y) + len(rows.labels) <= ring.capacity
        return super().places(rows, ring) if free or torch.rand(()) < 0.5 else [None] * len(rows.labels)


class Chancy(Oldest):
    """Guesses, from a generator without seed."""

    def __init__(self, options: Any) -> None:
        self.chance = np.random.default_rng()

    def places(self, rows: Any, ring: Any) -> Any:
        found = super().places(rows, ring)
        return found if len(ring.y) < ring.capacity else [int(self.chance.integers(ring.capacity)) for _ in found]


class Keeping(Oldest):
    """Compares with the batch before, which it keeps as it is."""

    before: Any = None

    def places(self, rows: Any, ring: Any) -> Any:
        before, self.before = self.before, rows.x
        found = super().places(rows, ring)
        full = len(ring.y) == ring.capacity and before is not None
        return [int((ring.x - before[0]).abs().sum(1).argmin()) for _ in found] if full else found


def policy(name: str, clause: str, make: Callable[..., Any]) -> Mistake:
    return Mistake("policies", name, clause, make)


PLACES = "gives for each row in order the next free place"
MISTAKES = (
    policy("does not say how many numbers it keeps", "`make(options)` gives a policy", Uncounted),
    policy("leaves free places between", PLACES, Single),
    policy("fewer places than rows", PLACES, Short),
    policy("does not hear that rows are withdrawn", PLACES, Deaf),
    policy("guesses, from torch's generator", ALOOF, Gambling),
    policy("guesses, from a generator without seed", "of the same rows and draws another one says the same", Chancy),
    policy("normalises the rows in place", "it leaves rows and contents as they are", Scaling),
    policy("corrects remembered labels", "it leaves rows and contents as they are", Relabelling),
    policy("keeps the caller's tensor", "what it keeps of the rows it copies", Keeping),
    policy("counts, and has no state", "stopped before any batch and restored, it goes on", Forgetful),
)
