"""When the records of a file came, and when their labels did, where those came later.

    event_time               ─► the order of ``order: time``
    request_time, label_time ─► in the order of the labels' times ─► records by offset, as ``replay`` gives them
                             └► in the order of the requests' ─► ``asked``: who came before a label

Where both are one column, a record is there twice: without its label when it came, with it when the label did;
``records.id`` joins the two. A label without a request came as early as its record; of several labels the first counts.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from streamkd.errors import SourceError
from streamkd.logs import some
from streamkd.records import RecordSchema
from streamkd.streams.files.rows import Rows
from streamkd.streams.replay.options import ReplayOptions

NONE = -1  # no row, no code
LATEST = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Times:
    """Of each row of a file [rows]: when its record came, when its label did, and whether it is ``learned``."""

    came: np.ndarray
    labelled: np.ndarray
    learned: np.ndarray

    def order(self) -> np.ndarray:
        """All rows in the order in which their labels came."""
        return np.argsort(self.labelled, kind="stable").astype(np.int32)


def of(rows: Rows, options: ReplayOptions, schema: RecordSchema, where: str) -> Times | None:
    """The times of a file; ``None`` where the options name none.

    Raises:
        SourceError: a column that is not there or holds no times, a record without a time, or no way to join.
    """
    if options.request_time is None or options.label_time is None:
        return None
    came, labelled = (_column(rows, name, where) for name in (options.request_time, options.label_time))
    known = np.concatenate([np.asarray(chunk.is_valid()) for chunk in rows.chunks(schema.label)])
    if options.request_time == options.label_time:
        return _joined(rows, schema, came, known, where)
    early = np.flatnonzero(known & (labelled < came))
    if len(early):
        said = f"the label of row {early[0]} comes before its record, and of {len(early) - 1} more"
        raise SourceError(said, where=where, fix="did you exchange request_time and label_time?")
    return Times(came, labelled, known)


def _joined(rows: Rows, schema: RecordSchema, at: np.ndarray, known: np.ndarray, where: str) -> Times:
    """Each label's row with the time at which the row of the same id without label came."""
    if not schema.id:
        raise SourceError(
            f"{len(at) - int(known.sum())} records come without their label, and nothing joins them to it",
            where=where,
            fix="name the column of their ids in stream.records.id, or another column in label_time",
        )
    codes = _codes(rows, schema.id)
    order = np.argsort(at, kind="stable")
    requests = _first(codes, order[~known[order]])[codes]
    came = np.where(requests == NONE, at, np.minimum(at[requests], at))
    learned = _first(codes, order[known[order]])[codes] == np.arange(len(at))
    return Times(came, at, learned | (known & (codes == NONE)))


def _first(codes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """By code the first of these rows that has it, ``NONE`` where none has; the last place is for no code."""
    found = np.full(int(codes.max(initial=NONE)) + 2, NONE)
    found[codes[rows][::-1]] = rows[::-1]
    found[NONE] = NONE
    return found


def _codes(rows: Rows, name: str) -> np.ndarray:
    """Numbers of a column's values [rows], ``NONE`` where there is none."""
    values = pa.chunked_array([*rows.chunks(name)], rows.schema.field(name).type)
    return np.asarray(values.combine_chunks().dictionary_encode().indices.fill_null(NONE))


def order(rows: Rows, schema: RecordSchema, where: str) -> np.ndarray:
    """All rows in the order of their event time; those that have none come last.

    Raises:
        SourceError: the schema names no event time, or the column holds none.
    """
    if not schema.event_time:
        raise SourceError(
            "order: time needs to know the time of a record", where=where, fix="name its column in records.event_time"
        )
    parts = [part.fill_null(LATEST).to_numpy() for part in _whole(rows, schema.event_time, where, "order: given")]
    return np.argsort(np.concatenate([np.zeros(0, np.int64), *parts]), kind="stable").astype(np.int32)


def _column(rows: Rows, name: str, where: str) -> np.ndarray:
    """A column of times [rows]."""
    if name not in rows.schema.names:
        raise SourceError(f"needed a column {name!r}, got {some(rows.schema.names)}", where=where)
    parts = _whole(rows, name, where, "leave request_time and label_time out")
    if missing := sum(part.null_count for part in parts):
        raise SourceError(f"column {name!r}: {missing} records have no time", where=where, fix="leave them out")
    return np.concatenate([np.zeros(0, np.int64), *(part.to_numpy() for part in parts)])


def _whole(rows: Rows, name: str, where: str, fix: str) -> list[pa.Array]:
    """A column of times as whole numbers, microseconds where they are timestamps or dates."""
    kind = rows.schema.field(name).type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return [chunk.cast(pa.timestamp("us"), safe=False).cast(pa.int64()) for chunk in rows.chunks(name)]
    if pa.types.is_integer(kind):
        return [chunk.cast(pa.int64()) for chunk in rows.chunks(name)]
    said = f"column {name!r}: needed timestamps, dates or whole numbers to order by, got {kind}"
    raise SourceError(said, where=where, fix=fix)
