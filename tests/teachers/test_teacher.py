"""Teachers: the average by its formula, copies that share nothing, layers by name, growth that masks."""

import copy

import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from streamkd.errors import PluginError
from streamkd.hookspecs import Options
from streamkd.students.networks import Student
from streamkd.teachers.recall import RecallTeacher
from streamkd.teachers.snapshot import SnapshotMaker, SnapshotTeacher
from streamkd.teachers.teacher import (
    EmaOptions,
    EmaTeacher,
    Following,
    Teacher,
    capture,
    copy_of,
    layer_outputs,
    module_bytes,
)


def ema(student: Student, decay: float = 0.99) -> EmaTeacher:
    return EmaTeacher(EmaOptions(decay=decay), toys.context_of("ema", student))


def walk(student: Student, seed: int) -> None:
    """Move the student's weights at random."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in student.parameters():
            p.add_(torch.randn(p.shape, generator=g))


@given(st.sampled_from([0.0, 0.5, 0.9, 0.99]), st.integers(1, 30))
def test_the_average_is_its_formula(decay: float, steps: int) -> None:
    """θ' ← d·θ' + (1-d)·θ with d = min(decay, (1+t)/(10+t)), step by step in float64."""
    student = toys.mlp()
    teacher = ema(student, decay)
    wanted = [p.detach().double() for p in student.parameters()]
    for t in range(steps):
        walk(student, t)
        teacher.after_step(student)
        d = min(decay, (1 + t) / (10 + t))
        wanted = [d * w + (1 - d) * p.detach().double() for w, p in zip(wanted, student.parameters(), strict=True)]
    for ours, theirs in zip(teacher.student.parameters(), wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


def test_the_average_follows_growth() -> None:
    """After growing, old classes are averaged as before and new ones begin as the student's own."""
    student = toys.mlp(2)
    teacher = ema(student)
    walk(student, 0)
    teacher.after_step(student)
    old = copy.deepcopy(teacher.student.state_dict())
    student.grow(4)
    teacher.grow([0, 1, 2, 3])
    assert torch.equal(teacher.student.body.head.weight[:2], old["body.head.weight"])
    assert torch.equal(teacher.student.body.head.weight[2:], student.body.head.weight[2:])
    walk(student, 1)
    teacher.after_step(student)
    assert teacher.logits(toys.batches(1)[0][0]).shape == (8, 4)


class Normed(nn.Module):
    """A body with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(toys.FEATURES), nn.Linear(toys.FEATURES, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))


@pytest.mark.parametrize("body", [None, Normed])
def test_a_copy_shares_no_tensor(body: type[nn.Module] | None) -> None:
    """Training the original moves nothing of its copy, running statistics included."""
    student = toys.wrapped(body()) if body else toys.mlp()
    clone = copy_of(student)
    assert not {t.untyped_storage().data_ptr() for t in _tensors(student) if t.numel()} & {
        t.untyped_storage().data_ptr() for t in _tensors(clone) if t.numel()
    }
    before = copy.deepcopy(clone.state_dict())
    student.train()(toys.batches(1)[0][0])
    walk(student, 0)
    assert all(torch.equal(before[k], v) for k, v in clone.state_dict().items())
    assert not clone.training
    assert all(not p.requires_grad for p in clone.parameters())
    assert student.training


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def test_the_average_has_the_students_running_statistics() -> None:
    """Buffers are copied, not averaged: counts and fitted normalisation stay whole numbers and true statistics."""
    student = toys.wrapped(Normed())
    teacher = ema(student)
    student.train()(5 + toys.batches(1)[0][0])
    teacher.after_step(student)
    for ours, theirs in zip(teacher.student.buffers(), student.buffers(), strict=True):
        assert torch.equal(ours, theirs)
        assert not theirs.numel() or ours.data_ptr() != theirs.data_ptr()


def test_a_snapshot_knows_the_labels_of_its_day() -> None:
    """Later labels are columns of it too, and masked."""
    student = toys.mlp(2)
    teacher = SnapshotMaker("snapshot", 3).take(student, 5)
    teacher.grow([0, 1, 2, 3])
    x = toys.batches(1)[0][0]
    assert teacher.key == "snapshot-5"
    assert teacher.known().tolist() == [True, True, False, False]
    assert torch.equal(teacher.logits(x)[:, :2], student(x).detach())
    assert teacher.logits(x).shape == (8, 4)


def test_what_teachers_say_asks_for_no_gradient() -> None:
    """No graph hangs on answers or features."""
    student = toys.mlp()
    x = toys.batches(1)[0][0]
    for teacher in (ema(student), SnapshotTeacher("s", copy_of(student))):
        assert not teacher.logits(x).requires_grad
        assert not teacher.features(x, ("body.hidden.0",))["body.hidden.0"].requires_grad


def test_built_in_teachers_keep_the_protocol() -> None:
    """Each has every attribute that the pool asks of a teacher."""
    student = toys.mlp()
    recall = RecallTeacher(Options(), toys.context_of("memory", student))
    for teacher in (ema(student), recall, SnapshotTeacher("s", copy_of(student))):
        assert isinstance(teacher, Teacher)


def follow(teacher: Teacher, student: Student) -> None:
    """A snapshot does not."""
    if isinstance(teacher, Following):
        teacher.after_step(student)


@pytest.mark.parametrize("kind", ["ema", "snapshot"])
def test_state_goes_round_into_a_narrower_teacher(kind: str) -> None:
    """A teacher of fewer classes takes a state of more, bitwise, and goes on the same."""
    student = toys.mlp(4)
    old = ema(student) if kind == "ema" else SnapshotTeacher("s", copy_of(student))
    for t in range(3):
        walk(student, t)
        follow(old, student)
    small = toys.mlp(2, seed=5)
    new = ema(small) if kind == "ema" else SnapshotTeacher("s", copy_of(small))
    new.load_state_dict(copy.deepcopy(old.state_dict()))
    new.grow([0, 1, 2, 3])
    walk(student, 9)
    x = toys.batches(1)[0][0]
    for teacher in (old, new):
        follow(teacher, student)
    assert torch.equal(old.logits(x), new.logits(x))
    assert torch.equal(old.known(), new.known())


def test_bytes_are_parameters_and_buffers() -> None:
    """What counts against the pool's budget is what the tensors take."""
    student = toys.mlp(3, hidden=(8,))
    floats = 6 * 8 + 8 + 8 * 3 + 3 + 1 + 1  # weights, biases, gain and bias of the normalisation
    assert module_bytes(student) == 4 * floats + 8  # and an int64 count


def test_named_layers_are_captured_and_hooks_go_away() -> None:
    """``layer_outputs`` gives what the layer gave; afterwards the module is as it was."""
    student = toys.mlp()
    x = toys.batches(1)[0][0]
    found = layer_outputs(student, x, ["body.hidden.0", "body.head"])
    assert torch.equal(found["body.head"], student(x))
    assert torch.equal(found["body.hidden.0"], student.body.hidden[0](student.normalise(x)))
    assert not student.body.head._forward_hooks


def test_a_layer_that_is_not_there_is_named_with_the_nearest() -> None:
    """The error comes before anything runs and says what there is."""
    with pytest.raises(PluginError, match=r"no layer 'body\.hed'") as caught:
        capture(toys.mlp(), ["body.hed"], {})
    assert "did you mean 'body.head'?" in caught.value.fix
