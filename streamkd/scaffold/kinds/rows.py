"""The source of rows ``example``: some of the step's rows again, with a little noise."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pydantic import Field

from streamkd.api import HeldOutFigures, Kind, Options, RowsContext, StepRows, hookimpl


class ExampleOptions(Options):
    """How many, and how far away."""

    rows: int = Field(default=10, ge=0, description="at each step")
    noise: float = Field(default=0.1, ge=0, description="in standard deviations of the step's rows")
    mass: float = Field(default=0.5, ge=0, description="what each counts, beside 1 for a row that has arrived")


class Example:
    """Draws with a generator of its own, which is part of the state: a restored one draws the same."""

    def __init__(self, options: ExampleOptions, context: RowsContext) -> None:
        self.options = options
        self.generator = torch.Generator().manual_seed(context.seed)

    def draw(self, rows: StepRows, held_out: Callable[[], HeldOutFigures]) -> StepRows | None:
        """Further rows, in type and shape as ``rows``; ``None`` where there are none now."""
        if len(rows) < 2 or not rows.x.is_floating_point():
            return None
        chosen = torch.randint(len(rows), (self.options.rows,), generator=self.generator).to(rows.x.device)
        x = rows.x[chosen]
        noise = torch.randn(x.shape, generator=self.generator).to(x)
        moved = x + self.options.noise * rows.x.std(0, correction=0) * noise
        return StepRows.of(moved.to(x.dtype), rows.y[chosen], self.options.mass)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])


@hookimpl
def streamkd_rows() -> Iterator[Kind]:
    """One source of rows."""
    yield Kind("example", Example, ExampleOptions, "rows of the step again, with noise")
