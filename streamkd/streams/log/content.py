"""What a batch holds, in sixteen bytes: by this a batch that is sent again is told from another under its number.

    canonical rows ─► column after column: which are null, then the values ─┐
    rows that were refused ─► their places ─────────────────────────────────┴─► BLAKE2b

The values are those that the log holds, so neither the door counts nor how the rows were packed: Flight or HTTP, Arrow
or JSON lines, compressed, as a dictionary, with metadata, sliced. What lies under a null does not count either.
Of a batch with no good row the refused rows themselves are what it holds, as they came.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streamkd.streams.log.dead_letters import DeadLetter

DIGEST_BYTES = 16


def digest(rows: pa.RecordBatch, refused: Sequence[int] = (), letters: Sequence[DeadLetter] = ()) -> bytes:
    """The digest of canonical ``rows``, the places of refused rows, and their letters where nothing else is left."""
    seen = hashlib.blake2b(digest_size=DIGEST_BYTES)
    seen.update(np.asarray([rows.num_rows, *refused], "<i8").tobytes())
    for array in rows.columns:
        for part in _parts(array):
            seen.update(part)
    for letter in letters if not rows.num_rows else ():
        seen.update(letter.record or letter.detail.encode())
    return seen.digest()


def _parts(array: pa.Array) -> list[memoryview]:
    """The bytes of one canonical column; equal columns have equal bytes."""
    parts = []
    if array.null_count:
        parts.append(_bytes(np.packbits(array.is_valid().to_numpy(zero_copy_only=False))))
        array = pc.fill_null(array, _nothing(array.type))
    if pa.types.is_string(array.type) or pa.types.is_binary(array.type):
        return [*parts, _bytes(pc.binary_length(array).to_numpy(zero_copy_only=False)), _text(array)]
    values = array.flatten() if pa.types.is_fixed_size_list(array.type) else array.view(pa.int64())
    return [*parts, _bytes(values.to_numpy(zero_copy_only=False))]


def _bytes(values: np.ndarray) -> memoryview:
    return np.ascontiguousarray(values).data


def _text(array: pa.Array) -> memoryview:
    """All strings of a column without a null, end to end."""
    _, offsets, data = array.buffers()
    if data is None or not len(array):
        return memoryview(b"")
    bounds = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
    return memoryview(data)[int(bounds[0]) : int(bounds[-1])]


def _nothing(kind: pa.DataType) -> pa.Scalar:
    empty = "" if pa.types.is_string(kind) else b"" if pa.types.is_binary(kind) else 0
    return pa.scalar(empty, kind)
