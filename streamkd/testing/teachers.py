"""The contract of teachers: what they answer, when that may change, and what they keep of what they are shown."""

import copy
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from streamkd.gates.fixed_share import LESSONS
from streamkd.hookspecs import Kind, Options, Stateful, TeacherKind
from streamkd.plugins import Registry
from streamkd.records import Label, RecordSchema
from streamkd.students import networks
from streamkd.teachers.snapshot import SnapshotMaker
from streamkd.teachers.teacher import (
    Following,
    Incremental,
    Layered,
    Observing,
    Part,
    Recalling,
    Servable,
    Sized,
    Teacher,
    TeacherContext,
    Versioned,
)
from streamkd.testing.clauses import Clause, Given, begin, carried, needs, same, shaped
from streamkd.testing.rows import answers_rows, leaves_input
from streamkd.testing.specimens import IMAGES, lessons_of, plain_student, rows_of


def check_teacher(
    kind: Kind,
    options: Given = None,
    schema: RecordSchema = IMAGES,
    labels: Sequence[Label] = (0, 1, 2),
    layers: tuple[str, ...] = (),
) -> None:
    """A teacher: answers without gradient in the label space's columns, follows it as it grows, and comes back whole.

    One that learns from labels (``Observing``, ``Incremental``) learns two tasks here: the same of the same rows, of
    copies, and as if never stopped. The last of ``labels`` arrives late. ``layers`` are names for ``features``.

    Raises:
        ContractBroken: a clause is broken; the text names it.
    """
    clause, chosen = begin("teacher", kind, options)
    nursery = Nursery(kind, chosen, schema, tuple(labels))
    x, early = rows_of(schema, 5), nursery.early
    with clause("`make(options, context)` gives a teacher", "give an object with all that streamkd's Teacher names"):
        teacher, student = nursery.build()
        needs(isinstance(teacher, Teacher), "all that `Teacher` names", f"{type(teacher).__name__} without some of it")
    _introduces_itself(clause, teacher)
    _answers(clause, teacher, x, early)
    _holds_no_student(clause, teacher, student, x)
    _grows(clause, teacher, x, early, labels)
    _answers(clause, teacher, x, labels)
    _shows(clause, teacher, x, layers)
    _is_sized(clause, teacher)
    _comes_back(clause, nursery, teacher, x)
    _is_served(clause, nursery, x)
    if isinstance(teacher, Observing | Incremental):
        Course(clause, nursery).check()
    if isinstance(teacher, Incremental):
        _tests_then_trains(clause, nursery)


@dataclass(frozen=True)
class Nursery:
    """Makes teachers of one kind; the last of the labels arrives late."""

    kind: Kind
    options: Options
    schema: RecordSchema
    labels: tuple[Label, ...]

    @property
    def early(self) -> tuple[Label, ...]:
        """The labels that are there at the start."""
        return self.labels[:-1]

    def build(self, weights: int = 0) -> tuple[Teacher, networks.Student]:
        """A teacher and the student that it was made from, whose weights are drawn from another seed than its own."""
        student = plain_student(self.schema, len(self.early), weights)
        student.seed = 0
        context = TeacherContext("its-key", student, self.schema, self.early, torch.device("cpu"))
        made = self.kind.make(self.options, context)
        return (made.take(student, 0) if isinstance(made, SnapshotMaker) else made), student

    def restored(self, state: Any, labels: Sequence[Label]) -> Teacher:
        """Another one, of that state, in that label space."""
        other, _ = self.build(weights=1)
        if isinstance(other, Stateful):
            other.load_state_dict(carried(state))
        other.grow(labels)
        return other


@dataclass(frozen=True)
class Said:
    """What a teacher says of some rows, what it knows, and of what version that is."""

    logits: Tensor
    known: Tensor
    version: int | None

    @classmethod
    def by(cls, teacher: Teacher, x: Tensor) -> "Said":
        version = teacher.version if teacher.role == "versioned" and isinstance(teacher, Versioned) else None
        return cls(teacher.logits(x).clone(), teacher.known().clone(), version)

    def is_kept_by(self, teacher: Teacher, x: Tensor) -> None:
        """All the same but for columns that have come since: what is known, the version, and answers bit for bit.

        Where there are more columns now, nearly so: a product of another width may round otherwise.
        """
        now, width = Said.by(teacher, x), len(self.known)
        same(now.logits[:, :width], self.logits, 0 if now.logits.shape == self.logits.shape else 1e-5)
        needs(torch.equal(now.known[:width], self.known), f"known() to stay {self.known}", f"{now.known}")
        needs(now.version == self.version, f"the version {self.version}", f"{now.version}")


