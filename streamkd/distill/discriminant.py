"""Streaming linear discriminant analysis: counts, class means and the scatter within the classes, solved on demand.

    learn(h [n, width], y [n]) ─► count_c, μ_c, scatter S = Σ_i (h_i - μ_yi)(h_i - μ_yi)ᵀ ─► solve(ridge) ─► W, b

Blocks are joined by the parallel form of Welford's update (Chan, Golub & LeVeque 1983, equation 2.1b), which only adds
squares to S: float32 suffices, and any cut of the stream into blocks gives the same sums up to rounding.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

BAND = 512  # rows of the scatter that one product fills: only its lower triangle is kept up
ALONE = 1e4  # distance to a class that had no other row


class Discriminant:
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

    def solve(self, ridge: float) -> "Solution":
        """What all classes' logits follow from, classes being equally likely; of classes never seen, zeros.

        The covariance is S over the number of records, its diagonal raised by ``ridge`` times the mean variance of a
        feature, and by ``shrinkage`` while there are not many more records than features.
        """
        records = max(self.records, 1)
        covariance = self.scatter / records
        few = min(1.0, self.width / records) ** 2
        diagonal = covariance.diagonal()
        diagonal += (ridge + few * self.shrinkage()) * float(diagonal.mean()) + 1e-8
        factor = _factor(covariance)
        weight = torch.cholesky_solve(self.means.T, factor).T.contiguous()
        bias = -0.5 * (weight * self.means).sum(1)
        return Solution(weight, bias, factor, self.means.clone(), self.counts.clone())

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


@dataclass(frozen=True, slots=True)
class Solution:
    """logit_c(h) = W_c·h + b_c, and what the solution was made of: the covariance's factor, means and counts."""

    weight: Float[Tensor, "classes features"]
    bias: Float[Tensor, "classes"]
    factor: Float[Tensor, "features features"]
    means: Float[Tensor, "classes features"]
    counts: Int[Tensor, "classes"]

    def size_bytes(self) -> int:
        """Bytes of what is kept for leaving rows out."""
        return sum(t.numel() * t.element_size() for t in (self.factor, self.means, self.counts))

    def left_out(self, h: Float[Tensor, "batch features"], y: Int[Tensor, "batch"]) -> Float[Tensor, "batch classes"]:
        """The logits that each learned row h of class y would have if it alone had not been learned.

        With r = h - μ_y, M = rᵀΣ⁻¹r, n rows of its class and N in all, leaving it out moves μ_y by -r/(n-1) and Σ by
        -rrᵀ·n/((n-1)·N): by Sherman & Morrison the distance to class c grows by κ(rᵀΣ⁻¹(h - μ_c))², κ = β/(1 - βM), β =
        n/((n-1)·N), and that to its own class is (n/(n-1))²·M/(1 - βM). Logits are equal up to a number per row. Of a
        class of one row nothing would be left: its logit is then far below the others.
        """
        z = torch.addmm(self.bias, h, self.weight.T)
        own = y.unsqueeze(1)
        r = h - self.means[y]
        distance = torch.linalg.solve_triangular(self.factor, r.T, upper=False).square().sum(0).unsqueeze(1)
        counts = self.counts[y].unsqueeze(1).float()
        grown = counts / (counts - 1).clamp_min(1e-3)
        beta = grown / self.counts.sum()
        kappa = beta / (1 - beta * distance).clamp_min(1e-3)
        to_own = z.gather(1, own)
        between = (self.weight[y] * self.means[y]).sum(1, keepdim=True) - 2 * self.weight[y] @ self.means.T
        between = between - 2 * self.bias  # (μ_y - μ_c)ᵀΣ⁻¹(μ_y - μ_c)
        across = distance + to_own - z - between / 2  # rᵀΣ⁻¹(h - μ_c)
        far = distance - 2 * (z - to_own) + kappa * across.square()
        to_mean = grown.square() * (distance + kappa * distance.square())
        far = far.scatter(1, own, torch.where(counts == 1, ALONE, to_mean))
        seen = self.counts > 0
        nearest = far.masked_fill(~seen, torch.inf).min(1, keepdim=True).values
        return (-0.5 * (far - nearest)).masked_fill(~seen, 0.0)

    def grown(self, classes: int) -> "Solution":
        """The same with room for more classes, which were never seen."""
        more = max(classes - len(self.counts), 0)
        weight, means = (F.pad(t, (0, 0, 0, more)) for t in (self.weight, self.means))
        return Solution(weight, F.pad(self.bias, (0, more)), self.factor, means, F.pad(self.counts, (0, more)))


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
