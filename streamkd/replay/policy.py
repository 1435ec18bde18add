"""Policies of a memory: which place of a ring each offered row takes.

    rows x, labels, draws ─┐
    the ring's contents   ─┴─► Policy.places ─► for each row in order a place, or None: it is not kept

Free places come first, in their order; a row may take the place of another of the same batch. A policy is
deterministic given the draws. What it notes of each place goes into ``Contents.numbers``, which move with the rows and
are kept in the checkpoint; one with more than that is ``Stateful``.

The class-balanced policy is CBRS (Chrysakis & Moens 2020, algorithm 1): a class that has once been the largest of a
filled memory is full from then on, and only reservoir sampling within itself replaces its records; any other takes
a place from the largest. Reservoir sampling is Vitter 1985, algorithm R.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from streamkd.hookspecs import Kind, hookimpl

AT_ONCE = 500  # contradicted records from which one is chosen
Account: TypeAlias = "array[int]"


@dataclass(frozen=True, slots=True)
class Offered:
    """Rows that a ring may keep: x [n, *shape] in the stream's element type, their labels' columns, two draws each.

    ``draws`` are uniform in [0, 1): the only chance that a policy has.
    """

    x: Tensor
    labels: Sequence[int]
    draws: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Contents:
    """What a ring of ``capacity`` places holds, by place; the tensors are the ring's own, to be read.

    ``numbers`` are the policy's to write, of places that it fills too: [places, columns], 0 at first. ``since`` is how
    many rows had been offered when the row's batch was, ``offered`` how many before these. ``contradicted`` is what
    newer records contradict (``streamkd.learning.contradiction``). There may be millions of places.
    """

    capacity: int
    offered: int
    x: Tensor
    y: Int[Tensor, "filled"]
    since: Int[Tensor, "filled"]
    numbers: Float[Tensor, "places columns"]
    contradicted: Bool[Tensor, "filled"]

    @property
    def age(self) -> Int[Tensor, "filled"]:
        """How many rows have been offered since the batch that brought each."""
        return self.offered - self.since


@runtime_checkable
class Policy(Protocol):
    """Places for the rows that a ring is offered; ``columns`` numbers of its own go with each place."""

    columns: int

    def places(self, rows: Offered, ring: Contents) -> Sequence[int | None]:
        """For each row in order the place that it takes: the next free one, or one that is taken; ``None``: none."""
        ...


@runtime_checkable
class Accounting(Protocol):
    """A policy that keeps its own account of places, and is told when a row is withdrawn."""

    def dropped(self, place: int, last: int) -> None:
        """The row of ``place`` is gone, and that of ``last``, the last one, lies there now, if it was another."""
        ...


@runtime_checkable
class Yielding(Accounting, Protocol):
    """A policy that says who goes where there are fewer places than before; of another's rows any goes."""

    def leaving(self, draw: float) -> int:
        """The place of the row that goes, of those on its account; it is told that it is ``dropped``."""
        ...


class Reservoir:
    """Every record that ever came has the same chance to be there."""

    columns = 0

    def places(self, rows: Offered, ring: Contents) -> list[int | None]:
        filled, found = len(ring.y), list[int | None]()
        for count, (chance, _) in enumerate(rows.draws, ring.offered + 1):
            place = filled if filled < ring.capacity else int(chance * count)
            filled += filled < ring.capacity
            found.append(place if place < ring.capacity else None)
        return found


