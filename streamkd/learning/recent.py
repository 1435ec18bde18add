"""The records that came last: where in the space of inputs it is that records come from now."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from streamkd.gates.presence import RECENT as KEPT

WITHIN = 0.9  # of them have a neighbour as near as that
FEW = 20  # of them say nothing yet


class Recent:
    """The last ``KEPT`` labelled records: ``x`` [n, *shape] as they came, ``y`` [n]."""

    def __init__(self) -> None:
        self._rows: tuple[Tensor, Tensor] | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take rows x [n, *shape] of columns y [n]; those without label (-1) are left out."""
        mine = x[y >= 0], y[y >= 0]
        pairs = zip(self._rows, mine, strict=True) if self._rows is not None else ()
        self._rows = cast(tuple[Tensor, Tensor], tuple(torch.cat(pair)[-KEPT:] for pair in pairs)) or mine

    @property
    def rows(self) -> tuple[Tensor, Tensor] | None:
        """Inputs and columns; ``None`` before the first."""
        return self._rows

    def near(self, x: Tensor) -> np.ndarray:
        """[n] whether rows x [n, *shape] are like what comes; while there are few records all are."""
        if self._rows is None or len(self._rows[1]) < FEW:
            return np.ones(len(x), dtype=bool)
        return near(x, self._rows[0])

    def state_dict(self) -> dict[str, Any]:
        """The records."""
        return {"rows": None if self._rows is None else list(self._rows)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from a state."""
        rows = state["rows"]
        self._rows = None if rows is None else (rows[0].to(device), rows[1].to(device))


def near(x: Tensor, records: Tensor) -> np.ndarray:
    """[n] which of the rows x [n, *shape] are as near to a record as most records are to each other.

    Distances are between inputs over their deviation among the records.
    """
    rows, mine = x.flatten(1).float(), records.flatten(1).float()
    scale = 1 / mine.std(0, correction=0).clamp_min(1e-6)
    rows, mine = rows * scale, mine * scale
    apart = torch.cdist(mine, mine).fill_diagonal_(torch.inf).amin(1)
    return (torch.cdist(rows, mine).amin(1) <= apart.quantile(WITHIN)).cpu().numpy()
