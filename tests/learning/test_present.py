"""The present: who is ahead of the student, asked, and believed."""

import numpy as np
import torch
import toys
from torch import Tensor

from streamkd.incremental.linear import LinearOptions, LinearTeacher
from streamkd.learning.mixture import Held
from streamkd.learning.present import Present
from streamkd.learning.step import Step
from streamkd.teachers.teacher import EmaOptions, EmaTeacher


class Asked(LinearTeacher):
    """Logistic regression that counts the rows that it is asked about."""

    def __init__(self) -> None:
        super().__init__(LinearOptions(), toys.context_of("linear", toys.mlp()))
        self.asked = 0

    def logits(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        return super().logits(x)


def made() -> Step:
    average = EmaTeacher(EmaOptions(), toys.context_of("ema", toys.mlp()))
    return toys.make_step(teachers=[average, Asked()], replay=20, size=200)


def renamed(step: Step) -> Step:
    """The classes change their names twice: the teacher follows within records, a slow student does not."""
    for turn in range(3):
        for x, y in toys.batches(30, seed=turn):
            toys.train(step, x, (y + turn) % 3)
    return step


def test_a_teacher_that_is_ahead_of_the_student_is_asked_about_every_row() -> None:
    """On remembered ones too it is heard, and it has most of the weight."""
    step = renamed(made())
    assert step.pool.ahead == {"linear"}
    x, y = toys.batches(1, seed=9)[0]
    plan = step.begin(x, (y + 2) % 3, 0)
    place = step.pool.keys.index("linear")
    assert plan.answers.known[:, place].all()
    present = step.evidence(plan, step.student(plan.x)).present
    assert present.argmax() == place
    torch.testing.assert_close(present.mean(), torch.tensor(1.0))


def test_a_teacher_that_is_not_ahead_is_not_asked() -> None:
    """Of a world that does not change it tells nothing new, and costs nothing; gates are told nothing of it."""
    step = made()
    for x, y in toys.batches(8):
        toys.train(step, x, y)
    step.present.load_state_dict({"alone": {"linear": torch.tensor([5.0, 4.0])}, "whole": True})
    teacher = step.pool.teachers[1]
    teacher.asked = 0
    x, y = toys.batches(1, seed=9)[0]
    plan = step.begin(x, y, 0)
    assert step.pool.ahead == frozenset()
    assert not plan.answers.known[:, step.pool.keys.index("linear")].any()
    assert step.evidence(plan, step.student(plan.x)).present is None


def test_where_a_class_has_stopped_to_come_nobody_teaches_the_present_alone() -> None:
    """What is forgotten of that class may still be true, however far ahead a teacher is on what comes."""
    step = renamed(made())
    for x, y in toys.batches(8, seed=9):
        toys.train(step, x[y > 0], y[y > 0])
    mine, students = step.present.alone["linear"]
    assert mine - students > 2 * (mine + students) ** 0.5
    assert step.pool.ahead == frozenset()


def test_where_a_domain_has_stopped_to_come_nobody_teaches_the_present_alone() -> None:
    """While more of the held-out records are unlike what comes than chance makes so."""
    step = renamed(made())
    labels = torch.full((8,), -1)  # nothing new is told
    for unlike, ahead in ((1, {"linear"}), (4, set())):
        away = np.arange(10) < unlike
        held = Held(("student",), np.full((10, 1, 3), 1 / 3), np.zeros(10, dtype=np.int64), away)
        step.present.after_step(labels, held)
        assert step.pool.ahead == ahead


def test_ahead_is_beyond_two_standard_errors() -> None:
    """Of the records on which one of the two alone was right."""
    step = made()
    for mine, students, ahead in ((24.0, 10.0, True), (24.0, 14.0, False), (10.0, 24.0, False), (5.0, 0.0, True)):
        step.present.load_state_dict({"alone": {"linear": torch.tensor([mine, students])}, "whole": True})
        assert bool(step.pool.ahead) is ahead


def test_it_goes_on_from_its_state() -> None:
    """The next answers follow from the counts."""
    step = renamed(made())
    state, step.pool.ahead = step.present.state_dict(), frozenset()
    again = Present(step.pool, step.mixture)
    again.load_state_dict(state)
    assert step.pool.ahead == {"linear"}
    assert (again.alone["linear"] == step.present.alone["linear"]).all()
