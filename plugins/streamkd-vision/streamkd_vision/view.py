"""How a teacher sees the student's raw input: as an image of the size and range that its network was trained on.

raw [batch, *shape] ─► [batch, channels, height, width] ─► 0 to 1 ─► resized ─► (x - mean) / std
"""

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
        size: int,
        scale: float,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        where: str = "view",
    ) -> None:
        super().__init__()
        if len(shape) not in (2, 3):
            raise PluginError(
                f"needed an image of (height, width) or (height, width, channels), got {shape}",
                where=where,
                fix="write the column's shape so, as [28, 28]; of a teacher `image` says which image a flat record is",
            )
        self._shape = (*shape, 1)[:3]
        self._size, self._scale = size, scale
        if self._shape[2] not in (1, len(mean)) or len(mean) != len(std):
            raise PluginError(
                f"needed 1 or {len(mean)} channels, as many as mean and std have, got {self._shape[2]} and {len(std)} "
                f"in std, of an image of {list(shape)}",
                where=where,
                fix="layout: CHW beside the column's shape where channels come first; mean and std are the network's",
            )
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Float[Tensor, "batch channels height width"]:
        """Images for the network, float32."""
        x = x.reshape(len(x), *self._shape).to(self.mean.dtype).permute(0, 3, 1, 2) * self._scale
        if x.shape[-2:] != (self._size, self._size):
            x = F.interpolate(x, (self._size, self._size), mode="bilinear", antialias=True)
        return (x - self.mean) / self.std
