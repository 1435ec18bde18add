"""The contract of sources: records by offset, without waiting, and where they end."""

import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from streamkd.hookspecs import Kind, SourceKind
from streamkd.records import Chunk, RecordSchema, Source
from streamkd.streams.encoding.canonical import check_schema
from streamkd.testing.clauses import Clause, Given, Hand, begin, needs

PATIENCE_SECONDS = 20.0  # a read may load a data set first
WAITED_SECONDS = 0.25  # the quickest of three calls: a busy machine is not slow three times
WALK, PORTION = 64, 512  # reads from the beginning, to see where they end


def check_source(
    kind: Kind,
    options: Given = None,
    schema: RecordSchema | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
) -> None:
    """A source: the same offset gives the same record, in whatever portions it is read, and no call waits.

    Give options without pacing. Of a push source, which fills the log, only what it describes is checked. A call that
    has not returned after ``patience_seconds`` is said to block; its thread is left behind.

    Raises:
        ContractBroken: a clause is broken; the text names it.
    """
    clause, chosen = begin("source", kind, options)
    with clause(
        "`describe(options)` gives the schema of its records, or None, each time the same",
        "yield a SourceKind; describe by the options alone, or give a schema to this check",
    ):
        assert isinstance(kind, SourceKind), f"needed a SourceKind, got {kind!r}"
        described = kind.describe(chosen)
        needs(described is None or isinstance(described, RecordSchema), "a RecordSchema or None", repr(described))
        needs(kind.describe(chosen) == described, repr(described), "another")
        if kind.push:
            return
        schema = schema or described
        assert schema is not None, "needed a schema: it describes none, so give one to this check"
    hand = Hand(patience_seconds)
    try:
        Reading(clause, hand, lambda: hand.call(kind.make, chosen, schema), schema).check()
    finally:
        hand.close()


