"""What is served of teachers that have several linear answers side by side.

raw inputs ─► (x - mean) · gain ─► features ─► h, 1 ─► for each head: softmax(hW) ─► Σ_k share_k p_k
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor, nn

from streamkd.gates.fixed_share import LEAST

FILE = "heads.safetensors"


class Heads(nn.Module):
    """Raw inputs [batch, *shape] to log-probabilities [batch, classes].

    ``weight`` [heads, features + 1, classes], the last row for a constant; ``share`` [heads] sums to 1. ``map`` makes
    features of raw and standardised inputs; without one these are the features. What is not finite counts as its mean.
    """

    mean: Tensor
    gain: Tensor
    weight: Tensor
    share: Tensor
    known: Tensor

    def __init__(self, teacher: str, numbers: dict[str, Tensor], features: nn.Module | None = None) -> None:
        super().__init__()
        self.teacher = teacher
        self.map = features
        for name in ("mean", "gain", "weight", "share", "known"):
            self.register_buffer(name, numbers[name])

    def forward(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        rows = x.flatten(1).float()
        rows = torch.where(rows.isfinite(), rows, self.mean)
        h = (rows - self.mean) * self.gain
        h = h if self.map is None else self.map(rows, h)
        z = torch.einsum("bf,hfc->hbc", F.pad(h, (0, 1), value=1.0), self.weight)
        p = torch.softmax(z.masked_fill(~self.known, -torch.inf), 2).nan_to_num(1 / z.shape[2])
        mixed = torch.einsum("h,hbc->bc", self.share, p)
        return ((1 - LEAST) * mixed + LEAST / mixed.shape[1]).log()

    def write(self, directory: Path) -> dict[str, Any]:
        """Put its numbers into a version's directory."""
        numbers = {name: tensor.cpu().contiguous() for name, tensor in self.state_dict().items()}
        (directory / FILE).write_bytes(save(numbers))
        return {}


def read(directory: Path) -> dict[str, Tensor]:
    """The numbers that were written there."""
    return load_file(directory / FILE)
