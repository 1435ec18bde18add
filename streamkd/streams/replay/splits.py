"""The train and the test split of what ``replay`` plays: row numbers with their labels and tasks.

open ─► label codes ─► held out, perhaps twice ─► per_class ─► tasks (by classes, by the file's column, or one)
     ─► noise, labels gone
"""

import difflib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from streamkd.errors import SourceError
from streamkd.logs import some
from streamkd.records import RecordSchema
from streamkd.streams.files.rows import Rows, TableRows, open_rows
from streamkd.streams.files.texts import Meant
from streamkd.streams.replay import datasets, times
from streamkd.streams.replay.options import ReplayOptions

NONE = -1  # a row without label, or outside of every task
BLOCK_ROWS = 1 << 20


@dataclass(frozen=True)
class Split:
    """Rows and the task of each: ``tasks`` [rows of the file] are numbers of ``names``; ``NONE`` leaves a row out.

    ``codes`` [rows of the file] number the labels as they are in the file, ``classes``; ``labels`` are other ones.
    ``by_time``: all rows in the order of their event time, or of their labels' where these ``came`` later.
    ``outside``: how many labelled rows of a test file are left out, since the train file has no such task or label.
    """

    rows: Rows
    columns: tuple[str, ...]
    tasks: np.ndarray
    names: tuple[str | None, ...]
    codes: np.ndarray
    classes: Sequence[object]
    labels: pa.Array | None = None
    by_time: np.ndarray | None = None
    came: times.Times | None = None
    outside: int = 0

    def groups(self, in_order: bool) -> Iterator[np.ndarray]:
        """Row numbers task by task; ``in_order``: all at once as the file has them, whatever their tasks."""
        if in_order:
            yield self._ordered(self.tasks != NONE)
            return
        for task in range(len(self.names)):
            rows = self._ordered(self.tasks == task)
            if len(rows):
                yield rows

    def _ordered(self, chosen: np.ndarray) -> np.ndarray:
        return _numbers_of(chosen) if self.by_time is None else self.by_time[chosen[self.by_time]]

    def take(self, rows: np.ndarray) -> pa.Table:
        """The file's columns of these rows."""
        return self.rows.take(rows, self.columns)

    def name(self, task: int, form: str) -> str | None:
        """``<task>``, in changed form ``<task>/<form>``."""
        name = self.names[task]
        return name if form == "plain" or name is None else f"{name}/{form}"

    def tasks_of(self, rows: np.ndarray, form: str) -> pa.Array:
        """The task names of these rows."""
        names = pa.array([self.name(task, form) for task in range(len(self.names))], pa.string())
        return names.take(pa.array(self.tasks[rows]))


def split(options: ReplayOptions, schema: RecordSchema, seed: int) -> tuple[Split, Split]:
    """Both splits, with the tasks that the options ask for.

    Raises:
        SourceError: data that is missing or damaged, lacks a column of the schema, or leaves nothing to train on.
    """
    train, test, where = _open(options, schema, seed)
    columns = _columns(train, schema, where)
    codes, classes = _codes(train.chunks(schema.label))
    came = times.of(train, options, schema, where)
    by_time = times.order(train, schema, where) if options.order == "time" else None if came is None else came.order()
    in_train, in_test = _parted(options, codes if came is None else np.where(came.learned, codes, NONE), by_time)
    in_train = in_train if came is None else in_train & came.learned
    if not in_train.any():
        got = "nothing is left to train on" if len(train) else "the file has no records"
        raise SourceError(got, where=where, fix="lower test_ratio" if len(train) else "name a file with records")
    tasks = _Tasks(options, schema, train, classes, seed, where)
    train_tasks = np.where(in_train, tasks.of(train, codes, lost=0), NONE)
    values = pa.array(classes, train.schema.field(schema.label).type)
    changed = options.label_noise or options.unlabelled
    labels = _changed(codes, values, train_tasks, options, seed) if changed else None
    train_split = Split(train, columns, train_tasks, tasks.names, codes, classes, labels, by_time, came)
    if in_test is not None:
        test_tasks = np.where(in_test, tasks.of(train, codes, lost=NONE), NONE)
        return train_split, Split(train, columns, test_tasks, tasks.names, codes, classes)
    assert test is not None  # nothing was held out, so the test records lie apart
    _columns(test, schema, str(options.test_path or where), [tasks.column] if tasks.column else [])
    own, found = _codes(test.chunks(schema.label))
    test_tasks = tasks.of(test, _among(own, found, classes), lost=NONE)
    outside = int(((test_tasks == NONE) & (own != NONE)).sum())
    few = _few(own, np.ones(len(test), bool), options.test_limit)
    test_tasks = np.where(few, test_tasks, NONE)
    return train_split, Split(test, columns, test_tasks, tasks.names, own, found, outside=outside)


