"""Linear discriminant analysis from moments: Gaussian classes of one covariance, equally likely beforehand.

Moments ─► Discriminant.of(moments, ridge) ─► logit_c(h) = μ_cᵀ Σ'⁻¹ h - ½ μ_cᵀ Σ'⁻¹ μ_c
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from streamkd.analytic.moments import Moments
from streamkd.analytic.solution import Solution

ALONE = 1e4  # distance to a class that had no other row


@dataclass(frozen=True, slots=True)
class Discriminant(Solution):
    """Linear discriminant analysis."""

    @classmethod
    def of(cls, moments: Moments, ridge: float) -> "Discriminant":
        """What all classes' logits follow from; of classes never seen, zeros."""
        factor = moments.factor(ridge)
        weight = torch.cholesky_solve(moments.means.T, factor).T.contiguous()
        bias = -0.5 * (weight * moments.means).sum(1)
        return cls(weight, bias, factor, moments.means.clone(), moments.counts.clone())

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
