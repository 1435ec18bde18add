"""The contracts of what learns and teaches: students, teachers, gates; losses have a module of their own."""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from streamkd.distill import students
from streamkd.distill.teachers import Settled, SnapshotMaker, Teacher, TeacherContext, copy_of
from streamkd.hookspecs import Kind
from streamkd.records import Label, RecordSchema
from streamkd.testing.clauses import Clause, Given, begin, is_tree, needs, same, shaped
from streamkd.testing.specimens import (
    IMAGES,
    evidence_of,
    of_teachers,
    part_of,
    plain_student,
    rows_of,
)


def check_student(kind: Kind, options: Given = None, schema: RecordSchema = IMAGES) -> None:
    """A student: raw inputs to logits, each row by itself, a head that grows, weights that depend on the seed alone.

    Raises:
        ContractBroken: a clause is broken; the text names it.
    """
    clause, chosen = begin("student", kind, options)
    with clause("`make(options, shape, classes)` gives a module whose last linear layer is its attribute `head`"):
        student = students.build(kind, chosen, schema, 3, seed=0)
    x = rows_of(schema, 5)
    for mode in (True, False):
        student.train(mode)
        _maps_rows(clause, lambda x: student(x), x, 3, "in training" if mode else "in evaluation")
    with clause("forward draws nothing random and changes nothing"):
        student.train()
        before = {name: value.clone() for name, value in student.state_dict().items()}
        same(student(x), student(x), 0)
        for name, value in student.state_dict().items():
            same(value, before[name], 0)
    with clause("the seed alone gives the first weights"):
        torch.manual_seed(123)
        same(students.build(kind, chosen, schema, 3, seed=0)(x), student(x), 0)
    with clause("every weight that asks for a gradient gets a finite one"):
        student(x).square().sum().backward()
        for name, weight in student.named_parameters():
            needs(not weight.requires_grad or weight.grad is not None, "a gradient", f"none in {name}")
            needs(weight.grad is None or bool(torch.isfinite(weight.grad).all()), "finite numbers", f"others in {name}")
    with clause("the head grows and the old logits stay as they are"):
        old = student(x).detach()
        student.grow(5)
        same(student(x)[:, :3], old)
    with clause("a state dict carries the student over"):
        other = students.build(kind, chosen, schema, 5, seed=1)
        other.load_state_dict(student.state_dict())
        same(other(x), student(x), 0)
    with clause("a copy shares no tensor with the original"):
        copy = copy_of(student)
        shared = {t.data_ptr() for t in student.parameters()} & {t.data_ptr() for t in copy.parameters()}
        needs(not shared, "no shared tensor", f"{len(shared)}")


def check_teacher(
    kind: Kind,
    options: Given = None,
    schema: RecordSchema = IMAGES,
    labels: Sequence[Label] = (0, 1, 2),
    layers: tuple[str, ...] = (),
) -> None:
    """A teacher: answers without gradient in the label space's columns, follows it as it grows, and comes back whole.

    The last of ``labels`` arrives late. ``layers`` are names that ``features`` is asked for.

    Raises:
        ContractBroken: a clause is broken; the text names it.
    """
    clause, chosen = begin("teacher", kind, options)
    x, early = rows_of(schema, 5), tuple(labels[:-1])

    def build(seed: int) -> tuple[Teacher, students.Student]:
        student = plain_student(schema, len(early), seed)
        made = kind.make(chosen, TeacherContext("its-key", student, schema, early, torch.device("cpu")))
        return (made.take(student, 0) if isinstance(made, SnapshotMaker) else made), student

    with clause("`make(options, context)` gives a teacher"):
        teacher, student = build(0)
    with clause("it goes by the key of its context, and has a role"):
        needs(teacher.key.startswith("its-key"), "the key 'its-key'", repr(teacher.key))
        needs(teacher.role in ("live", "remembered", "frozen", "settled"), "a role", repr(teacher.role))
        needs(teacher.role != "settled" or isinstance(teacher, Settled), "a version, as settled teachers have", "none")
        needs(isinstance(teacher.fresh, bool), "`fresh` to be a bool", repr(teacher.fresh))
    _answers(clause, teacher, x, early)
    with clause("it keeps no hold of the student that it was built from"):
        before = teacher.logits(x)
        with torch.no_grad():
            for weight in student.parameters():
                weight.add_(1.0)
        same(teacher.logits(x), before, 0)
    with clause("only a live teacher follows the student's step"):
        teacher.after_step(student)
        if teacher.role == "live":
            needs(not torch.equal(teacher.logits(x), before), "other answers after a step", "the same")
        else:
            same(teacher.logits(x), before, 0)
    with clause("a label more widens its answers and changes no old one"):
        old, known = teacher.logits(x), teacher.known()
        teacher.grow(labels)
        shaped(teacher.logits(x), (len(x), len(labels)))
        same(teacher.logits(x)[:, : len(early)], old)
        needs(bool((teacher.known()[: len(early)] == known).all()), "the old labels known as before", "others")
    _answers(clause, teacher, x, labels)
    with clause("features(x, layers) gives those layers, a row each, without gradient"):
        found = teacher.features(x, layers)
        needs(set(layers) <= set(found), f"{layers}", f"{tuple(found)}")
        for name in layers:
            needs(len(found[name]) == len(x) and not found[name].requires_grad, "a row each", f"{found[name].shape}")
    with clause("size_bytes() is a number of bytes"):
        size = teacher.size_bytes()
        needs(isinstance(size, int) and size >= 0, "an int of 0 or more", repr(size))
    with clause("its state brings another one to the same answers"):
        state = teacher.state_dict()
        is_tree(state)
        other, _ = build(1)
        other.load_state_dict(state)
        other.grow(labels)
        same(other.logits(x), teacher.logits(x), 0)
        needs(bool((other.known() == teacher.known()).all()), "the same labels known", "others")


