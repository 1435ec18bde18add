"""Deliberate mistakes in plugins of every kind, at work: each is named with cause and fix, and none harms the learner.

What is wrong at once is refused at start. What goes wrong later is left out: after three strikes for good, and the
learner goes on with the rest; only a student and a source cannot be left out, and end the learner in words.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pytest
import torch
from mistakes import gates, losses, rows, sources, students, teachers, watchers

from streamkd import config as configuration
from streamkd.errors import PluginError
from streamkd.hookspecs import Group, Kind, Options, SourceKind, hookimpl
from streamkd.learner import Learner
from streamkd.plugins import SINGULAR, Registry
from streamkd.records import Chunk
from streamkd.scaffold.package import KINDS
from streamkd.strikes import STRIKES
from streamkd.wiring import open_source, rehearse, schema_of

torch.set_num_threads(1)
LATE = 60  # records, after which what is late goes wrong: behind any rehearsal
RECORDS = 120
NAME = "mistaken"


def broken() -> None:
    raise ValueError("no such table")


def late(right: type, method: str, wrong: Callable[..., Any], calls: int = 8) -> Callable[..., Any]:
    """A kind that is right so many times; from then on ``method`` gives what ``wrong`` makes of its answer."""

    class Late(right):  # type: ignore[misc]
        made = 0

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            Late.calls, Late.made = 0, Late.made + 1

    def call(self: Any, *arguments: Any) -> Any:
        Late.calls += 1
        given = getattr(right, method)(self, *arguments)
        return wrong(given, *arguments) if Late.calls > calls else given

    setattr(Late, method, call)
    return Late


def raising(*given: Any) -> Any:
    broken()


def leaving(*given: Any) -> Any:
    sys.exit("goodbye")


class Hard(losses.Plain):
    """A loss that teaches."""

    def __call__(self, lesson: Any) -> torch.Tensor:
        hard = torch.nn.functional.cross_entropy(lesson.logits, lesson.labels, ignore_index=-1, reduction="none")
        return hard * lesson.weights.sum(1)


class Weigher(gates.Base):
    """A gate that is right."""

    named = ()


class Digits(sources.Counting):
    """A source that is right: two classes in eight columns."""

    def rows(self, start: int, end: int) -> Any:
        import pyarrow as pa

        x = np.array([[offset % 2 + 0.01 * offset] * 2 for offset in range(start, end)], np.float32)
        return Digits.of(pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 2), range(start, end))

    def read(self, partition: str, offset: int, limit: int) -> Chunk:
        end = max(offset, min(offset + limit, RECORDS))
        return Chunk(self.rows(offset, end), partition, offset, end)

    def end(self, partition: str) -> int:
        return RECORDS


def a_row_more(chunk: Chunk, partition: str, offset: int, limit: int) -> Chunk:
    more = Digits.rows(None, offset, offset + limit + 1)  # type: ignore[arg-type]
    return Chunk(more, partition, offset, offset + limit + 1)


def at_the_last(chunk: Chunk, partition: str, offset: int, limit: int) -> Chunk:
    return Chunk(chunk.rows, partition, offset, chunk.next_offset - 1)


def darkening(answers: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    x.zero_()
    return answers


def negative(drawn: Any, *given: Any) -> Any:
    return rows.StepRows.of(drawn.x, mass=-1.0)


class Shifty(watchers.Counter):
    """A detector that is told how well the student predicts."""

    def scored(self, wrong: Any) -> None: ...


@dataclass(frozen=True)
class Case:
    """A mistake, what becomes of it (``refused`` at start, ``off`` at work, ``ends`` the learner), and what is said."""

    fate: str
    name: str
    make: Callable[..., Any]
    said: tuple[str, ...]
    beside: tuple[Any, ...] = ()
    """Other kinds of its list in the configuration."""


def off(name: str, make: Callable[..., Any], *said: str, beside: tuple[Any, ...] = ()) -> Case:
    return Case("off", name, make, said, beside)


def refused(name: str, make: Callable[..., Any], *said: str) -> Case:
    return Case("refused", name, make, said)


def ends(name: str, make: Callable[..., Any], *said: str) -> Case:
    return Case("ends", name, make, said)


RAISED = "raised ValueError: no such table"
INFINITE = torch.nn.Threshold(1e9, float("nan"))
COUNTS, WEIGHTS = teachers.Counts, "needed weights [batch, 1 + teachers]"
MISTAKES: dict[Group, tuple[Case, ...]] = {
    "teachers": (
        off("raises", late(COUNTS, "logits", raising), "logits", RAISED),
        off("exits", late(COUNTS, "logits", leaving), "logits", "SystemExit: goodbye"),
        off("answers nothing", late(COUNTS, "logits", lambda y, x: None), "logits", "NoneType"),
        off("becomes too narrow", late(COUNTS, "logits", lambda y, x: y[:, 1:]), "needed logits", "grow()"),
        off("writes into the rows", late(COUNTS, "logits", darkening), "needed the rows as they were", "x.clone()"),
        off("cannot say what it knows", late(COUNTS, "known", raising, 30), "known", RAISED),
        off("cannot learn", late(COUNTS, "observe", raising, 4), "observe", RAISED),
        off("cannot answer in order", late(teachers.Tally, "test_then_train", raising, 4), "test_then_train", RAISED),
        off("cannot follow", late(teachers.Average, "after_step", raising, 4), "after_step", RAISED),
        refused("raises at once", late(COUNTS, "logits", raising, 0), "logits", RAISED),
        refused("stays as narrow as it was", teachers.Stuck, "needed logits (", ", 3) and", ", 1)", "grow()"),
        refused("writes at once", late(COUNTS, "logits", darkening, 0), "needed the rows as they were", "x.clone()"),
        refused("keeps an object", teachers.Pickled, "needed JSON values, tensors", "got Student", "state_dict()"),
    ),
    "losses": (
        off("raises alone", late(Hard, "__call__", raising), "loss", RAISED),
        off("raises beside another", late(Hard, "__call__", raising), "loss", RAISED, beside=("match-gate",)),
        off("becomes infinite", late(Hard, "__call__", lambda v, _: v / 0), "needed finite values", "log_softmax"),
        off("becomes a mean", late(Hard, "__call__", lambda v, _: v.mean()), "needed one value per sample"),
        refused("gives a mean", losses.altered(lambda _, v: v.mean()), "needed one value per sample", "float32 []"),
        refused("gives a number", losses.altered(lambda _, v: 1.0), "needed one value per sample", "got 1.0"),
        refused("divides by nothing", losses.altered(lambda _, v: v / 0), "needed finite values"),
        refused("reads what is not there", losses.altered(lambda lesson, v: lesson.targets), "AttributeError"),
    ),
    "gates": (
        off("raises", late(Weigher, "forward", raising), "forward", RAISED),
        off("forgets the label's column", late(Weigher, "forward", lambda w, _: w[:, 1:]), WEIGHTS),
        off("gives nothing", late(Weigher, "forward", lambda w, _: None), WEIGHTS, "got None"),
        off(
            "becomes infinite",
            late(Weigher, "forward", lambda w, _: w / 0),
            "needed finite weights",
            "who is not heard",
        ),
        refused("no column for the label", gates.weighing(lambda _, w: w[:, 1:]), WEIGHTS),
        refused("always infinite", gates.weighing(lambda _, w: w / 0), "needed finite weights"),
        refused("needs what is not there", gates.weighing(lambda evidence, _: evidence.truth), "AttributeError"),
    ),
    "students": (
        ends("raises", late(students.Body, "forward", raising, 60), "forward", RAISED),
        refused("a layer does not fit", students.between(lambda: torch.nn.LayerNorm(7)), "forward", "RuntimeError"),
        refused("has no head", students.Headless, "attribute `head`", "got None"),
        refused("never finite", students.between(lambda: INFINITE), "needed finite logits"),
    ),
    "detectors": (
        off("raises", late(watchers.Counter, "begins", raising, 2), "begins", RAISED),
        off("answers yes and no", watchers.Truthful, "needed a task's name or None", "got True"),
        off("writes into the inputs", watchers.Meddling, "begins", "read-only"),
        off("cannot be told", late(Shifty, "scored", raising, 2), "scored", RAISED),
    ),
    "observers": (
        off("raises", late(watchers.Watching, "on_step", raising, 2), "on_step", RAISED),
        off("exits", late(watchers.Watching, "on_step", leaving, 2), "on_step", "goodbye"),
        off("turns gradients off", watchers.RateDecay, "needed torch's gradients", "torch.no_grad()"),
        refused("an event that does not exist", watchers.Misspelt, "on_publish", "did you mean on_published?"),
        refused("no event", lambda options: object(), "needed a method for an event", "events: on_step"),
        refused("has to be awaited", watchers.Awaited, "async def on_published", "write `def`"),
    ),
    "rows": (
        off("raises", late(rows.Echo, "draw", raising), "draw", RAISED),
        off("writes to the step's rows", late(rows.Echo, "draw", lambda d, r, _: (r.x.zero_(), d)[1]), "on clones"),
        off("counts less than nothing", late(rows.Echo, "draw", negative), "needed a mass of 0 or more"),
        refused("gives inputs alone", rows.altered(lambda drawn: drawn.x), "needed streamkd.api.StepRows", "Tensor"),
        refused("knows a class more", rows.altered(rows.of_class_3), "needed columns in [0, 3)", "got [3"),
    ),
    "sources": (
        ends("raises", late(Digits, "read", raising), "read", RAISED),
        ends("gives a list", late(Digits, "read", lambda *given: []), "needed a streamkd.api.Chunk", "got list"),
        ends("gives a row more", late(Digits, "read", a_row_more), "needed at most 10 rows", "got 11"),
        ends("goes on at its last row", late(Digits, "read", at_the_last), "next_offset behind them", "not read yet"),
    ),
}
CASES = [(group, case) for group, cases in MISTAKES.items() for case in cases]


def configured(group: Group, case: Case, registry: Registry) -> configuration.Config:
    """A small stream of digits with the mistake in its place."""
    source: dict[str, Any] = {"name": "replay", "dataset": "digits", "classes_per_task": 2, "limit": RECORDS}
    tree: dict[str, Any] = {
        "stream": {"source": source},
        "student": {"name": "mlp", "hidden": [8]},
        "memory": {"size": 40, "replay": 10},
        "teachers": ["ema", "memory"],
        "device": "cpu",
    }
    match group:
        case "teachers" | "losses" | "detectors" | "observers" | "rows":
            first = {"teachers": ["ema"], "detectors": ["task-column"]}.get(group, [])
            tree[group] = [*first, *case.beside, NAME]
        case "sources":
            tree["stream"] = {"source": NAME, "records": sources.SCHEMA.model_dump(mode="json")}
        case _:
            tree[{"students": "student", "gates": "gate"}[group]] = NAME
    return configuration.from_tree(tree, registry)


def brought(group: Group, case: Case) -> Registry:
    """The built-ins, and a plugin with the mistake."""
    kind = (SourceKind if group == "sources" else Kind)(NAME, case.make, Options)
    hook = hookimpl(specname=f"streamkd_{group}")(lambda: [kind])
    registry = Registry.load()
    registry.register(type("Plugin", (), {f"streamkd_{group}": staticmethod(hook)}), "stranger")
    return registry


@pytest.mark.parametrize(("group", "case"), CASES, ids=[f"{group}: {case.name}" for group, case in CASES])
def test_a_mistake_is_named_and_harms_nobody(group: Group, case: Case, caplog: pytest.LogCaptureFixture) -> None:
    """By its plugin, the hook, what was needed and came, and how to mend it."""
    registry = brought(group, case)
    config = configured(group, case, registry)
    schema = schema_of(config, registry)

    def start() -> Learner:
        one = Learner(config, registry, open_source(config, registry, schema)[0], schema, lenient=True)
        rehearse(config, registry, schema, one.device)
        return one

    if case.fate == "refused":
        with pytest.raises(PluginError) as caught:
            start()
        told = str(caught.value)
    else:
        one = start()
        told = learned(one, case) or caplog.text
        assert all(bool(p.isfinite().all()) for p in one.student.parameters())
        assert torch.is_grad_enabled()
    for words in (SINGULAR[group].split()[-1], *case.said, "fix: "):
        assert words in told


def learned(one: Learner, case: Case) -> str:
    """Run to the end of the stream, or until the learner cannot go on; what it says then."""
    try:
        while one.advance():
            pass
    except PluginError as fault:
        assert case.fate == "ends"
        return str(fault)
    assert case.fate == "off"
    assert one.records == RECORDS
    counts = [*(each.counts for each in one.strikes), one.step.pool.guard.strikes]
    assert STRIKES in [count.get(NAME) for count in counts]
    return ""


def test_there_are_forty_of_every_kind() -> None:
    """Forty at least, of every kind that authors begin with."""
    assert len(CASES) >= 40
    assert {*MISTAKES} == {group for group in get_args(Group) if SINGULAR[group] in KINDS}
