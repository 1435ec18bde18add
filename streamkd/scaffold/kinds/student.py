"""The student ``example``: two layers, the second one added to the first."""

import math
from collections.abc import Iterator

import torch
from pydantic import Field

from streamkd.api import Kind, Options, hookimpl


class ExampleOptions(Options):
    """What a configuration may say of it, beside its name."""

    width: int = Field(default=100, gt=0, description="units of both layers")


class Example(torch.nn.Module):
    """[batch, *shape] to logits [batch, classes]."""

    def __init__(self, options: ExampleOptions, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.first = torch.nn.Linear(math.prod(shape), options.width)
        self.second = torch.nn.Linear(options.width, options.width)
        self.head = torch.nn.Linear(options.width, classes)  # this name is the contract: the label space grows it

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.first(x.flatten(1)))
        return self.head(h + torch.relu(self.second(h)))


@hookimpl
def streamkd_students() -> Iterator[Kind]:
    """One student."""
    yield Kind("example", Example, ExampleOptions, "two layers with a residual connection")
