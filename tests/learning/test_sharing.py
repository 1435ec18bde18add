"""Sharing: layers by name and by map, head rows by label, shapes that do not agree, what is frozen."""

import copy
from typing import Any

import pytest
import torch
import toys
from torch import nn

from streamkd.errors import PluginError, StateConflict
from streamkd.learning.sharing import Origin, WeightSource, WeightTransfer
from streamkd.meta import hypergradient
from streamkd.students.networks import Student


class Teacher:
    """A donor: a network, and the labels of its outputs."""

    def __init__(self, network: nn.Module, classes: list[Any]) -> None:
        self.network, self.classes = network, classes


def donor(classes: list[Any] | None = None, hidden: tuple[int, ...] = (8,), seed: int = 9) -> Teacher:
    classes = classes or [0, 1, 2]
    return Teacher(toys.mlp(len(classes), hidden, seed), classes)


def test_a_student_of_the_same_form_begins_as_the_teacher() -> None:
    """Everything is inherited: the same labels give the same logits."""
    student, teacher = toys.mlp(), donor()
    WeightTransfer(teacher, student).begin(student, [0, 1, 2])
    x = toys.batches(1)[0][0]
    assert torch.equal(student(x), teacher.network(x))
    assert isinstance(teacher, WeightSource)


def test_head_rows_go_by_label() -> None:
    """A row stands where the label's column is; labels that the teacher does not have keep their first weights."""
    student, teacher = toys.mlp(), donor(["b", "c", "a"])
    first = copy.deepcopy(student.head)
    WeightTransfer(teacher, student).begin(student, ["a", "x", "b"])
    theirs = teacher.network.head
    assert torch.equal(student.head.weight, torch.stack([theirs.weight[2], first.weight[1], theirs.weight[0]]))
    assert torch.equal(student.head.bias, torch.stack([theirs.bias[2], first.bias[1], theirs.bias[0]]))


def test_growing_inherits_in_student_and_average_alike() -> None:
    """In steps or at once, a label that comes later brings the teacher's row with it, and pads the moments with 0."""
    teacher = donor([5, 6, 7])
    student = toys.mlp(1)
    transfer = WeightTransfer(teacher, student)
    transfer.begin(student, [7])
    step = toys.make_step(student=student, optimizer=("sgd", {"lr": 0.1, "momentum": 0.9}))
    step.transfer = transfer
    toys.train(step, toys.batches(1)[0][0], torch.zeros(8, dtype=torch.int64))
    old = student.head.weight.detach().clone()
    step.grow([7, 4, 5])
    average = step.pool.average
    assert average is not None
    for head in (student.head, average.student.head):
        assert torch.equal(head.weight[2], teacher.network.head.weight[0])
        assert head.bias[2] == teacher.network.head.bias[0]
    assert torch.equal(student.head.weight[:1], old)
    moments = step.optimizer.state[student.head.weight]["momentum_buffer"]
    assert moments.shape == student.head.weight.shape
    assert not moments[1:].any()


def test_only_named_layers_are_inherited() -> None:
    """A name stands for all that is below it; the rest stays as it was drawn."""
    student, teacher = toys.mlp(hidden=(8, 8)), donor(hidden=(8, 8))
    before = copy.deepcopy(student)
    WeightTransfer(teacher, student, layers=["body.hidden"]).begin(student, [0, 1, 2])
    for ours, theirs in zip(student.body.hidden, teacher.network.body.hidden, strict=True):
        assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(student.head.weight, before.head.weight)


def test_the_map_leads_to_layers_of_other_names() -> None:
    """The student's second layer may come from the teacher's third."""
    student, teacher = toys.mlp(hidden=(8, 8)), donor(hidden=(8, 8, 8))
    origins = {"body.hidden.1": Origin("body.hidden.2")}
    WeightTransfer(teacher, student, layers=[], origins=origins).begin(student, [0, 1, 2])
    assert torch.equal(student.body.hidden[1].weight, teacher.network.body.hidden[2].weight)


@pytest.mark.parametrize(("ours", "theirs"), [(5, 8), (8, 5)])
def test_a_slice_is_the_leading_block_that_both_have(ours: int, theirs: int) -> None:
    """Narrower or wider than the teacher: the block is the teacher's, what is beyond stays as it was drawn."""
    student, teacher = toys.mlp(hidden=(ours,)), donor(hidden=(theirs,))
    before = copy.deepcopy(student)
    origins = {name: Origin(name, sliced=True) for name in ("body.hidden.0", "body.head")}
    WeightTransfer(teacher, student, layers=[], origins=origins).begin(student, [0, 1, 2])
    both = min(ours, theirs)
    assert torch.equal(student.body.hidden[0].weight[:both], teacher.network.body.hidden[0].weight[:both])
    assert torch.equal(student.body.hidden[0].weight[both:], before.body.hidden[0].weight[both:])
    assert torch.equal(student.head.weight[:, :both], teacher.network.head.weight[:, :both])
    assert torch.equal(student.head.weight[:, both:], before.head.weight[:, both:])


