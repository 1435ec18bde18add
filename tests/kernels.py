"""A processor whose products round by their shapes: what holds there is promised, not merely so on this one.

No library promises that a product of other width or of fewer rows sums in the same order: of 125 shapes tried here 44
have other bits in a wider product, and in 94 a row alone has others than within its batch. Which ones, depends on the
processor: a claim that leans on one of them holds here and fails elsewhere. Under ``ByShape`` it fails everywhere.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

PRODUCTS = {
    F.linear, F.conv2d, torch.conv2d, torch.addmm, torch.mm, torch.bmm, torch.matmul, torch.einsum,
    torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.__rmatmul__, torch.Tensor.mm, torch.Tensor.addmm,
}  # fmt: skip


class ByShape(TorchFunctionMode):
    """Every product is off in its last bits, by a number that follows from its shape alone."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        product = func(*args, **(kwargs or {}))
        if func not in PRODUCTS or not product.is_floating_point():
            return product
        steps = sum(place * size for place, size in enumerate(product.shape, 3)) % 7
        return product * (1 + steps * torch.finfo(product.dtype).eps)
