"""Boundaries: task columns, new labels, tasks that come back, and a record of them that stays small."""

import copy
import json
from collections.abc import Sequence

import numpy as np
import pytest

from streamkd.hookspecs import Options
from streamkd.records import Label, Records
from streamkd.tasks.boundary import Boundary, NewLabel, NewLabelOptions, TaskColumn, Tasks, given, is_made


def records(count: int, tasks: Sequence[Label] | None = None) -> Records:
    return Records(np.zeros((count, 1), np.float32), [0] * count, tasks, np.arange(count))


def both(grace: int = 20) -> Tasks:
    return Tasks({"task-column": TaskColumn(Options()), "new-label": NewLabel(NewLabelOptions(grace=grace))})


def test_the_first_batch_begins_the_first_task() -> None:
    """With or without a detector that sees it, the stream starts with a task."""
    assert Tasks({}).observe(records(5), [], 0) == Boundary(0, "#0", "start")
    assert both().observe(records(5), ["a"], 0) == Boundary(0, "#0", "start")
    assert both().observe(records(2, ["x", "x"]), ["a"], 0) == Boundary(0, "x", "task-column")


def test_a_task_column_names_its_tasks() -> None:
    """Each change of the column is a boundary; a batch belongs to the task of its last record."""
    tasks = both()
    seen = [tasks.observe(records(2, names), [], at) for at, names in enumerate(["aa", "aa", "ab", "bb", "cc"])]
    assert [b.task if b else None for b in seen] == ["a", None, "b", None, "c"]
    assert tasks.names == ["a", "b", "c"]
    assert tasks.current == 2


def test_tasks_that_come_back_keep_their_number() -> None:
    """A recurring task is a boundary, and no new task."""
    tasks = both()
    for at, name in enumerate("abab"):
        assert tasks.observe(records(1, [name]), [], at) is not None
    assert tasks.names == ["a", "b"]
    assert tasks.current == 1
    assert tasks.count == 4


def test_numbers_and_strings_name_the_same_task() -> None:
    """Tasks are strings, whatever the column's type."""
    tasks = both()
    tasks.observe(records(1, [7]), [], 0)
    assert tasks.observe(records(1, ["7"]), [], 1) is None
    assert tasks.names == ["7"]


def test_where_the_stream_says_its_tasks_nobody_guesses() -> None:
    """New labels begin no task within a task that the stream named."""
    tasks = both(grace=0)
    tasks.observe(records(5, ["a"] * 5), ["cat"], 0)
    assert tasks.observe(records(5, ["a"] * 5), ["dog"], 5) is None


def test_a_new_label_begins_a_task_after_the_grace() -> None:
    """Labels that are new soon after a boundary belong to it; later ones begin the next."""
    tasks = both(grace=20)
    boundaries = []
    for at, new in enumerate([["a"], ["b"], [], ["c"], ["d"], []]):
        boundaries.append(tasks.observe(records(10), new, 10 * at))
    assert [b.task if b else None for b in boundaries] == ["#0", None, None, "#1", None, None]
    assert boundaries[3] == Boundary(30, "#1", "new-label")


class Named:
    """A detector that begins a task with every batch, under a name of its own."""

    def __init__(self, *names: str) -> None:
        self.names = iter(names)

    def begins(self, records: Records, new_labels: Sequence[Label], since_boundary: int) -> str | None:
        return next(self.names)

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None: ...


@pytest.mark.parametrize("name", ["0", "1", "#0", "##0", "\\#0", "\\\\#0", "others", "#others", ""])
def test_given_and_made_names_never_meet(name: str) -> None:
    """Whatever a stream calls its task, no detector's task has that name; different names stay different."""
    stream = both()
    stream.observe(records(1, [name]), [], 0)
    detectors = Tasks({"named": Named(name, f"#{name}", f"\\{name}", "")})
    for at in range(4):
        detectors.observe(records(1), [], at)
    assert len(detectors.names) == 4
    assert not set(stream.names) & {*detectors.names, Tasks.OTHERS}
    assert [is_made(one) for one in (*stream.names, *detectors.names)] == [False] + 4 * [True]
    others = [other for other in ("0", "#0", "\\#0", "\\\\#0", "") if other != name]
    assert given(name) not in map(given, others)


def test_a_number_is_no_name_that_a_detector_has_taken() -> None:
    """A task without a name of its own is a new one, also where another task is called by its number."""
    tasks = Tasks({"named": Named("1", "", "")})
    seen = [tasks.observe(records(1), [], at) for at in range(3)]
    assert [one.task for one in seen if one] == ["#1", "#2", "#3"]


def test_names_in_an_older_state_stay() -> None:
    """A state of before names had their form goes on with the names that it has."""
    tasks = both(grace=1)
    state = tasks.state_dict() | {"names": ["0", "1"], "current": 1, "count": 2, "since": 5}
    tasks.load_state_dict(state)
    assert tasks.observe(records(1), ["z"], 10) == Boundary(10, "#2", "new-label")
    assert tasks.names == ["0", "1", "#2"]


def test_every_detector_sees_every_batch() -> None:
    """A detector that comes after the first to speak has not missed the batch."""
    seen = []

    class Watcher:
        def begins(self, records: Records, new_labels: Sequence[Label], since_boundary: int) -> str | None:
            seen.append(since_boundary)
            return None

        def state_dict(self) -> dict:
            return {}

        def load_state_dict(self, state: dict) -> None: ...

    tasks = Tasks({"task-column": TaskColumn(Options()), "watcher": Watcher()})
    for name in "aab":
        tasks.observe(records(4, [name] * 4), [], 0)
    assert seen == [0, 4, 8]


def test_the_record_of_boundaries_is_bounded() -> None:
    """Only the latest are kept, all are counted, and tasks that recur add no name."""
    tasks = both()
    for at in range(3 * Tasks.KEPT):
        tasks.observe(records(1, ["ab"[at % 2]]), [], at)
    assert len(tasks.boundaries) == Tasks.KEPT
    assert tasks.boundaries[-1].record == 3 * Tasks.KEPT - 1
    assert tasks.count == 3 * Tasks.KEPT
    assert tasks.names == ["a", "b"]


def test_a_batch_without_rows_is_no_boundary() -> None:
    """Where every row was refused there is no last record to ask."""
    tasks = both()
    tasks.observe(records(1, ["a"]), [], 0)
    assert tasks.observe(records(0, []), [], 1) is None


@pytest.mark.parametrize("column", [True, False])
@pytest.mark.parametrize("cut", [0, 1, 3, 6])
def test_state_goes_round(column: bool, cut: int) -> None:
    """Stopped anywhere and restored through JSON, the same boundaries follow."""
    names, new = "aabbca", [["x"], [], ["y"], [], ["z"], []]

    def see(tasks: Tasks, at: int) -> Boundary | None:
        return tasks.observe(records(15, [names[at]] * 15 if column else None), new[at], 15 * at)

    whole, first = both(), both()
    wanted = [see(whole, at) for at in range(6)]
    got = [see(first, at) for at in range(cut)]
    second = both()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    got += [see(second, at) for at in range(cut, 6)]
    assert got == wanted
    assert second.state_dict() == whole.state_dict()


def test_the_state_is_the_state_at_that_moment() -> None:
    """What a state says does not change when the stream goes on."""
    tasks = both()
    tasks.observe(records(1, ["a"]), [], 0)
    state = tasks.state_dict()
    said = copy.deepcopy(state)
    tasks.observe(records(1, ["b"]), [], 1)
    assert state == said