def _introduces_itself(clause: Clause, teacher: Teacher) -> None:
    with clause(
        "it goes by the key of its context, and has a role",
        "take `key` from the context; role: live, remembered, frozen, prequential, present, or versioned with an int "
        "`version`",
    ):
        needs(teacher.key.startswith("its-key"), "the key 'its-key'", repr(teacher.key))
        roles = ("live", "remembered", "frozen", "versioned", "prequential", "present")
        needs(teacher.role in roles, "a role", repr(teacher.role))
        for role, kind, part in (
            ("versioned", Versioned, "a version"),
            ("prequential", Incremental, "test_then_train()"),
            ("present", Incremental, "test_then_train()"),
        ):
            needs(teacher.role != role or isinstance(teacher, kind), f"{part}, as {role} teachers have", "none")
        needs(isinstance(teacher.fresh, bool), "`fresh` to be a bool", repr(teacher.fresh))
    with clause(
        "one that learns from labels has observe() and end_task()",
        "add the other one too, if it does nothing: with one alone neither is ever called",
    ):
        has = [name for name in ("observe", "end_task") if hasattr(teacher, name)]
        needs(len(has) != 1, "both", f"{has} alone")
    with clause(
        "one that learns record by record is not shown the rows again",
        "leave out observe() and end_task(): test_then_train() takes their place",
    ):
        needs(not isinstance(teacher, Incremental) or not has, "no observe()", "both")


def _answers(clause: Clause, teacher: Teacher, x: Tensor, labels: Sequence[Label]) -> None:
    about = f"over {len(labels)} labels"
    answers_rows(clause, teacher.logits, x, len(labels), about)
    with clause(f"its answers carry no gradient, {about}", "answer under torch.no_grad()"):
        needs(not teacher.logits(x).requires_grad, "no gradient", "one")
    with clause(f"asked again it says the same, {about}", "draw nothing, and change nothing, in logits()"):
        Said.by(teacher, x).is_kept_by(teacher, x)
    leaves_input(clause, teacher.logits, x, about)
    with clause(f"known() is a bool per label, {about}", "give a torch.bool tensor of the label space's length"):
        known = teacher.known()
        needs(known.dtype == torch.bool and tuple(known.shape) == (len(labels),), f"[{len(labels)}]", f"{known}")


def _holds_no_student(clause: Clause, teacher: Teacher, student: networks.Student, x: Tensor) -> None:
    with clause("it keeps no hold of the student that it was built from", "take `copy_of(context.student)`"):
        before = Said.by(teacher, x)
        with torch.no_grad():
            for weight in student.parameters():
                weight.add_(1.0)
        before.is_kept_by(teacher, x)
    if not isinstance(teacher, Following):
        return
    with clause(
        "only a live teacher follows the student's step",
        "answers that change at every step are of role live; others have no after_step()",
    ):
        teacher.after_step(student)
        if teacher.role == "live":
            needs(not torch.equal(teacher.logits(x), before.logits), "other answers after a step", "the same")
        else:
            before.is_kept_by(teacher, x)


def _grows(clause: Clause, teacher: Teacher, x: Tensor, early: Sequence[Label], labels: Sequence[Label]) -> None:
    with clause(
        "a label more widens its answers and changes no old one",
        "grow(labels): add columns at the end, in the order of the labels",
    ):
        before = Said.by(teacher, x)
        teacher.grow(labels)
        shaped(teacher.logits(x), (len(x), len(labels)))
        same(teacher.logits(x)[:, : len(early)], before.logits)
        needs(bool((teacher.known()[: len(early)] == before.known).all()), "the old labels known as before", "others")
    with clause(
        "what is kept of its answers knows no new label: known() of a frozen or versioned one, but for a new version",
        "leave new labels out of known(), or be versioned and raise `version` with them",
    ):
        after = Said.by(teacher, x)
        lasts = teacher.role == "frozen" or (teacher.role == "versioned" and after.version == before.version)
        needs(not (lasts and bool(after.known[len(early) :].any())), "new labels unknown", f"{after.known}")


