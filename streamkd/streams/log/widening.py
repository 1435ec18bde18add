"""The records of a log with further columns, or with wider numbers: each batch is written anew, all in one transaction.

    batches, held_rows ─► opened by the schema of before ─► cast, the fill beside ─► under the same place, checked anew
    receipts           ─► without the digest of their rows, which nobody can send again as they are now

Sizes and times stay those of what was put: checkpoints know a batch by them.
"""

import sqlite3
from collections.abc import Callable

import pyarrow as pa

from streamkd.records import RecordSchema
from streamkd.streams.encoding.canonical import arrow_schema
from streamkd.streams.log.batches import Batches, checksum
from streamkd.streams.log.database import note
from streamkd.streams.log.event_order import held_checksum
from streamkd.streams.log.log import Log

_FIND = "SELECT {key}, payload FROM {table} WHERE {key} > ? ORDER BY {key} LIMIT 1"
_PUT = "UPDATE {table} SET payload = ?, checksum = ? WHERE {key} = ?"


def widen(log: Log, schema: RecordSchema, fill: pa.RecordBatch) -> int:
    """Let a log have the columns of ``schema``; ``fill`` is one row of those that are new. How many batches it has.

    Raises:
        LogDamaged: a batch is not what was written. Overloaded: the disk is full. Nothing has changed then.
    """
    before, after = log.arrow_schema, arrow_schema(schema)

    def wider(payload: bytes) -> bytes:
        rows = pa.ipc.read_record_batch(pa.py_buffer(payload), before)
        there = [rows.column(f.name).cast(f.type) if f.name in before.names else _filled(fill, f, rows) for f in after]
        return pa.RecordBatch.from_arrays(there, schema=after).serialize().to_pybytes()

    with log.file.writing() as connection:
        _refuse_damage(Batches(connection, log.path), before)
        count = _rewrite(connection, "batches", "first", wider)
        _rewrite(connection, "held_rows", "number", wider)
        connection.execute("UPDATE receipts SET digest = NULL WHERE accepted > 0")
        note(connection, "schema", schema.model_dump_json())
    return count


def _filled(fill: pa.RecordBatch, field: pa.Field, rows: pa.RecordBatch) -> pa.Array:
    return pa.repeat(fill.column(field.name)[0], rows.num_rows).cast(field.type)


def _refuse_damage(batches: Batches, schema: pa.Schema) -> None:
    """Look at every batch, as who reads it would."""
    at = batches.begin()
    while at < batches.end():
        at += batches.fetch(at, 1, schema).num_rows


def _rewrite(connection: sqlite3.Connection, table: str, key: str, wider: Callable[[bytes], bytes]) -> int:
    at, count = -1, 0
    while (row := connection.execute(_FIND.format(table=table, key=key), (at,)).fetchone()) is not None:
        at, payload, count = row[0], wider(row[1]), count + 1
        connection.execute(_PUT.format(table=table, key=key), (payload, _check(connection, table, at, payload), at))
    return count


def _check(connection: sqlite3.Connection, table: str, at: int, payload: bytes) -> int:
    if table == "held_rows":
        return held_checksum(at, payload)
    rows = connection.execute("SELECT count FROM batches WHERE first = ?", (at,)).fetchone()[0]
    return checksum(at, rows, payload)
