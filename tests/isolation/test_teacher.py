"""Teachers in processes of their own: the same answers, and of every trouble an absence, which is journaled."""

import copy
import os
import select
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from streamkd import config as configuration
from streamkd.choices import Isolation
from streamkd.errors import PluginError
from streamkd.inspection import weights_sha256
from streamkd.isolation import process, teacher, worker
from streamkd.isolation.absences import Absences
from streamkd.isolation.teacher import IsolatedTeacher
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.state.directory import StateDirectory
from streamkd.state.tree import pack, unpack
from streamkd.wiring import open_source, schema_of

Trouble = Callable[..., str]


def learner(trouble: str, absences: Absences | None = None, isolate: Any = True) -> Learner:
    registry = Registry.load()
    tree = {
        "stream": {"source": {"name": "replay", "dataset": "digits", "classes_per_task": 2, "limit": 240}},
        "student": {"name": "mlp", "hidden": [8]},
        "memory": {"size": 60, "replay": 20},
        "teachers": ["ema", {"name": "patient", "trouble": trouble, "isolate": isolate}],
        "device": "cpu",
    }
    config = configuration.from_tree(tree, registry)
    schema = schema_of(config, registry)
    return Learner(config, registry, open_source(config, registry, schema)[0], schema, absences=absences)


def patient(one: Learner) -> Any:
    return one.step.pool.teachers[1]


def there(one: IsolatedTeacher) -> None:
    """Wait until its process would answer."""
    assert one._worker is not None
    assert select.select([one._worker._end], [], [], 60)[0]


def learned(one: Learner) -> str:
    """A hash of all that decides what is learned next."""
    return weights_sha256(pack(one.state()["learned"]).tensors)


def run(one: Learner, batches: int) -> Learner:
    for _ in range(batches):
        assert one.advance()
        if one.step.pool.teachers[1:] and getattr(patient(one), "away", False):
            there(patient(one))
    return one


@pytest.fixture
def in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process' own code in a thread, which starts at once; its memory is not bounded."""

    class Thread:
        def __init__(self, module: str, end: Any) -> None:
            threading.Thread(target=process.live, args=[end], daemon=True).start()

        def kill(self) -> None: ...

        def wait(self, seconds: float) -> int:
            return 7

    monkeypatch.setattr(worker, "spawn", Thread)
    monkeypatch.setattr(process, "bound_memory", lambda more_bytes: None)
    monkeypatch.setattr(teacher, "FIRST", 3)


@pytest.mark.usefixtures("in_a_thread")
def test_what_is_redone_goes_without_the_same_answers(trouble: Trouble, tmp_path: Path) -> None:
    """A teacher goes and comes back: a learner that resumes from before that ends in the same bits.

    Up to there it had learned as with the teacher within the learner; and it learned other things than without absence.
    """
    directory = StateDirectory(tmp_path / "state")
    with directory.lock():
        one = run(learner(trouble(), Absences(directory)), 8)
        kept, offsets = copy.deepcopy(unpack(pack(one.state()))), dict(one.offsets)
        within = run(learner(trouble(), isolate=False), 8)
        assert weights_sha256(within.student.state_dict()) == weights_sha256(one.student.state_dict())
        trouble("raises")
        run(one, 12)
        assert patient(one)._failures == 1
        assert not patient(one).away
        again = learner(trouble(), Absences(directory))
        again.restore(kept, offsets, again.config)
        run(again, 12)
        assert not again.step.pool.guard.tallies["patient"].failures
        assert learned(again) == learned(one)
        assert weights_sha256(run(within, 12).student.state_dict()) != weights_sha256(one.student.state_dict())


