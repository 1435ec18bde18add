"""Chunks to encoded records, decoded in blocks: a batch of ten records costs as much to decode as one of five hundred.

    chunk (offsets) ─► in the block at hand? slice : read and encode the block that begins here

Reading ahead is safe because the same offset always gives the same record. Called by the learner.
"""

import bisect
from dataclasses import dataclass

from streamkd.records import Chunk, Records, RecordSchema, Reject, Source
from streamkd.streams.encoding import codec

BLOCK_RECORDS = 512
BLOCK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Block:
    """Encoded records of one partition from ``start`` to before ``stop``; ``rejects`` count rows from ``start``."""

    partition: str
    start: int
    stop: int
    records: Records
    rejects: list[Reject]
    offsets: list[int]


class Decoder:
    """Decodes the chunks of one source."""

    def __init__(self, source: Source, schema: RecordSchema) -> None:
        self._source, self._schema = source, schema
        size = max(sum(column.width for column in schema.inputs) * schema.dtype.itemsize, 1)
        self._records = max(1, min(BLOCK_RECORDS, BLOCK_BYTES // size))
        self._block: Block | None = None

    def decode(self, chunk: Chunk) -> tuple[Records, list[Reject]]:
        """The good records of a chunk, and its refused rows (``Reject.row`` counts in ``chunk.rows``).

        Raises:
            SchemaMismatch: its columns are not the stream's, and cannot be made so.
        """
        block = self._block
        if block is None or not _holds(block, chunk):
            block = self._block = self._read(chunk)
        first, last = (bisect.bisect_left(block.offsets, at) for at in (chunk.offset, chunk.next_offset))
        whole = block.records
        tasks = None if whole.tasks is None else whole.tasks[first:last]
        producers = None if whole.producers is None else whole.producers[first:last]
        offsets = whole.offsets[first:last]
        records = Records(whole.inputs[first:last], whole.labels[first:last], tasks, offsets, producers)
        if not block.rejects:
            return records, []
        shift = chunk.offset - block.start
        rows = range(shift, chunk.next_offset - block.start)
        rejects = [Reject(r.row - shift, r.reason, r.detail) for r in block.rejects if r.row in rows]
        return records, rejects

    def _read(self, chunk: Chunk) -> Block:
        ahead = self._source.read(chunk.partition, chunk.offset, max(self._records, chunk.rows.num_rows))
        if ahead.rows.num_rows < chunk.rows.num_rows:  # a source that gives less the second time
            ahead = chunk
        records, rejects = codec.encode(ahead.rows, self._schema, ahead.offset)
        offsets = records.offsets.tolist()
        return Block(chunk.partition, ahead.offset, ahead.next_offset, records, rejects, offsets)


def _holds(block: Block, chunk: Chunk) -> bool:
    return block.partition == chunk.partition and block.start <= chunk.offset and chunk.next_offset <= block.stop
