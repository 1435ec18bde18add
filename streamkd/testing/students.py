"""The contract of students: raw inputs to logits, row by row, and a head that grows."""

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from streamkd.hookspecs import Kind, Options
from streamkd.records import RecordSchema
from streamkd.students import networks
from streamkd.students.networks import Student
from streamkd.teachers.teacher import copy_of
from streamkd.testing.clauses import Clause, Given, begin, needs, same
from streamkd.testing.rows import answers_rows, leaves_input
from streamkd.testing.specimens import IMAGES, rows_of


def check_student(kind: Kind, options: Given = None, schema: RecordSchema = IMAGES) -> None:
    """A student: raw inputs to logits, each row by itself, a head that grows, weights that depend on the seed alone.

    Raises:
        ContractBroken: a clause is broken; the text names it.
    """
    clause, chosen = begin("student", kind, options)
    with clause(
        "`make(options, shape, classes)` gives a module whose last linear layer is its attribute `head`",
        "make the last layer self.head = torch.nn.Linear(width, classes), with bias",
    ):
        student = networks.build(kind, chosen, schema, 3, seed=0)
    x = rows_of(schema, 5)
    for mode in (True, False):
        student.train(mode)
        answers_rows(clause, lambda x: student(x), x, 3, "in training" if mode else "in evaluation")
    student.train()
    _changes_nothing(clause, student, x)
    _begins_from_its_seed(clause, kind, chosen, schema, student, x)
    _learns(clause, student, x)
    with clause(
        "the head grows and the old logits stay as they are",
        "read self.head at each forward: its weights widen in place",
    ):
        old = student(x).detach()
        student.grow(5)
        same(student(x)[:, :3], old)
    with clause(
        "a state dict carries the student over", "make all that answers hang on parameters or registered buffers"
    ):
        other = networks.build(kind, chosen, schema, 5, seed=1)
        other.load_state_dict(student.state_dict())
        same(other(x), student(x), 0)
    with clause("a copy shares no tensor with the original", "keep tensors where copy.deepcopy finds them"):
        _share_nothing(student, copy_of(student))


def _changes_nothing(clause: Clause, student: Student, x: Tensor) -> None:
    with clause("forward draws nothing random and changes nothing", "leave out noise, counters and running means"):
        before = {name: value.clone() for name, value in student.state_dict().items()}
        same(student(x), student(x), 0)
        for name, value in student.state_dict().items():
            same(value, before[name], 0)
    seen = student.normalise(x).detach()
    with torch.no_grad():
        leaves_input(clause, lambda x: student.body(x), seen, "after normalisation")
    with clause("it keeps no hold of its input", "keep no tensor of a forward pass in an attribute"), torch.no_grad():
        mine = seen.clone()
        held = weakref.ref(mine)
        student.body(mine)
        del mine
        needs(held() is None, "the input to be gone with its caller", "one that is kept")


def _begins_from_its_seed(
    clause: Clause, kind: Kind, options: Options, schema: RecordSchema, student: Student, x: Tensor
) -> None:
    with clause("the seed alone gives the first weights", "draw them from torch's own generator, and from no other"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(123)
            again = networks.build(kind, options, schema, 3, seed=0)
        same(again(x), student(x), 0)
    with clause("two students share no tensor", "make the layers in __init__, not in the class or the module"):
        _share_nothing(student, again)


def _learns(clause: Clause, student: Student, x: Tensor) -> None:
    with clause(
        "every weight that asks for a gradient gets a finite one",
        "let each parameter take part in forward, or set requires_grad=False",
    ):
        student(x).square().sum().backward()
        for name, weight in student.named_parameters():
            needs(not weight.requires_grad or weight.grad is not None, "a gradient", f"none in {name}")
            needs(weight.grad is None or bool(torch.isfinite(weight.grad).all()), "finite numbers", f"others in {name}")


def _share_nothing(one: nn.Module, other: nn.Module) -> None:
    shared = _places(one) & _places(other)
    needs(not shared, "no shared tensor", f"{len(shared)}")


def _places(module: nn.Module) -> set[int]:
    tensors: Iterable[Tensor] = (*module.parameters(), *module.buffers())
    return {tensor.data_ptr() for tensor in tensors if tensor.numel()}
