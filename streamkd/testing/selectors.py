"""The contract of selectors: of whatever there is they choose something that answers, and that a version holds."""

import copy
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from streamkd.analytic.teacher import AnalyticOptions, AnalyticTeacher
from streamkd.hookspecs import Kind, Options, hookimpl
from streamkd.plugins import Registry
from streamkd.students.networks import Student
from streamkd.teachers import served
from streamkd.teachers.served import Candidates, Model, Selector, Served
from streamkd.teachers.teacher import Part, TeacherContext
from streamkd.testing.clauses import Clause, Given, begin, needs, same
from streamkd.testing.rows import answers_rows
from streamkd.testing.specimens import IMAGES, lessons_of, plain_student, rows_of

CLASSES = 3


def check_selector(kind: Kind, options: Given = None) -> None:
    """A selector: with and without an average, held-out records and teachers, one of which does not know every class.

    Raises:
        ContractBroken: a clause is broken; the text names it.
    """
    clause, chosen = begin("selector", kind, options)
    with clause("`make(options)` gives a selector", "give an object with `choose` and `combine`"):
        selector = kind.make(chosen)
        needs(isinstance(selector, Selector), "all that `Selector` names", repr(selector))
    x = rows_of(IMAGES, 5, seed=3)
    for about, candidates in _occasions():
        before = _state(candidates)
        with clause(f"it chooses a student, or a Served of several candidates, {about}", "take what there is"):
            model = selector.choose(candidates)
            _is_of(model, candidates)
        answers_rows(clause, model, x, CLASSES, about)
        with clause(f"it leaves the candidates as they are, {about}", "look at them under no_grad; train copies"):
            for name, tensor in _state(candidates).items():
                same(tensor, before[name], 0)
        with clause(f"of the same candidates it chooses the same, {about}", "hang on the candidates alone: no chance"):
            same(kind.make(chosen).choose(candidates)(x), model(x), 0)
            same(selector.choose(candidates)(x), model(x), 0)
        _is_published(clause, kind, chosen, model, x, about)


def _is_of(model: Model, candidates: Candidates) -> None:
    mine: list[object] = [candidates.student, candidates.average, *candidates.teachers.values()]
    parts = [*model.parts] if isinstance(model, Served) else [model]
    needs(all(any(part is one for one in mine) for part in parts), "candidates alone", "others")
    needs(isinstance(parts[0], Student), "a student as the first part", type(parts[0]).__name__)


def _is_published(clause: Clause, kind: Kind, options: Options, model: Model, x: Tensor, about: str) -> None:
    meta = {
        "student": {"name": "mlp", "options": {"hidden": [8]}},
        "served": {"name": kind.name, "options": options.model_dump(mode="json")},
        "schema": IMAGES.model_dump(mode="json"),
        "classes": [*range(CLASSES)],
        "seed": 0,
        "records": 0,
        "published_at": 0.0,
    }
    with (
        clause(
            f"read from a version's files it answers the same, {about}",
            "combine() hangs on the answers, on known and on how, which is plain JSON",
        ),
        tempfile.TemporaryDirectory() as folder,
    ):
        served.write(Path(folder), model, json.loads(json.dumps(meta)))
        registry = Registry.load(only=["students", "analytic"])
        registry.register(SimpleNamespace(streamkd_selectors=hookimpl(lambda: [kind])), "checked")
        same(served.load(Path(folder), registry).student(x), model(x), 0)


def _occasions() -> Iterator[tuple[str, Candidates]]:
    student, average = (plain_student(IMAGES, CLASSES, seed).eval() for seed in (0, 1))
    teachers: dict[str, Part] = {name: _part(student, seed) for seed, name in enumerate(("first", "second"))}
    one = {"first": teachers["first"]}
    held = rows_of(IMAGES, 30, seed=5), torch.arange(30) % CLASSES
    yield "with the student alone", Candidates(student, None, {}, None, 0.0)
    yield "with an average, nothing held out", Candidates(student, average, one, None, 0.0)
    yield "without an average", Candidates(student, None, one, held, 0.0)
    yield "with two teachers", Candidates(student, average, teachers, held, 0.0)
    yield "with wrong labels", Candidates(student, average, one, held, 0.4)


def _part(student: Student, seed: int) -> Part:
    """Of a teacher that has seen two of three classes."""
    context = TeacherContext("analytic", student, IMAGES, [*range(CLASSES)], torch.device("cpu"))
    teacher = AnalyticTeacher(AnalyticOptions(channels=2, dense=8 + seed), context)
    for lesson in lessons_of(IMAGES, CLASSES - 1, 4):
        teacher.observe(*lesson)
    teacher.end_task()
    part = teacher.part()
    assert part is not None
    return part


def _state(candidates: Candidates) -> dict[str, Tensor]:
    """Copies of all that the candidates hold."""
    modules = {"student": candidates.student, "average": candidates.average, **candidates.teachers}
    found = {
        f"{name}.{key}": tensor
        for name, module in modules.items()
        if isinstance(module, nn.Module)
        for key, tensor in module.state_dict().items()
    }
    if candidates.held is not None:
        found |= dict(zip(("held.x", "held.y"), candidates.held, strict=True))
    return copy.deepcopy(found)
