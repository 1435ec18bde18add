"""A solution in closed form: one affine map of features to logits, and what it was made of.

Moments ─► Discriminant.of, Ridge.of ─► Solution: W_c·h + b_c ─► left_out: the logits without a row's own lesson
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from streamkd.analytic.moments import Moments


@dataclass(frozen=True, slots=True)
class Solution(ABC):
    """logit_c(h) = W_c·h + b_c; zeros for classes never seen. Kept for leaving rows out: factor, means and counts."""

    weight: Float[Tensor, "classes features"]
    bias: Float[Tensor, "classes"]
    factor: Float[Tensor, "features features"]
    means: Float[Tensor, "classes features"]
    counts: Int[Tensor, "classes"]

    @classmethod
    @abstractmethod
    def of(cls, moments: Moments, ridge: float) -> "Solution":
        """What all classes' logits follow from; of classes never seen, zeros."""

    @abstractmethod
    def left_out(self, h: Float[Tensor, "batch features"], y: Int[Tensor, "batch"]) -> Float[Tensor, "batch classes"]:
        """The logits that each learned row h of class y would have if it alone had not been learned."""

    def size_bytes(self) -> int:
        """Bytes of what is kept for leaving rows out."""
        return sum(t.numel() * t.element_size() for t in (self.factor, self.means, self.counts))

    def grown(self, classes: int) -> "Solution":
        """The same with room for more classes, which were never seen."""
        more = max(classes - len(self.counts), 0)
        weight, means = (F.pad(t, (0, 0, 0, more)) for t in (self.weight, self.means))
        return replace(
            self, weight=weight, bias=F.pad(self.bias, (0, more)), means=means, counts=F.pad(self.counts, (0, more))
        )