def test_shapes_that_do_not_agree_are_named() -> None:
    """Without a slice rule both tensors are named with their shapes, and the way out is said."""
    student, teacher = toys.mlp(hidden=(5,)), donor(hidden=(8,))
    said = r"body\.hidden\.0\.weight \[5, 6\] of the student .* body\.hidden\.0\.weight \[8, 6\] of the teacher"
    with pytest.raises(PluginError, match=said) as caught:
        WeightTransfer(teacher, student).begin(student, [0, 1, 2])
    assert "fit: slice" in caught.value.fix
    with pytest.raises(PluginError, match=r"the head \[5\] .* body\.head \[8\]"):
        WeightTransfer(teacher, student, layers=["body.head"]).begin(student, [0, 1, 2])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": ["body.hiden"]}, "no layer 'body.hiden'"),
        ({"origins": {"body.hidden.0": Origin("body.hidden.7")}}, "no layer 'body.hidden.7'"),
        ({"layers": ["body.hidden.1"]}, "no layer 'body.hidden.1'"),
    ],
)
def test_layers_that_are_not_there_are_named(options: dict[str, Any], said: str) -> None:
    """In the student or in the teacher: an error before anything is copied, with the known ones."""
    student = toys.mlp(hidden=(8, 8))
    with pytest.raises(PluginError, match=said):
        WeightTransfer(donor(hidden=(8,)), student, **options)


def test_a_teacher_without_common_layers_is_refused() -> None:
    """Nothing to inherit is said, with the layers that it has."""
    with pytest.raises(PluginError, match="no layer of the teacher's names") as caught:
        WeightTransfer(Teacher(nn.Sequential(nn.Linear(6, 3)), [0, 1, 2]), toys.mlp())
    assert "0" in caught.value.fix


def frozen_step(name: str, engine: str = "auto", **settings: Any) -> Any:
    student, teacher = toys.mlp(hidden=(8,)), donor()
    transfer = WeightTransfer(teacher, student, frozen=True)
    transfer.begin(student, [0, 1, 2])
    gate = toys.scorer()
    return toys.make_step(
        student=student, optimizer=(name, settings), gate=gate, adapter=toys.adapter_of(gate, engine=engine)
    )


@pytest.mark.parametrize(("name", "settings"), [("adamw", {"lr": 0.05, "weight_decay": 0.1}), ("sgd", {"lr": 0.1})])
def test_frozen_layers_stay_and_the_head_learns(name: str, settings: dict[str, Any]) -> None:
    """Optimiser (decay too), gate adaptation and average leave inherited layers as they came."""
    step = frozen_step(name, **settings)
    before = copy.deepcopy(step.student.state_dict())
    for x, y in toys.batches(12):
        toys.train(step, x, y)
    assert step.adapter.adaptations > 0
    average = step.pool.average
    for student in (step.student, average.student):
        assert torch.equal(student.state_dict()["body.hidden.0.weight"], before["body.hidden.0.weight"])
        assert not torch.equal(student.state_dict()["body.head.weight"], before["body.head.weight"])


@pytest.mark.parametrize("engine", ["forward", "finite-difference", "maml", "prequential"])
def test_every_engine_adapts_over_frozen_layers(engine: str) -> None:
    """The outer loss is differentiated in what is trained alone; the inherited layers stay bit for bit."""
    step = frozen_step("sgd", engine, lr=0.1)
    before = step.student.body.hidden[0].weight.clone()
    for x, y in toys.batches(6):
        toys.train(step, x, y)
    assert step.adapter.adaptations > 0
    assert torch.equal(step.student.body.hidden[0].weight, before)


def test_the_hypergradient_moves_only_what_is_trained() -> None:
    """With frozen layers its direction is that of the head alone."""
    step = frozen_step("sgd", lr=0.1)
    assert {id(p) for p in step.parameters} == {id(step.student.head.weight), id(step.student.head.bias)}
    ones = [torch.ones_like(p) for p in step.parameters]
    update = hypergradient.Update([p.detach() for p in step.parameters], ones, None, [])
    (along,) = hypergradient.directions(step.optimizer, step.parameters, [update], ones, None)
    for one, slope in zip(ones, along, strict=True):
        torch.testing.assert_close(slope, -0.1 * one)


def test_a_layer_of_which_only_a_part_is_inherited_is_trained_on() -> None:
    """Rows that nobody trained are never frozen."""
    student = toys.mlp(hidden=(12,))
    origins = {"body.hidden.0": Origin("body.hidden.0", sliced=True)}
    WeightTransfer(donor(), student, layers=["normalise"], origins=origins, frozen=True).begin(student, [0, 1, 2])
    assert all(p.requires_grad for p in student.parameters())


def test_another_teacher_after_a_restart_is_refused() -> None:
    """Labels to come must inherit what they would have: classes and head rows may not change."""

    def transfer(teacher: Teacher) -> WeightTransfer:
        student: Student = toys.mlp()
        return WeightTransfer(teacher, student)

    state = transfer(donor()).state_dict()
    transfer(donor()).load_state_dict(state)
    for other in (donor(seed=10), donor([0, 1, 3])):
        with pytest.raises(StateConflict, match="needed the teacher of the checkpoint"):
            transfer(other).load_state_dict(state)
