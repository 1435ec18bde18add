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

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from streamkd.hookspecs import Kind, hookimpl


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

    ``numbers`` are the policy's to write, of places that it fills too: [capacity, columns], 0 at first. ``age`` is how
    many rows have been offered since the batch that brought the row, ``offered`` how many in all before these.
    """

    capacity: int
    offered: int
    x: Tensor
    y: Int[Tensor, "filled"]
    age: Int[Tensor, "filled"]
    numbers: Float[Tensor, "capacity columns"]


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
    """As many records of each class as of any other, as far as they came; within a class, a reservoir."""

    columns = 0

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}
        self._places: dict[int, list[int]] = {}
        self._labels: list[int] = []
        self._full: set[int] = set()

    def places(self, rows: Offered, ring: Contents) -> list[int | None]:
        pairs = zip(rows.labels, rows.draws, strict=True)
        return [self._place(label, chance, pick, ring.capacity) for label, (chance, pick) in pairs]

    def _place(self, label: int, chance: float, pick: float, capacity: int) -> int | None:
        seen = self.seen[label] = self.seen.get(label, 0) + 1
        if (filled := len(self._labels)) < capacity:
            self._labels.append(label)
            self._places.setdefault(label, []).append(filled)
            return filled
        most = max(map(len, self._places.values()))
        self._full.update(known for known, places in self._places.items() if len(places) == most)
        if label not in self._full or label not in self._places:
            largest = [place for places in self._places.values() if len(places) == most for place in places]
            return self._replace(largest[int(pick * len(largest))], label)
        mine = self._places[label]
        return mine[int(pick * len(mine))] if chance * seen < len(mine) else None

    def _replace(self, place: int, label: int) -> int:
        old, self._labels[place] = self._labels[place], label
        if old != label:
            self._leave(place, old)
            self._places.setdefault(label, []).append(place)
        return place

    def _leave(self, place: int, label: int) -> None:
        self._places[label].remove(place)
        if not self._places[label]:
            del self._places[label]

    def dropped(self, place: int, last: int) -> None:
        self._leave(place, self._labels[place])
        label = self._labels.pop()
        if place != last:
            self._labels[place] = label
            mine = self._places[label]
            mine[mine.index(last)] = place

    def state_dict(self) -> dict[str, Any]:
        # the order of each class's places decides later replacements, so it is state
        places = [[label, *places] for label, places in self._places.items()]
        return {"seen": [list(item) for item in self.seen.items()], "places": places, "full": sorted(self._full)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = dict(map(tuple, state["seen"]))
        self._places = {label: list(places) for label, *places in state["places"]}
        self._full = set(state["full"])
        labels = {place: label for label, places in self._places.items() for place in places}
        self._labels = [labels[place] for place in range(len(labels))]


@hookimpl
def streamkd_policies() -> Iterable[Kind]:
    """The built-in policies."""
    yield Kind("class-balanced", lambda options: ClassBalanced(), summary="as many of each class as of any other")
    yield Kind("reservoir", lambda options: Reservoir(), summary="a uniform sample of all that came")