def _shows(clause: Clause, teacher: Teacher, x: Tensor, layers: tuple[str, ...]) -> None:
    with clause(
        "features(x, layers) gives those layers, a row each, without gradient",
        "give a dict by layer under torch.no_grad(): `layer_outputs` of your network",
    ):
        if not isinstance(teacher, Layered):
            needs(not layers, f"the method features(), which shows {layers}", "none")
            return
        found = teacher.features(x, layers)
        needs(set(layers) <= set(found), f"{layers}", f"{tuple(found)}")
        for name in layers:
            needs(len(found[name]) == len(x) and not found[name].requires_grad, "a row each", f"{found[name].shape}")


def _is_sized(clause: Clause, teacher: Teacher) -> None:
    if not isinstance(teacher, Sized):
        return
    with clause("size_bytes() is a number of bytes", "give `module_bytes` of your network"):
        size = teacher.size_bytes()
        needs(isinstance(size, int) and size >= 0, "an int of 0 or more", repr(size))


def _is_served(clause: Clause, nursery: Nursery, x: Tensor) -> None:
    teacher, _ = nursery.build()
    teacher.grow(nursery.labels)
    if not isinstance(teacher, Servable):
        return
    if isinstance(teacher, Observing | Incremental):
        for lesson in lessons_of(nursery.schema, len(nursery.labels), 4):
            _take(teacher, "observe", nursery.labels, lesson)
        _take(teacher, "end_task", nursery.labels, None)
    part = teacher.part()
    if part is None:
        return
    with clause("what is served of it answers as it does", "part() gives a torch.nn.Module with all that `Part` names"):
        needs(isinstance(part, nn.Module) and isinstance(part, Part), "a module and `Part`", repr(part))
        same(part(x), teacher.logits(x))
        same(part.known.float(), teacher.known().float(), 0)
    with (
        clause(
            "written into a version it is loaded with the same answers",
            "yield a TeacherKind whose `load` takes what write() left in the directory, and what it gave as JSON",
        ),
        tempfile.TemporaryDirectory() as folder,
    ):
        kind = nursery.kind
        needs(isinstance(kind, TeacherKind), "a TeacherKind", type(kind).__name__)
        assert isinstance(kind, TeacherKind)
        needs(part.teacher == kind.name, f"a part of the teacher {kind.name}", part.teacher)
        about = json.loads(json.dumps(part.write(Path(folder)), allow_nan=False))
        registry = Registry.load()
        again = kind.load(Path(folder), about, nursery.schema, len(nursery.labels), registry)
        same(again(x), part(x), 0)
        same(again.known.float(), part.known.float(), 0)


def _state_of(teacher: Teacher) -> Any:
    return copy.deepcopy(teacher.state_dict()) if isinstance(teacher, Stateful) else None


def _comes_back(clause: Clause, nursery: Nursery, teacher: Teacher, x: Tensor) -> None:
    with clause(
        "its state brings another one to the same answers",
        "state_dict(): all that answers hang on, in dicts with string keys, lists, JSON scalars, tensors, Arrow tables",
    ):
        Said.by(teacher, x).is_kept_by(nursery.restored(_state_of(teacher), nursery.labels), x)


