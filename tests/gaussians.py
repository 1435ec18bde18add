"""Gaussian classes to learn moments from, and their scatter the slow way."""

import numpy as np
import torch
from torch import Tensor

from streamkd.analytic.moments import Moments


def rows(count: int, width: int = 6, classes: int = 3, seed: int = 0, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """Gaussian classes of one covariance; ``offset`` moves everything far from 0."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=torch.Generator().manual_seed(7))
    centres = 2 * torch.randn(classes, width, generator=torch.Generator().manual_seed(8))
    y = torch.randint(classes, (count,), generator=g)
    return centres[y] + torch.randn(count, width, generator=g) @ mix + offset, y


def learned(h: Tensor, y: Tensor, cuts: list[int], classes: int = 3) -> Moments:
    found = Moments(h.shape[1], classes)
    for part, labels in zip(h.tensor_split(cuts), y.tensor_split(cuts), strict=True):
        if len(labels):
            found.learn(part, labels)
    return found


def scatter_of(h: Tensor, y: Tensor) -> np.ndarray:
    """Σ_i (h_i - μ_yi)(h_i - μ_yi)ᵀ in float64, one row at a time."""
    data, labels = h.double().numpy(), y.numpy()
    total = np.zeros((h.shape[1],) * 2)
    for row, label in zip(data, labels, strict=True):
        away = row - data[labels == label].mean(0)
        total += np.outer(away, away)
    return total
