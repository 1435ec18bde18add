"""The decoder: blocks give exactly what chunks one by one give, bad rows included."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pytest

from streamkd.records import Chunk, InputColumn, RecordSchema
from streamkd.streams.encoding import codec
from streamkd.streams.encoding.decoder import Decoder

SCHEMA = RecordSchema(inputs=(InputColumn(name="x", shape=(2,)),), task="task")


class Rows:
    """A source over rows in memory, of which every seventh cannot be learned."""

    partitions: tuple[str, ...] = ("p",)
    finite = True

    def __init__(self, count: int) -> None:
        values = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
        values[::7, 1] = np.nan
        lists = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 2)
        labels, tasks = pa.array(range(count)), pa.array([str(i // 5) for i in range(count)])
        self.rows = pa.RecordBatch.from_arrays([lists, labels, tasks], ["x", "label", "task"])
        self.reads = 0

    def read(self, partition: str, offset: int, limit: int) -> Chunk:
        self.reads += 1
        rows = self.rows.slice(offset, limit)
        return Chunk(rows, partition, offset, offset + rows.num_rows)

    def end(self, partition: str) -> int | None:
        return self.rows.num_rows

    def tests(self) -> Mapping[str, pa.RecordBatch]:
        return {}

    def close(self) -> None: ...


@pytest.mark.parametrize("size", [1, 3, 10, 700])
def test_decoding_in_blocks_is_decoding_chunk_by_chunk(size: int) -> None:
    """For every batch size the records and the refused rows are those of the plain codec."""
    source = Rows(1_300)
    decoder = Decoder(source, SCHEMA)
    for offset in range(0, 1_300, size):
        chunk = source.read("p", offset, size)
        got, got_rejects = decoder.decode(chunk)
        needed, needed_rejects = codec.encode(chunk.rows, SCHEMA, chunk.offset)
        np.testing.assert_array_equal(got.inputs, needed.inputs)
        np.testing.assert_array_equal(got.offsets, needed.offsets)
        assert list(got.labels) == list(needed.labels)
        assert got.tasks == needed.tasks
        assert got_rejects == needed_rejects


def test_small_batches_share_a_block() -> None:
    """A thousand records in batches of ten are read ahead twice, not a hundred times."""
    source = Rows(1_000)
    decoder = Decoder(source, SCHEMA)
    chunks = [source.read("p", offset, 10) for offset in range(0, 1_000, 10)]
    source.reads = 0
    for chunk in chunks:
        decoder.decode(chunk)
    assert source.reads == 2


def test_going_back_reads_again() -> None:
    """A chunk before the block at hand is decoded from its own offset."""
    source = Rows(2_000)
    decoder = Decoder(source, SCHEMA)
    decoder.decode(source.read("p", 1_500, 10))
    records, _ = decoder.decode(source.read("p", 1, 2))
    assert records.offsets.tolist() == [1, 2]
