"""Mistakes of sources."""

import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from mistakes.mistake import ALOOF, Mistake
from streamkd.records import Chunk, InputColumn, RecordSchema

SCHEMA = RecordSchema(inputs=(InputColumn(name="x", shape=(2,)),))
OTHER = RecordSchema(inputs=(InputColumn(name="y", shape=(2,)),))


class Counting:
    """A source that is right: twenty rows by offset."""

    partitions: tuple[str, ...] = ("p/0",)
    finite: Any = True

    def __init__(self, options: Any, schema: RecordSchema) -> None:
        self.reads = 0

    def value(self, offset: int) -> float:
        return float(offset)

    def read(self, partition: str, offset: int, limit: int) -> Chunk:
        self.reads += 1
        return Chunk(
            self.rows(offset, min(offset + limit, 20)), partition, offset, max(offset, min(offset + limit, 20))
        )

    def rows(self, start: int, end: int) -> pa.RecordBatch:
        values = pa.array([self.value(o) for o in range(start, end) for _ in (0, 1)], pa.float32())
        return self.of(pa.FixedSizeListArray.from_arrays(values, 2), range(start, end))

    @staticmethod
    def of(x: pa.Array, offsets: range) -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays([x, pa.array([o % 2 for o in offsets], pa.int64())], ["x", "label"])

    def end(self, partition: str) -> int | None:
        return 20

    def tests(self) -> dict[str, pa.RecordBatch]:
        return {}

    def close(self) -> None: ...


class Restless(Counting):
    def value(self, offset: int) -> float:
        return float(offset + 100 * self.reads)


class Ageing(Counting):
    """After a few readings a record is another."""

    def __init__(self, options: Any, schema: RecordSchema) -> None:
        super().__init__(options, schema)
        self.seen: dict[int, int] = {}

    def value(self, offset: int) -> float:
        self.seen[offset] = self.seen.get(offset, 0) + 1
        return float(offset) if self.seen[offset] <= 6 else -1.0


class Cursor(Counting):
    """Goes on where it was, whatever offset is asked for."""

    at = 0

    def read(self, partition: str, offset: int, limit: int) -> Chunk:
        rows = self.rows(self.at, min(self.at + limit, 20))
        self.at += rows.num_rows
        return Chunk(rows, partition, offset, offset + rows.num_rows)


class Chancy(Counting):
    """Values from a seed that each instance draws."""

    def __init__(self, options: Any, schema: RecordSchema) -> None:
        super().__init__(options, schema)
        self.shift = float(np.random.default_rng().random())

    def value(self, offset: int) -> float:
        return offset + self.shift


class Drawing(Counting):
    def __init__(self, options: Any, schema: RecordSchema) -> None:
        super().__init__(options, schema)
        np.random.rand()


class Buffered(Counting):
    """Rows in a buffer that the next reading fills."""

    def __init__(self, options: Any, schema: RecordSchema) -> None:
        super().__init__(options, schema)
        self.buffer = np.zeros((20, 2), np.float32)

    def rows(self, start: int, end: int) -> pa.RecordBatch:
        count = max(end - start, 0)
        self.buffer[:count] = np.arange(start, start + count)[:, None]
        x = pa.FixedSizeListArray.from_arrays(pa.array(self.buffer[:count].reshape(-1)), 2)
        return self.of(x, range(start, end))


class Greedy(Counting):
    def read(self, partition: str, offset: int, limit: int) -> Chunk:
        return super().read(partition, offset, limit + 1)


class OffByOne(Counting):
    def read(self, partition: str, offset: int, limit: int) -> Chunk:
        chunk = super().read(partition, offset, limit)
        return Chunk(chunk.rows, partition, offset, chunk.next_offset - 1)


class Endless(Counting):
    def end(self, partition: str) -> int | None:
        return None


class Early(Counting):
    def end(self, partition: str) -> int | None:
        return 12


class Late(Counting):
    def end(self, partition: str) -> int | None:
        return 25


class LastOne(Counting):
    """The offset of the last record, not the one after it."""

    def end(self, partition: str) -> int | None:
        return 19


class Blocking(Counting):
    """Waits for a row that never comes."""

    def read(self, partition: str, offset: int, limit: int) -> Chunk:
        if offset >= 20:
            threading.Event().wait(60)
        return super().read(partition, offset, limit)


class Asleep(Counting):
    """Blocks at once."""

    def read(self, partition: str, offset: int, limit: int) -> Chunk:
        threading.Event().wait(60)
        return super().read(partition, offset, limit)


class Polling(Counting):
    """Looks a while whether something comes."""

    finite = False

    def read(self, partition: str, offset: int, limit: int) -> Chunk:
        if offset >= 20:
            time.sleep(0.26)
        return super().read(partition, offset, limit)


class Perhaps(Counting):
    finite = None


class Nowhere(Counting):
    partitions = ()


class Fickle(Counting):
    """Other test records each time."""

    made: ClassVar[list[int]] = []

    def tests(self) -> dict[str, pa.RecordBatch]:
        self.made.append(0)
        return {"0": self.rows(len(self.made) % 7, 10)}


class Common(Counting):
    """All instances read what one of them closes."""

    closed: ClassVar[list[int]] = []

    def __init__(self, options: Any, schema: RecordSchema) -> None:
        super().__init__(options, schema)
        self.closed.clear()

    def value(self, offset: int) -> float:
        if self.closed:
            raise ValueError("the file is closed")
        return float(offset)

    def close(self) -> None:
        self.closed.append(1)


def mistake(name: str, clause: str, make: Callable[..., Any], **given: Any) -> Mistake:
    return Mistake("sources", name, clause, make, {"schema": SCHEMA, **given})


READ = "read(partition, offset, limit) returns at most that many rows of the schema"
END = "end() is the offset after the last record"
MISTAKES = (
    mistake("no partition", "gives a source with partitions", Nowhere),
    mistake("neither finite nor endless", "gives a source with partitions", Perhaps),
    mistake("draws from numpy's generator", ALOOF, Drawing),
    mistake("other columns than the schema's", READ, Counting, schema=OTHER),
    mistake("a row more than asked for", READ, Greedy),
    mistake("goes on at the last row, not after it", READ, OffByOne),
    mistake("a read that never returns", READ, Asleep, patience_seconds=0.3),
    mistake("other values at every reading", "read(offset, n) is n single reads", Restless),
    mistake("reads on, whatever the offset", "read(offset, n) is n single reads", Cursor),
    mistake("other values when it is read again", "the same offset gives the same record", Ageing),
    mistake("a seed of its own in each instance", "the same offset gives the same record", Chancy),
    mistake("rows in a buffer that is filled again", "rows that were read stay as they are", Buffered),
    mistake("finite, without an end", END, Endless),
    mistake("an end before the last record", END, Early),
    mistake("an end that is the last record", END, LastOne),
    mistake("an end that is never reached", END, Late),
    mistake("waits for ever at the end", END, Blocking, patience_seconds=0.3),
    mistake("waits a while at the end", "where nothing is to be read, read() returns at once", Polling),
    mistake("other test records each time", "tests() gives rows of the schema by task, the same each time", Fickle),
    mistake("closes what others read", "close() ends it, and no other", Common),
)
