"""The teacher ``example``: how far a record is from the mean of each class, as it has come so far."""

import math
from collections.abc import Iterator

import torch

from streamkd.api import Kind, Options, TeacherContext, hookimpl


class ExampleOptions(Options):
    """It has none; give each a type, a default and a description."""


class Example:
    """A live teacher that learns from labels itself: the nearest class mean."""

    role = "live"
    fresh = True

    def __init__(self, options: ExampleOptions, context: TeacherContext) -> None:
        self.key, classes = context.key, len(context.labels)
        self.sums = torch.zeros(classes, math.prod(context.schema.shape), device=context.device)
        self.counts = torch.zeros(classes, device=context.device)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, classes]: the nearer, the likelier."""
        means = self.sums / self.counts.clamp_min(1).unsqueeze(1)
        return -torch.cdist(x.flatten(1).float(), means).square() / max(1, means.shape[1])

    def known(self) -> torch.Tensor:
        return self.counts > 0

    def observe(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Take the fresh labelled rows of a step."""
        self.sums.index_add_(0, y, x.flatten(1).float())
        self.counts.index_add_(0, y, torch.ones_like(y, dtype=torch.float32))

    def end_task(self) -> None: ...

    def grow(self, labels: list[object]) -> None:
        more = len(labels) - len(self.counts)
        self.sums = torch.nn.functional.pad(self.sums, (0, 0, 0, more))
        self.counts = torch.nn.functional.pad(self.counts, (0, more))

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"sums": self.sums, "counts": self.counts}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.sums, self.counts = state["sums"].clone(), state["counts"].clone()


@hookimpl
def streamkd_teachers() -> Iterator[Kind]:
    """One teacher."""
    yield Kind("example", Example, ExampleOptions, "the nearest class mean")
