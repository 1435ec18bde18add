"""Labels that come after their prediction, joined with it: each becomes a record of the log, once.

    label ─► its prediction is kept ─► joined: inputs + label ─► rows of the log, answers     one transaction
             not known yet         ─► waits ``early_seconds`` ─► joined as it comes, or unmatched: unknown
             has its label         ─► unmatched: repeated
             not kept any more     ─► unmatched: late

With ``settle_seconds`` every label waits so long for a later one of the same prediction, which takes its place. A
clock decides when a label has waited enough; what it decided is in the transaction that writes the record. Nothing here
begins or commits one.
"""

import itertools
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa

from streamkd.records import InputColumn, Label, RecordSchema
from streamkd.settings import LateLabels
from streamkd.streams.encoding.canonical import arrow_schema
from streamkd.streams.log.answers import PastAnswer
from streamkd.streams.log.database import add_columns
from streamkd.streams.log.predictions import ANSWER, Found, KeptPredictions, Missing, Reason, kept_schema, key_of

KEY = "prediction_id"
CHUNK_ROWS, CHUNK_BYTES = 1_000, 8 << 20  # of one batch of the log
SETTLED = 10_000  # labels that have waited enough, and go in one transaction
REASONS: tuple[Reason, ...] = get_args(Reason)

_TABLES = (
    "CREATE TABLE IF NOT EXISTS waiting (number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE,"
    " id TEXT NOT NULL, due REAL NOT NULL, label NOT NULL, task TEXT)",
    "CREATE INDEX IF NOT EXISTS waiting_id ON waiting (id)",
    "CREATE INDEX IF NOT EXISTS waiting_due ON waiting (due)",
    "CREATE TABLE IF NOT EXISTS label_counts (what TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID",
)


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A label that no record was made of: its row in the batch that it came in, why, and which it is."""

    row: int
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Joined:
    """Records as the log takes them, what was answered about each, and the time (µs since 1970) when it was asked."""

    rows: pa.RecordBatch
    answers: Sequence[PastAnswer]
    asked: Sequence[int]


@dataclass(frozen=True, slots=True)
class _Given:
    """A label as it came, with the key of its prediction."""

    name: str
    label: Label
    task: str | None
    producer: str | None

    @property
    def told(self) -> tuple[Label, str | None, str | None]:
        """What it says of its prediction."""
        return self.label, self.task, self.producer


@dataclass(frozen=True, slots=True)
class _Match:
    """A label with the row that it belongs to."""

    found: Found
    given: _Given


@dataclass(slots=True)
class Matched:
    """What became of labels: those to join, in order, how many more wait, and those of which nothing comes.

    ``early``: how many began to wait for their prediction.
    """

    matches: list[_Match] = field(default_factory=list)
    waiting: int = 0
    early: int = 0
    unmatched: list[Unmatched] = field(default_factory=list)
    expired: list[tuple[int, int, int]] = field(default_factory=list)


class Joins:
    """The labels and predictions of one log, in a database that is open already."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        schema: RecordSchema,
        settings: LateLabels,
        early_rows: int,
        clock: Callable[[], float],
    ) -> None:
        """``early_rows``: labels that may wait for their prediction."""
        self._connection, self._schema, self._settings, self._early_rows = connection, schema, settings, early_rows
        self._clock = clock
        self._predictions = KeptPredictions(connection, path, self._clock)

    @staticmethod
    def create(connection: sqlite3.Connection) -> None:
        """Make the tables where they are missing."""
        KeptPredictions(connection, Path(), float).create()
        for statement in _TABLES:
            connection.execute(statement)
        add_columns(connection, "waiting", {"producer": "TEXT"})

    def keep(self, rows: pa.RecordBatch) -> tuple[int, Matched]:
        """Keep predictions; how many rows, and what becomes of labels that have waited for them."""
        kept, matched = self._predictions.keep(rows), Matched()
        due = self._clock() + self._settings.settle_seconds
        for each in kept if self.counts()["waiting"] else ():
            if self._settings.settle_seconds:
                self._connection.execute("UPDATE waiting SET due = ? WHERE id = ?", (due, each.id))
            else:  # now: a label that comes next is no longer the first
                self._end_waiting(matched, "id = ? ORDER BY number", each.id)
        count = sum(each.good for each in kept)
        self._count({"kept": count})
        self._tell(matched)
        return count, matched

    def take(self, labels: pa.RecordBatch) -> Matched:
        """Find the predictions of canonical label rows (``label_schema``)."""
        matched, waited = Matched(), self.counts()["waiting"]
        for row, given in enumerate(_given(labels, self._schema)):
            found = self._find(given)
            if seconds := self._patience(found, waited + matched.waiting):
                self._wait(matched, row, given, seconds, early=not isinstance(found, Found))
            elif isinstance(found, Found):
                matched.matches.append(self._match(found, given))
            else:
                matched.unmatched.append(Unmatched(row, found.reason, found.detail))
        self._tell(matched)
        return matched

    def _find(self, given: _Given) -> Found | Missing:
        key = key_of(given.name)
        return self._predictions.find(*key) if key else Missing("unknown", f"{given.name!r:.80} is no prediction's id")

    def _patience(self, found: Found | Missing, waiting: int) -> float:
        """Seconds that a label is to wait: for another one, or for its prediction."""
        if isinstance(found, Found):
            return self._settings.settle_seconds
        return self._settings.early_seconds if found.may_come and waiting < self._early_rows else 0.0

    def _match(self, found: Found, given: _Given) -> _Match:
        self._predictions.mark(found)
        return _Match(found, given)

    def _wait(self, matched: Matched, row: int, given: _Given, seconds: float, early: bool) -> None:
        """Let a label wait; one that waits for the same prediction stays, or gives way."""
        cursor = self._connection.execute(
            "INSERT OR IGNORE INTO waiting (name, id, due, label, task, producer) VALUES (?, ?, ?, ?, ?, ?)",
            (given.name, given.name.partition("/")[0], self._clock() + seconds, *given.told),
        )
        if cursor.rowcount:
            matched.waiting += 1
            matched.early += early
        elif self._settings.settle_seconds:
            change = "UPDATE waiting SET label = ?, task = ?, producer = ? WHERE name = ?"
            self._connection.execute(change, (*given.told, given.name))
            self._count({"repeated": 1})  # the one that gave way
        else:
            said = f"a label for the prediction {given.name!r:.80} waits already"
            matched.unmatched.append(Unmatched(row, "repeated", said))

    def settle(self) -> Matched:
        """What has waited enough, and what must not wait longer than its prediction is kept (``forget`` follows)."""
        matched = Matched(expired=self._expired())
        self._end_waiting(matched, "due <= ? ORDER BY due, number LIMIT ?", self._clock(), SETTLED)
        if past := matched.expired:
            span = (past[0][1], self._predictions.first_request(past[-1][0]))
            those = "id IN (SELECT id FROM requests WHERE number >= ? AND number < ?) ORDER BY number"
            self._end_waiting(matched, those, *span)
        self._tell(matched)
        return matched

    def forget(self, matched: Matched) -> None:
        """Forget the predictions that have expired, once what was joined with them is in the log."""
        self._count({"unlabelled": self._predictions.forget(matched.expired)})

    def _expired(self) -> list[tuple[int, int, int]]:
        return self._predictions.expired(self._settings.keep_seconds, self._settings.keep_bytes)

    def _end_waiting(self, matched: Matched, which: str, *values: float | str) -> None:
        waiting = self._connection.execute(
            f"SELECT number, name, label, task, producer FROM waiting WHERE {which}", values
        )
        ended = waiting.fetchall()
        for number, *rest in ended:
            self._connection.execute("DELETE FROM waiting WHERE number = ?", (number,))
            found = self._find(given := _Given(*rest))
            if isinstance(found, Found):
                matched.matches.append(self._match(found, given))
            else:
                matched.unmatched.append(Unmatched(0, found.reason, found.detail))
        matched.waiting -= len(ended)

    def is_due(self) -> bool:
        """Whether ``settle`` has anything to do."""
        due = self._connection.execute("SELECT 1 FROM waiting WHERE due <= ? LIMIT 1", (self._clock(),)).fetchone()
        return bool(due or self._expired())

    def records(self, matches: Sequence[_Match]) -> Iterator[Joined]:
        """The records of labels that were matched, in order, as batches of a bounded size."""
        start, held = 0, 0.0
        for at, match in enumerate(matches):
            held += self._predictions.row_bytes(match.found.prediction)
            if held >= CHUNK_BYTES or at - start + 1 == CHUNK_ROWS or at == len(matches) - 1:
                yield self._records(matches[start : at + 1])
                start, held = at + 1, 0.0

    def _records(self, matches: Sequence[_Match]) -> Joined:
        schema = self._schema
        kept = self._predictions.rows([match.found for match in matches], kept_schema(schema))
        asked = kept.column(len(schema.inputs) + ANSWER.index("asked"))
        known = {column.name: kept.column(place) for place, column in enumerate(schema.inputs)}
        known[schema.label] = [match.given.label for match in matches]
        known |= {schema.task: [match.given.task for match in matches]} if schema.task else {}
        known |= {schema.producer: [match.given.producer for match in matches]} if schema.producer else {}
        known |= {schema.id: [match.given.name for match in matches]} if schema.id else {}
        known |= {schema.event_time: asked} if schema.event_time else {}
        arrays = [
            known[each.name] if isinstance(known[each.name], pa.Array) else pa.array(known[each.name], each.type)
            for each in arrow_schema(schema)
        ]
        said, probable = (kept.column(len(schema.inputs) + place).to_pylist() for place in range(2))
        versions = [match.found.version for match in matches]
        answers = [PastAnswer(*each) for each in zip(said, probable, versions, strict=True)]
        rows = pa.RecordBatch.from_arrays(arrays, schema=arrow_schema(schema))
        return Joined(rows, answers, asked.cast(pa.int64()).to_pylist())

    def counts(self) -> Counter[str]:
        """How many predictions were kept, went unlabelled, were joined; labels waiting; unmatched ones by reason.

        ``early``: labels that ever waited for their prediction, whatever became of them.
        """
        return Counter(dict(self._connection.execute("SELECT what, count FROM label_counts").fetchall()))

    def _tell(self, matched: Matched) -> None:
        unmatched = Counter[str](each.reason for each in matched.unmatched)
        self._count({"joined": len(matched.matches), "waiting": matched.waiting, "early": matched.early, **unmatched})

    def _count(self, more: Mapping[str, int]) -> None:
        self._connection.executemany(
            "INSERT INTO label_counts VALUES (?, ?) ON CONFLICT (what) DO UPDATE SET count = count + excluded.count",
            [(what, count) for what, count in more.items() if count],
        )


def told(counts: Counter[str]) -> dict[str, Any]:
    """How labels stand, of ``Joins.counts``: predictions that are ``pending`` are kept, and have no label."""
    pending = counts["kept"] - counts["joined"] - counts["unlabelled"]
    named = {name: counts[name] for name in ("kept", "joined", "unlabelled", "waiting", "early")}
    return {**named, "pending": pending, "unmatched": {reason: counts[reason] for reason in REASONS}}


def _given(labels: pa.RecordBatch, schema: RecordSchema) -> Iterator[_Given]:
    names, values, tasks, producers = (
        labels.column(column).to_pylist() if column else [None] * labels.num_rows
        for column in (KEY, schema.label, schema.task, schema.producer)
    )
    return itertools.starmap(_Given, zip(names, values, tasks, producers, strict=True))


def label_schema(schema: RecordSchema) -> RecordSchema:
    """Labels are records whose one input is the key of their prediction."""
    key = InputColumn(name=KEY, kind="text", shape=(1,))
    named = {"label": schema.label, "label_type": schema.label_type, "task": schema.task, "producer": schema.producer}
    return RecordSchema.model_validate({"inputs": (key,), **named})
