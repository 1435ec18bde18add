"""Boundaries: where one task of the stream ends and the next begins.

Detectors look at each batch before it is trained on. The first that sees a boundary names the task; what the stream
says itself (a task column) comes before what they see. Within a task that the stream names, detectors of changes
(``FindsChanges``) still speak: the boundary is one, and the task the same. Those that guess tasks stay silent there.

Names that the stream gives and names that are made here never meet: the latter begin with ``#``, and a given name that
begins so has a ``\\`` before it. So a task "0" of the stream's test records is not taken for a detector's first.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from pydantic import Field

from streamkd.errors import PluginError
from streamkd.hookspecs import Kind, Options, hookimpl
from streamkd.records import Records
from streamkd.strikes import Strikes

MADE, ESCAPE = "#", "\\"


def given(name: str) -> str:
    """The name under which a task that the stream names is known: its own, unless it looks like one made here."""
    return ESCAPE + name if name.startswith((MADE, ESCAPE)) else name


def made(name: str) -> str:
    """The name under which a task that a detector names is known."""
    return MADE + name


def is_made(name: str) -> bool:
    """Whether a detector named the task."""
    return name.startswith(MADE)


@dataclass(frozen=True, slots=True)
class Boundary:
    """With record number ``record`` (counted over the learner's life) a task begins, or a change within one.

    ``detector`` saw it.
    """

    record: int
    task: str
    detector: str


class Detector(Protocol):
    """Sees every batch once, in order."""

    def begins(self, records: Records, new_labels: Sequence[Any], since_boundary: int) -> str | None:
        """The name of the task that begins with this batch (empty: the next number), or ``None``.

        ``new_labels`` are those that were never seen before; ``since_boundary`` counts records of the current task.
        """
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Scored(Protocol):
    """A detector that is also told how well the student predicts."""

    def scored(self, wrong: np.ndarray) -> None:
        """After a batch: of each labelled record [records], whether the student was wrong before it learned it."""
        ...


@runtime_checkable
class FindsChanges(Protocol):
    """A detector of changes of the world, which tasks that the stream names do not rule out."""

    within_tasks: bool
    """Whether it is heard within a task that the stream names."""


class TaskColumn:
    """A batch whose last record names another task than the current one begins that task."""

    def __init__(self, options: Options) -> None:
        self._current: str | None = None

    def begins(self, records: Records, new_labels: Sequence[Any], since_boundary: int) -> str | None:
        if records.tasks is None or not len(records.tasks):
            return None
        latest = str(records.tasks[-1])
        if latest == self._current:
            return None
        self._current = latest
        return latest

    def state_dict(self) -> dict[str, Any]:
        return {"current": self._current}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._current = state["current"]


class NewLabelOptions(Options):
    """A task per group of new labels."""

    grace: int = Field(default=200, ge=0, description="labels that are new within so many records belong to one task")


class NewLabel:
    """A label that was never seen begins a task, unless the current one has only just begun."""

    def __init__(self, options: NewLabelOptions) -> None:
        self.grace = options.grace

    def begins(self, records: Records, new_labels: Sequence[Any], since_boundary: int) -> str | None:
        return "" if new_labels and since_boundary >= self.grace else None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Tasks:
    """The tasks of a stream so far, told by detectors: the current one, all names, the latest boundaries."""

    KEPT = 1_000  # boundaries, so that a stream of years stays small
    NAMES = 4_096  # tasks told apart; further new ones share one name
    OTHERS = made("others")

    def __init__(self, detectors: dict[str, Detector]) -> None:
        self._detectors = detectors
        self._scored = {name: detector for name, detector in detectors.items() if isinstance(detector, Scored)}
        self.strikes = Strikes("detector")
        self.names: list[str] = []
        self.current = -1
        self.boundaries: list[Boundary] = []
        self.count = 0
        self._since = 0

    def observe(self, records: Records, new_labels: Sequence[Any], record: int) -> Boundary | None:
        """Look at a batch before it is trained on; a boundary that is returned has made its task current."""
        said: dict[str, str] = {}
        for name, detector in self._detectors.items():
            task = self.strikes.call(name, "begins", _named, detector, records, list(new_labels), self._since)
            if task is not None:
                said[name] = task
        found = self._given(said, record) or self._seen(said, records, record)
        if found is None and not self.names:
            found = Boundary(record, made("0"), "start")
        if found is not None:
            self._begin(found)
        self._since += len(records)
        return found

    def _given(self, said: Mapping[str, str], record: int) -> Boundary | None:
        """The boundary that the stream itself names."""
        given_names = (name for name in said if isinstance(self._detectors[name], TaskColumn))
        return next((Boundary(record, given(said[name]), name) for name in given_names), None)

    def _seen(self, said: Mapping[str, str], records: Records, record: int) -> Boundary | None:
        """The boundary that a detector sees; within a task that the stream names it is one of the same task."""
        for name, task in said.items():
            detector = self._detectors[name]
            if records.tasks is None or (isinstance(detector, FindsChanges) and detector.within_tasks):
                return Boundary(record, self._name_of(task, records), name)
        return None

    @property
    def scoring(self) -> bool:
        """Whether a detector wants to be told how well the student predicts."""
        return bool(self._scored)

    def score(self, wrong: np.ndarray) -> None:
        """Tell how well the student predicted the labelled records [records] of the batch, before it learned them."""
        for name, detector in self._scored.items():
            self.strikes.call(name, "scored", detector.scored, wrong)

    def _name_of(self, task: str, records: Records) -> str:
        """The name of a detector's task; without one of its own, the next number that no task has."""
        if records.tasks is not None and self.names and not is_made(self.names[self.current]):
            return self.names[self.current]
        if task:
            return made(task)
        known = set(self.names)
        return next(name for n in itertools.count(len(self.names)) if (name := made(str(n))) not in known)

    def _begin(self, boundary: Boundary) -> None:
        if boundary.task not in self.names:
            if len(self.names) >= self.NAMES:
                boundary = replace(boundary, task=self.OTHERS)
            if boundary.task not in self.names:
                self.names.append(boundary.task)
        self.current = self.names.index(boundary.task)
        self.boundaries = [*self.boundaries, boundary][-self.KEPT :]
        self.count += 1
        self._since = 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "current": self.current,
            "boundaries": [[b.record, b.task, b.detector] for b in self.boundaries],
            "count": self.count,
            "since": self._since,
            "detectors": {name: detector.state_dict() for name, detector in self._detectors.items()},
            "strikes": dict(self.strikes.counts),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.names, self.current = list(state["names"]), state["current"]
        self.boundaries = [Boundary(*b) for b in state["boundaries"]]
        self.count, self._since = state["count"], state["since"]
        self.strikes.counts = {name: n for name, n in state.get("strikes", {}).items() if name in self._detectors}
        for name, detector in self._detectors.items():
            if name in state["detectors"]:
                detector.load_state_dict(state["detectors"][name])


def _named(detector: Detector, records: Records, new_labels: list[Any], since: int) -> str | None:
    """What a detector says, which has left the records as they are."""
    inputs = records.inputs
    writeable, inputs.flags.writeable = inputs.flags.writeable, False
    try:
        task = detector.begins(records, new_labels, since)
    finally:
        inputs.flags.writeable = writeable
    if task is not None and not isinstance(task, str):
        fix = 'return "" where the task has no name, None where none begins'
        raise PluginError(f"needed a task's name or None, got {task!r:.80}", fix=fix)
    return task


def _task_column(options: Options) -> Detector:
    return TaskColumn(options)


@hookimpl
def streamkd_detectors() -> Iterable[Kind]:
    """The built-in boundary detectors."""
    yield Kind("task-column", _task_column, Options, "the stream's own task column")
    yield Kind("new-label", NewLabel, NewLabelOptions, "a label that was never seen")
