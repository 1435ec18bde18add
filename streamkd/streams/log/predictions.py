"""Predictions that wait for their label: what was asked, what was answered, by which version.

    supervisor ─► keep ─► batches of rows, and requests by their id ─► find ─► joins
                           past ``seconds`` or ``bytes``: the oldest rows go; ids stay a while, to tell who is late

``ID/ROW`` names a row of a request, from 0 on; ``ID`` alone the row of a request of one. Time is what the server was
up for. Nothing here begins or commits a transaction.
"""

import json
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from streamkd.errors import LogDamaged
from streamkd.records import RecordSchema
from streamkd.streams.encoding.canonical import MOMENT, arrow_schema
from streamkd.streams.log.batches import DAMAGED
from streamkd.streams.log.database import insert

PAYLOAD_BYTES = 64 << 10  # of a batch, cut between requests: a label reads one to have its row
REMEMBERED = 100_000  # requests whose rows are gone
EXPIRED = 256  # batches that go in one transaction
ID_CHARACTERS = 128
ANSWER = ("predicted", "probability", "asked")  # columns behind the inputs
NEWEST = "SELECT max(created) FROM predictions"
Reason = Literal["repeated", "late", "unknown"]
_REQUESTS = b"requests"

_TABLES = (
    "CREATE TABLE IF NOT EXISTS predictions (number INTEGER PRIMARY KEY AUTOINCREMENT, created REAL NOT NULL,"
    " request INTEGER NOT NULL, before_bytes INTEGER NOT NULL, count INTEGER NOT NULL, payload BLOB NOT NULL,"
    " checksum INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS requests (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,"
    " prediction INTEGER NOT NULL, first INTEGER NOT NULL, count INTEGER NOT NULL, version INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS joined (request INTEGER, row INTEGER, bad INTEGER NOT NULL, PRIMARY KEY (request, row))"
    " WITHOUT ROWID",
)


@dataclass(frozen=True, slots=True)
class KeptRequest:
    """One request: its id, how many rows it has, the version that answered, and the rows that can be no records."""

    id: str
    count: int
    version: int
    bad: tuple[int, ...] = ()

    @property
    def good(self) -> int:
        """How many rows a label may come for."""
        return self.count - len(self.bad)


@dataclass(frozen=True, slots=True)
class Found:
    """Where a row that is kept lies: its request, its row there, its batch and its row there, the version."""

    request: int
    row: int
    prediction: int
    place: int
    version: int


@dataclass(frozen=True, slots=True)
class Missing:
    """Why there is no row for a label, and which it is; ``may_come``: its request may be on its way."""

    reason: Reason
    detail: str
    may_come: bool = False


