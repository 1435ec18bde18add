"""The source ``example``: two clouds of points that go round each other, for as long as somebody reads.

A source gives records by offset: the same offset gives the same record, whenever and in whatever portions it is read.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from pydantic import Field

from streamkd.api import Chunk, InputColumn, Options, RecordSchema, SourceKind, hookimpl

BLOCK = 1_000  # records that are drawn together, by their place


class ExampleOptions(Options):
    """What the stream is like."""

    records: int = Field(default=1_000, gt=0, description="after which it ends")
    turn: int = Field(default=4_000, gt=0, description="records in which the clouds go round once")
    seed: int | None = Field(default=None, ge=0, description="None: the configuration's")


class Example:
    """One partition; its rows are a table of x [2] and label."""

    partitions = ("example/0",)
    finite = True

    def __init__(self, options: ExampleOptions, schema: RecordSchema) -> None:
        self.options = options

    def read(self, partition: str, offset: int, limit: int) -> Chunk:
        """Up to ``limit`` rows from ``offset`` on, without waiting."""
        stop = max(offset, min(offset + limit, self.options.records))
        first = offset // BLOCK
        blocks = [self._block(number) for number in range(first, stop // BLOCK + 1)]
        rows = slice(offset - first * BLOCK, stop - first * BLOCK)
        x, y = (np.concatenate(part)[rows] for part in zip(*blocks, strict=True))
        points = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1), pa.float32()), 2)
        return Chunk(pa.record_batch({"x": points, "label": pa.array(y)}), partition, offset, stop)

    def _block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        draw = np.random.default_rng([self.options.seed or 0, number])
        y = draw.integers(0, 2, BLOCK)
        angle = 2 * np.pi * (number * BLOCK + np.arange(BLOCK)) / self.options.turn + np.pi * y
        centre = np.stack([np.cos(angle), np.sin(angle)], 1)
        return (centre + 0.5 * draw.standard_normal((BLOCK, 2))).astype(np.float32), y

    def end(self, partition: str) -> int | None:
        return self.options.records

    def tests(self) -> dict[str, pa.RecordBatch]:
        return {}

    def close(self) -> None: ...


def describe(_options: ExampleOptions) -> RecordSchema:
    """What its records look like."""
    return RecordSchema(inputs=(InputColumn(name="x", shape=(2,)),))


@hookimpl
def streamkd_sources() -> Iterator[SourceKind]:
    """One source."""
    yield SourceKind("example", Example, ExampleOptions, "two clouds of points", describe=describe)
