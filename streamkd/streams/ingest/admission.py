"""A batch as it came from outside, checked against all limits and sifted: what may be written to the log.

    Arrow batch ─► rows, columns, bytes ─► schema ─► full validation ─► sift ─► Sifted
    JSON lines  ─► rows, bytes ─► coerced line by line ───────────────► sift ─► Sifted

The order matters: a stream of 500 bytes can declare 2³¹ rows, and offsets that point anywhere, so
nothing is computed from a batch before the limits and the validation have passed it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from streamkd.errors import LimitExceeded, RecordError, first_line
from streamkd.records import RecordSchema, Reject
from streamkd.settings import Limits
from streamkd.streams.encoding.canonical import arrow_schema, check_schema
from streamkd.streams.encoding.codec import sift
from streamkd.streams.ingest import jsonl
from streamkd.streams.log.dead_letters import RECORD_BYTES, DeadLetter, letters
from streamkd.streams.log.predictions import requests_of, with_requests


@dataclass(frozen=True, slots=True)
class Sifted:
    """The canonical good rows of a batch of ``total`` rows, and the refused ones with their letters."""

    rows: pa.RecordBatch
    total: int
    rejects: Sequence[Reject] = ()
    letters: Sequence[DeadLetter] = ()


def admit_schema(got: pa.Schema, schema: RecordSchema, limits: Limits) -> None:
    """Whether a stream's batches can be taken at all.

    Raises:
        LimitExceeded: too many columns. SchemaMismatch: names the column.
    """
    _refuse_past("columns", len(got), limits.columns, "columns", "schema")
    check_schema(got, schema)


def admit_batch(batch: pa.RecordBatch, schema: RecordSchema, limits: Limits, source: str) -> Sifted:
    """The good and the bad rows of an Arrow batch.

    Raises:
        LimitExceeded, SchemaMismatch, RecordError: the batch is refused whole.
    """
    _refuse_past("batch_rows", batch.num_rows, limits.batch_rows, "rows", "batch")
    admit_schema(batch.schema, schema, limits)
    _refuse_past("batch_bytes", batch.get_total_buffer_size(), limits.batch_bytes, "bytes", "batch")
    batch = batch.select([name for name in arrow_schema(schema).names if name in batch.schema.names])
    try:
        batch.validate(full=True)
    except pa.ArrowException as fault:
        raise RecordError(f"the Arrow data is corrupt: {first_line(fault)}", where="batch") from None
    rows, rejects = sift(batch, schema, limits.row_bytes, images=True)
    return Sifted(rows, batch.num_rows, rejects, letters(rejects, batch, source))


def admit_lines(body: bytes, schema: RecordSchema, limits: Limits, source: str) -> Sifted:
    """The good and the bad rows of JSON lines; empty lines do not count.

    Raises:
        LimitExceeded: too many lines.
    """
    if body.count(b"\n") > limits.batch_rows:
        raise LimitExceeded(f"more than {limits.batch_rows} lines", where="body", fix=_raise("batch_rows"))
    lines = [line for line in body.split(b"\n") if line.strip()]
    parsed, places, rejects = jsonl.parse(lines, schema, limits.row_bytes)
    rows, more = sift(parsed, schema, limits.row_bytes, images=True)
    rejects = [*rejects, *(Reject(places[each.row], each.reason, each.detail) for each in more)]
    rejects.sort(key=lambda reject: reject.row)
    kept = []
    for each in rejects:
        line = lines[each.row] if len(lines[each.row]) <= RECORD_BYTES else None
        kept.append(DeadLetter(source, each.reason, each.detail, record=line, form="json"))
    return Sifted(rows, len(lines), rejects, kept)


def admit_predictions(rows: pa.RecordBatch, schema: RecordSchema, limits: Limits) -> pa.RecordBatch:
    """Predictions to keep (``with_requests``); rows that could be no records are bad ones of their requests."""
    inputs = RecordSchema(inputs=schema.inputs, label=schema.label, label_type=schema.label_type, unlabelled=True)
    _, rejects = sift(rows, inputs, limits.row_bytes)
    if not rejects:
        return rows
    refused, asked, first = [reject.row for reject in rejects], [], 0
    for each in requests_of(rows):
        bad = {*each.bad, *(row - first for row in refused if first <= row < first + each.count)}
        asked.append(replace(each, bad=tuple(sorted(bad))))
        first += each.count
    return with_requests(rows, asked)


def _refuse_past(limit: str, got: int, most: int, unit: str, where: str) -> None:
    if got > most:
        raise LimitExceeded(f"{got} {unit}, at most {most}", where=where, fix=_raise(limit))


def _raise(limit: str) -> str:
    return f"send smaller batches, or raise stream.limits.{limit}"