class KeptPredictions:
    """The tables in a database that is open already."""

    def __init__(self, connection: sqlite3.Connection, path: Path, clock: Callable[[], float]) -> None:
        self._connection, self._path, self._clock = connection, path, clock

    def create(self) -> None:
        """Make the tables where they are missing."""
        for statement in _TABLES:
            self._connection.execute(statement)

    def keep(self, rows: pa.RecordBatch) -> list[KeptRequest]:
        """Keep requests (``with_requests``) whose id is not known; which those are. The first of an id stands."""
        kept: list[pa.RecordBatch] = []
        taken: list[KeptRequest] = []
        ids: set[str] = set()
        first = 0
        for asked in requests_of(rows):
            known = self._connection.execute("SELECT 1 FROM requests WHERE id = ?", (asked.id,)).fetchone()
            if known is None and asked.id not in ids:
                ids.add(asked.id)
                taken.append(asked)
                kept.append(rows.slice(first, asked.count))
            first += asked.count
        for start, stop in _cuts([each.count for each in taken], rows.nbytes / max(1, rows.num_rows)):
            self._put(pa.concat_batches(kept[start:stop]), taken[start:stop])
        return taken

    def _put(self, rows: pa.RecordBatch, asked: Sequence[KeptRequest]) -> None:
        payload = rows.serialize()
        number = insert(
            self._connection,
            "predictions",
            {
                "created": self._clock(),
                "request": self._next_request(),
                "before_bytes": self.through_bytes(),
                "count": rows.num_rows,
                "payload": memoryview(payload),
                "checksum": zlib.crc32(payload),
            },
        )
        first = 0
        for each in asked:
            row = {"id": each.id, "prediction": number, "first": first, "count": each.count, "version": each.version}
            request = insert(self._connection, "requests", row)
            bad = [(request, place) for place in each.bad]
            self._connection.executemany("INSERT INTO joined VALUES (?, ?, 1)", bad)
            first += each.count

    def _next_request(self) -> int:
        row = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'requests'").fetchone()
        return int(row[0]) + 1 if row else 1

    def find(self, id: str, row: int | None) -> Found | Missing:
        """Where the row of a key (``key_of``) lies."""
        found = self._connection.execute(
            "SELECT number, prediction, first, count, version FROM requests WHERE id = ?", (id,)
        ).fetchone()
        if found is None:
            return Missing("unknown", f"no prediction {id!r:.80} is known", may_come=True)
        request, prediction, first, count, version = found
        if row is None and count > 1:
            return Missing("unknown", f"the request {id!r:.80} has {count} rows: name one, {id}/0 to {id}/{count - 1}")
        row = row or 0
        if row >= count:
            return Missing("unknown", f"the request {id!r:.80} has {count} rows, from 0 on, and no row {row}")
        query = "SELECT bad FROM joined WHERE request = ? AND row = ?"
        if (done := self._connection.execute(query, (request, row)).fetchone()) is not None:
            if done[0]:
                return Missing("unknown", f"row {row} of the request {id!r:.80} was refused: there is no prediction")
            return Missing("repeated", f"the prediction {id!r:.80} has its label already")
        if not self._connection.execute("SELECT 1 FROM predictions WHERE number = ?", (prediction,)).fetchone():
            return Missing("late", f"the prediction {id!r:.80} is not kept any more")
        return Found(request, row, prediction, first + row, version)

    def mark(self, found: Found) -> None:
        """The row has its label."""
        self._connection.execute("INSERT INTO joined VALUES (?, ?, 0)", (found.request, found.row))

    def row_bytes(self, prediction: int) -> float:
        """Mean bytes of a batch's rows, without reading them."""
        query = "SELECT length(payload) * 1.0 / count FROM predictions WHERE number = ?"
        return float(self._connection.execute(query, (prediction,)).fetchone()[0])

    def rows(self, places: Sequence[Found], schema: pa.Schema) -> pa.RecordBatch:
        """The kept rows in this order.

        Raises:
            LogDamaged: a batch is not what was written.
        """
        wanted: dict[int, list[int]] = {}
        for at, found in enumerate(places):
            wanted.setdefault(found.prediction, []).append(at)
        parts = [self._read(n, schema).take(pa.array([places[at].place for at in mine])) for n, mine in wanted.items()]
        order = [at for mine in wanted.values() for at in mine]
        back = sorted(range(len(order)), key=order.__getitem__)
        return pa.concat_batches(parts).take(pa.array(back))

    def _read(self, number: int, schema: pa.Schema) -> pa.RecordBatch:
        payload, held = self._connection.execute(
            "SELECT payload, checksum FROM predictions WHERE number = ?", (number,)
        ).fetchone()
        try:
            if zlib.crc32(payload) == held:
                return pa.ipc.read_record_batch(pa.py_buffer(payload), schema)
        except (pa.ArrowException, OSError):
            pass
        said = f"the log is damaged: batch {number} of the predictions that are kept is not what was written"
        raise LogDamaged(said, where=str(self._path), fix=DAMAGED)

    def through_bytes(self) -> int:
        """Bytes of everything that was ever kept, up to the newest that is there."""
        row = self._connection.execute(
            "SELECT before_bytes + length(payload) FROM predictions ORDER BY number DESC LIMIT 1"
        ).fetchone()
        return int(row[0]) if row else 0

    def expired(self, seconds: float, keep_bytes: int) -> list[tuple[int, int, int]]:
        """The oldest batches that are past either bound, as (number, first request, rows); ``EXPIRED`` at most."""
        oldest = self._connection.execute(
            "SELECT number, request, count, created, before_bytes FROM predictions ORDER BY number LIMIT ?", (EXPIRED,)
        ).fetchall()
        before, through = self._clock() - seconds, self.through_bytes()
        past = []
        for number, request, count, created, before_bytes in oldest:
            if created > before and through - before_bytes <= keep_bytes:
                break
            past.append((number, request, count))
        return past

    def first_request(self, after: int) -> int:
        """The first request of what is kept after a batch."""
        row = self._connection.execute(
            "SELECT request FROM predictions WHERE number > ? ORDER BY number LIMIT 1", (after,)
        ).fetchone()
        return int(row[0]) if row else self._next_request()

    def forget(self, batches: Sequence[tuple[int, int, int]]) -> int:
        """Forget expired batches; how many of their good rows went without a label."""
        if not batches:
            return 0
        (last, _, _), begin = batches[-1], batches[0][1]
        end = self.first_request(last)
        joined = self._connection.execute(
            "SELECT count(*) FROM joined WHERE request >= ? AND request < ?", (begin, end)
        ).fetchone()[0]
        self._connection.execute("DELETE FROM predictions WHERE number <= ?", (last,))
        self._connection.execute("DELETE FROM requests WHERE number < ?", (end - REMEMBERED,))
        self._connection.execute("DELETE FROM joined WHERE request < ?", (end - REMEMBERED,))
        return sum(count for _, _, count in batches) - int(joined)


