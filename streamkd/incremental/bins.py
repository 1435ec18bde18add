"""Amounts in bins: piecewise linear encoding (Gorishniy et al. 2022, equation 1).

    amount ─► how much of each bin lies below it ─► (part - mean) / std

A threshold in one column is a line there, and one in two columns no harder than in two. Beyond the outer edges nothing
more is told, so that nothing is extrapolated. The edges are quantiles of the first records.
"""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

MOST = 256  # columns times bins: more, and records are no table
FIRST = 500  # records that the bins are fitted to


class Bins(nn.Module):
    """Inputs [batch, features] to [batch, width]: those that are ``amounts``, each in ``bins``; ``width`` 0: no table.

    Before they are ``fitted`` they wait for ``first``, rows [features].
    """

    edges: Tensor
    seen: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, amounts: Tensor, bins: int) -> None:
        super().__init__()
        self._amounts = amounts.nonzero().squeeze(1)
        binned = len(self._amounts)
        self.bins = bins if 0 < binned * bins <= MOST else 0
        self.width = binned * self.bins
        self.first: list[np.ndarray] = []
        self.register_buffer("edges", torch.zeros(self.bins + 1, binned))
        self.register_buffer("seen", torch.zeros((), dtype=torch.bool))
        self.register_buffer("mean", torch.zeros(self.width))
        self.register_buffer("std", torch.ones(self.width))

    @property
    def fitted(self) -> bool:
        """Whether there are edges."""
        return bool(self.seen)

    def learn(self, rows: np.ndarray) -> None:
        """Take rows [n, features], all finite, until there are ``FIRST``, to which the bins are fitted."""
        if not self.width or self.fitted:
            return
        self.first += [*rows]
        if len(self.first) >= FIRST:
            self.fit(torch.from_numpy(np.stack(self.first)))
            self.first = []

    def fit(self, x: Tensor) -> None:
        """The bins have as many of these rows [n, features] each, as far as columns differ so often."""
        self.seen.fill_(True)
        self.edges.copy_(torch.quantile(x[:, self._amounts].double(), torch.linspace(0, 1, self.bins + 1).double(), 0))
        parts = self._parts(x)
        self.mean.copy_(parts.mean(0))
        self.std.copy_(parts.std(0, correction=0).clamp_min(0.1))

    def forward(self, x: Tensor) -> Float[Tensor, "batch width"]:
        return (self._parts(x) - self.mean) / self.std

    def _parts(self, x: Tensor) -> Tensor:
        low, high = self.edges[:-1], self.edges[1:]
        parts = (x[:, self._amounts].unsqueeze(1) - low) / (high - low).clamp_min(1e-9)
        return parts.clamp(0, 1).flatten(1).float()


def apart(numbers: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The numbers of a version that are no module's inside, and those of the bins, the only ones that are."""
    inside = {name.rpartition(".")[2]: tensor for name, tensor in numbers.items() if "." in name}
    return {name: tensor for name, tensor in numbers.items() if "." not in name}, inside
