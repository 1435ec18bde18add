"""The contracts of who watches the stream: boundary detectors, observers."""

import copy
import inspect
import math
from types import MappingProxyType
from typing import Any

import numpy as np

from streamkd.hookspecs import Kind, Options
from streamkd.observe import Observers
from streamkd.tasks.boundary import Boundary, Detector, Scored
from streamkd.testing.clauses import Clause, Given, begin, carried, needs
from streamkd.testing.specimens import Batch, batches_of


def check_detector(kind: Kind, options: Given = None) -> None:
    """A boundary detector: stopped, restored and gone on, it says what it would have said.

    Raises:
        ContractBroken: a clause is broken; the text names it.
    """
    clause, chosen = begin("detector", kind, options)
    for tasks in (True, False):
        _detects(clause, kind, chosen, batches_of(tasks), "with task column" if tasks else "without task column")


def _detects(clause: Clause, kind: Kind, options: Options, batches: list[Batch], about: str) -> None:
    with clause(
        f"`make(options)` gives a detector whose begins() says a task's name or None, {about}",
        'give "" for the next number; labels may be None, tasks too',
    ):
        detector, said, states, shown = kind.make(options), [], [], copy.deepcopy(batches)
        for batch in shown:
            states.append(copy.deepcopy(detector.state_dict()))
            said.append(_answer(detector, batch))
            needs(said[-1] is None or isinstance(said[-1], str), "a name or None", repr(said[-1]))
    with clause(f"it leaves the records as they are, {about}", "work on copies of inputs, labels and new labels"):
        for (seen, new, _), (right, names, _) in zip(shown, batches, strict=True):
            kept = bool((seen.inputs == right.inputs).all()) and seen.labels == right.labels and new == names
            needs(kept and seen.tasks == right.tasks, "the same", "others")
    with clause(
        f"of the same batches another one says the same, {about}", "hang on the batches alone: no clock, no chance"
    ):
        other = kind.make(options)
        got = [_answer(other, batch) for batch in copy.deepcopy(batches)]
        needs(got == said, repr(said), repr(got))
    with clause(f"what it keeps of the records it copies, {about}", "keep numbers, or copies: arrays are used again"):
        other, got = kind.make(options), []
        for batch in copy.deepcopy(batches):
            got.append(_answer(other, batch))
            _spoil(batch)
        needs(got == said, repr(said), repr(got))
    for start, state in enumerate(states):
        with clause(
            f"stopped before any batch and restored, it goes on as if never stopped, {about}",
            "state_dict(): all that answers hang on, with string keys; load_state_dict takes it all",
        ):
            other = kind.make(options)
            other.load_state_dict(carried(state))
            got = [_answer(other, batch) for batch in copy.deepcopy(batches[start:])]
            needs(got == said[start:], f"{said[start:]} after batch {start}", repr(got))


def _answer(detector: Detector, batch: Batch) -> str | None:
    """What it says of the batch; then it is told, if it asks for that, that the student erred on each third task."""
    said = detector.begins(*batch)
    if isinstance(detector, Scored):
        records = batch[0]
        wrong = np.full(len(records.labelled()), records.offsets[0] % 1_200 >= 800)
        detector.scored(wrong)
        wrong[:] = ~wrong  # arrays are used again
    return said


def _spoil(batch: Batch) -> None:
    """The arrays hold something else now."""
    records, new, _ = batch
    records.inputs[:] = -1
    for names in (records.labels, records.tasks, new):
        if isinstance(names, list):
            names.clear()


def check_observer(kind: Kind, options: Given = None) -> None:
    """An observer: it has some of the events, spelt right, and takes their arguments.

    Raises:
        ContractBroken: a clause is broken; the text names it.
    """
    clause, chosen = begin("observer", kind, options)
    with clause(
        "`make(options)` gives an object", "make(options) -> object, with the methods of streamkd.observe.Observer"
    ):
        observer = kind.make(chosen)
    events = ", ".join(Observers.EVENTS)
    found = [name for name, _ in inspect.getmembers(observer, callable) if name.startswith("on_")]
    with clause(f"its events are among {events}", "spell them so: others are never called"):
        needs(set(found) <= set(Observers.EVENTS), events, ", ".join(found))
        needs(bool(found), "at least one of them", "none")
    happenings: list[tuple[str, tuple[Any, ...]]] = [
        ("on_step", (10, 0.5, 0.9)),
        ("on_step", (20, 0.5, math.nan)),
        ("on_boundary", (Boundary(10, "0", "new-label"),)),
        ("on_checkpoint", (10, MappingProxyType({"main/0": 10}))),
        ("on_published", (1, 10)),
        ("on_start", (MappingProxyType({"name": "mine"}), None)),
        ("on_stop", ()),
    ]
    for name, arguments in happenings:
        if name not in found:
            continue
        with clause(
            f"{name} takes its arguments, and is done when it returns",
            "arguments by position, as in Observer; accuracy may be NaN, offsets cannot be written; def, not async def",
        ):
            given = getattr(observer, name)(*arguments)
            if inspect.iscoroutine(given):
                given.close()
            needs(not inspect.isawaitable(given), "a plain method", "one that has to be awaited, and never is")
