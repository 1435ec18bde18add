"""In which order the records of a file lie: that of their event time, another, or one label after the other."""

import re
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streamkd.streams.files.columns import Column
from streamkd.streams.files.doubts import Labels
from streamkd.streams.files.rows import Rows

TIME_NAME = re.compile(r"(^|[_ .-])(time|timestamp|date|datetime|ts|epoch|when|at|day)$", re.IGNORECASE)
NOT_OF_THE_EVENT = re.compile(r"birth|born|dob|expir|due", re.IGNORECASE)
MIXED = 0.1  # labels that change so often, of what chance would have, come in no order of theirs
Order = Literal["given", "time"]


def order_of(rows: Rows, others: Sequence[Column]) -> tuple[Column | None, Order | None, list[str]]:
    """The event time, the order to learn in, and what is said of it: a time that rises, else one that is called so."""
    times = [c for c in others if c.holds == "times" and c.type.startswith(("timestamp", "date")) and c.values > 1]
    steps = {c.name: _steps(rows.chunks(c.name)) for c in times}
    for column in times:
        if not steps[column.name][1]:
            return column, "given", [_in_order(column)]
    for column in times:
        if TIME_NAME.search(column.name) and not NOT_OF_THE_EVENT.search(column.name):
            return column, "time", [_out_of_order(column, *steps[column.name])]
    counting = "counts like a time; as a timestamp column it would be the event time, and the order be kept."
    return None, None, [f"{c.name!r} {counting}" for c in others if c.counting and TIME_NAME.search(c.name)]


def _in_order(column: Column) -> str:
    return (
        f"{column.name!r} is the event time: the records are learned as they lie in the file (order: given), "
        "which is the order of time."
    )


def _out_of_order(column: Column, steps: int, back: int) -> str:
    how = "newest first" if back > 0.9 * steps else f"{back:,} of them earlier than the one before"
    return (
        f"{column.name!r} is the event time: the records lie {how}, and are learned in the order of time "
        "(order: time; given: that of the file)."
    )


def _steps(chunks: Iterable[pa.Array]) -> tuple[int, int]:
    """From record to record: how many steps there are in time, and how many of them go back."""
    steps = back = 0
    last = np.zeros(0, np.int64)
    for chunk in chunks:
        times = chunk.drop_null().cast(pa.timestamp("us"), safe=False).cast(pa.int64()).to_numpy()
        taken = np.diff(np.concatenate([last, times]))
        steps, back = steps + len(taken), back + int((taken < 0).sum())
        last = times[-1:] if len(times) else last
    return steps, back


def are_mixed(chunks: Iterable[pa.Array], labels: Labels) -> bool:
    """Whether labels come in no order of theirs: they change from record to record nearly as often as by chance."""
    changes = 0
    for chunk in chunks:
        there = chunk.drop_null()
        changes += pc.sum(pc.not_equal(there[1:], there[:-1])).as_py() or 0
    shares = labels.counts / max(1, labels.records)
    return bool(changes > MIXED * labels.records * float(1 - (shares**2).sum()))
