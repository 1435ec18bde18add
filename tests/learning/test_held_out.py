"""One look at the held-out records for all who go by them: when it is made, what it says, and that it is state."""

import copy
from typing import Any

import pytest
import torch
import toys
from torch import Tensor

from streamkd.gates.likelihood import LikelihoodGate, LikelihoodOptions
from streamkd.learning.held_out import EVERY, error_reduction, invariance
from streamkd.learning.step import Step
from streamkd.replay.vicinal import VicinalRows
from streamkd.teachers.answers import Answers
from streamkd.teachers.pool import Pool
from streamkd.teachers.teacher import EmaOptions, EmaTeacher


class Watched(Pool):
    """Counts how often somebody asks about all held-out records at once."""

    looks = 0

    def answers(self, x: Tensor, fresh: int, remembered: Any, classes: int) -> Answers:
        held = self.memory.holdout
        self.looks += held.filled > 0 and len(x) == held.filled and torch.equal(x, held.x[: held.filled])
        return super().answers(x, fresh, remembered, classes)


def watched(**settings: Any) -> Step:
    step = toys.make_step(**settings)
    step.pool.__class__ = Watched
    return step


def test_whom_nobody_asks_does_not_look() -> None:
    """A gate that goes by nothing that was measured, and no rows that count by it, cost nothing."""
    step = watched()
    for x, y in toys.batches(3 * EVERY):
        toys.train(step, x, y)
    assert step.pool.looks == 0


@pytest.mark.parametrize("rows", [0, 4])
@pytest.mark.parametrize("asks", [False, True])
def test_all_share_one_look_every_few_steps(rows: int, asks: bool) -> None:
    """The gate and the vicinal rows together cost what either costs alone."""
    step = watched(**({"gate": LikelihoodGate(LikelihoodOptions())} if asks else {}))
    step.vicinal = VicinalRows(rows, 0, seed=0)
    for x, y in toys.batches(1 + 3 * EVERY):  # a gate is known to ask once it has
        toys.train(step, x, y)
    assert step.pool.looks == 3 * (asks or rows > 0) + (rows > 0)


def test_a_new_class_is_looked_at_at_once() -> None:
    """What was measured of fewer classes is of no use to a gate."""
    step = watched(gate=LikelihoodGate(LikelihoodOptions()))
    for x, y in toys.batches(3):
        toys.train(step, x, y)
    step.grow([0, 1, 2, 3])
    toys.train(step, *toys.batches(1)[0])
    assert step.pool.looks == 2
    assert step.held_out.measured().credit.shape == (2, 4)


def test_the_look_goes_round_bitwise() -> None:
    """A restored step goes by what the other one saw, and looks anew when that one does."""
    gate = LikelihoodGate(LikelihoodOptions())
    step = toys.make_step(gate=gate)
    step.vicinal = VicinalRows(4, 0, seed=0)
    for x, y in toys.batches(EVERY + 3):
        toys.train(step, x, y)
    twin = toys.make_step(gate=gate)
    twin.vicinal = VicinalRows(4, 0, seed=1)
    for part in ("student", "vicinal", "held_out"):
        getattr(twin, part).load_state_dict(copy.deepcopy(getattr(step, part).state_dict()))
    twin.memory.load_state_dict(copy.deepcopy(step.memory.state_dict()), torch.device("cpu"))
    twin.pool.load_state_dict(copy.deepcopy(step.pool.state_dict()), lambda classes: toys.mlp(classes), [0, 1, 2])
    for x, y in toys.batches(EVERY + 2, seed=3):
        assert torch.equal(toys.train(step, x, y), toys.train(twin, x, y))
    assert torch.equal(step.held_out.measured().credit, twin.held_out.measured().credit)
    assert step.held_out.error_reduction == twin.held_out.error_reduction


def test_before_anything_is_held_out_nothing_is_measured() -> None:
    """NaN for every teacher and class, and no mistake that anybody would spare."""
    step = toys.make_step(holdout_ratio=0.0, gate=LikelihoodGate(LikelihoodOptions()))
    for x, y in toys.batches(3):
        toys.train(step, x, y)
    table = step.held_out.measured().credit
    assert table.shape == (2, 3)
    assert table.isnan().all()
    assert step.held_out.error_reduction == 0.0


def test_the_error_reduction_is_the_part_of_the_mistakes_that_is_spared() -> None:
    """1 - (e + 1)/(s + 1) of the mistakes e and s, and never below 0."""
    labels = torch.arange(10) % 2
    right = torch.nn.functional.one_hot(labels, 2).float()
    wrong = 1 - right
    four = torch.cat([wrong[:4], right[4:]])
    assert error_reduction(right, four, labels) == pytest.approx(1 - 1 / 5)
    assert error_reduction(four, right, labels) == 0.0
    assert error_reduction(four, four, labels) == 0.0


def test_invariance_is_what_is_still_known_after_a_move() -> None:
    """Of six records that were known five are known when moved; one that was not known does not count, one is added."""
    labels = torch.arange(10) % 2
    right = torch.nn.functional.one_hot(labels, 2).float()
    wrong = 1 - right
    taught = torch.cat([right[:6], wrong[6:]])
    moved = torch.cat([wrong[:1], right[1:7], wrong[7:]])
    assert invariance(taught, moved, labels) == pytest.approx(5 / 7)
    assert invariance(wrong, right, labels) == 0.0


def test_images_are_looked_at_moved_too() -> None:
    """Where inputs are images the teachers are asked about them moved by a pixel; vectors have no neighbours."""
    student = toys.mlp(classes=3, schema=toys.schema_of(10, 10))
    average = EmaTeacher(EmaOptions(), toys.context_of("ema", student))
    step = toys.make_step(student=student, snapshots=0, teachers=[average], optimizer=("sgd", {"lr": 0.01}))
    step.vicinal = VicinalRows(4, 2, seed=0)
    centres = torch.randn(3, 1, 10, generator=torch.Generator().manual_seed(0)).expand(-1, 10, -1)
    for number in range(60):
        y = torch.randint(3, (8,), generator=torch.Generator().manual_seed(number))
        toys.train(step, centres[y] + 0.1, y)
    assert step.held_out.invariance > 0.0