class Reading:
    """Two instances of one source, read side by side by the same hand."""

    def __init__(self, clause: Clause, hand: Hand, make: Callable[[], Source], schema: RecordSchema) -> None:
        self.clause, self.hand, self.schema = clause, hand, schema
        with clause(
            "`make(options, schema)` gives a source with partitions",
            "partitions: a tuple of different names, at least one; finite: a bool",
        ):
            self.source, self.again = make(), make()
            named = self.source.partitions
            needs(bool(named) and len(set(named)) == len(named), "partitions, each once", repr(named))
            needs(all(isinstance(name, str) for name in named), "names", repr(named))
            needs(named == self.again.partitions, "the same partitions each time", repr(self.again.partitions))
            needs(isinstance(self.source.finite, bool), "`finite` to be a bool", repr(self.source.finite))

    def check(self) -> None:
        for partition in self.source.partitions:
            self._reads(partition)
            self._ends(partition)
        self._tests()
        first = self.source.partitions[0]
        with self.clause("close() ends it, and no other", "let instances share nothing that one of them closes"):
            before = self._read(self.again, first, 0, 3)
            self.hand.call(self.source.close)
            needs(self._read(self.again, first, 0, 3).rows.equals(before.rows), "the same rows", "others")
            self.hand.call(self.again.close)

    def _reads(self, partition: str) -> None:
        with self.clause(
            "read(partition, offset, limit) returns at most that many rows of the schema, and says where they are",
            "slice the rows to the limit; Chunk(rows, partition, offset, offset + len(rows)); never wait for more",
        ):
            chunk = self._read(self.source, partition, 0, 7)
            check_schema(chunk.rows.schema, self.schema)
            needs(chunk.rows.num_rows > 0, "rows at offset 0", "none")
        with self.clause("rows that were read stay as they are", "give no view of a buffer that is filled again"):
            kept = chunk.rows.to_pylist()
            self._read(self.source, partition, chunk.next_offset - 1, 7)
            now = chunk.rows.to_pylist()
            needs(now == kept, f"{kept[0]} ...", f"{now[0]} ...")
        with self.clause(
            "read(offset, n) is n single reads, one after the other", "find rows by the offset alone: keep no cursor"
        ):
            singles = self._singles(partition, chunk.next_offset)
            apart = pa.Table.from_batches([single.rows for single in singles])
            needs(apart.equals(pa.Table.from_batches([chunk.rows])), "the same rows", "others")
        with self.clause(
            "the same offset gives the same record: read again, backwards, and in another instance",
            "draw from options and offset alone: no clock, no counter, no unseeded generator",
        ):
            for one in reversed(singles):
                for source in (self.again, self.source):
                    other = self._read(source, partition, one.offset, 1)
                    needs(other.rows.equals(one.rows), f"{one.rows.to_pylist()}", f"{other.rows.to_pylist()}")

    def _singles(self, partition: str, end: int) -> list[Chunk]:
        singles, offset = [], 0
        while offset < end:
            single = self._read(self.source, partition, offset, 1)
            needs(single.next_offset > offset, f"an offset after {offset}", f"{single.next_offset}")
            singles.append(single)
            offset = single.next_offset
        needs(offset == end, f"{end} after the last", f"{offset}")
        return singles

    def _ends(self, partition: str) -> None:
        with self.clause(
            "end() is the offset after the last record, where nothing is read; None where there is no end",
            "count the records of this partition; finite = False where they never end",
        ):
            end = self.hand.call(self.source.end, partition)
            needs(end is not None or not self.source.finite, "an offset, as it is finite", "None")
            if end is None:
                return
            needs(isinstance(end, int), "an int or None", repr(end))
            if self.source.finite:
                self._stops_at(partition, end)
                other = self.hand.call(self.again.end, partition)
                needs(other == end, f"{end} in another instance", f"{other}")
        with self.clause(
            "where nothing is to be read, read() returns at once with no rows",
            "do not wait or poll: the learner asks again",
        ):
            begun = [self._seconds(partition, self.hand.call(self.source.end, partition) or end) for _ in range(3)]
            needs(min(begun) < WAITED_SECONDS, f"an answer within {WAITED_SECONDS} s", f"one after {min(begun):.2f} s")

    def _stops_at(self, partition: str, end: int) -> None:
        last = self._read(self.source, partition, end, 1)
        needs(last.rows.num_rows == 0, "no rows at the end", f"{last.rows.num_rows}")
        offset, dense = 0, True
        for _ in range(WALK):
            chunk = self._read(self.source, partition, offset, PORTION)
            if not chunk.rows.num_rows:
                needs(offset == end, f"the end {offset}, where reading stops", f"{end}")
                return
            dense = dense and chunk.next_offset - offset == chunk.rows.num_rows
            offset = chunk.next_offset
        if dense:  # too long to walk, and an offset a record: look at the last one
            rows = self._read(self.source, partition, end - 1, 2).rows.num_rows
            needs(rows == 1, f"one row before the end {end}", f"{rows}")

    def _seconds(self, partition: str, offset: int) -> float:
        begun = time.monotonic()
        self._read(self.source, partition, offset, 1)
        return time.monotonic() - begun

    def _tests(self) -> None:
        with self.clause(
            "tests() gives rows of the schema by task, the same each time",
            "a dict of task name to RecordBatch, by options alone; {} where there are none",
        ):
            found = dict(self.hand.call(self.source.tests))
            for task, rows in found.items():
                needs(isinstance(task, str), "a task's name", repr(task))
                check_schema(rows.schema, self.schema)
            again = dict(self.hand.call(self.again.tests))
            needs([*again] == [*found], f"the tasks {[*found]}", f"{[*again]}")
            needs(all(again[task].equals(rows) for task, rows in found.items()), "the same rows", "others")

    def _read(self, source: Any, partition: str, offset: int, limit: int) -> Chunk:
        chunk: Chunk = self.hand.call(source.read, partition, offset, limit)
        rows = chunk.rows.num_rows
        needs(rows <= limit, f"at most {limit} rows", f"{rows}")
        place = (chunk.partition, chunk.offset)
        needs(place == (partition, offset), f"a chunk of {partition} at {offset}", f"{place}")
        moved = chunk.next_offset - offset
        needs(moved >= rows and (rows > 0 or moved == 0), f"a next offset for {rows} rows from {offset}", f"+{moved}")
        return chunk
