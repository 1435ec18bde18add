"""A batch as it came from outside, checked against all limits and sifted: what may be written to the log.

    Arrow batch ─► rows, columns, bytes ─► schema ─► full validation ─► sift ─► Sifted
    Arrow stream ─► declared rows and bytes ─► Arrow batch
    JSON lines  ─► rows, bytes ─► coerced line by line ───────────────► sift ─► Sifted

The order matters: a stream of 500 bytes can declare 2³¹ rows, and offsets that point anywhere, so
nothing is computed from a batch before the limits and the validation have passed it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import pyarrow as pa

from streamkd.errors import LimitExceeded, RecordError, first_line
from streamkd.records import RecordSchema, Reject
from streamkd.settings import Limits
from streamkd.streams.encoding.canonical import arrow_schema, check_schema
from streamkd.streams.encoding.codec import sift
from streamkd.streams.ingest import jsonl
from streamkd.streams.ingest.envelope import check_stream
from streamkd.streams.log.batches import no_rows
from streamkd.streams.log.dead_letters import RECORD_BYTES, DeadLetter, letters
from streamkd.streams.log.predictions import requests_of, with_requests


@dataclass(frozen=True, slots=True)
class Sifted:
    """The canonical good rows of a batch of ``total`` rows, and the refused ones with their letters.

    ``sent``: the columns of an Arrow batch as they came.
    """

    rows: pa.RecordBatch
    total: int
    rejects: Sequence[Reject] = ()
    letters: Sequence[DeadLetter] = ()
    sent: pa.Schema | None = None


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
    sent = batch.schema
    batch = batch.select([name for name in arrow_schema(schema).names if name in batch.schema.names])
    try:
        batch.validate(full=True)
    except pa.ArrowException as fault:
        raise RecordError(f"the Arrow data is corrupt: {first_line(fault)}", where="batch") from None
    rows, rejects = sift(batch, schema, limits.row_bytes, images=True)
    return Sifted(rows, batch.num_rows, rejects, letters(rejects, batch, source), sent)


def admit_stream(
    body: bytes, schema: RecordSchema, limits: Limits, source: str, beside: Mapping[str, str | datetime] | None = None
) -> Sifted:
    """The good and the bad rows of an Arrow IPC stream, all its batches as one; ``beside``: columns of one value.

    Raises:
        LimitExceeded, SchemaMismatch, RecordError: as ``admit_batch``.
    """
    check_stream(body, limits.batch_rows, limits.batch_bytes)
    try:
        with pa.ipc.open_stream(body) as reader:
            found = _with_fields(reader.schema, beside) if beside else reader.schema
            admit_schema(found, schema, limits)
            batches = [_with_columns(batch, found, beside) if beside else batch for batch in reader]
            for batch in batches:
                batch.validate(full=True)  # before they are joined: offsets may point anywhere
            whole = pa.concat_batches(batches) if batches else no_rows(found)
    except (pa.ArrowException, OSError) as fault:
        raise RecordError(f"cannot be read as Arrow: {first_line(fault)}", where="body") from None
    return admit_batch(whole, schema, limits, source)


def admit_lines(body: bytes, schema: RecordSchema, limits: Limits, source: str) -> Sifted:
    """The good and the bad rows of JSON lines; empty lines do not count.

    Raises:
        LimitExceeded: too many lines.
    """
    if body.count(b"\n") > limits.batch_rows:
        raise LimitExceeded(f"more than {limits.batch_rows} lines", where="body", fix=_raise("batch_rows"))
    return admit_objects([line for line in body.split(b"\n") if line.strip()], schema, limits, source)


def admit_objects(
    lines: Sequence[bytes],
    schema: RecordSchema,
    limits: Limits,
    source: str,
    beside: Sequence[Mapping[str, str]] = (),
) -> Sifted:
    """The good and the bad of JSON objects, each a row; ``beside``: what each has beside its own keys."""
    parsed, places, rejects = jsonl.parse(lines, schema, limits.row_bytes, beside)
    rows, more = sift(parsed, schema, limits.row_bytes, images=True)
    rejects = [*rejects, *(Reject(places[each.row], each.reason, each.detail) for each in more)]
    rejects.sort(key=lambda reject: reject.row)
    kept = []
    for each in rejects:
        line = lines[each.row] if len(lines[each.row]) <= RECORD_BYTES else None
        kept.append(DeadLetter(source, each.reason, each.detail, record=line, form="json"))
    return Sifted(rows, len(lines), rejects, kept)


def _with_fields(schema: pa.Schema, beside: Mapping[str, str | datetime]) -> pa.Schema:
    kept = [field for field in schema if field.name not in beside]
    return pa.schema([*kept, *(pa.field(name, pa.scalar(value).type) for name, value in beside.items())])


def _with_columns(batch: pa.RecordBatch, schema: pa.Schema, beside: Mapping[str, str | datetime]) -> pa.RecordBatch:
    """The batch under ``schema``, of which the columns ``beside`` have one value for all rows."""
    kept = [batch.column(name) for name in schema.names[: len(schema) - len(beside)]]
    added = [pa.repeat(pa.scalar(value), batch.num_rows) for value in beside.values()]
    return pa.RecordBatch.from_arrays([*kept, *added], schema=schema)


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
