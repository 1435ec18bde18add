"""Random features: a fixed map of normalised inputs to many non-negative numbers, drawn from a seed and never trained.

    inputs [batch, *shape] ─┬─► (images) filters ─► ReLU ─► averages over a 4×4 grid ─┐
                            └─► W·x + b ─► ReLU ──────────────────────────────────────┴─► [batch, width]

A linear method on such features is a kernel method (Rahimi & Recht 2007); averaged random filters keep what little
shifts of an image leave alone (Saxe et al. 2011). Used by ``streamkd.analytic.teacher``.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from streamkd.students.images import is_image

FILTER = 5  # pixels of a filter's side
GRID = 4  # averages per side and filter
LARGEST = 32  # pixels of a side: a larger image is averaged down before anything else
ROWS = 32  # that the filters look at together: their findings stay in the processor's cache
READS = 4_096  # numbers that a dense feature reads: longer inputs are folded to so many


class RandomFeatures(nn.Module):
    """``channels`` filters of 5×5 for inputs in the form of an image, and ``dense`` features of the whole input.

    Filters are normal, of mean 0 and length 1, their biases -U(0, 0.5); dense weights N(0, 1/n), biases N(0, 0.25).
    Everything follows from ``seed`` (NumPy's legacy generator, whose numbers are promised to stay), so nothing of it
    needs to be kept: the buffers are in no state dict.

    Shape: [batch, *shape] float32 to [batch, width], every number at least 0. Shapes (height, width) and (height,
    width, channels) with sides of 8 and more are images; elsewhere ``channels`` counts for nothing.
    """

    filters: Tensor
    filter_bias: Tensor
    weight: Tensor
    bias: Tensor
    bucket: Tensor
    sign: Tensor

    def __init__(self, shape: tuple[int, ...], channels: int, dense: int, seed: int) -> None:
        super().__init__()
        draw = np.random.RandomState(seed % 2**32)
        self._image = is_image(shape)
        self.channels, self.seed = channels if self._image else 0, seed
        self.width = self.channels * GRID**2 + dense
        depth = shape[2] if len(shape) > 2 else 1
        high, wide = (min(side, LARGEST) for side in (*shape, 1, 1)[:2])
        self._sides = (high, wide)
        self._shrinks = self._image and self._sides != shape[:2]
        length = high * wide * depth if self._image else math.prod(shape)
        reads = min(length, READS)
        kernels = draw.standard_normal((self.channels, depth, FILTER, FILTER))
        kernels -= kernels.mean((1, 2, 3), keepdims=True)
        kernels /= np.sqrt((kernels**2).sum((1, 2, 3), keepdims=True))
        self._constant("filters", kernels.transpose(0, 2, 3, 1).reshape(self.channels, FILTER**2 * depth))
        self._constant("filter_bias", -0.5 * draw.random_sample(self.channels))
        self._constant("weight", draw.standard_normal((dense, reads)) / math.sqrt(reads))
        self._constant("bias", 0.5 * draw.standard_normal(dense))
        self._folds = length > reads
        self._constant("bucket", draw.randint(0, reads, length if self._folds else 0), torch.int64)
        self._constant("sign", draw.randint(0, 2, length if self._folds else 0) * 2 - 1)

    def _constant(self, name: str, values: np.ndarray, dtype: torch.dtype = torch.float32) -> None:
        made = torch.empty(values.shape, dtype=dtype)  # of none, from_numpy makes strides of 0, which no file takes
        self.register_buffer(name, made.copy_(torch.from_numpy(values)), persistent=False)

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch features"]:
        if self._image:
            x = x.unsqueeze(1) if x.dim() == 3 else x.permute(0, 3, 1, 2)
            if self._shrinks:
                x = F.adaptive_avg_pool2d(x, self._sides)
        parts = []
        if self.channels:
            whole = torch.compiler.is_exporting()  # a graph is for any number of rows
            parts.append(self._filtered(x) if whole else torch.cat([self._filtered(part) for part in x.split(ROWS)]))
        if len(self.weight):
            parts.append(F.linear(self._folded(x.flatten(1)), self.weight, self.bias).relu_())
        return torch.cat(parts, 1)

    def _filtered(self, x: Tensor) -> Tensor:
        """What the filters find, averaged over the grid; with channels last the CPU needs three fifths of the time."""
        depth = x.shape[1]
        strides = (FILTER**2 * depth, 1, FILTER * depth, depth)  # torch's own call leaves one channel where it is
        filters = self.filters.as_strided((self.channels, depth, FILTER, FILTER), strides)
        found = F.conv2d(x.contiguous(memory_format=torch.channels_last), filters, self.filter_bias)
        return F.adaptive_avg_pool2d(found.relu_(), GRID).flatten(1)

    def _folded(self, x: Tensor) -> Tensor:
        """A long input as the signed sums of its buckets, which keeps lengths and angles (feature hashing)."""
        if not self._folds:
            return x
        return x.new_zeros(x.shape[0], self.weight.shape[1]).index_add_(1, self.bucket, x * self.sign)
