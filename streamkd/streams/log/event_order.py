"""Records in the order of their event times: those that come before their turn are held in the log's database.

    batch ─► its sender's newest time ─► late, or without a time ─► at once, or nothing
                                     └─► held ─► up to the watermark, sorted ─► the log        one transaction

The watermark is the least newest time of the senders that are heard, less the lateness: no sender is expected to bring
anything before it. A sender is a producer, or a partition of a broker. One that is silent for long is not waited for;
a clock decides that, and the records that it sets free are written where they are. Where too many are held the oldest
go before their turn. Nothing here begins or commits a transaction.
"""

import sqlite3
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from streamkd.errors import LogDamaged
from streamkd.records import RecordSchema, Reject
from streamkd.settings import Limits, OrderSettings
from streamkd.streams.encoding.canonical import arrow_schema
from streamkd.streams.log.batches import DAMAGED

PIECE_ROWS, PIECE_BYTES = 1_000, 64 << 10  # of one batch that is held: it is read again until its last row has gone
GROUP_BYTES = 8 << 20  # that are sorted together
SENDERS = 1_000  # that are known; beyond, the longest silent is forgotten
AHEAD_SECONDS = 86_400.0  # of the time of day: what is beyond is no event time
SHARE = 0.75  # of the room, that all senders together may take before who is ahead waits
ANYBODY = ""  # the sender that stands for all who have not come yet, when the first comes
BEGIN, END = -(1 << 63), (1 << 63) - 1  # before and behind all times, in µs since 1970
LATE = "it came when its place in the order of event times was gone"
TREATMENTS: tuple[str, ...] = get_args(OrderSettings.model_fields["late"].annotation)
HEARD = "SELECT max(heard) FROM senders"

_TABLES = (
    "CREATE TABLE IF NOT EXISTS held (number INTEGER PRIMARY KEY AUTOINCREMENT, sender TEXT NOT NULL,"
    " least INTEGER NOT NULL, start INTEGER NOT NULL, count INTEGER NOT NULL, bytes INTEGER NOT NULL)",
    "CREATE INDEX IF NOT EXISTS held_least ON held (least)",
    "CREATE TABLE IF NOT EXISTS held_rows (number INTEGER PRIMARY KEY, payload BLOB NOT NULL,"
    " checksum INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS senders (name TEXT PRIMARY KEY, newest INTEGER, heard REAL NOT NULL,"
    " held INTEGER NOT NULL, bytes INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS order_counts (what TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID",
)