def _parted(
    options: ReplayOptions, codes: np.ndarray, by_time: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Which rows of the train file train, and which test; ``None``: the test records lie apart."""

    def cut(codes: np.ndarray, ratio: float, limit: int) -> np.ndarray:
        return _last(codes, ratio, limit, by_time) if options.test == "last" else _held_out(codes, ratio, limit)

    in_train, in_test = np.ones(len(codes), bool), None
    if not options.dataset and not options.test_path:
        in_test = cut(codes, options.test_ratio, options.held_out)
        in_train = ~in_test
    if options.test == "rest":
        kept = _first(options.per_class, codes, in_train)
        in_train, in_test = kept, _few(codes, in_train & ~kept, options.test_limit)
    if options.validation_ratio:
        in_test = cut(np.where(in_train, codes, NONE), options.validation_ratio, options.held_out)
        in_train = in_train & ~in_test
    return in_train if options.test == "rest" else _first(options.per_class, codes, in_train), in_test


class _Tasks:
    """Names the tasks and puts rows into them."""

    def __init__(
        self,
        options: ReplayOptions,
        schema: RecordSchema,
        train: Rows,
        classes: Sequence[object],
        seed: int,
        where: str,
    ) -> None:
        self.column = schema.task if schema.task in train.schema.names else None
        self._task_of_class: np.ndarray | None = None
        self._values: Sequence[object] = ()
        draw = np.random.default_rng([seed, 0])
        if options.classes_per_task:
            if self.column:
                raise SourceError(
                    f"classes_per_task makes tasks, but the file has a task column {self.column!r} of its own",
                    where=where,
                    fix="drop classes_per_task, or give stream.records.task a name that the file has not",
                )
            order = _class_order(classes, given=options.order != "seed", by_value=bool(options.dataset))
            order = draw.permutation(order) if options.order == "seed" else order
            self._task_of_class = np.empty(len(classes), np.int32)
            self._task_of_class[order] = np.arange(len(classes)) // options.classes_per_task
            count = max(1, -(-len(classes) // options.classes_per_task))
            self.names: tuple[str | None, ...] = tuple(str(task) for task in range(count))
        elif self.column:
            _, found = _codes(_task_names(train, self.column))
            places = draw.permutation(len(found)) if options.order == "seed" else np.arange(len(found))
            self._values = [found[place] for place in places]
            # The last name is for rows whose task is null: they go on, to be refused with their reason.
            self.names = (*(str(value) for value in self._values), None)
        else:
            self.names = ("0",)

    def of(self, rows: Rows, codes: np.ndarray, lost: int) -> np.ndarray:
        """The task number of each row; ``lost``: that of rows whose label (or task) no task has."""
        if self._task_of_class is not None:
            return np.where(codes == NONE, lost, self._task_of_class[codes]) if len(self._task_of_class) else codes * 0
        if self.column:
            found = _among(*_codes(_task_names(rows, self.column)), self._values)
            return np.where(found == NONE, len(self._values) if lost != NONE else NONE, found)
        return np.zeros(len(rows), np.int16)


def _open(options: ReplayOptions, schema: RecordSchema, seed: int) -> tuple[Rows, Rows | None, str]:
    """Train rows, test rows where they are apart, and what to call the place in an error."""
    if options.dataset:
        dataset = datasets.load(options.dataset, seed)
        return TableRows(dataset.train), TableRows(dataset.test), f"dataset {options.dataset}"
    assert options.path is not None  # the options refuse neither of both
    meant = _meant(schema)
    apart = options.test_path if not options.validation_ratio else None
    return (
        open_rows(options.path, options.csv, meant, in_order=options.order == "given" and not options.request_time),
        open_rows(apart, options.csv, meant, in_order=True) if apart else None,
        str(options.path),
    )


def _meant(schema: RecordSchema) -> dict[str, Meant]:
    """What a text file's columns are, so that words of digits stay words, and fractions may come late."""
    kinds: dict[str, Meant] = {"tensor": "number", "text": "text", "category": "text"}
    meant = {c.name: kinds[c.kind] for c in schema.inputs if c.kind in kinds}
    meant |= {schema.label: "text"} if schema.label_type == "string" else {}
    return meant | {name: "text" for name in (schema.task, schema.producer) if name}


def _columns(rows: Rows, schema: RecordSchema, where: str, also: Sequence[str] = ()) -> tuple[str, ...]:
    """The columns to read: all of the schema that the rows have, the task only where they have one."""
    needed = [column.name for column in schema.inputs] + [schema.label]
    needed += [name for name in (schema.producer, schema.id, schema.event_time) if name]
    there = rows.schema.names
    for name in (*needed, *also):
        if there.count(name) > 1:
            raise SourceError(
                f"needed one column {name!r}, got {there.count(name)} of that name",
                where=where,
                fix="rename or drop all but one",
            )
        if name not in there:
            near = difflib.get_close_matches(name, there, 1)
            raise SourceError(
                f"needed a column {name!r}, got {some(there)}",
                where=where,
                fix=(f"did you mean {near[0]!r}? " if near else "") + "name the columns in stream.records",
            )
    return tuple(needed)


def _codes(chunks: Iterable[pa.Array]) -> tuple[np.ndarray, list[object]]:
    """``(number of its value [rows], values by first appearance)``; nulls are ``NONE``."""
    number: dict[object, int] = {}
    parts = [np.zeros(0, np.int32)]
    for chunk in chunks:
        encoded = chunk.dictionary_encode()
        values = (value if value == value else math.nan for value in encoded.dictionary.to_pylist())  # one nan
        here = np.array([*(number.setdefault(value, len(number)) for value in values), NONE], np.int32)
        parts.append(here[encoded.indices.fill_null(NONE).to_numpy(zero_copy_only=False)])  # NONE is the last place
    codes = np.concatenate(parts)
    return codes.astype(np.int16) if len(number) < 1 << 15 else codes, list(number)


def _among(codes: np.ndarray, found: Sequence[object], values: Sequence[object]) -> np.ndarray:
    """The codes of values that were ``found`` as those among other ``values``."""
    number = {value: place for place, value in enumerate(values)}
    return np.array([number.get(value, NONE) for value in found] + [NONE], np.int32)[codes]


def _numbers_of(chosen: np.ndarray) -> np.ndarray:
    """The numbers of the rows that are chosen, as small as they can be: there may be millions."""
    rows = np.flatnonzero(chosen)
    return rows.astype(np.int32) if len(chosen) < 1 << 31 else rows


def _task_names(rows: Rows, column: str) -> Iterator[pa.Array]:
    return (chunk.cast(pa.string()) for chunk in rows.chunks(column))


def _class_order(classes: Sequence[object], given: bool, by_value: bool) -> np.ndarray:
    """Class numbers in the order of their values; a file's given order is that of arrival."""
    if given and not by_value:
        return np.arange(len(classes))
    return np.array(sorted(range(len(classes)), key=lambda code: classes[code]), np.int64)  # type: ignore[arg-type, return-value]


def _ranks(codes: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """How many rows of the same code come before each row, block by block."""
    before = np.zeros(int(codes.max(initial=NONE)) + 2, np.int64)  # NONE is the last place
    for begin in range(0, len(codes), BLOCK_ROWS):
        here = slice(begin, begin + BLOCK_ROWS)
        order = np.argsort(codes[here], kind="stable")
        ordered = codes[here][order]
        rank = np.empty(len(ordered), np.int64)
        rank[order] = before[ordered] + np.arange(len(ordered)) - np.searchsorted(ordered, ordered, side="left")
        yield here, rank
        values, counts = np.unique(ordered, return_counts=True)
        before[values] += counts


def _first(count: int | None, codes: np.ndarray, among: np.ndarray) -> np.ndarray:
    """The first ``count`` rows of each class, of those that are among the rows; ``None``: all of these."""
    if count is None:
        return among
    first = among.copy()
    for here, rank in _ranks(np.where(among, codes, NONE)):
        first[here] &= rank < count
    return first


def _held_out(codes: np.ndarray, ratio: float, limit: int) -> np.ndarray:
    """Evenly spaced rows of each class; rows without label are never held out."""
    ratio = min(ratio, limit / max(1, len(codes)))
    out = codes != NONE
    for here, rank in _ranks(codes):
        out[here] &= np.floor((rank + 1) * ratio) > np.floor(rank * ratio)
    return out


def _last(codes: np.ndarray, ratio: float, limit: int, by_time: np.ndarray | None) -> np.ndarray:
    """The last of the rows that have a label: what comes after all that is trained on."""
    rows = np.flatnonzero(codes != NONE) if by_time is None else by_time[codes[by_time] != NONE]
    out = np.zeros(len(codes), bool)
    out[rows[len(rows) - min(int(len(rows) * ratio), limit) :]] = True
    return out


def _few(codes: np.ndarray, among: np.ndarray, limit: int | None) -> np.ndarray:
    """At most ``limit`` of the rows, evenly spaced once they are sorted by label, so that each keeps its share."""
    rows = np.flatnonzero(among)
    if limit is None or len(rows) <= limit:
        return among
    rows = rows[np.argsort(codes[rows], kind="stable")]
    few = np.zeros(len(codes), bool)
    few[rows[np.arange(limit) * len(rows) // max(limit, 1)]] = True
    return few


def _changed(codes: np.ndarray, values: pa.Array, tasks: np.ndarray, options: ReplayOptions, seed: int) -> pa.Array:
    """Labels of which one share is wrong, and another is gone."""
    codes = _noisy(codes, tasks, options.label_noise, seed) if options.label_noise else codes
    if options.unlabelled:
        gone = np.random.default_rng([seed, 2]).random(len(codes)) < options.unlabelled
        codes = np.where(gone, NONE, codes)
    return values.take(pa.array(codes, mask=codes == NONE))


def _noisy(codes: np.ndarray, tasks: np.ndarray, ratio: float, seed: int) -> np.ndarray:
    """Labels of which a share is another class of the same task: noise brings no task's classes forward."""
    codes = codes.copy()
    for task in np.unique(tasks[tasks != NONE]):
        rows = np.flatnonzero((tasks == task) & (codes != NONE))
        there = np.unique(codes[rows])
        if len(there) < 2:
            continue
        draw = np.random.default_rng([seed, 1, int(task)])
        changed = rows[draw.random(len(rows)) < ratio]
        step = draw.integers(1, len(there), len(changed))
        codes[changed] = there[(np.searchsorted(there, codes[changed]) + step) % len(there)]
    return codes
