"""Anybody's module as a step's student."""

import torch
import toys
from torch import nn

from streamkd.students.foreign import Foreign
from streamkd.teachers.teacher import EmaOptions, EmaTeacher, copy_of


def test_it_knows_what_it_was_trained_on() -> None:
    """Labels that it met are known; a row without label tells nothing, and new classes are unknown."""
    student = Foreign(nn.Linear(4, 5), torch.zeros(3, dtype=torch.bool))
    student.train_on(torch.tensor([2, -1, 0]))
    student.grow(5)
    assert student.known().tolist() == [True, False, True, False, False]
    assert student.classes == 5


def test_copies_and_averages_know_what_it_knew() -> None:
    """A copy keeps what was known when it was taken, an average follows, also where the classes have grown."""
    student = Foreign(nn.Linear(4, 3), torch.zeros(2, dtype=torch.bool))
    average = EmaTeacher(EmaOptions(), toys.context_of("ema", student))
    student.train_on(torch.tensor([1]))
    average.after_step(student)
    copy = copy_of(student)
    for each in (student, average):
        each.grow(3) if each is student else each.grow(range(3))
    student.train_on(torch.tensor([2]))
    average.after_step(student)
    assert copy.known().tolist() == [False, True]
    assert average.known().tolist() == [False, True, True]


def test_its_logits_are_the_modules() -> None:
    """Nothing is normalised on the way, and nothing moves what its owner normalises."""
    module, x = nn.Linear(4, 3), torch.randn(2, 4)
    student = Foreign(module, torch.ones(3, dtype=torch.bool))
    assert torch.equal(student(x), module(x))
    assert not student.normalise.fit


def test_a_lone_row_is_normalised_by_what_was_seen() -> None:
    """A batch of one has no spread: its logits are those at rest, its gradient is there, and no statistics move."""
    student = Foreign(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), torch.ones(3, dtype=torch.bool))
    for _ in range(3):
        student(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))
    before = {name: buffer.clone() for name, buffer in student.named_buffers()}
    logits = student(torch.ones(1, 4))
    logits.sum().backward()
    assert student.body[0].weight.grad is not None
    assert all(torch.equal(before[name], buffer) for name, buffer in student.named_buffers())
    assert student.body[1].training
    assert torch.equal(logits, student.eval()(torch.ones(1, 4)))
