"""The gate ``example``: a fixed weight for the hard label; teachers share the rest by how sure they are."""

from collections.abc import Iterator

import torch
from pydantic import Field

from streamkd.api import GateInputs, Kind, Options, hookimpl, share, weights_of


class ExampleOptions(Options):
    """Whom to listen to."""

    hard: float = Field(default=0.5, ge=0, le=1, description="weight of the hard label")


class Example(torch.nn.Module):
    """Weights [batch, 1 + teachers], the hard label's first; rows sum to 1."""

    def __init__(self, options: ExampleOptions) -> None:
        super().__init__()
        self.hard = options.hard

    def forward(self, inputs: GateInputs) -> torch.Tensor:
        sure = torch.softmax(inputs.answers.masked_fill(~inputs.known, -1e9), 2).amax(2).log()
        hard = torch.full_like(inputs.logits[:, 0], self.hard)
        return weights_of(hard, share(sure, inputs.heard), inputs.heard, inputs.labelled)


@hookimpl
def streamkd_gates() -> Iterator[Kind]:
    """One gate."""
    yield Kind("example", Example, ExampleOptions, "teachers by how sure they are")
