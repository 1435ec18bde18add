"""The rows of a step: one type, whoever brings them.

    arrived | replayed | each source of further rows ─► StepRows

A row of mass 0 is held out: it teaches nobody, and no source is shown it. Replayed rows come from the memory and not
from a source, because with them come answers that teachers gave before, by their places in it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from streamkd.records import RecordSchema


@dataclass(frozen=True, slots=True)
class StepRows:
    """x [batch, *shape] in the stream's element type, and what there is to know of each.

    y [batch] is its column, -1 without label; mass [batch] what it counts, beside 1 for a row that has arrived; met
    [batch] how often its label was learned before.
    """

    x: Tensor
    y: Tensor
    mass: Tensor
    met: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor | None = None, mass: float = 1.0, met: Tensor | None = None) -> "StepRows":
        """Rows that count alike; without labels and never met, unless told."""
        none = torch.full((len(x),), -1, device=x.device)
        counts = torch.full((len(x),), mass, device=x.device)
        return cls(x, none if y is None else y, counts, torch.zeros_like(none) if met is None else met)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, which: Tensor) -> "StepRows":
        return StepRows(self.x[which], self.y[which], self.mass[which], self.met[which])

    def and_(self, more: "StepRows") -> "StepRows":
        """These and others behind them."""
        pairs = ((self.x, more.x), (self.y, more.y), (self.mass, more.mass.to(self.mass)), (self.met, more.met))
        return StepRows(*(torch.cat(pair) for pair in pairs))


class HeldOutFigures(NamedTuple):
    """What held-out records say of the teachers together, both in [0, 1).

    ``error_reduction`` is the part of the student's mistakes that they would spare it; ``invariance`` the part of the
    images that they know which they still know moved by a pixel.
    """

    error_reduction: float = 0.0
    invariance: float = 0.0


@dataclass(frozen=True, slots=True)
class RowsContext:
    """What a source of rows is made with; ``seed`` is for a generator of its own."""

    key: str
    schema: RecordSchema
    seed: int


@runtime_checkable
class RowSource(Protocol):
    """Gives a step further rows. They are learned once: the memory takes none, and no teacher learns from them.

    On rows without label the teachers alone are heard, those that are asked now; snapshots, and what was recorded, say
    nothing of rows that they have never seen.
    """

    def draw(self, rows: StepRows, held_out: Callable[[], HeldOutFigures]) -> StepRows | None:
        """Further rows, in type and shape as ``rows``, the step's so far; ``None``: none now. Called once a step.

        ``held_out`` costs a look at the held-out records now and then; who asks for it asks at each step.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that decides what is drawn next, its generator's state among it."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
