"""Changed forms of a tensor column: the same records as another task.

``plain``        as they are
``rotate-<deg>`` turned counter-clockwise about the centre; bilinear, exact for right angles of squares
``invert``       ``1 / scale - value``: the largest value minus the value
``permute-<k>``  the elements in another fixed order, drawn from (seed, k)

Each is a function of an array [rows, size] alone, so the form of a record never depends on its neighbours.

``Jitter`` changes each row a little in its own way, so that images which come again are others.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np

from streamkd.errors import SourceError
from streamkd.records import InputColumn

# a handwritten digit of 8×8 stays one: half a pixel, strokes by a third thicker or thinner
DEGREES, PART_OF_SIDE, THICKER = 12.0, 1 / 16, 0.7
DRAWS = 4
Form = Callable[[np.ndarray], np.ndarray]
PATTERN = re.compile(r"plain|invert|rotate-(?P<degrees>\d+(\.\d+)?)|permute-(?P<number>\d+)")


def form(name: str, column: InputColumn, seed: int) -> Form | None:
    """The function that brings values [rows, size] into a form; ``None`` leaves them as they are.

    Raises:
        SourceError: the column cannot take this form.
    """
    found = PATTERN.fullmatch(name)
    assert found is not None, "the options know no other"
    if name == "plain":
        return None
    if column.kind != "tensor":
        raise SourceError(
            f"variation {name} needs a tensor, got {column.kind}", where=f"column {column.name}", fix="use plain"
        )
    if name == "invert":
        return _invert(column)
    if found["number"] is not None:
        order = np.random.default_rng([seed, int(found["number"])]).permutation(column.size)
        return lambda values: values[:, order]
    return _rotate(column, float(found["degrees"]))


class Jitter:
    """Images turned, moved, thicker or thinner by a little, each row by its own draws [rows, 4] in [-1, 1].

    Raises:
        SourceError: the column holds no images.
    """

    def __init__(self, column: InputColumn) -> None:
        if column.kind != "tensor" or len(column.shape) not in (2, 3):
            raise SourceError(
                f"rounds that change needed images (height, width) or (height, width, channels), got {column.shape}",
                where=f"column {column.name}",
                fix="leave rounds out",
            )
        self._column, self._top = column, np.float32(1 / column.scale)

    def __call__(self, values: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """values [rows, size] in the same type."""
        height, width = self._column.shape[:2]
        pixels = values.reshape(len(values), height * width, -1).astype(np.float32)
        turned = np.zeros_like(pixels)
        angle, down, across = np.deg2rad(DEGREES * draws[:, 0]), draws[:, 1] * height, draws[:, 2] * width
        moved = PART_OF_SIDE * np.stack([down, across])[:, :, None]
        for place, share in zip(*_corners(height, width, angle[:, None], moved), strict=True):
            turned += np.take_along_axis(pixels, place[:, :, None], 1) * share[:, :, None]
        inside = turned * (self._top - turned) / self._top
        inked = turned + (THICKER * draws[:, 3]).astype(np.float32)[:, None, None] * inside
        whole = np.rint(inked) if values.dtype.kind in "iu" else inked
        return whole.astype(values.dtype).reshape(values.shape)


def _invert(column: InputColumn) -> Form:
    kind = np.dtype(column.dtype)
    top = 1 / column.scale
    if kind.kind in "iu":
        top = round(top) if column.scale < 1 else int(np.iinfo(kind).max)
        low, high = np.iinfo(kind).min, np.iinfo(kind).max
        return lambda values: np.clip(top - values.astype(np.int64), low, high).astype(values.dtype)
    return lambda values: (top - values).astype(values.dtype)


def _rotate(column: InputColumn, degrees: float) -> Form:
    if len(column.shape) not in (2, 3):
        raise SourceError(
            f"variation rotate needs a shape (height, width) or (height, width, channels), got {column.shape}",
            where=f"column {column.name}",
        )
    height, width = column.shape[:2]
    if degrees % 90 == 0 and (height == width or degrees % 180 == 0):
        turned = np.rot90(np.arange(column.size).reshape(column.shape), int(degrees) // 90).reshape(-1)
        return lambda values: values[:, turned]
    places, shares = _corners(height, width, np.deg2rad(degrees))
    channels = column.size // (height * width)

    def rotate(values: np.ndarray) -> np.ndarray:
        pixels = values.reshape(len(values), height * width, channels)
        mixed = sum(pixels[:, place] * share[:, None] for place, share in zip(places, shares, strict=True))
        whole = np.rint(mixed) if values.dtype.kind in "iu" else mixed
        return np.asarray(whole).astype(values.dtype).reshape(values.shape)

    return rotate


def _corners(
    height: int, width: int, angle: float | np.ndarray, moved: Sequence[float] | np.ndarray = (0.0, 0.0)
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each pixel of the turned image the four source pixels around its origin, and their float32 shares.

    ``angle`` and ``moved`` (down, across) are numbers, or [rows, 1] for places and shares of each row.
    """
    y, x = np.mgrid[:height, :width].reshape(2, -1) - np.array([[(height - 1) / 2], [(width - 1) / 2]])
    from_y = y * np.cos(angle) + x * np.sin(angle) + (height - 1) / 2 - moved[0]
    from_x = x * np.cos(angle) - y * np.sin(angle) + (width - 1) / 2 - moved[1]
    low_y, low_x = np.floor(from_y).astype(int), np.floor(from_x).astype(int)
    places, shares = [], []
    for step_y in (0, 1):
        for step_x in (0, 1):
            at_y, at_x = low_y + step_y, low_x + step_x
            inside = (at_y >= 0) & (at_y < height) & (at_x >= 0) & (at_x < width)
            share = (1 - np.abs(from_y - at_y)) * (1 - np.abs(from_x - at_x)) * inside
            places.append(np.where(inside, at_y * width + at_x, 0))
            shares.append(share.astype(np.float32))
    return places, shares
