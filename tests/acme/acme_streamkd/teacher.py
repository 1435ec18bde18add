"""The teacher ``centroids``: the nearest class mean, learned from the labels that come by.

It asks for nothing but the contract: it answers, says what it knows, and follows the label space. That it learns
(``Observing``) and keeps state (``Stateful``) it shows by having the methods.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pydantic import Field

from streamkd.api import Kind, Label, Options, Role, TeacherContext, hookimpl


class CentroidsOptions(Options):
    """How sharp its answers are."""

    sharpness: float = Field(default=1.0, gt=0, description="what the negative squared distance is multiplied by")


class Centroids:
    """Logits are negative mean squared distances to the means of the classes; it answers anew at every step."""

    role: Role = "live"
    fresh = True

    def __init__(self, options: CentroidsOptions, context: TeacherContext) -> None:
        self.key = context.key
        self.sharpness = options.sharpness
        width = torch.Size(context.schema.shape).numel()
        self.sums = torch.zeros(len(context.labels), width, dtype=torch.float64, device=context.device)
        self.counts = torch.zeros(len(context.labels), dtype=torch.float64, device=context.device)

    @torch.no_grad()
    def logits(self, x: torch.Tensor) -> torch.Tensor:
        means = self.sums / self.counts.clamp_min(1).unsqueeze(1)
        rows = x.flatten(1).to(means.dtype)
        apart = (rows.unsqueeze(1) - means).square().mean(2)
        return (-self.sharpness * apart).float()

    def known(self) -> torch.Tensor:
        return (self.counts > 0).cpu()

    def grow(self, labels: Sequence[Label]) -> None:
        more = len(labels) - len(self.counts)
        self.sums = torch.cat([self.sums, self.sums.new_zeros(more, self.sums.shape[1])])
        self.counts = torch.cat([self.counts, self.counts.new_zeros(more)])

    def observe(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.sums.index_add_(0, y, x.flatten(1).to(self.sums.dtype))
        self.counts.index_add_(0, y, torch.ones_like(y, dtype=self.counts.dtype))

    def end_task(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums, "counts": self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums, self.counts = state["sums"].to(self.sums), state["counts"].to(self.counts)


@hookimpl
def streamkd_teachers() -> Iterable[Kind]:
    """One teacher."""
    yield Kind("centroids", Centroids, CentroidsOptions, "the nearest class mean", hook_version=1)
