"""Images as records hold them, [height, width] or [height, width, channels]: which inputs are some, moved and turned.

Values stay what they are, so bytes remain bytes; all randomness is the generator's.
"""

import torch
from jaxtyping import Int
from torch import Tensor

SMALLEST = 8  # pixels of a side: smaller is no image
CHANNELS = (1, 3, 4)  # grey, colour, with transparency: what images have, and no image's height


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether records of that shape are taken for images: (height, width) or (height, width, channels), no side < 8."""
    return len(shape) in (2, 3) and min(shape[:2]) >= SMALLEST


def shifted(x: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """x [batch, height, width, ...], each moved by its own offset of up to ``shift`` pixels, edges repeated."""
    span = 2 * shift + 1
    moves = torch.randint(span, (2, len(x), 1), generator=generator).to(x.device) - shift
    down, across = (
        (torch.arange(side, device=x.device) + move).clamp(0, side - 1)
        for side, move in zip(x.shape[1:3], moves, strict=True)
    )
    # along one axis: a third of the time that indexing by three tensors takes
    pixels = (down.unsqueeze(2) * x.shape[2] + across.unsqueeze(1)).flatten(1)
    flat = x.flatten(1, 2)
    return flat.gather(1, pixels.view(*pixels.shape, *[1] * (x.dim() - 3)).expand_as(flat)).view_as(x)


def turned(x: Tensor, quarters: Int[Tensor, "batch"]) -> Tensor:
    """x [batch, height, width, ...], each turned by its number of quarter-turns (mod 4).

    An image that is not square keeps its shape: it is turned by half a turn for an odd number too.
    """
    quarters = quarters % 4
    if x.shape[1] != x.shape[2]:
        quarters = (quarters + 1) // 2 * 2 % 4
    out = x.clone()
    for count in quarters.unique().tolist():
        rows = quarters == count
        out[rows] = torch.rot90(x[rows], count, (1, 2))
    return out