@pytest.mark.usefixtures("in_a_thread")
@pytest.mark.parametrize("calls", [3, 7])
def test_who_was_away_at_a_checkpoint_comes_back_after_it(
    calls: int, trouble: Trouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learner that resumes at the end of an absence, or in the middle, has it come back when it did, and waits for
    nothing.
    """
    monkeypatch.setattr(teacher, "FIRST", calls)
    monkeypatch.setattr(teacher, "AGAIN_SECONDS", 0.5)
    directory = StateDirectory(tmp_path / "state")
    with directory.lock():
        one = run(learner(trouble(), Absences(directory)), 8)
        trouble("raises")
        assert one.advance()
        assert patient(one).away
        kept, offsets = copy.deepcopy(unpack(pack(one.state()))), dict(one.offsets)
        there(patient(one))
        again = learner(trouble(), Absences(directory))
        again.restore(kept, offsets, again.config)
        for each in (one, again):
            for _ in range(8):
                assert each.advance()
        assert not patient(again).away
        assert not again.step.pool.guard.tallies["patient"].failures
        assert learned(again) == learned(one)


def test_a_process_that_is_killed_or_takes_too_much_memory_comes_back(
    trouble: Trouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a real process: memory beyond its bound is refused it alone, and after both it answers as it was kept."""
    monkeypatch.setattr(teacher, "FIRST", 3)
    one = run(learner(trouble(), isolate={"memory_bytes": 256 << 20}), 2)
    trouble("eats")
    run(one, 2)
    kept = patient(one).state_dict()["isolated"]["kept"]
    assert not patient(one).away
    os.kill(patient(one)._worker.process.pid, signal.SIGKILL)
    one.advance()
    assert one.step.pool.guard.tallies["patient"].failures == {"memory": 1, "died": 1}
    assert patient(one).state_dict()["isolated"]["kept"] == kept


@pytest.mark.usefixtures("in_a_thread")
@pytest.mark.parametrize(
    ("word", "reason", "said"),
    [
        ("hangs", "timeout", "logits took more than 0.3 s"),
        ("raises", "raised", "ValueError: no such table"),
    ],
)
def test_a_trouble_is_an_absence(
    word: str, reason: str, said: str, trouble: Trouble, caplog: pytest.LogCaptureFixture
) -> None:
    """Who hangs, lacks memory or raises is away for some calls, counted and said, and back as it was kept."""
    one = run(learner(trouble(), isolate={"timeout_seconds": 0.3}), 6)
    kept = patient(one).state_dict()["state"]["counts"].clone()
    one.advance()
    trouble(word)
    one.advance()
    assert one.step.pool.guard.tallies["patient"].failures == {reason: 1}
    assert said in caplog.text
    assert patient(one).away
    while patient(one).away:
        there(patient(one))
        one.advance()
    assert one.step.pool.guard.strikes == {}
    assert (patient(one).state_dict()["state"]["counts"] >= kept).all()
    assert patient(one).state_dict()["state"]["counts"].sum() < one.records


@pytest.mark.usefixtures("in_a_thread")
def test_absences_grow_until_it_has_been_steady(trouble: Trouble) -> None:
    """Each absence is twice as long as the one before, where the teacher was not steady in between."""
    lengths = []
    one = run(learner(trouble()), 1)
    isolated = patient(one)
    for _ in range(3):
        while isolated.away:
            there(isolated)
            one.advance()
        trouble("raises")
        at = isolated._calls
        one.advance()
        lengths.append(isolated._until - at - 1)
    assert lengths == [3, 6, 12]


@pytest.mark.usefixtures("in_a_thread")
def test_a_state_goes_from_the_learner_into_a_process_and_back(trouble: Trouble) -> None:
    """`isolate` may be set and left out between two starts: the teacher goes on with what it had learned."""
    within = run(learner(trouble(), isolate=False), 6)
    isolated = learner(trouble())
    isolated.restore(unpack(pack(within.state())), within.offsets, within.config)
    back = learner(trouble(), isolate=False)
    back.restore(unpack(pack(isolated.state())), isolated.offsets, isolated.config)
    assert torch.equal(patient(back).counts, patient(within).counts)
    assert patient(back).counts.sum() > 0


@pytest.mark.usefixtures("in_a_thread")
def test_who_is_made_of_the_student_stays_with_it(trouble: Trouble) -> None:
    """An average of the student cannot be elsewhere: refused at start, with the way out."""
    about: Any = {
        "entries": ["teachers", "students"],
        "teacher": {"name": "ema", "options": {}},
        "student": {"name": "mlp", "options": {"hidden": [8]}},
        "key": "ema",
        "labels": [0],
        "seed": 0,
        "device": "cpu",
        "threads": 1,
    }
    one = run(learner(trouble(), isolate=False), 1)
    about["schema"] = one.schema.model_dump(mode="json")
    about["student"]["weights"] = one.fresh_student(1).state_dict()
    with pytest.raises(PluginError, match=r"EmaTeacher, which is made of the student.*(\n.*)*leave `isolate` out"):
        IsolatedTeacher(about, Isolation())