def _tests_then_trains(clause: Clause, nursery: Nursery) -> None:
    """Fresh rows, every third of which is held out, and what is said of them."""
    x, y = (torch.cat(part)[:LESSONS] for part in zip(*lessons_of(nursery.schema, len(nursery.early), 3), strict=True))
    learn = torch.arange(len(y)) % 3 > 0
    whole, _ = nursery.build()
    with clause(
        "test_then_train(x, y, learn) gives finite logits [batch, classes], without gradient",
        "one row of answers for each row, also for those that are not learned",
    ):
        said = _learned(whole, x, y, learn)
        shaped(said, (len(x), len(nursery.early)))
        needs(not said.requires_grad, "no gradient", "one")
    with clause(
        "each row is answered before it is learned, and after those before it",
        "row by row: what logits() says of it now, then learn it, then the next; of more rows several may go together",
    ):
        other, _ = nursery.build()
        for row in range(len(y)):
            part = slice(row, row + 1)
            with torch.no_grad():
                asked = other.logits(x[part]).clone()
            same(asked, said[part])
            same(_learned(other, x[part], y[part], learn[part]), said[part])
        same(other.logits(x), whole.logits(x))
    with clause(
        "no row is answered with its own label or a later one",
        "look at y[i] only once row i has been answered",
    ):
        for row in (1, len(y) // 2, len(y) - 1):
            changed = y.clone()
            changed[row:] = (changed[row:] + 1) % len(nursery.early)
            same(_learned(nursery.build()[0], x, changed, learn)[: row + 1], said[: row + 1], 0)
    with clause(
        "a row that is not to be learned teaches nothing, labelled or not",
        "look at x[i] and y[i] of rows with learn[i] only to answer, never to learn, nor to count",
    ):
        none, empty = torch.zeros_like(learn), torch.full_like(y, -1)
        before = Said.by(whole, x)
        state = _state_of(whole)
        _learned(whole, x, y, none)
        _learned(whole, x, empty, none)
        before.is_kept_by(whole, x)
        needs(not _differ(state, _state_of(whole)), "the same state", "another")
        same(_learned(nursery.build()[0], x[learn], y[learn], learn[learn]), said[learn])
    with clause("what it has learned shows", "learn the rows of `learn`; a thousand suffice"):
        for _ in range(1_000 // int(learn.sum()) + 1):
            _learned(whole, x, y, learn)
        needs(not torch.equal(nursery.build()[0].logits(x), whole.logits(x)), "other answers than at first", "the same")


def _learned(teacher: Any, x: Tensor, y: Tensor, learn: Tensor) -> Tensor:
    with torch.no_grad():
        answers: Tensor = teacher.test_then_train(x.clone(), y.clone(), learn.clone())
    return answers.clone()


def _differ(one: Any, other: Any) -> bool:
    """Whether two states are not the same, tensors bit for bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return not torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() != other.keys() or any(_differ(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) != len(other) or any(map(_differ, one, other))
    return bool(one != other)


class Course:
    """Two tasks that an observing teacher learns, the second with a label more; what it says is asked after each step.

    As in a learner's step: ``logits`` on the fresh rows, then ``observe`` of them, without gradient. One that learns
    record by record is given them once, and hears of no task's end.
    """

    def __init__(self, clause: Clause, nursery: Nursery) -> None:
        self.clause, self.nursery = clause, nursery
        self.x = rows_of(nursery.schema, 5)
        # 257 rows: who learns by blocks has met a whole one
        first = lessons_of(nursery.schema, len(nursery.early), 5)
        second = lessons_of(nursery.schema, len(nursery.labels), 2)
        self.steps: list[tuple[str, Sequence[Label], tuple[Tensor, Tensor] | None]] = [
            ("end_task", nursery.early, None),
            *(("observe", nursery.early, lesson) for lesson in first),
            ("end_task", nursery.early, None),
            ("grow", nursery.labels, None),
            *(("observe", nursery.labels, lesson) for lesson in second),
            ("end_task", nursery.labels, None),
        ]

    def check(self) -> None:
        said, states = self._first_time()
        self._again(said)
        self._copied(said)
        self._stopped(said, states)

    def _first_time(self) -> tuple[list[Said], list[Any]]:
        teacher, _ = self.nursery.build()
        said, states = [Said.by(teacher, self.x)], [_state_of(teacher)]
        for name, labels, lesson in self.steps:
            with self.clause(
                "rows, the end of a task and grow(labels) are taken at any time, in any order, without gradient",
                "do not count on rows before a task's end, or on some of every label; torch.enable_grad() to train",
            ):
                given = None if lesson is None else (lesson[0].clone(), lesson[1].clone())
                _take(teacher, name, labels, given)
            with self.clause("learning leaves the rows that it is given as they are", "work on copies of x and y"):
                if lesson is not None and given is not None:
                    same(given[0], lesson[0], 0)
                    same(given[1], lesson[1], 0)
            self._lasting(teacher, said[-1])
            said.append(Said.by(teacher, self.x))
            states.append(_state_of(teacher))
            if name == "end_task":
                _answers(self.clause, teacher, self.x, labels)
                self._recalls(teacher, labels)
        return said, states

    def _lasting(self, teacher: Teacher, before: Said) -> None:
        """Answers are kept: those of a frozen teacher for ever, those of a versioned one until its version rises."""
        with self.clause(
            "what it learns changes its answers only with a new version: only live teachers change without",
            "versioned: raise `version`, never lower it, whenever logits or known change; frozen: never change",
        ):
            if teacher.role in ("live", "prequential", "present"):
                return
            now = Said.by(teacher, self.x)
            if before.version is not None and now.version != before.version:
                needs(isinstance(now.version, int) and now.version > before.version, "a rise", f"{now.version}")
            else:
                before.is_kept_by(teacher, self.x)

    def _recalls(self, teacher: Teacher, labels: Sequence[Label]) -> None:
        if not isinstance(teacher, Recalling):
            return
        with self.clause(
            "recall(x, y) gives finite logits of learned rows, without gradient, and changes nothing",
            "answer as logits() would, under torch.no_grad(), and leave state and rows as they are",
        ):
            before, (x, y) = Said.by(teacher, self.x), lessons_of(self.nursery.schema, len(self.nursery.early), 2)[1]
            mine = x.clone(), y.clone()
            answers = teacher.recall(*mine)
            shaped(answers, (len(x), len(labels)))
            needs(not answers.requires_grad, "no gradient", "one")
            same(teacher.recall(x, y), answers, 0)
            same(mine[0], x, 0)
            same(mine[1], y, 0)
            before.is_kept_by(teacher, self.x)

    def _again(self, said: list[Said]) -> None:
        with self.clause(
            "of the same rows it learns the same", "draw from a generator with a fixed seed, and keep it in the state"
        ):
            self._go_on(self.nursery.build()[0], said, 0)

    def _copied(self, said: list[Said]) -> None:
        """The same tensors hold other rows before and after each call."""
        with self.clause(
            "what it keeps of the rows it copies: they may change after the call",
            "keep x.clone() and y.clone(): the tensors are the step's own",
        ):
            teacher, _ = self.nursery.build()
            for place, (name, labels, lesson) in enumerate(self.steps):
                given = None if lesson is None else (lesson[0].flip(0), lesson[1].flip(0))
                if lesson is not None and given is not None:
                    teacher.logits(given[0])
                    given[0].copy_(lesson[0])
                    given[1].copy_(lesson[1])
                _take(teacher, name, labels, given, asked=False)
                for tensor in given or ():
                    tensor.zero_()
                said[place + 1].is_kept_by(teacher, self.x)

    def _stopped(self, said: list[Said], states: list[Any]) -> None:
        for place in (4, 6, 8, 10, 11):  # while rows wait, before a task ends and after, and at the end
            with self.clause(
                "stopped anywhere and restored, it goes on as if never stopped",
                "state_dict(): also the rows that wait, counts, generators; string keys; load_state_dict takes it all",
            ):
                labels = self.steps[place - 1][1] if place else self.nursery.early
                other = self.nursery.restored(states[place], labels)
                said[place].is_kept_by(other, self.x)
                self._go_on(other, said, place)

    def _go_on(self, teacher: Teacher, said: list[Said], start: int) -> None:
        for place, (name, labels, lesson) in enumerate(self.steps[start:], start):
            _take(teacher, name, labels, lesson)
            said[place + 1].is_kept_by(teacher, self.x)


def _take(
    teacher: Any, name: str, labels: Sequence[Label], lesson: tuple[Tensor, Tensor] | None, asked: bool = True
) -> None:
    """One step of a course."""
    if lesson is not None:
        with torch.no_grad():
            if asked:
                teacher.logits(lesson[0])
            if isinstance(teacher, Incremental):
                teacher.test_then_train(*lesson, torch.ones_like(lesson[1], dtype=torch.bool))
            else:
                teacher.observe(*lesson)
    elif name == "grow":
        teacher.grow(labels)
    elif isinstance(teacher, Observing):
        teacher.end_task()
