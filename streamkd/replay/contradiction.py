"""The policy ``contradicted``: class-balanced, and what newer records contradict makes room for them.

    a row that is offered ─► its nearest remembered neighbours, of its own class and of another that comes now
    the other one is nearer: contradicted. Is that more than chance would have it?
        ─► the row takes the place of that neighbour; else as class-balanced does

Age by contradiction, not by time: of a class that does not come nothing is contradicted (``Presence``). Where classes
merely overlap, remembered records contradict each other as often as new ones do them, and those that are contradicted
are as old as others. Only what is beyond that is taken for a world that has changed: more contradictions than among the
remembered (the two-sample test by nearest neighbours, Henze 1988), or, once old and new lie side by side, more of them
against the older half, of which then room is made. The memory is cleaned by the present as in self-adjusting memory
(Losing, Hammer and Wersing 2016).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamkd.gates.presence import Presence
from streamkd.hookspecs import Kind, hookimpl
from streamkd.replay.policy import ClassBalanced, Contents, Offered

RECENT = 200  # rows after which a contradiction, or none, counts half
SURE = 4.0  # standard errors by which it is more than chance: it is asked at every batch
FEWER = 0.5  # a class with so much fewer neighbours than the other has them farther away: nothing is told of it


SHARES = ("contradicted", "known", "older")


@dataclass(slots=True)
class Share:
    """The share of rows of which something is so, the older ones fading; the rows that it comes from."""

    value: float = 0.5
    rows: float = 0.0

    def add(self, found: Tensor) -> None:
        """Take some rows [n], true or false."""
        count = len(found)
        if count:
            kept = 0.5 ** (count / RECENT) * self.rows
            self.value = (kept * self.value + float(found.sum())) / (kept + count)
            self.rows = kept + count

    @property
    def error(self) -> float:
        """Its standard error, with two rows to spare on either side (Agresti and Coull 1998)."""
        rows = self.rows + 4
        value = (self.value * self.rows + 2) / rows
        return math.sqrt(value * (1 - value) / rows)


class Contradicted(ClassBalanced):
    """Distances are between inputs over their deviation in the ring."""

    def __init__(self) -> None:
        super().__init__()
        self.presence = Presence()
        self.contradicted, self.known, self.older = Share(), Share(), Share()

    def places(self, rows: Offered, ring: Contents) -> list[int | None]:
        for label in rows.labels:
            self.presence.see(label)
        against = self._against(rows, ring)
        found = list[int | None]()
        for label, (chance, pick), place in zip(rows.labels, rows.draws, against, strict=True):
            if place is None or place in found:
                found.append(self._place(label, chance, pick, ring.capacity))
            else:
                self.seen[label] = self.seen.get(label, 0) + 1
                found.append(self._replace(place, label))
        return found

    def _against(self, rows: Offered, ring: Contents) -> list[int | None]:
        """For each row the place that it contradicts, where the world has changed; ``None``: none."""
        if not len(ring.y) or not len(rows.labels):
            return [None] * len(rows.labels)
        held = ring.x.flatten(1).float()
        scale = 1 / held.std(0, correction=0).clamp_min(1e-6)
        held, labels = held * scale, torch.tensor(rows.labels, device=ring.y.device)
        told = self._told(ring.y)
        places = _contradicted(rows.x.flatten(1).float() * scale, labels, held, ring.y, told)
        asked = torch.arange(len(labels), device=held.device) + ring.offered
        asked = asked % len(held)
        known = _contradicted(held[asked], ring.y[asked], held, ring.y, told, asked)
        old = ring.age > ring.age[told].median() if bool(told.any()) else ring.age < 0
        kept = self._judged(places, known, old)
        return [place if place >= 0 and kept[place] else None for place in places.tolist()]

    def _judged(self, places: Tensor, known: Tensor, old: Tensor) -> list[bool]:
        """[places] of which room may be made, by what new rows contradict, remembered ones, and how old that is."""
        able = (places > -2) & (known > -2)
        self.contradicted.add(places[able] >= 0)
        self.known.add(known[able] >= 0)
        self.older.add(old[places[places >= 0]])
        error = math.hypot(self.contradicted.error, self.known.error)
        if self.contradicted.value - self.known.value > SURE * error:
            return [True] * len(old)
        if self.older.value - 0.5 > SURE * self.older.error:
            return old.tolist()
        return [False] * len(old)

    def _told(self, y: Tensor) -> Tensor:
        """[places] whose class comes now."""
        absent = torch.from_numpy(self.presence.absent().copy()).to(y.device)
        return ~absent[y.clamp_max(len(absent) - 1)] & (y < len(absent))

    def state_dict(self) -> dict[str, Any]:
        shares = {name: [getattr(self, name).value, getattr(self, name).rows] for name in SHARES}
        return {**super().state_dict(), "presence": self.presence.state_dict(), "shares": shares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(dict(state))
        if "presence" in state:  # not in a state of the policy class-balanced
            self.presence.load_state_dict(state["presence"])
            for name in SHARES:
                setattr(self, name, Share(*state["shares"][name]))


def _contradicted(
    x: Tensor, y: Tensor, held: Tensor, labels: Tensor, told: Tensor, own: Tensor | None = None
) -> Tensor:
    """[n] the place of the nearest of another class that comes now, where it is nearer than the nearest of the own.

    -1: it is not; -2: one of the two is missing, or the own class has too few neighbours. ``own``: the rows' places.
    """
    apart = torch.cdist(x, held)
    if own is not None:
        apart[torch.arange(len(own), device=own.device), own] = torch.inf
    same = labels == y.unsqueeze(1)
    mine = apart.masked_fill(~same, torch.inf).amin(1)
    theirs, place = apart.masked_fill(same | ~told, torch.inf).min(1)
    other = (labels == labels[place].unsqueeze(1)).sum(1)
    able = mine.isfinite() & theirs.isfinite() & (same.sum(1) >= FEWER * other)
    return torch.where(able, torch.where(theirs < mine, place, -1), -2)


@hookimpl
def streamkd_policies() -> Iterable[Kind]:
    """The policy."""
    yield Kind(
        "contradicted", lambda options: Contradicted(), summary="class-balanced, without what newer records contradict"
    )
