"""The rows ``echo``: some of the step's records once more with their labels, noisier where they are amounts."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from pydantic import Field

from streamkd.api import HeldOutFigures, Kind, Options, RowsContext, StepRows, hookimpl


class EchoOptions(Options):
    """How many, and how noisy."""

    rows: int = Field(default=8, ge=1)
    noise: float = Field(default=0.1, ge=0)


class Echo:
    """All chance comes from a generator that is part of the state."""

    def __init__(self, options: EchoOptions, context: RowsContext) -> None:
        self.options = options
        self.generator = torch.Generator().manual_seed(context.seed)

    def draw(self, rows: StepRows, held_out: Callable[[], HeldOutFigures]) -> StepRows | None:
        if not len(rows):
            return None
        chosen = rows[torch.randint(len(rows), (self.options.rows,), generator=self.generator)]
        if not chosen.x.dtype.is_floating_point:
            return StepRows.of(chosen.x, chosen.y)
        noise = torch.randn(chosen.x.shape, generator=self.generator, dtype=chosen.x.dtype)
        return StepRows.of(chosen.x + self.options.noise * noise, chosen.y)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])


@hookimpl
def streamkd_rows() -> Iterable[Kind]:
    """One source of rows."""
    yield Kind("echo", Echo, EchoOptions, "the step's records once more, noisier", hook_version=1)
