"""Records as numbers: canonical Arrow rows, or the columns of a prediction request, to numpy.

    tensor ─► view, reshaped (CHW: turned)    image ─► Pillow ─► uint8        text ─► hashed n-grams, L2 norm ─► float32
    category ─► one-hot (``categories``)                            time ─► parts (``times``)
    a gap ─► 0, and 1 in its indicator

One input column keeps its shape and element type; several become one flat vector. Nothing is fitted here, and text is
hashed by a hash without a seed of its own (scikit-learn), so that every process gets the same numbers at any time.
"""

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from streamkd.records import InputColumn, Records, RecordSchema, Reject, RejectReason
from streamkd.streams.encoding import categories, times

Refuse = Callable[[int, RejectReason, str], None]
_IMAGE_MODES: Mapping[int, str] = {1: "L", 3: "RGB", 4: "RGBA"}


def encode_rows(
    rows: pa.RecordBatch, schema: RecordSchema, numbers: np.ndarray, partition_offset: int
) -> tuple[Records, list[Reject]]:
    """The records of canonical rows, and the rows whose image cannot be decoded.

    ``numbers`` [rows] are the rows' places in the batch that they came in: ``Reject.row`` counts there, and offsets are
    ``partition_offset`` more.
    """
    bad: dict[int, Reject] = {}
    inputs = _join([_column(rows.column(column.name), column, numbers, bad) for column in schema.inputs], schema)
    tasks = rows.column(schema.task).to_pylist() if schema.task else None
    producers = rows.column(schema.producer).to_pylist() if schema.producer else None
    labels, offsets = rows.column(schema.label).to_pylist(), numbers.astype(np.int64) + partition_offset
    records = Records(inputs, labels, tasks, offsets, producers)
    if bad:
        records = records.take([place for place, row in enumerate(numbers.tolist()) if row not in bad])
    return records, list(bad.values())


def undecodable(array: pa.Array, column: InputColumn) -> Iterator[tuple[int, RejectReason, str]]:
    """The rows whose image cannot be decoded, why, and what is wrong; nulls are somebody else's."""
    for row, data in enumerate(array.to_pylist()):
        if data is not None and not isinstance(image := _decode(data, column), np.ndarray):
            yield row, image[0], f"{column.name}: {image[1]}"


def encode_inputs(
    columns: Mapping[str, np.ndarray | Sequence[Any]],
    schema: RecordSchema,
    refuse: Callable[[int, str, str], None],
) -> np.ndarray:
    """The inputs of a prediction request, [rows, *shape] in the schema's element type.

    Of every input: numbers [rows, *shape] in the column's type (NaN: a gap), strings (``None``: a gap), the bytes of
    images, or times as ``times.microseconds`` (``times.GAP``: a gap). ``refuse`` is told the row and the column of what
    is no image of its size, and what it is; zeros stand for it.
    """

    def encoded(column: InputColumn) -> np.ndarray:
        return _encoded(columns[column.name], column, lambda row, _, said: refuse(row, column.name, said))

    return _join([encoded(column) for column in schema.inputs], schema)


def _join(parts: list[np.ndarray], schema: RecordSchema) -> np.ndarray:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(
        [part.reshape(len(part), math.prod(part.shape[1:])).astype(schema.dtype) for part in parts], axis=1
    )


def _column(array: pa.Array, column: InputColumn, rows: np.ndarray, bad: dict[int, Reject]) -> np.ndarray:
    """One canonical column as numbers; images that fail are zero and noted in ``bad``."""

    def refuse(place: int, reason: RejectReason, said: str) -> None:
        row = int(rows[place])
        bad.setdefault(row, Reject(row, reason, f"{column.name}: {said}"))

    if column.kind == "tensor":
        return _encoded(array.flatten().to_numpy(zero_copy_only=False), column, refuse)
    if column.kind == "time":
        moments = array.cast(pa.int64())
        moments = moments.fill_null(times.GAP) if moments.null_count else moments
        return times.features(moments.to_numpy(), column)
    return _encoded(array.to_pylist(), column, refuse)


