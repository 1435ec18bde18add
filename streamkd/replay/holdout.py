"""The held-out part of a memory: rows that nobody has learned, by which everybody is measured.

    an arriving row ─► hold ─► its place; whoever had it is released: learned from now on

Called by the ``memory``, which says which rows may be held out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from streamkd.replay.ring import Ring


@dataclass(frozen=True, slots=True)
class Released:
    """Samples that were held out since they came, and are no more: by column all that was kept of them."""

    samples: Mapping[str, Tensor]

    @classmethod
    def joined(cls, parts: Sequence["Released"]) -> "Released | None":
        """One behind the other; ``None`` of none."""
        return cls({name: torch.cat([p.samples[name] for p in parts]) for name in parts[0].samples}) if parts else None

    @property
    def x(self) -> Tensor:
        """[n, *shape] in the stream's element type."""
        return self.samples["x"]

    @property
    def y(self) -> Tensor:
        """[n] columns."""
        return self.samples["y"]

    def __getitem__(self, which: Tensor) -> Mapping[str, Tensor]:
        return {name: column[which] for name, column in self.samples.items()}


@dataclass(frozen=True, slots=True)
class Offer:
    """A batch's ``arrived`` rows and the memory: ``held`` {place: row} are held out, ``released`` had such places.

    ``again`` are rows that came before; those of them that are held out since, and what is held out as it comes, are
    ``untaught``: nobody may learn from them. ``rows`` may yet be replayed, in this order, the released ones by numbers
    from ``arrived`` on; ``draws`` are the two uniform numbers of each that decide its place.
    """

    arrived: int = 0
    held: dict[int, int] = field(default_factory=dict)
    untaught: list[int] = field(default_factory=list)
    again: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    draws: list[tuple[float, float]] = field(default_factory=list)
    released: Released | None = None


class Holdout(Ring):
    """A ring whose samples are not replayed, and are learned when they leave it."""

    def hold(
        self, x: Tensor, y: Tensor, task: int, logits: Tensor, mark: Tensor, draws: tuple[float, float]
    ) -> tuple[int | None, Released | None]:
        """Offer one row [1, *shape]: its place, and who made room.

        What newer records contradict is let go.
        """
        filled, left = self.filled, None
        place = next(iter(self.offer(x, y.tolist(), [draws])), None)
        if place is not None:
            slot = torch.tensor([place], device=x.device)
            if place < filled and not self.contradicted[place]:
                left = Released(self.copied(slot))
            self.take(slot, x, y, task, logits, mark)
        return place, left