def kept_schema(schema: RecordSchema) -> pa.Schema:
    """The columns of rows that are kept: the canonical inputs, then ``ANSWER``."""
    canonical = arrow_schema(schema)
    answer = (canonical.field(schema.label).type, pa.float32(), MOMENT)
    inputs = [canonical.field(column.name) for column in schema.inputs]
    return pa.schema([*inputs, *(pa.field(*each) for each in zip(ANSWER, answer, strict=True))])


def with_requests(rows: pa.RecordBatch, asked: Sequence[KeptRequest]) -> pa.RecordBatch:
    """The rows of these requests, one after the other, for ``KeptPredictions.keep``."""
    said = json.dumps([[each.id, each.count, each.version, each.bad] for each in asked]).encode()
    return rows.replace_schema_metadata({_REQUESTS: said})


def requests_of(rows: pa.RecordBatch) -> list[KeptRequest]:
    """What ``with_requests`` has said.

    Raises:
        ValueError: it says nothing, or not as many rows as there are.
    """
    said: dict[bytes, Any] = rows.schema.metadata or {}
    found = json.loads(said.get(_REQUESTS, b"[]"))
    asked = [KeptRequest(id, count, version, tuple(bad)) for id, count, version, bad in found]
    if sum(each.count for each in asked) != rows.num_rows:
        raise ValueError(f"needed requests of {rows.num_rows} rows, got {len(asked)} of other sizes")
    return asked


def key_of(prediction_id: str) -> tuple[str, int | None] | None:
    """Id and row of a key; ``None`` where it can be none."""
    id, slash, row = prediction_id.partition("/")
    if not 0 < len(id) <= ID_CHARACTERS or (slash and not (row.isascii() and row.isdigit() and len(row) < 10)):
        return None
    return id, int(row) if slash else None


def _cuts(counts: Sequence[int], row_bytes: float) -> Iterator[tuple[int, int]]:
    """Where to cut requests of so many rows, so that a batch has about ``PAYLOAD_BYTES``."""
    start, held = 0, 0.0
    for at, count in enumerate(counts):
        held += count * row_bytes
        if held >= PAYLOAD_BYTES or at == len(counts) - 1:
            yield start, at + 1
            start, held = at + 1, 0.0
