"""How a teacher sees the student's raw input: as an image of the size and range that its network was trained on.

raw [batch, *shape] ─► [batch, channels, height, width] ─► 0 to 1 ─► resized ─► (x - mean) / std
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from streamkd.api import PluginError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class View(nn.Module):
    """Pure function of the raw input; bilinear, antialiased where it shrinks; one channel is repeated."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: Literal["last", "first"],
        size: int,
        scale: float,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        where: str = "view",
    ) -> None:
        super().__init__()
        if len(shape) not in (2, 3):
            raise PluginError(
                f"needed an image of (height, width) or three axes, got {shape}",
                where=where,
                fix="say with `image` which image a flat record is, as [28, 28]",
            )
        self._shape = (*shape, 1) if len(shape) == 2 else shape
        self._last = channels == "last" or len(shape) == 2
        self._size, self._scale = size, scale
        depth = self._shape[2 if self._last else 0]
        if depth not in (1, len(mean)) or len(mean) != len(std):
            raise PluginError(
                f"needed 1 or {len(mean)} channels, as many as mean and std have, got {depth} and {len(std)} in std",
                where=where,
                fix="set `image` and `channels` to the layout of the record, mean and std to the network's",
            )
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Float[Tensor, "batch channels height width"]:
        """Images for the network, float32."""
        x = x.reshape(len(x), *self._shape).to(self.mean.dtype) * self._scale
        x = x.permute(0, 3, 1, 2) if self._last else x
        if x.shape[-2:] != (self._size, self._size):
            x = F.interpolate(x, (self._size, self._size), mode="bilinear", antialias=True)
        return (x - self.mean) / self.std
