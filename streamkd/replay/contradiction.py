"""The policy ``contradicted``: class-balanced, and what newer records contradict makes room for them.

    a row that is offered ─► its nearest remembered neighbours, of its own class and of another that comes now
    the other one is nearer, and that has become commoner among what comes than it is among what is remembered
        ─► the row takes the place of that neighbour; else as class-balanced does

Age by contradiction, not by time: of a class that does not come nothing is contradicted (``Presence``), and where
classes merely overlap the remembered records contradict each other as often as the new ones do them. Only what is
beyond that is taken for a world that has changed: the two-sample test by nearest neighbours (Henze 1988). What is
cleaned is a memory as in self-adjusting memory (Losing, Hammer and Wersing 2016), by the present alone.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from streamkd.gates.presence import Presence
from streamkd.hookspecs import Kind, hookimpl
from streamkd.replay.policy import ClassBalanced, Contents, Offered

RECENT = 200  # rows after which a contradiction, or none, counts half
SURE = 2.0  # standard errors by which new rows are contradicted more often than remembered ones
FEWER = 0.5  # a class with so much fewer neighbours than the other has them farther away: nothing is told of it


class Contradicted(ClassBalanced):
    """Distances are between inputs over their deviation in the ring."""

    def __init__(self) -> None:
        super().__init__()
        self.presence = Presence()
        self._rates = torch.zeros(2).double()  # contradicted: new rows, remembered ones
        self._rows = 0.0  # that the rates come from, as they fade

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
        places = _contradicted(rows.x.flatten(1).float() * scale, labels, held, ring.y, self._told(ring.y))
        asked = torch.arange(len(labels), device=held.device) + ring.offered
        asked = asked % len(held)
        known = _contradicted(held[asked], ring.y[asked], held, ring.y, self._told(ring.y), asked)
        self._count(places, known)
        return [place if place >= 0 else None for place in places.tolist()] if self._changed() else [None] * len(labels)

    def _told(self, y: Tensor) -> Tensor:
        """[places] whose class comes now."""
        absent = torch.from_numpy(self.presence.absent().copy()).to(y.device)
        return ~absent[y.clamp_max(len(absent) - 1)] & (y < len(absent))

    def _count(self, new: Tensor, known: Tensor) -> None:
        """Rates of contradiction among the rows for which it can be told; -2: it cannot."""
        told = (new > -2) & (known > -2)
        count = int(told.sum())
        if not count:
            return
        kept = 0.5 ** (count / RECENT) * self._rows
        rates = torch.stack([(each[told] >= 0).double().mean() for each in (new, known)]).cpu()
        self._rates = (kept * self._rates + count * rates) / (kept + count)
        self._rows = kept + count

    def _changed(self) -> bool:
        """Whether what comes is contradicted by what is remembered more than chance would have it."""
        error = (self._rates * (1 - self._rates)).sum() / max(self._rows, 1.0)
        return bool(self._rates[0] - self._rates[1] > SURE * error.sqrt() + 1e-9)

    def state_dict(self) -> dict[str, Any]:
        changed = {"presence": self.presence.state_dict(), "rates": self._rates, "rows": self._rows}
        return {**super().state_dict(), **changed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(dict(state))
        if "presence" in state:  # not in a state of the policy class-balanced
            self.presence.load_state_dict(state["presence"])
            self._rates, self._rows = state["rates"].clone(), state["rows"]


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
