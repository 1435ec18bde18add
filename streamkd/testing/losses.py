"""The contract of losses: what they give the student, and what they give the gate."""

import dataclasses

import torch
from torch import Tensor

from streamkd.distill.losses import Gated, Lesson, Relating, Trained
from streamkd.hookspecs import Kind
from streamkd.testing.clauses import Clause, Given, begin, needs, same, shaped
from streamkd.testing.specimens import lesson_for, row_of, shapes_of, taught_by, turn, turned, unlabelled


def check_loss(kind: Kind, options: Given = None, feature_shape: tuple[int, ...] = (4, 6, 6)) -> None:
    """A loss: one finite value per sample, from that sample alone, whose gradient is its derivative.

    Layers that it names are filled with random outputs of ``feature_shape``, the teachers' twice as wide where the loss
    has parameters (``Trained``). A loss of relations says so (``Relating``). What it gives the gate (``Gated``) is
    checked too.

    Raises:
        ContractBroken: a clause is broken; the text names it.
    """
    clause, chosen = begin("loss", kind, options)
    with clause("`make(options)` gives a loss that says its layers"):
        loss = kind.make(chosen)
        for layer in (*loss.layers, *(layer for layers in loss.teacher_layers.values() for layer in layers)):
            needs(isinstance(layer, str), "names of layers", repr(layer))
    lesson = lesson_for(loss, feature_shape, teachers=3)
    if isinstance(loss, Trained):
        lesson = _prepared(clause, loss, lesson)
    with clause("it gives one finite value per sample"):
        values = loss(lesson)
        shaped(values, (len(lesson.labels),))
    if isinstance(loss, Relating):
        with clause("the order of the samples does not matter"):
            same(loss(turned(lesson)), values[turn(lesson)])
    else:
        with clause("the value of a sample does not depend on the others"):
            alone = [loss(row_of(lesson, row)) for row in range(len(lesson.labels))]
            same(torch.cat(alone), values)
    with clause("the order of the teachers does not matter"):
        same(loss(taught_by(lesson, [2, 0, 1])), values)
    with clause("a teacher that knows nothing and has no weight is as good as gone"):
        weights, known = lesson.weights.clone(), lesson.known.clone()
        weights[:, 2], known[:, 1] = 0.0, False
        deaf = dataclasses.replace(lesson, weights=weights / weights.sum(1, keepdim=True), known=known)
        same(loss(deaf), loss(taught_by(deaf, [0, 2])))
    with clause("without teachers, and with extreme logits, it stays finite"):
        shaped(loss(taught_by(lesson, [])), (len(lesson.labels),))
        shaped(loss(dataclasses.replace(lesson, logits=lesson.logits * 1e4)), (len(lesson.labels),))
    with clause("a row without label (-1, no weight on it; perhaps no weight at all) stays finite"):
        shaped(loss(unlabelled(lesson)), (len(lesson.labels),))
    with clause("its gradient is its derivative, and reaches the student"):
        names = list(lesson.features)
        inputs = [lesson.logits, *(lesson.features[name] for name in names)]
        inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]

        def total(logits: Tensor, *features: Tensor) -> Tensor:
            given = dict(zip(names, features, strict=True))
            return loss(dataclasses.replace(lesson, logits=logits, features=given)).sum()

        gradients = torch.autograd.grad(total(*inputs), inputs, allow_unused=True)
        needs(any(g is not None and bool(g.any()) for g in gradients), "a gradient to logits or features", "none")
        torch.autograd.gradcheck(total, inputs, fast_mode=True)
    if isinstance(loss, Gated):
        _credits(clause, loss, lesson)


def _prepared(clause: Clause, loss: Trained, lesson: Lesson) -> Lesson:
    """The loss with parameters for its layers, in float64; teachers' layers are made wider, so that it needs some."""
    wider = {
        key: {name: torch.cat([value, -value], 1) for name, value in layers.items()}
        for key, layers in lesson.teacher_features.items()
    }
    with clause("prepare(student's shapes, teachers' shapes) makes parameters(), the same each time"):
        made = []
        for _ in range(2):
            loss.prepare(shapes_of(lesson.features), {key: shapes_of(layers) for key, layers in wider.items()})
            made.append([parameter.detach().clone() for parameter in loss.parameters()])
        for one, other in zip(*made, strict=True):
            same(one, other, 0)
        for parameter in loss.parameters():
            needs(parameter.requires_grad, "parameters that ask for a gradient", "one that does not")
            parameter.data = parameter.data.double()
    return dataclasses.replace(lesson, teacher_features=wider)


def _credits(clause: Clause, loss: Gated, lesson: Lesson) -> None:
    """``per_source`` against the derivative of the loss by each weight, both derived by what the student gives."""
    with clause("per_source(lesson) is a finite number per sample and source"):
        table = loss.per_source(lesson)
        shaped(table, tuple(lesson.weights.shape))
    with clause("without a source's weight, and on rows without label, per_source stays finite"):
        shaped(loss.per_source(unlabelled(lesson)), tuple(lesson.weights.shape))
    with clause("per_source is the loss's slope in each weight, as far as the student moves it"):
        names = list(lesson.features)
        inputs = [lesson.logits, *(lesson.features[name] for name in names)]
        inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
        weights = lesson.weights.detach().clone().requires_grad_()
        given = dict(zip(names, inputs[1:], strict=True))
        seen = dataclasses.replace(lesson, logits=inputs[0], features=given, weights=weights)
        (slope,) = torch.autograd.grad(loss(seen).sum(), weights, create_graph=True)
        rest = slope - loss.per_source(dataclasses.replace(seen, weights=weights.detach()))
        probe = torch.linspace(-1, 1, rest.numel(), dtype=rest.dtype).reshape(rest.shape)
        # of what the student does not move there is no graph
        total = (rest * probe).sum() + 0 * sum(tensor.sum() for tensor in inputs)
        for gradient in torch.autograd.grad(total, inputs):
            same(gradient, torch.zeros_like(gradient))
