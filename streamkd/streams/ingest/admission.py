"""A batch as it came from outside, checked against all limits and sifted: what may be written to the log.

    Arrow batch ─► rows, columns, bytes ─► schema ─► full validation ─► sift ─► Sifted
    JSON lines  ─► rows, bytes ─► coerced line by line ───────────────► sift ─► Sifted

The order matters: a stream of 500 bytes can declare 2³¹ rows, and offsets that point anywhere, so
nothing is computed from a batch before the limits and the validation have passed it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from streamkd.errors import LimitExceeded, RecordError, first_line
from streamkd.records import RecordSchema, Reject
from streamkd.settings import Limits
from streamkd.streams.encoding.codec import arrow_schema, check_schema, sift
from streamkd.streams.ingest import jsonl
from streamkd.streams.log.dead_letters import DeadLetter, letters


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
    if len(got) > limits.columns:
        raise LimitExceeded(f"{len(got)} columns, at most {limits.columns}", where="schema", fix=_raise("columns"))
    check_schema(got, schema)


def admit_batch(batch: pa.RecordBatch, schema: RecordSchema, limits: Limits, source: str) -> Sifted:
    """The good and the bad rows of an Arrow batch.

    Raises:
        LimitExceeded, SchemaMismatch, RecordError: the batch is refused whole.
    """
    if batch.num_rows > limits.batch_rows:
        raise LimitExceeded(
            f"{batch.num_rows} rows, at most {limits.batch_rows}", where="batch", fix=_raise("batch_rows")
        )
    admit_schema(batch.schema, schema, limits)
    held_bytes = batch.get_total_buffer_size()
    if held_bytes > limits.batch_bytes:
        raise LimitExceeded(
            f"{held_bytes} bytes, at most {limits.batch_bytes}", where="batch", fix=_raise("batch_bytes")
        )
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
    kept = [
        DeadLetter(source, each.reason, each.detail, None, jsonl.record(lines[each.row]), "json") for each in rejects
    ]
    return Sifted(rows, len(lines), rejects, kept)


def _raise(limit: str) -> str:
    return f"send smaller batches, or raise stream.limits.{limit}"
