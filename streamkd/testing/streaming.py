"""The contracts of what stands along the stream: sources, boundary detectors, observers."""

import copy
import inspect
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from streamkd.hookspecs import Kind, SourceKind
from streamkd.observe import Observers
from streamkd.records import Chunk, RecordSchema, Source
from streamkd.streams.codec import check_schema
from streamkd.tasks.boundary import Boundary
from streamkd.testing.clauses import Clause, Given, begin, is_tree, needs
from streamkd.testing.specimens import batches_of


def check_source(kind: Kind, options: Given = None, schema: RecordSchema | None = None) -> None:
    """A source: the same offset gives the same record, in whatever portions it is read.

    Give options without pacing. Of a push source, which fills the log, only what it describes is checked.

    Raises:
        ContractBroken: a clause is broken; the text names it.
    """
    clause, chosen = begin("source", kind, options)
    with clause("`describe(options)` gives the schema of its records, or None"):
        assert isinstance(kind, SourceKind), f"needed a SourceKind, got {kind!r}"
        described = kind.describe(chosen)
        needs(described is None or isinstance(described, RecordSchema), "a RecordSchema or None", repr(described))
        if kind.push:
            return
        schema = schema or described
        assert schema is not None, "needed a schema: it describes none, so give one to this check"
    with clause("`make(options, schema)` gives a source with partitions"):
        source: Source = kind.make(chosen, schema)
        again: Source = kind.make(chosen, schema)
        named = source.partitions
        needs(bool(named) and len(set(named)) == len(named), "partitions, each once", repr(named))
    for partition in source.partitions:
        _reads(clause, source, again, partition, schema)
    with clause("tests() gives rows of the schema by task"):
        for task, rows in source.tests().items():
            needs(isinstance(task, str), "a task's name", repr(task))
            check_schema(rows.schema, schema)
    with clause("close() ends it"):
        source.close()
        again.close()


def check_detector(kind: Kind, options: Given = None) -> None:
    """A boundary detector: stopped, restored and gone on, it says what it would have said.

    Raises:
        ContractBroken: a clause is broken; the text names it.
    """
    clause, chosen = begin("detector", kind, options)
    for tasks in (True, False):
        batches, about = batches_of(tasks), "with task column" if tasks else "without task column"
        with clause(f"`make(options)` gives a detector whose begins() says a task's name or None, {about}"):
            detector, said, states = kind.make(chosen), [], []
            for batch in batches:
                states.append(copy.deepcopy(detector.state_dict()))
                said.append(detector.begins(*batch))
                needs(said[-1] is None or isinstance(said[-1], str), "a name or None", repr(said[-1]))
        with clause(f"it leaves the records as they are, {about}"):
            for (seen, *_), (new, *_) in zip(batches, batches_of(tasks), strict=True):
                needs(bool((seen.inputs == new.inputs).all()) and seen.labels == new.labels, "the same", "others")
        for start, state in enumerate(states):
            with clause(f"stopped before batch {start} and restored, it goes on as if never stopped, {about}"):
                is_tree(state)
                other = kind.make(chosen)
                other.load_state_dict(state)
                got = [other.begins(*batch) for batch in batches[start:]]
                needs(got == said[start:], repr(said[start:]), repr(got))


def check_observer(kind: Kind, options: Given = None) -> None:
    """An observer: it has some of the events, spelt right, and takes their arguments.

    Raises:
        ContractBroken: a clause is broken; the text names it.
    """
    clause, chosen = begin("observer", kind, options)
    with clause("`make(options)` gives an object"):
        observer = kind.make(chosen)
    events = ", ".join(Observers.EVENTS)
    found = [name for name, _ in inspect.getmembers(observer, callable) if name.startswith("on_")]
    with clause(f"its events are among {events}"):
        needs(set(found) <= set(Observers.EVENTS), events, ", ".join(found))
        needs(bool(found), "at least one of them", "none")
    happenings: dict[str, tuple[Any, ...]] = {
        "on_step": (10, 0.5, 0.9),
        "on_boundary": (Boundary(10, "0", "new-label"),),
        "on_checkpoint": (10, MappingProxyType({"main/0": 10})),
        "on_published": (1, 10),
    }
    for name in found:
        with clause(f"{name} takes its arguments"):
            getattr(observer, name)(*happenings[name])


def _reads(clause: Clause, source: Source, again: Source, partition: str, schema: RecordSchema) -> None:
    with clause("read(partition, offset, limit) gives at most that many rows of the schema, and says where they are"):
        chunk = _read(source, partition, 0, 7)
        check_schema(chunk.rows.schema, schema)
        needs(chunk.rows.num_rows > 0, "rows at offset 0", "none")
    with clause("read(offset, n) is n single reads, one after the other"):
        singles, offset = [], 0
        while offset < chunk.next_offset:
            single = _read(source, partition, offset, 1)
            needs(single.next_offset > offset, f"an offset after {offset}", f"{single.next_offset}")
            singles.append(single)
            offset = single.next_offset
        needs(offset == chunk.next_offset, f"{chunk.next_offset} after the last", f"{offset}")
        apart = pa.Table.from_batches([single.rows for single in singles])
        needs(apart.equals(pa.Table.from_batches([chunk.rows])), "the same rows", "others")
    with clause("the same offset gives the same record, in another instance too"):
        middle = singles[len(singles) // 2]
        other = _read(again, partition, middle.offset, 1)
        needs(other.rows.equals(middle.rows), f"{middle.rows.to_pylist()}", f"{other.rows.to_pylist()}")
    with clause("end() is the offset after the last record, where nothing is read; None where there is no end"):
        end = source.end(partition)
        needs(end is not None or not source.finite, "an offset, as it is finite", "None")
        if end is not None:
            last = _read(source, partition, end, 1)
            needs(source.finite is False or last.rows.num_rows == 0, "no rows at the end", f"{last.rows.num_rows}")


def _read(source: Source, partition: str, offset: int, limit: int) -> Chunk:
    chunk = source.read(partition, offset, limit)
    rows = chunk.rows.num_rows
    needs(rows <= limit, f"at most {limit} rows", f"{rows}")
    place = (chunk.partition, chunk.offset)
    needs(place == (partition, offset), f"a chunk of {partition} at {offset}", f"{place}")
    moved = chunk.next_offset - offset
    needs(moved >= rows and (rows > 0 or moved == 0), f"a next offset for {rows} rows from {offset}", f"+{moved}")
    return chunk
