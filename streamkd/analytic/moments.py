"""Moments of a stream of features by class: counts, means, and the scatter within the classes.

    learn(h [n, width], y [n]) ─► count_c, μ_c, scatter S = Σ_i (h_i - μ_yi)(h_i - μ_yi)ᵀ ─► factor(ridge) ─► L

Blocks are joined by the parallel form of Welford's update (Chan, Golub & LeVeque 1983, equation 2.1b), which only adds
squares to S: float32 suffices, and any cut of the stream into blocks gives the same sums up to rounding. What is solved
from them: ``streamkd.analytic.discriminant``, ``streamkd.analytic.ridge``.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

BAND = 512  # rows of the scatter that one product fills: only its lower triangle is kept up


class Moments:
    """Class means and one covariance over ``width`` features; on the CPU, in float32."""

    def __init__(self, width: int, classes: int = 0) -> None:
        self.width = width
        self.counts = torch.zeros(classes, dtype=torch.int64)
        self.means = torch.zeros(classes, width)
        self.scatter = torch.zeros(width, width)
        """Its lower triangle, in bands: what lies above them is not kept up."""
        self.fourth = 0.0
        """Σ ‖h_i - μ‖⁴ over what was added to the scatter: how much its terms differ from each other."""

    @property
    def records(self) -> int:
        """How many it has learned."""
        return int(self.counts.sum())

    def grow(self, classes: int) -> None:
        """Room for ``classes`` classes."""
        more = classes - len(self.counts)
        if more > 0:
            self.counts = F.pad(self.counts, (0, more))
            self.means = F.pad(self.means, (0, 0, 0, more))

    def learn(self, h: Float[Tensor, "batch features"], y: Int[Tensor, "batch"]) -> None:
        """Take rows with their class columns."""
        classes, place, counts = y.unique(return_inverse=True, return_counts=True)
        means = torch.zeros(len(classes), self.width).index_add_(0, place, h) / counts.unsqueeze(1)
        seen = self.counts[classes]
        shift = means - self.means[classes]
        joint = (counts / (seen + counts)).unsqueeze(1)
        between = shift * (seen.unsqueeze(1) * joint).sqrt()
        self._add_squares(torch.cat([h - means[place], between[seen > 0]]))
        self.means[classes] += shift * joint
        self.counts[classes] += counts

    def _add_squares(self, rows: Tensor) -> None:
        self.fourth += float(rows.square().sum(1).square().sum())
        for begin, end in _bands(self.width):
            self.scatter[begin:end, :end].addmm_(rows[:, begin:end].T, rows[:, :end])

    def factor(self, ridge: float) -> Float[Tensor, "features features"]:
        """The Cholesky factor of the covariance within the classes, its diagonal raised.

        The covariance is S over the number of records, its diagonal raised by ``ridge`` times the mean variance of a
        feature, and by ``shrinkage`` while there are not many more records than features.
        """
        records = max(self.records, 1)
        covariance = self.scatter / records
        few = min(1.0, self.width / records) ** 2
        diagonal = covariance.diagonal()
        diagonal += (ridge + few * self.shrinkage()) * float(diagonal.mean()) + 1e-8
        return _factor(covariance)

    def shrinkage(self) -> float:
        """ρ/(1-ρ) of that ρ at which (1-ρ)·Σ + ρ·mean(diag Σ)·I is nearest the true covariance.

        Towards 0 with many records; at most 1, also where nothing is known. Ledoit & Wolf 2004, lemma 3.2 and 3.3.
        """
        records, variances = self.records, self.scatter.diagonal().double()
        off = sum(float(band.square().sum()) for band in self._lower())
        squares = (2 * off + float(variances.square().sum())) / max(records, 1) ** 2
        spread = squares - float(variances.mean() / max(records, 1)) ** 2 * self.width
        doubt = (self.fourth / max(records, 1) - squares) / max(records, 1)
        return doubt / (spread - doubt) if 2 * doubt < spread else 1.0

    def _lower(self) -> Iterator[Tensor]:
        """What lies strictly below the diagonal of the scatter."""
        for begin, end in _bands(self.width):
            yield self.scatter[begin:end, :begin]
            yield self.scatter[begin:end, begin:end].tril(-1)

    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.numel() * t.element_size() for t in (self.counts, self.means, self.scatter))

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self.counts, "means": self.means, "scatter": packed(self.scatter), "fourth": self.fourth}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts, self.means = state["counts"].clone(), state["means"].clone()
        self.scatter, self.fourth = unpacked(state["scatter"], self.width), state["fourth"]


def packed(lower: Tensor) -> Tensor:
    """The bands that hold the lower triangle of a square matrix, one after the other."""
    return torch.cat([lower[begin:end, :end].reshape(-1) for begin, end in _bands(len(lower))])


def unpacked(bands: Tensor, width: int) -> Tensor:
    """The matrix, zeros above its bands."""
    lower = torch.zeros(width, width)
    parts = bands.split([(end - begin) * end for begin, end in _bands(width)])
    for (begin, end), part in zip(_bands(width), parts, strict=True):
        lower[begin:end, :end] = part.view(end - begin, end)
    return lower


def _bands(width: int) -> list[tuple[int, int]]:
    return [(begin, min(begin + BAND, width)) for begin in range(0, width, BAND)]


def _factor(lower: Tensor) -> Tensor:
    """The Cholesky factor of a symmetric positive matrix from its lower triangle, by float64 where float32 fails."""
    factor, failed = torch.linalg.cholesky_ex(lower)
    return torch.linalg.cholesky(lower.double()).float() if int(failed) else factor
