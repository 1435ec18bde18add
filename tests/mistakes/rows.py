"""Mistakes of sources of rows."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mistakes.mistake import ALOOF, Mistake
from streamkd.replay.rows import StepRows


class Echo:
    """A source that is right: a few of the step's rows once more, with their labels."""

    def __init__(self, options: Any, context: Any) -> None:
        self.generator = torch.Generator().manual_seed(context.seed)

    def draw(self, rows: StepRows, held_out: Callable[[], Any]) -> Any:
        return rows[self.picked(len(rows))] if len(rows) else None

    def picked(self, count: int) -> Tensor:
        return torch.randint(count, (4,), generator=self.generator)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])


class Silent(Echo):
    """Has no state."""

    state_dict = None  # type: ignore[assignment]


def altered(change: Callable[[StepRows], Any]) -> type[Echo]:
    """Echo, and what a mistake does to its rows."""

    class Altered(Echo):
        def draw(self, rows: StepRows, held_out: Callable[[], Any]) -> Any:
            drawn = super().draw(rows, held_out)
            return drawn and change(drawn)

    return Altered


def shorter(rows: StepRows) -> StepRows:
    return StepRows(rows.x, rows.y[1:], rows.mass, rows.met)


def of_class_3(rows: StepRows) -> StepRows:
    return StepRows.of(rows.x, torch.full_like(rows.y, 3))


class Writing(Echo):
    """Darkens the step's own rows."""

    def draw(self, rows: StepRows, held_out: Callable[[], Any]) -> Any:
        rows.x.mul_(0)
        return super().draw(rows, held_out)


class Thrifty(Echo):
    """Writes each draw over the one before."""

    kept: StepRows | None = None

    def draw(self, rows: StepRows, held_out: Callable[[], Any]) -> Any:
        drawn = super().draw(rows, held_out)
        if drawn is None or self.kept is None or self.kept.x.dtype != drawn.x.dtype:
            self.kept = drawn
        else:
            self.kept.x.copy_(drawn.x)
            self.kept.y.copy_(drawn.y)
        return self.kept


class Forgetful(Echo):
    """Keeps its generator out of the state."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Dicing(Echo):
    """Draws from torch's own generator."""

    def picked(self, count: int) -> Tensor:
        return torch.randint(count, (4,))


class Restless(Echo):
    """A seed of its own making, which the state has."""

    made = 0

    def __init__(self, options: Any, context: Any) -> None:
        Restless.made += 1
        self.generator = torch.Generator().manual_seed(Restless.made)


FITS = "what it draws fits the step's rows"

MISTAKES = (
    Mistake("rows", "it has no state", "gives a source of rows", Silent),
    Mistake("rows", "it gives inputs alone", FITS, altered(lambda rows: rows.x)),
    Mistake("rows", "it gives another type", FITS, altered(lambda rows: StepRows.of(rows.x.double(), rows.y))),
    Mistake("rows", "it gives another shape", FITS, altered(lambda rows: StepRows.of(rows.x.flatten(1), rows.y))),
    Mistake("rows", "it gives fewer labels", FITS, altered(shorter)),
    Mistake("rows", "it knows a class more", FITS, altered(of_class_3)),
    Mistake("rows", "its rows count less than nothing", FITS, altered(lambda rows: StepRows.of(rows.x, rows.y, -1.0))),
    Mistake("rows", "its inputs are not finite", FITS, altered(lambda rows: StepRows.of(rows.x / 0, rows.y))),
    Mistake("rows", "it writes to the step's rows", "it leaves the step's rows as they are", Writing),
    Mistake("rows", "it writes to what it gave away", "what it has drawn stays as it was given", Thrifty),
    Mistake("rows", "its generator is not in its state", "a restored source draws what the other one draws", Forgetful),
    Mistake("rows", "it seeds itself", "two of one seed draw alike", Restless),
    Mistake("rows", "it draws from torch's own generator", ALOOF, Dicing),
)