def check_gate(kind: Kind, options: Given = None, floor: float = 0.0) -> None:
    """A gate: weights per sample over hard label and teachers, whoever and however many they are.

    ``floor`` is the least weight of the hard label under these options.

    Raises:
        ContractBroken: a clause is broken; the text names it.
    """
    clause, chosen = begin("gate", kind, options)
    with clause("`make(options)` gives a torch.nn.Module"):
        gate = kind.make(chosen)
        needs(isinstance(gate, nn.Module), "a torch.nn.Module", repr(gate))
    _weighs(clause, gate, floor, "as it is made")
    with torch.no_grad():
        for seed, parameter in enumerate(gate.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    _weighs(clause, gate, floor, "after its parameters have moved")
    with clause("the gradient of its weights reaches its parameters, finite"):
        if parameters := [p for p in gate.parameters() if p.requires_grad]:
            gradients = torch.autograd.grad(gate(evidence_of(3))[:, :2].sum(), parameters, allow_unused=True)
            needs(any(g is not None for g in gradients), "a gradient to some parameter", "none")
            needs(all(g is None or bool(torch.isfinite(g).all()) for g in gradients), "finite gradients", "others")
    with clause("a state dict carries the gate over"):
        other = kind.make(chosen)
        other.load_state_dict(gate.state_dict())
        same(other(evidence_of(3)), gate(evidence_of(3)), 0)


def _maps_rows(clause: Clause, forward: Callable[[Tensor], Tensor], x: Tensor, classes: int, about: str) -> None:
    with clause(f"it maps [batch, *shape] to finite logits [batch, classes], {about}"):
        whole = forward(x)
        shaped(whole, (len(x), classes))
    with clause(f"each row is answered by itself: a batch has the answers of its parts, {about}"):
        same(torch.cat([forward(x[:1]), forward(x[1:])]), whole)


def _answers(clause: Clause, teacher: Teacher, x: Tensor, labels: Sequence[Label]) -> None:
    about = f"over {len(labels)} labels"
    _maps_rows(clause, teacher.logits, x, len(labels), about)
    with clause(f"its answers carry no gradient, {about}"):
        needs(not teacher.logits(x).requires_grad, "no gradient", "one")
    with clause(f"known() is a bool per label, {about}"):
        known = teacher.known()
        needs(known.dtype == torch.bool and tuple(known.shape) == (len(labels),), f"[{len(labels)}]", f"{known}")


def _weighs(clause: Clause, gate: nn.Module, floor: float, about: str) -> None:
    for teachers in (0, 1, 3, 6):
        evidence = evidence_of(teachers)
        with clause(f"rows of weights are not negative and sum to 1, {teachers} teachers, {about}"):
            weights = gate(evidence)
            shaped(weights, (len(evidence.labels), 1 + teachers))
            needs(bool((weights >= 0).all()), "no negative weight", f"{weights.min()}")
            same(weights.sum(1), torch.ones(len(evidence.labels)))
        with clause(f"the hard label never falls below the floor {floor}, {teachers} teachers, {about}"):
            needs(bool((weights[:, 0] >= floor - 1e-6).all()), f"at least {floor}", f"{weights[:, 0].min()}")
        with clause(f"only teachers that are heard have weight, {teachers} teachers, {about}"):
            needs(not bool((weights[:, 1:] * ~evidence.heard).any()), "0 where a teacher is not heard", f"{weights}")
        with clause(f"each sample is weighed by itself, {teachers} teachers, {about}"):
            same(torch.cat([gate(part_of(evidence, slice(0, 2))), gate(part_of(evidence, slice(2, None)))]), weights)
    evidence, weights = evidence_of(3), gate(evidence_of(3))
    with clause(f"permuting the teachers permutes their weights, {about}"):
        same(gate(of_teachers(evidence, [2, 0, 1]))[:, 1:], weights[:, 1:][:, [2, 0, 1]])
    with clause(f"a teacher that is never heard is as good as gone, {about}"):
        known, heard = evidence.known.clone(), evidence.heard.clone()
        known[:, 1], heard[:, 1] = False, False
        deaf = dataclasses.replace(evidence, known=known, heard=heard)
        same(gate(deaf)[:, [0, 1, 3]], gate(of_teachers(deaf, [0, 2])))
    with clause(f"rows without label listen to teachers alone, {about}"):
        labels = evidence.labels.clone()
        labels[::2] = -1
        heard = torch.where((labels < 0).unsqueeze(1), evidence.known.any(2), evidence.heard)
        silent = dataclasses.replace(evidence, labels=labels, heard=heard)
        shaped(gate(silent), (len(labels), 4))
        same(gate(silent)[labels < 0].sum(1), heard[labels < 0].any(1).float())
        needs(not bool(gate(silent)[labels < 0][:, 0].any()), "no weight for a label that is not there", "some")
        same(gate(silent)[labels >= 0], weights[labels >= 0])
    with clause(f"extreme logits give finite weights, {about}"):
        extreme = dataclasses.replace(evidence, logits=evidence.logits * 1e4, answers=evidence.answers * 1e4)
        shaped(gate(extreme), (len(evidence.labels), 4))
