"""Training that sees no order of a stream: the bounds of ``bench learning``, the teachers of ``bench gate``."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Settings = Mapping[str, Any]


def optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """``optimizer`` sgd or adam with its ``learning_rate``."""
    kind = torch.optim.Adam if settings["optimizer"] == "adam" else torch.optim.SGD
    return kind(model.parameters(), lr=settings["learning_rate"])


def train(x: Tensor, y: Tensor, network: nn.Module, batch: int, epochs: int, settings: Settings, seed: int) -> None:
    """Train the network in place on all records in an order drawn anew for each epoch."""
    generator = torch.Generator().manual_seed(seed)
    steps = optimizer(network, settings)
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(y), generator=generator).split(batch):
            steps.zero_grad()
            F.cross_entropy(network(x[rows]), y[rows]).backward()
            steps.step()
