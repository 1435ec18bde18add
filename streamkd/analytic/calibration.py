"""The trial: rows that are about to be learned are a test first, of how sure to be and of whether all is as usual.

logits of rows not learned yet ─► surprise at each temperature, with and without how often each class came
                               ─► temperature, exponent of the prior; did it go worse?
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

RECENT = 512  # records after which what a temperature was worth counts half
USUAL = 2_048  # the same for how often it is right
TEMPERATURES = tuple(2.0 ** (k / 2) for k in range(17))  # 1 ... 256: what is learned is never too modest
EXPONENTS = (0.0, 1.0)  # of the prior: classes equally likely beforehand, or as often as they came


class Calibration:
    """What a solution was worth on rows that it had not learned."""

    def __init__(self) -> None:
        self._surprise = torch.zeros(len(EXPONENTS), len(TEMPERATURES), dtype=torch.float64)
        self._right: float | None = None

    def test(
        self,
        logits: Float[Tensor, "batch classes"],
        y: Int[Tensor, "batch"],
        known: Bool[Tensor, "classes"],
        prior: Float[Tensor, "classes"],
    ) -> bool:
        """The surprise at rows of known classes, by logits without temperature; ``prior`` is in logarithms.

        ``True`` where a tenth fewer were right than usual: what comes now is not what was learned.
        """
        rows = len(y)
        if not rows:
            return False
        logits = logits.double().masked_fill(~known, -torch.inf)
        told = [F.cross_entropy(logits / t + a * prior, y, reduction="sum") for a in EXPONENTS for t in TEMPERATURES]
        self._surprise = 0.5 ** (rows / RECENT) * self._surprise + torch.stack(told).view_as(self._surprise)
        right = float((logits.argmax(1) == y).double().mean())
        usual = right if self._right is None else self._right
        self._right = right + 0.5 ** (rows / USUAL) * (usual - right)
        return right < 0.9 * usual

    @property
    def best(self) -> tuple[float, float] | None:
        """Temperature and exponent of the prior of the best likelihood; ``None`` before any test."""
        if not self._surprise.any():
            return None
        exponent, temperature = divmod(int(self._surprise.argmin()), len(TEMPERATURES))
        return TEMPERATURES[temperature], EXPONENTS[exponent]

    def state_dict(self) -> dict[str, Any]:
        return {"surprise": self._surprise, "right": self._right}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # older states knew equally likely classes alone
        self._surprise, self._right = state["surprise"].expand_as(self._surprise).clone(), state["right"]
