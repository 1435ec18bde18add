"""What the columns of a file seem to hold: numbers, lists of numbers, text, categories, codes, images, times.

``look`` judges a sample of rows; ``describe`` picks inputs and label from what it says.
"""

import io
from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streamkd.records import ElementType
from streamkd.streams.encoding.lists import element_type, holds_lists, to_values
from streamkd.streams.encoding.types import is_list, is_number, is_text

Holds = Literal["numbers", "tensor", "text", "categories", "codes", "image", "times", "other"]
"""Categories are few; codes are many short ones that come again, such as those of airports."""
CATEGORIES = 50
WORDS = 2.5  # on average in texts, or more
DAY_MICROSECONDS = 86_400_000_000
YEARS = 2.0  # times that are further apart than this also have an age
ELEMENTS: dict[pa.DataType, ElementType] = {
    pa.uint8(): "uint8",
    pa.int8(): "int8",
    pa.int16(): "int16",
    pa.int32(): "int32",
    pa.int64(): "int64",
}


@dataclass(frozen=True)
class Column:
    """One column as far as the sample shows it; ``shape`` and ``dtype`` are those of one record.

    ``lengths``: shortest and longest list, where they vary. ``whole``: all numbers are whole. ``counting``: and rise or
    fall, from record to record. ``values``: different values, nulls apart; the ``names`` of categories, the commonest
    first. ``mean`` and ``std`` are over all elements. ``days``: times have no hours, ``years``: how far they are apart.
    """

    name: str
    type: str
    holds: Holds
    nulls: int
    values: int = 0
    names: tuple[str, ...] = ()
    days: bool = False
    years: float = 0.0
    whole: bool = False
    counting: bool = False
    shape: tuple[int, ...] = ()
    dtype: ElementType = "float32"
    lengths: tuple[int, int] | None = None
    sizes: int = 1
    mean: float = 0.0
    std: float = 1.0


def look(sample: pa.Table) -> list[Column]:
    """What each column of a sample seems to hold."""
    return [_column(name, sample.column(place)) for place, name in enumerate(sample.column_names)]


def _column(name: str, values: pa.ChunkedArray) -> Column:
    kind, there = values.type, values.drop_null()
    column = Column(name, str(kind), "other", values.null_count)
    if is_number(kind):
        return _numbers(column, there)
    if is_text(kind):
        return _texts(column, there)
    if holds_lists(kind):
        return _tensor(column, there)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return _image(column, there)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _times(column, there)
    return replace(column, holds="times") if pa.types.is_temporal(kind) else column


def _texts(column: Column, there: pa.ChunkedArray) -> Column:
    counted = sorted(pc.value_counts(there).to_pylist(), key=lambda found: -found["counts"])
    column = replace(column, values=len(counted))
    if len(counted) <= max(2, min(CATEGORIES, len(there) // 4)):
        return replace(column, holds="categories", names=tuple(found["values"] for found in counted))
    words = np.mean([len(value.split()) for value in there.slice(0, 1000).to_pylist()])
    return replace(column, holds="codes" if words < WORDS and 2 * len(counted) <= len(there) else "text")


def _times(column: Column, there: pa.ChunkedArray) -> Column:
    times = there.cast(pa.timestamp("us"), safe=False).cast(pa.int64()).to_numpy()
    if not len(times):
        return replace(column, holds="times")
    years = float(times.max() - times.min()) / DAY_MICROSECONDS / 365.25
    days = bool((times % DAY_MICROSECONDS == 0).all())
    return replace(column, holds="times", days=days, years=years, values=len(np.unique(times)))


def _numbers(column: Column, there: pa.ChunkedArray) -> Column:
    numbers = there.to_numpy()
    if numbers.dtype.kind == "f":
        there_too = ~np.isnan(numbers)
        column, numbers = replace(column, nulls=column.nulls + int((~there_too).sum())), numbers[there_too]
    finite = numbers[np.isfinite(numbers)] if numbers.dtype.kind == "f" else numbers
    whole = bool(numbers.dtype.kind != "f" or np.all(finite == np.floor(finite)))
    before, after = numbers[:-1], numbers[1:]
    counting = whole and len(numbers) > 2 and bool(np.all(before < after) or np.all(before > after))
    return replace(column, holds="numbers", values=len(np.unique(numbers)), whole=whole, counting=counting)


def _tensor(column: Column, there: pa.ChunkedArray) -> Column:
    element = element_type(there.type)
    if not is_number(element):
        return column
    shape = _shape(_first(there))
    lengths = None
    if shape is None and not is_list(there.type.value_type):
        found = pc.list_value_length(there).to_numpy()
        # nine of ten records are whole at this length
        lengths, shape = (int(found.min()), int(found.max())), (int(np.quantile(found, 0.9, method="lower")),)
    if not shape or not np.prod(shape):
        return column
    numbers, good = to_values(_first(there), int(np.prod(shape)), pad=lengths is not None)
    finite = numbers[good][np.isfinite(numbers[good])]
    return replace(
        column,
        holds="tensor",
        shape=_square(shape) if element == pa.uint8() and lengths is None else shape,
        dtype=ELEMENTS.get(element, "float32"),
        lengths=lengths,
        mean=float(finite.mean(dtype=np.float64)) if finite.size else 0.0,
        std=(float(finite.std(dtype=np.float64)) if finite.size else 0.0) or 1.0,
    )


def _first(there: pa.ChunkedArray) -> pa.Array:
    chunks = there.slice(0, 1000).chunks
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)


def _shape(lists: pa.Array) -> tuple[int, ...] | None:
    """The shape of every record; ``None`` for lists of different lengths."""
    if isinstance(lists.type, pa.FixedShapeTensorType):
        return tuple(lists.type.shape)
    shape: tuple[int, ...] = ()
    while is_list(lists.type):
        lengths = pc.unique(pc.list_value_length(lists)).to_pylist()
        if len(lengths) != 1 or lengths[0] is None:
            return None
        shape, lists = (*shape, lengths[0]), lists.flatten()
    return shape


def _square(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Bytes whose number is a square of 8 or more are taken for a grey image."""
    side = round(shape[0] ** 0.5)
    return (side, side) if len(shape) == 1 and side**2 == shape[0] and side >= 8 else shape


def _image(column: Column, there: pa.ChunkedArray) -> Column:
    from PIL import Image

    arrays = []
    for data in there.slice(0, 100).to_pylist():
        try:
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                arrays.append(np.asarray(image.convert("L" if image.mode in ("1", "L", "I;16") else "RGB")))
        except (OSError, ValueError, Image.DecompressionBombError):
            continue
    if not arrays:
        return column
    sizes = Counter(array.shape for array in arrays)
    shape = sizes.most_common(1)[0][0]
    pixels = np.concatenate([array.reshape(-1) for array in arrays if array.shape == shape])
    mean, std = float(pixels.mean()), float(pixels.std()) or 1.0
    return replace(column, holds="image", shape=shape, dtype="uint8", sizes=len(sizes), mean=mean, std=std)