def _encoded(values: Any, column: InputColumn, refuse: Refuse) -> np.ndarray:
    """[rows, *encoded shape] of values as ``encode_inputs`` takes them."""
    if column.kind == "tensor":
        return _with_gaps(_laid(values.reshape(-1, *(column.shape or (1,))), column), column)
    if column.kind == "text":
        return _texts(values, column)
    if column.kind == "category":
        return categories.one_hot(values, column)
    if column.kind == "time":
        return times.features(values, column)
    return _images(values, column, refuse)


def _laid(values: np.ndarray, column: InputColumn) -> np.ndarray:
    """Numbers [rows, *shape] as [rows, *axes]: of images channels last."""
    return np.ascontiguousarray(np.moveaxis(values, 1, -1)) if column.layout == "CHW" else values


def _with_gaps(values: np.ndarray, column: InputColumn) -> np.ndarray:
    """Numbers [rows, size] and, where they may be missing, their indicators."""
    if column.missing == "refuse":
        return np.asarray(values)
    gaps = np.isnan(values)
    return np.concatenate([np.where(gaps, 0, values), gaps], axis=1, dtype=values.dtype)


def _texts(values: Sequence[str | None], column: InputColumn) -> np.ndarray:
    if column.raw:
        return _bytes(values, column)
    hashed = _hash([value or "" for value in values], column.size)
    if column.missing == "refuse":
        return hashed
    return (
        np.concatenate([hashed, [[not value] for value in values]], axis=1, dtype=np.float32)
        if len(values)
        else (np.zeros((0, column.width), np.float32))
    )


def _bytes(values: Sequence[str | None], column: InputColumn) -> np.ndarray:
    """int8 [rows, width]: UTF-8, ended in zeros, cut between two characters; a zero inside a text is a space."""
    found = np.zeros((len(values), column.width), np.int8)
    for row, value in zip(found, values, strict=True):
        text = (value or "").replace("\0", " ").encode()[: column.size].decode(errors="ignore").encode()
        row[: len(text)] = np.frombuffer(text, np.int8)
        row[column.size :] = not value
    return found


def _images(values: Sequence[bytes], column: InputColumn, refuse: Refuse) -> np.ndarray:
    """Images as uint8 [rows, *shape]; one that cannot be decoded is refused, and zero."""
    images = np.zeros((len(values), *column.shape), np.uint8)
    for row, data in enumerate(values):
        image = _decode(data, column)
        if isinstance(image, np.ndarray):
            images[row] = image
        else:
            refuse(row, *image)
    return images


def _decode(data: bytes, column: InputColumn) -> np.ndarray | tuple[RejectReason, str]:
    """A PNG or JPEG as uint8 of the column's shape, or the reason and what is wrong.

    The size is read from the header first, so that a picture of a billion pixels is never unpacked.
    """
    from PIL import Image

    height, width, *channels = column.shape
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if image.size != (width, height):
                return "wrong_shape", f"needed {width} x {height} pixels, got {image.size[0]} x {image.size[1]}"
            pixels = np.asarray(image.convert(_IMAGE_MODES[channels[0] if channels else 1]))
    except Exception as fault:  # noqa: BLE001 - Pillow's decoders raise almost anything on broken files
        return "decode", f"needed PNG or JPEG, got {len(data)} bytes ({type(fault).__name__})"
    return pixels.reshape(column.shape)


def _hash(texts: Sequence[str], features: int) -> np.ndarray:
    return _hasher(features)(texts) if len(texts) else np.zeros((0, features), np.float32)


@cache
def _hasher(features: int) -> Callable[[Sequence[str]], np.ndarray]:
    """Characters (3 to 5, inside words) and words (1 and 2), each of norm 1, added in one hashed space.

    On banking77 with a linear model: 0.897 in 2,048 features, against 0.890 and 0.871 of either alone.
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    characters = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 5), n_features=features, dtype=np.float32)
    words = HashingVectorizer(analyzer="word", ngram_range=(1, 2), n_features=features, dtype=np.float32)
    half = np.float32(0.5**0.5)
    return lambda texts: np.asarray((characters.transform(texts) + words.transform(texts)).toarray() * half, np.float32)
