"""Ridge regression from moments: one-hot labels from features, every class weighing the same.

    Moments ─► Ridge.of(moments, ridge) ─► logit_c(h) = SCALE · s_c(h),   s(h) = 1/C + (C·I + K)⁻¹ D Σ'⁻¹ (h - m)

With m the mean of the C class means, D the rows μ_c - m, Σ' the raised covariance within the classes and K = D Σ'⁻¹ Dᵀ,
s is the affine map that minimises, λ being what Σ' is raised by,

    1/C Σ_c  1/N Σ_i ‖s(μ_c + h_i - μ_yi) - e_c‖²  +  λ ‖W‖²

Each class is regressed on its mean with the deviations of all rows: however many records a class has, its mean counts
once. Of classes of equal counts it is plain ridge regression with the penalty λ·N. Moments of all rows suffice; weights
of rows by class would need a covariance for each class.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from streamkd.analytic.moments import Moments
from streamkd.analytic.solution import Solution

SCALE = 256.0  # of the logits, for scores between 0 and 1: temperatures of 1 and more bring them down
ALONE = -5e3  # the logit of a class that had no other row


@dataclass(frozen=True, slots=True)
class Ridge(Solution):
    """Ridge regression onto one-hot labels."""

    @classmethod
    def of(cls, moments: Moments, ridge: float) -> "Ridge":
        """What all classes' logits follow from; of classes never seen, zeros."""
        return cls._solved(moments.factor(ridge), moments.means.clone(), moments.counts.clone())

    @classmethod
    def _solved(cls, factor: Tensor, means: Tensor, counts: Tensor) -> "Ridge":
        seen = counts > 0
        away, mean = _centred(means, seen)
        within = torch.cholesky_solve(away.T, factor).T  # D Σ'⁻¹
        system = _system(away.double() @ within.double().T, seen)
        weight = torch.linalg.solve(system, within.double()).contiguous()
        bias = (1 / max(int(seen.sum()), 1) - weight @ mean.double()) * seen
        return cls((SCALE * weight).float(), (SCALE * bias).float(), factor, means, counts)

    def left_out(self, h: Float[Tensor, "batch features"], y: Int[Tensor, "batch"]) -> Float[Tensor, "batch classes"]:
        """The logits that each learned row h of class y would have if it alone had not been learned.

        Σ' is divided by as many rows and raised by as much as before. Without the only row of a class that class is
        gone: the others are solved for anew, and its logit is far below them.
        """
        logits = torch.addmm(self.bias, h, self.weight.T)
        several = self.counts[y] > 1
        if several.any():
            logits[several] = self._without_row(h[several], y[several])
        for column in y[self.counts[y] == 1].unique():
            logits[y == column] = self._without_class(h[y == column], int(column))
        seen = self.counts > 0
        top = logits.masked_fill(~seen, -torch.inf).amax(1, keepdim=True)
        return (logits - top).masked_fill(~seen, 0.0)

    def _without_row(self, h: Tensor, y: Tensor) -> Tensor:
        """``left_out`` of rows whose class has others.

        With r = h - μ_y, P = Σ'⁻¹, M = rᵀPr, a = DPr, e = (e_y - 1/C)/(n-1), n rows of the class and N in all: D loses
        e rᵀ, Σ' loses β·rrᵀ, β = n/((n-1)·N), so with g = 1/(1 - βM) (Sherman & Morrison) the kernel K becomes
        K + g(β·aaᵀ - aeᵀ - eaᵀ + M·eeᵀ), of rank two, and DP(h - m) moves within the span of a and e.
        """
        seen = self.counts > 0
        classes = int(seen.sum())
        away, _ = _centred(self.means, seen)
        both = torch.cat([h - self.means[y], away])
        rows, centres = (t.double() for t in _whitened(self.factor, both).split([len(h), len(away)]))
        kernel = centres @ centres.T
        n = self.counts[y].double().unsqueeze(1)
        beta = n / ((n - 1) * int(self.counts.sum()))
        m = rows.square().sum(1, keepdim=True).minimum(0.999 / beta)
        a = rows @ centres.T
        e = (F.one_hot(y, len(seen)) - 1 / classes) * seen / (n - 1)
        t, more = m + a.gather(1, y.unsqueeze(1)), 1 / ((n - 1) * classes)  # rᵀP(h - m); h - m grows by more·r
        g = 1 / (1 - beta * m)
        v = a + kernel[y] + g * (beta * t + more) * a - g * (t + more * m) * e
        inverse = torch.linalg.inv(_system(kernel, seen))
        return (SCALE * (1 / classes + _updated(inverse, a, e, m, beta, v))).float()

    def _without_class(self, h: Tensor, column: int) -> Tensor:
        """``left_out`` of the only row of a class: nothing of the covariance was its."""
        others = self.counts.clone()
        others[column] = 0
        rest = Ridge._solved(self.factor, self.means, others)
        logits = torch.addmm(rest.bias, h, rest.weight.T)
        logits[:, column] = ALONE
        return logits


def _centred(means: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Class means less their mean over the classes seen, zeros elsewhere, and that mean."""
    mean = means[seen].mean(0) if seen.any() else means.new_zeros(means.shape[1])
    return (means - mean) * seen.unsqueeze(1), mean


def _whitened(factor: Tensor, rows: Tensor) -> Tensor:
    """L⁻¹ of each row."""
    return torch.linalg.solve_triangular(factor, rows.T, upper=False).T


def _system(kernel: Tensor, seen: Tensor) -> Tensor:
    """C·I + K; classes never seen stand apart."""
    return kernel + max(int(seen.sum()), 1) * torch.eye(len(seen), dtype=kernel.dtype)


def _updated(inverse: Tensor, a: Tensor, e: Tensor, m: Tensor, beta: Tensor, v: Tensor) -> Tensor:
    """(R⁻¹ + g(β·aaᵀ - aeᵀ - eaᵀ + M·eeᵀ))⁻¹ v for each row, by Woodbury's identity.

    The inverse of the 2×2 matrix between a and e is -[[M, 1], [1, β]].
    """
    ra, re, rv = (t @ inverse for t in (a, e, v))
    aa, ae, ee = ((p * q).sum(1, keepdim=True) for p, q in ((a, ra), (a, re), (e, re)))
    av, ev = ((p * rv).sum(1, keepdim=True) for p in (a, e))
    aa, ae, ee = aa - m, ae - 1, ee - beta
    determinant = aa * ee - ae.square()
    along_a, along_e = (ee * av - ae * ev) / determinant, (aa * ev - ae * av) / determinant
    return rv - ra * along_a - re * along_e