class ClassBalanced:
    """As many records of each class as of any other, as far as they came; within a class, a reservoir.

    What newer records contradict makes room first: for a row of its own class, else for any.
    """

    columns = 0

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}
        self._places: dict[int, Account] = {}  # by class
        self._labels = array("i")  # of each place
        self._full: set[int] = set()

    def places(self, rows: Offered, ring: Contents) -> list[int | None]:
        stale = torch.nonzero(ring.contradicted).flatten()[:AT_ONCE].tolist() if ring.contradicted.any() else []
        found = list[int | None]()
        for label, (chance, pick) in zip(rows.labels, rows.draws, strict=True):
            found.append(self._instead(stale, label, pick) if stale else None)
            if found[-1] is None:
                found[-1] = self._place(label, chance, pick, ring.capacity)
        return found

    def _instead(self, stale: list[int], label: int, pick: float) -> int:
        """The place of a contradicted record, which is one no longer."""
        mine = [place for place in stale if self._labels[place] == label] or stale
        place = mine[int(pick * len(mine))]
        stale.remove(place)
        self.seen[label] = self.seen.get(label, 0) + 1
        return self._replace(place, label)

    def _place(self, label: int, chance: float, pick: float, capacity: int) -> int | None:
        seen = self.seen[label] = self.seen.get(label, 0) + 1
        if (filled := len(self._labels)) < capacity:
            self._labels.append(label)
            self._enter(filled, label)
            return filled
        most = max(map(len, self._places.values()))
        self._full.update(known for known, places in self._places.items() if len(places) == most)
        if label not in self._full or label not in self._places:
            return self._replace(self._of_the_largest(pick), label)
        mine = self._places[label]
        return mine[int(pick * len(mine))] if chance * seen < len(mine) else None

    def _of_the_largest(self, pick: float) -> int:
        """A place of one of the largest classes, each as likely."""
        most = max(map(len, self._places.values()))
        largest = [places for places in self._places.values() if len(places) == most]
        number = int(pick * len(largest) * most)
        return largest[number // most][number % most]

    def _replace(self, place: int, label: int) -> int:
        old, self._labels[place] = self._labels[place], label
        if old != label:
            self._leave(place, old)
            self._enter(place, label)
        return place

    def _enter(self, place: int, label: int) -> None:
        self._places.setdefault(label, array("i")).append(place)

    def _leave(self, place: int, label: int) -> None:
        mine = self._places[label]
        mine.pop(_index(mine, place))
        if not mine:
            del self._places[label]

    def leaving(self, draw: float) -> int:
        """One of the largest class."""
        return self._of_the_largest(draw)

    def dropped(self, place: int, last: int) -> None:
        self._leave(place, self._labels[place])
        label = self._labels.pop()
        if place != last:
            self._labels[place] = label
            mine = self._places[label]
            mine[_index(mine, last)] = place

    def state_dict(self) -> dict[str, Any]:
        # the order of each class's places decides later replacements, so it is state
        mine = [torch.tensor(np.array(places)) for places in self._places.values()]
        places = torch.cat(mine) if mine else torch.zeros(0, dtype=torch.int32)
        sizes = [[label, len(mine)] for label, mine in self._places.items()]
        seen = [list(item) for item in self.seen.items()]
        return {"seen": seen, "places": places, "sizes": sizes, "full": sorted(self._full)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen, self._full = dict(map(tuple, state["seen"])), set(state["full"])
        if "sizes" in state:
            labels, sizes = [label for label, _ in state["sizes"]], [size for _, size in state["sizes"]]
            parts = [part.tolist() for part in state["places"].split(sizes)] if sizes else []
        else:  # an older checkpoint
            labels, parts = [label for label, *_ in state["places"]], [places for _, *places in state["places"]]
        self._places = {label: array("i", mine) for label, mine in zip(labels, parts, strict=True)}
        self._labels = array("i", [0]) * sum(map(len, parts))
        for label, mine in self._places.items():
            for place in mine:
                self._labels[place] = label


def _index(places: Account, place: int) -> int:
    """Where it stands: found in 10 µs among 50,000; the order stays, for by it the next one is drawn."""
    return int((np.frombuffer(places, np.int32) == place).argmax())


@hookimpl
def streamkd_policies() -> Iterable[Kind]:
    """The built-in policies."""
    yield Kind("class-balanced", lambda options: ClassBalanced(), summary="as many of each class as of any other")
    yield Kind("reservoir", lambda options: Reservoir(), summary="a uniform sample of all that came")