@dataclass(frozen=True, slots=True)
class Room:
    """Records and bytes that may be held."""

    records: int = 131_072
    bytes: int = 128 << 20

    @classmethod
    def within(cls, limits: Limits, quota_bytes: int) -> "Room":
        """Half of the queue, and no more of the log than a quarter."""
        return cls(max(1, limits.queue_records // 2), max(1, min(limits.queue_bytes // 2, quota_bytes // 4)))


@dataclass(frozen=True, slots=True)
class Sender:
    """How one stands: its newest event time (``None``: none yet), what is held of it, and whether it is waited for."""

    newest: int | None
    held: int
    held_bytes: int
    active: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """How the order stands: watermark, senders by name, and all that was ever counted (``EventOrder.counts``)."""

    watermark: int
    senders: Mapping[str, Sender]
    counts: Counter[str]
    room: Room

    def is_ahead(self, name: str, pending: int = 0, records: int = 1, more_bytes: int = 1, part: float = 1.0) -> bool:
        """Whether a sender has to wait for others: it is before them, and with so much more beyond its share's part.

        ``pending``: its records that are on their way. Who has nothing here may bring something, whatever its size.
        """
        mine = self.senders.get(name, Sender(None, 0, 0, True))
        is_first = mine.newest is not None and self._first(mine.newest) is None
        if is_first or not mine.held + pending:
            return False
        share = part * SHARE / max(1, self._active())
        beyond = mine.held + pending + records > share * self.room.records
        return beyond or mine.held_bytes + more_bytes > share * self.room.bytes

    def step(self) -> int:
        """So many records may be brought before it is asked again who is ahead: a quarter of a share."""
        return max(1, int(SHARE * self.room.records / max(1, self._active())) // 4)

    def _active(self) -> int:
        return sum(sender.active for sender in self.senders.values())

    def _first(self, before: int = END) -> str | None:
        """The sender that the watermark waits for, if it has said nothing yet or nothing from ``before`` on."""
        times = {name: BEGIN if s.newest is None else s.newest for name, s in self.senders.items() if s.active}
        first = min(times, key=lambda name: (times[name], name), default=None)
        return first if first is not None and times[first] < before else None

    def told(self) -> dict[str, Any]:
        """As the status says it; ``waits_for`` is a sender, or nothing where nobody is waited for."""
        active = self._active()
        return {
            **{name: self.counts[name] for name in ("held", "held_bytes", "untimed", "full")},
            "late": {treatment: self.counts[treatment] for treatment in TREATMENTS},
            "watermark_timestamp_seconds": self.watermark / 1e6 if BEGIN < self.watermark < END else None,
            "waits_for": (self._first() or "anybody") if active and self.counts["held"] else None,
            "senders": {"active": active, "idle": len(self.senders) - active},
        }


@dataclass(frozen=True, slots=True)
class Admitted:
    """Of a batch what goes into the log at once, and what is refused, as it comes too late."""

    at_once: pa.RecordBatch
    refused: Sequence[Reject]


@dataclass(slots=True)
class Clock:
    """What of time and of waiting outlives no process: who could not be heard though it speaks.

    ``now``: seconds in which a sender could have been heard. ``knocked``: when a sender was sent away last.
    """

    now: Callable[[], float]
    knocked: dict[str, float] = field(default_factory=dict)

    def knock(self, name: str) -> None:
        """A sender speaks, and is not taken for now: it is not silent."""
        self.knocked[name] = self.now()
        while len(self.knocked) > SENDERS:
            del self.knocked[next(iter(self.knocked))]


class EventOrder:
    """The tables of one log, in a database that is open already."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        schema: RecordSchema,
        settings: OrderSettings | None,
        room: Room,
        clock: Clock,
    ) -> None:
        """``settings=None``: nothing is held any more, and what was held before goes with ``released``."""
        self._connection, self._path, self._schema, self._settings = connection, path, arrow_schema(schema), settings
        self._column, self._room, self._clock = schema.event_time, room, clock
        self._late = settings.late if settings else "train"

    @staticmethod
    def create(connection: sqlite3.Connection) -> None:
        """Make the tables where they are missing."""
        for statement in _TABLES:
            connection.execute(statement)

    def hear(self, names: Sequence[str], newest: int | None = None) -> None:
        """Senders have said something; of the first that ever come it is not known who else there is."""
        now = self._clock.now()
        if not self._connection.execute("SELECT 1 FROM senders LIMIT 1").fetchone():
            names = (ANYBODY, *names)
        self._connection.executemany(
            "INSERT INTO senders VALUES (?, ?, ?, 0, 0) ON CONFLICT (name) DO UPDATE SET heard = excluded.heard,"
            " newest = coalesce(max(newest, excluded.newest), newest, excluded.newest)",
            [(name, None if name == ANYBODY else newest, now) for name in names],
        )
        if self._connection.execute("SELECT count(*) FROM senders").fetchone()[0] > SENDERS:
            surplus = "SELECT name FROM senders ORDER BY heard DESC, name LIMIT -1 OFFSET ?"
            self._connection.execute(f"DELETE FROM senders WHERE name IN ({surplus})", (SENDERS,))

    def take(self, rows: pa.RecordBatch, names: Sequence[str]) -> Admitted:
        """Hold the rows whose turn may be still to come; the others are the caller's.

        A row has no event time where it is null, or more than a day ahead of the time of day: one sender whose clock is
        wrong would make whatever comes after it late.
        """
        moments = rows.column(self._column).cast(pa.int64())
        times = moments.fill_null(END).to_numpy()
        timed = times <= (time.time() + AHEAD_SECONDS) * 1e6
        self.hear(names, int(times[timed].max()) if timed.any() else None)
        late = timed & (times < self.counts().get("released", BEGIN))
        held = np.flatnonzero(timed & ~late)
        self._hold(rows, times, held[np.argsort(times[held], kind="stable")], names[0])
        self._count({self._late: int(late.sum()), "untimed": int((~timed).sum())})
        refused = [Reject(int(row), "late", LATE) for row in np.flatnonzero(late) if self._late != "train"]
        return Admitted(rows.filter(pa.array(~timed if refused else late | ~timed)), refused)

    def _hold(self, rows: pa.RecordBatch, times: np.ndarray, order: np.ndarray, name: str) -> None:
        """Keep rows, in the order of their times, as pieces of a bounded size."""
        step = int(max(1, min(PIECE_ROWS, PIECE_BYTES * rows.num_rows // max(1, rows.nbytes)))) if len(order) else 1
        for start in range(0, len(order), step):
            mine = order[start : start + step]
            payload = rows.take(pa.array(mine)).serialize()
            cursor = self._connection.execute(
                "INSERT INTO held (sender, least, start, count, bytes) VALUES (?, ?, 0, ?, ?)",
                (name, int(times[mine[0]]), len(mine), payload.size),
            )
            number = int(cursor.lastrowid or 0)
            piece = (number, memoryview(payload), held_checksum(number, payload))
            self._connection.execute("INSERT INTO held_rows VALUES (?, ?, ?)", piece)
            self._count_held(name, len(mine), payload.size)

    def released(self) -> Iterator[pa.RecordBatch]:
        """Rows whose turn it is, which are held no longer; then the oldest of those that there is no room for."""
        while (group := self._group(self._watermark(self._senders()), GROUP_BYTES)) is not None:
            yield group
        while (surplus := self._surplus()) and (group := self._group(END, min(surplus, GROUP_BYTES))) is not None:
            self._count({"full": group.num_rows})
            yield group

    def _surplus(self) -> int:
        """Bytes that are held beyond the room, by records or by bytes."""
        counts = self.counts()
        records, held_bytes = counts["held"], counts["held_bytes"]
        per_record = held_bytes / max(1, records)
        return int(max(held_bytes - self._room.bytes, (records - self._room.records) * per_record, 0))

    def _group(self, until: int, most_bytes: int) -> pa.RecordBatch | None:
        """The oldest rows up to a time, of some ``most_bytes`` of pieces; ``None`` where there are none."""
        pieces: list[tuple[int, str, int, int]] = []
        size, first = 0, until
        found = self._connection.execute(
            "SELECT number, sender, start, bytes, least FROM held WHERE least <= ? ORDER BY least, number", (until,)
        )
        for number, sender, start, held_bytes, least in found:
            if pieces and size >= most_bytes and least > first:
                until = least - 1
                break
            first = min(first, least)
            size += held_bytes
            pieces.append((number, sender, start, held_bytes))
        found.close()
        return self._until(sorted(pieces), until) if pieces else None

    def _until(self, pieces: Sequence[tuple[int, str, int, int]], until: int) -> pa.RecordBatch:
        """The rows of pieces up to a time, sorted; those of one time stay as they came."""
        parts = []
        for number, sender, start, held_bytes in pieces:
            rows = self._read(number).slice(start)
            times = self._times(rows)
            count = int(np.searchsorted(times, until, side="right"))
            parts.append(rows.slice(0, count))
            if gone := count == rows.num_rows:
                for table in ("held", "held_rows"):
                    self._connection.execute(f"DELETE FROM {table} WHERE number = ?", (number,))
            elif count:
                change = (start + count, int(times[count]), number)
                self._connection.execute("UPDATE held SET start = ?, least = ? WHERE number = ?", change)
            self._count_held(sender, -count, -held_bytes if gone else 0)
        rows = pa.concat_batches(parts)
        times = self._times(rows)
        newest = max(int(times.max()), self.counts().get("released", BEGIN))
        self._connection.execute("INSERT OR REPLACE INTO order_counts VALUES ('released', ?)", (newest,))
        return rows.take(pa.array(np.argsort(times, kind="stable")))

    def _read(self, number: int) -> pa.RecordBatch:
        query = "SELECT payload, checksum FROM held_rows WHERE number = ?"
        payload, held = self._connection.execute(query, (number,)).fetchone() or (b"", None)
        if held == held_checksum(number, payload):
            return pa.ipc.read_record_batch(pa.py_buffer(payload), self._schema)
        said = f"the log is damaged: batch {number} of the records that wait for their turn is not what was written"
        raise LogDamaged(said, where=str(self._path), fix=DAMAGED)

    def _times(self, rows: pa.RecordBatch) -> np.ndarray:
        return rows.column(self._column).cast(pa.int64()).to_numpy()

    def is_due(self) -> bool:
        """Whether ``released`` has anything to give."""
        until = self._watermark(self._senders()) if self.counts()["held"] else BEGIN
        return bool(self._connection.execute("SELECT 1 FROM held WHERE least <= ? LIMIT 1", (until,)).fetchone())

    def standing(self) -> Standing:
        """How it stands now."""
        senders = self._senders()
        return Standing(self._watermark(senders), senders, self.counts(), self._room)

    def _senders(self) -> Mapping[str, Sender]:
        since = self._clock.now() - (self._settings.idle_seconds if self._settings else 0.0)
        knocked = self._clock.knocked
        found = self._connection.execute("SELECT name, newest, heard, held, bytes FROM senders").fetchall()
        return {
            name: Sender(newest, held, held_bytes, max(heard, knocked.get(name, heard)) > since)
            for name, newest, heard, held, held_bytes in found
        }

    def _watermark(self, senders: Mapping[str, Sender]) -> int:
        """Before all times while a sender that is waited for has said none, behind all where nobody is waited for."""
        newest = [sender.newest for sender in senders.values() if sender.active]
        if self._settings is None or not newest:
            return END
        times = [each for each in newest if each is not None]
        return min(times) - int(self._settings.lateness_seconds * 1e6) if len(times) == len(newest) else BEGIN

    def counts(self) -> Counter[str]:
        """Records and bytes that are held; ever late, by treatment, untimed, or gone before their turn (``full``).

        ``released``: the newest event time that was written in its order.
        """
        return Counter(dict(self._connection.execute("SELECT what, count FROM order_counts").fetchall()))

    def _count_held(self, name: str, records: int, held_bytes: int) -> None:
        self._count({"held": records, "held_bytes": held_bytes})
        change = "UPDATE senders SET held = max(0, held + ?), bytes = max(0, bytes + ?) WHERE name = ?"
        self._connection.execute(change, (records, held_bytes, name))

    def _count(self, more: Mapping[str, int]) -> None:
        self._connection.executemany(
            "INSERT INTO order_counts VALUES (?, ?) ON CONFLICT (what) DO UPDATE SET count = count + excluded.count",
            [(what, count) for what, count in more.items() if count],
        )


def held_checksum(number: int, payload: Any) -> int:
    """CRC-32 of rows that are held, and of their number."""
    return zlib.crc32(payload, number & 0xFFFFFFFF)
