"""What a frozen network makes of images, and what it made of those that come again.

    image ─► its cache ─► View ─► network without its last layer ─► vector [width]

One image at a time: with others beside it its vector would differ in the last bits, and with it a resumed run.
"""

import hashlib
import logging
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from streamkd_vision import network
from streamkd_vision.view import IMAGENET_MEAN, IMAGENET_STD, View

CACHED = 16_384  # images whose vectors are kept: 84 MB of 1,280 numbers each
logger = logging.getLogger(__name__)


class Features:
    """Images [images, *shape] of 0 to 1 to vectors [images, width]; a copy is the same, for it never changes."""

    def __init__(
        self,
        name: str,
        weights: Path,
        shape: tuple[int, ...],
        size: int,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        self._where = f"{name}: {weights}"
        read = network.read(weights)
        self.sha256 = read.sha256
        self._network, self.width = network.headless(name, read, self._where)
        self._view = View(shape, size, 1.0, mean, std, self._where)
        self._kept: dict[bytes, Tensor] = {}
        self._looked = False

    def __call__(self, x: Tensor) -> Float[Tensor, "images width"]:
        rows = x.detach().cpu()
        return torch.stack([self._vector(row) for row in rows]) if len(rows) else torch.zeros(0, self.width)

    def forget(self) -> None:
        """Empty the cache."""
        self._kept.clear()

    @torch.no_grad()
    def _vector(self, row: Tensor) -> Float[Tensor, "width"]:
        key = hashlib.blake2b(row.numpy().tobytes(), digest_size=16).digest()
        found = self._kept.get(key)
        if found is None:
            self._doubt(float(row.min()), float(row.max()))
            found = self._kept[key] = self._network(self._view(row.unsqueeze(0))).flatten()
            for oldest in [*self._kept][: max(len(self._kept) - CACHED, 0)]:
                self._kept.pop(oldest, None)
        return found

    def _doubt(self, least: float, most: float) -> None:
        """Numbers of another range are another image, and nothing else would tell. An empty one is a trial."""
        if self._looked or least == most:
            return
        self._looked = True
        if least < -0.01 or not 0.02 < most < 1.01:
            logger.warning(
                "%s wants images of 0 to 1, the first is of %g to %g: let the column's scale bring them there (of "
                "bytes 0.00392), without its mean and std",
                *(self._where, least, most),
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> "Features":
        return self


find = cache(Features)
"""The one of a process: network, weights, and how it sees images (shape, size, mean, std).

Raises:
    PluginError: there is no such network, or the weights or images are not its own.
"""
