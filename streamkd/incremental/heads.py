"""What is served of teachers that have several linear answers side by side.

raw inputs ─► columns ─► (x - mean) · gain ─► features ─► h, 1 ─► for each head: softmax(hW) ─► Σ_k share_k p_k
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor, nn

from streamkd.gates.spread import LEAST
from streamkd.students.columns import Columns, with_gaps

FILE = "heads.safetensors"


class Heads(nn.Module):
    """Raw inputs [batch, *shape], of which it reads ``columns``, to log-probabilities [batch, classes].

    ``weight`` [heads, width + 1, classes], the last row for a constant; ``share`` [heads] sums to 1. What is not finite
    counts as its mean, and so does a gap (``missing`` and ``told_by``, where records may have some).
    """

    mean: Tensor
    gain: Tensor
    weight: Tensor
    share: Tensor
    known: Tensor
    missing: Tensor
    told_by: Tensor

    def __init__(self, teacher: str, numbers: dict[str, Tensor], columns: Columns) -> None:
        super().__init__()
        self.teacher, self.columns = teacher, columns
        for name, tensor in numbers.items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        rows = self.columns(x).flatten(1).float()
        if "missing" in self._buffers:
            rows = with_gaps(rows, self.missing, self.told_by)
        z = self.logits(rows)
        p = torch.softmax(z.masked_fill(~self.known, -torch.inf), 2).nan_to_num(1 / z.shape[2])
        mixed = torch.einsum("h,hbc->bc", self.share, p)
        return ((1 - LEAST) * mixed + LEAST / mixed.shape[1]).log()

    def logits(self, rows: Tensor) -> Float[Tensor, "heads batch classes"]:
        """Of each head, of rows [batch, features]."""
        rows = torch.where(rows.isfinite(), rows, self.mean)
        h = F.pad(self.features(rows, (rows - self.mean) * self.gain), (0, 1), value=1.0)
        return torch.einsum("bf,hfc->hbc", h, self.weight)

    def features(self, rows: Tensor, z: Tensor) -> Float[Tensor, "batch width"]:
        """Of inputs [batch, features], raw and standardised: the latter themselves."""
        return z

    def write(self, directory: Path) -> dict[str, Any]:
        """Put its numbers into a version's directory."""
        numbers = {name: tensor.cpu().contiguous() for name, tensor in self.state_dict().items()}
        (directory / FILE).write_bytes(save(numbers))
        return {}


def read(directory: Path) -> dict[str, Tensor]:
    """The numbers that were written there."""
    return load_file(directory / FILE)
