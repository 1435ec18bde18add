"""A state goes on with further input columns, or with wider numbers: ``streamkd migrate``.

    state, configuration ─► what is new? ─► fill of each new column ─► the learner, widened ─► does the student answer
    as before? ─► the log (one transaction) ─► teachers that begin anew are taught ─► a checkpoint (one transaction)

Until the log is written nothing has changed. A kill between the two leaves a log that has the columns beside a
checkpoint that has not: no server starts on it, and the same command again does the rest.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from streamkd import config as configuration
from streamkd import wiring
from streamkd.config import Config
from streamkd.cores import compute_on
from streamkd.errors import ConfigError, StateConflict, StateError
from streamkd.learner import Learner, resuming
from streamkd.learner.widening import RINGS, Widening
from streamkd.learning.step import Step
from streamkd.plugins import Registry
from streamkd.records import InputColumn, RecordSchema
from streamkd.replay.ring import whole
from streamkd.state import coherence
from streamkd.state.checkpoint import CheckpointStore, Snapshot
from streamkd.state.directory import StateDirectory
from streamkd.state.environment import environment
from streamkd.streams.encoding import codec, contract
from streamkd.streams.encoding.canonical import arrow_schema
from streamkd.streams.ingest import jsonl
from streamkd.streams.log.log import Log, LogSource
from streamkd.streams.log.widening import widen
from streamkd.students.networks import at_rest
from streamkd.teachers.teacher import Incremental, Observing, Teacher

TAUGHT = 200  # remembered rows that a teacher learns at once
COMPARED = 1_000  # remembered rows of either part, that the student is asked before and after
TOLERANCE = 1e-3  # of logits: sums of more terms round otherwise


@dataclass(frozen=True, slots=True)
class Migrated:
    """What was done, how many batches of the log were written anew, the teachers that began anew, and the records.

    ``apart``: by how much at most the student's logits on remembered rows are others than before.
    """

    news: "News"
    batches: int
    anew: Sequence[str]
    records: int
    apart: float


def migrate(path: Path, config: Config, registry: Registry, fills: Mapping[str, str]) -> Migrated:
    """Let a state have the columns of a configuration; ``fills``: by new column what records had there, JSON or text.

    Raises:
        StateInUse: a server is running. StateConflict: something else has changed, or cannot be widened.
        ConfigError: a fill is missing, or none of the column's. StateError: there is no state, or nothing is new.
    """
    compute_on(config.threads)  # as the learner does: its sums round by it
    directory = StateDirectory(path)
    if not directory.exists():
        fix = "name the directory that `streamkd serve --state` was given"
        raise StateError("needed a state directory, got none", where=str(path), fix=fix)
    with ExitStack() as stack:
        stack.enter_context(directory.lock(lambda: coherence.refuse_misfits(directory, directory.log.exists())))
        store = stack.enter_context(closing(CheckpointStore(directory, config.checkpoint.keep)))
        if (found := store.latest()) is None:
            fix = "learn its log anew: move all but log.sqlite away"
            raise StateError("nothing is learned yet that could go on", where=str(path), fix=fix)
        log = None
        if wiring.source_kind(config, registry).push:
            log = stack.enter_context(closing(Log(directory.log)))
        return _Migration(store, found, log, config, registry).run(fills)


class _Migration:
    """One state on its way; its directory is locked."""

    def __init__(
        self, store: CheckpointStore, found: Snapshot, log: Log | None, config: Config, registry: Registry
    ) -> None:
        """``log``: as it is, where the stream is pushed."""
        self._store, self._log, self._config, self._registry = store, log, config, registry
        self._tree = resuming.today(cast(Mapping[str, Any], found.tree))
        self._offsets, self._saved = found.info.offsets, configuration.from_tree(found.config)
        self._before = RecordSchema.model_validate(self._tree["schema"])
        self._after = wiring.schema_of(config, registry)

    def run(self, fills: Mapping[str, str]) -> Migrated:
        """All of it, in its order."""
        news = News.between(self._before, self._after)
        self._refuse_others(news)
        fill = filled([self._column(name) for name in news.added], fills, self._config.stream.limits.row_bytes)
        learner, anew, apart = self._widened(encoded(self._after, fill))
        batches = 0
        if (log := self._log) is not None and log.arrow_schema != arrow_schema(self._after):
            batches = widen(log, self._after, fill)
        self._save(learner)
        return Migrated(news, batches, anew, learner.records, apart)

    def _column(self, name: str) -> InputColumn:
        return next(column for column in self._after.inputs if column.name == name)

    def _refuse_others(self, news: "News") -> None:
        """Whatever is another but for the news."""
        if said := news.others:
            fix = "a state takes new columns and wider numbers alone; begin elsewhere with --state DIR"
            raise StateConflict("; ".join(said), where="stream.records", fix=fix)
        if not news.added and not news.wider:
            raise StateError("its columns are those of the configuration; there is nothing to do", where="migrate")
        made = {
            "stream.labels": (self._config.stream.labels, "predictions that wait for their labels were asked"),
            "share": (self._config.share, "what the student shares was made"),
            "meta": (self._config.meta, "what the stream began from was learned"),
        }
        for where, (there, said) in made.items():
            if there is not None:
                fix = "begin elsewhere with --state DIR"
                raise StateConflict(f"{said} with the columns of then", where=where, fix=fix)
        wiring.refuse_conflicts(self._saved, self._after, self._config, self._after, self._registry)

    def _widened(self, fill: Tensor) -> tuple[Learner, list[str], float]:
        """A learner that goes on with the new columns, the teachers that had to begin anew, and ``Migrated.apart``."""
        labels = self._tree["labels"]["labels"]
        old = wiring.student_of(self._saved, self._registry, self._before, len(labels))
        source = LogSource(self._log) if self._log else wiring.open_source(self._config, self._registry, self._after)[0]
        fresh, _ = wiring.step_of(self._config, self._registry, self._after, labels, torch.device("cpu"))
        widening = Widening(self._before, self._after, fill, old, fresh.student)
        anew = self._learners_of(fresh.pool.everybody) if widening.widens_student else []
        learner = Learner(self._config, self._registry, source, self._after)
        learner.restore(widening.tree(self._tree, anew), self._offsets, self._saved)
        if not learner.started:
            return learner, [], 0.0
        apart = difference(widening, self._tree["learned"])
        for teacher in learner.step.pool.everybody:
            if teacher.key in anew:
                teach(teacher, learner.step)
        return learner, anew, apart

    def _learners_of(self, teachers: Sequence[Teacher]) -> list[str]:
        """Those that learn by themselves, and are not told which columns they read."""
        told = {choice.key for choice in self._config.teachers if choice.values.get("columns")}
        return [t.key for t in teachers if isinstance(t, Observing | Incremental) and t.key not in told]

    def _save(self, learner: Learner) -> None:
        log, begins, marks = self._log, {}, {}
        if log is not None and (mark := log.mark(self._offsets[log.partition])) is not None:
            begins, marks = {log.partition: log.begin()}, {log.partition: mark}
        self._store.save(
            learner.state(),
            offsets=self._offsets,
            records=learner.records,
            config=configuration.dump(self._config),
            environment=environment(),
            marks=marks,
            begins=begins,
        )


@dataclass(frozen=True, slots=True)
class News:
    """Columns by name that are new, those of wider numbers, and in words what else is another."""

    added: Sequence[str]
    wider: Sequence[str]
    others: Sequence[str]

    @classmethod
    def between(cls, before: RecordSchema, after: RecordSchema) -> "News":
        then = {column.name: column for column in before.inputs}
        added = [column.name for column in after.inputs if column.name not in then]
        kept = [column for column in after.inputs if column.name in then]
        wider = [column.name for column in kept if _is_wider(then[column.name], column)]
        as_then = tuple(then[column.name] if column.name in wider else column for column in kept)
        rest = after.model_copy(update={"inputs": as_then, "student": ()})
        others = contract.of_inputs(before, rest) or contract.differences(arrow_schema(before), arrow_schema(rest))
        mine = [name for name in _read(after) if name not in added]
        if not others and mine != _read(before):
            others = [f"the student read {', '.join(_read(before))}, reads {', '.join(mine)}"]
        return cls(added, wider, others)


def _read(schema: RecordSchema) -> list[str]:
    return list(schema.student or [column.name for column in schema.inputs])


def _is_wider(then: InputColumn, now: InputColumn) -> bool:
    """Whether all numbers of the one are numbers of the other, and nothing else has changed."""
    old, new = np.dtype(then.dtype), np.dtype(now.dtype)
    fits = old != new and old.kind == new.kind and np.can_cast(old, new, "safe")
    return fits and then == now.model_copy(update={"dtype": then.dtype})


def filled(columns: Sequence[InputColumn], fills: Mapping[str, str], row_bytes: int) -> pa.RecordBatch:
    """One canonical row of new columns, as a producer would have sent it.

    Raises:
        ConfigError: a column has no fill and takes no gap, or none that is its; or a fill has no such column.
    """
    if unknown := [name for name in fills if name not in {column.name for column in columns}]:
        raise ConfigError(f"there is no new column {unknown[0]!r}", where="--fill", fix=f"new: {_names(columns)}")
    if not columns:
        return pa.RecordBatch.from_arrays([], names=[])
    line = json.dumps({name: _value(text) for name, text in fills.items()}).encode()
    rows, _, rejects = jsonl.parse([line], RecordSchema(inputs=tuple(columns), unlabelled=True), row_bytes)
    if rejects:
        fix = "give it with --fill NAME=VALUE; or missing: fill, then those records have a gap there"
        raise ConfigError(f"what records had in a new column: {rejects[0].detail}", where="--fill", fix=fix)
    return rows.select([column.name for column in columns])


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _names(columns: Sequence[InputColumn]) -> str:
    return ", ".join(column.name for column in columns) or "none"


def encoded(schema: RecordSchema, fill: pa.RecordBatch) -> Tensor:
    """[elements] float64: a record of the schema with the fill in its columns, 0 in the others."""
    parts = []
    for column in schema.inputs:
        if column.name in fill.schema.names:
            alone = RecordSchema(inputs=(column,), unlabelled=True)
            row = fill.select([column.name]).append_column(alone.label, pa.nulls(1, pa.int64()))
            parts.append(torch.from_numpy(codec.encode(row, alone, 0)[0].inputs.copy()).flatten().double())
        else:
            parts.append(torch.zeros(column.width, dtype=torch.float64))
    return torch.cat(parts)


@torch.no_grad()
def difference(widening: Widening, learned: Mapping[str, Any]) -> float:
    """By how much the student's logits on remembered rows are others once it is widened.

    Raises:
        StateConflict: by more than rounding.
    """
    widening.old.load_state_dict(learned["student"])
    widening.new.load_state_dict(widening.student(learned["student"]))
    apart = 0.0
    for ring in (learned["memory"][name] for name in RINGS):
        if "taken" not in ring:
            continue
        x = ring["taken"].columns["x"][:COMPARED]
        with at_rest(widening.old) as old, at_rest(widening.new) as new:
            then, now = old(x), new(widening.rows(x))
        if not torch.allclose(then, now, TOLERANCE, TOLERANCE):
            said = "this student answers otherwise as soon as there are further columns"
            raise StateConflict(said, where="student", fix="begin elsewhere with --state DIR")
        apart = max(apart, float((then - now).abs().max()))
    return apart


def teach(teacher: Teacher, step: Step) -> None:
    """Let a teacher that has begun anew learn what is remembered and not contradicted, in the order in which it came.

    Held-out records teach nobody, here neither.
    """
    remembered = whole(step.memory.replayed)
    if remembered is None or not len(remembered.y):
        return
    order = step.memory.replayed.since[remembered.slots].argsort(stable=True)
    guard = step.pool.guard
    for rows in order.split(TAUGHT):
        x, y = remembered.x[rows], remembered.y[rows]
        if isinstance(teacher, Incremental):
            guard.test_then_train(teacher, x, y, torch.ones_like(y, dtype=torch.bool))
        elif isinstance(teacher, Observing):
            guard.guarded(teacher, partial(teacher.observe, x, y), "observe")
    if isinstance(teacher, Observing):
        guard.guarded(teacher, teacher.end_task, "end_task")
