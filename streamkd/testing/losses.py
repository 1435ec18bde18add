"""The contract of losses: what they give the student, and what they give the gate."""

import copy
import dataclasses

import torch
from torch import Tensor

from streamkd.hookspecs import Kind
from streamkd.losses.match_gate import Gated, Loss, LossInputs, Relating, Trained
from streamkd.testing.clauses import Clause, Given, begin, needs, same, shaped
from streamkd.testing.specimens import (
    lesson_for,
    picked,
    reclassed,
    shapes_of,
    silenced,
    taught_by,
    turn,
    unlabelled,
)


def check_loss(kind: Kind, options: Given = None, feature_shape: tuple[int, ...] = (4, 6, 6)) -> None:
    """A loss: one finite value per sample, from that sample alone, whose gradient is its derivative.

    Layers that it names are filled with random outputs of ``feature_shape``, the teachers' twice as wide where the loss
    has parameters (``Trained``). A loss of relations says so (``Relating``). What it gives the gate (``Gated``) is
    checked too, and one that gives nothing must not read the gate's weights but for what a row counts.

    Raises:
        ContractBroken: a clause is broken; the text names it.
    """
    clause, chosen = begin("loss", kind, options)
    with clause(
        "`make(options)` gives a loss that says its layers",
        "attributes layers = () and teacher_layers = {}; prepare() and parameters() together; relating = True, or none",
    ):
        loss = kind.make(chosen)
        for layer in (*loss.layers, *(layer for layers in loss.teacher_layers.values() for layer in layers)):
            needs(isinstance(layer, str), "names of layers", repr(layer))
        has = [name for name in ("prepare", "parameters") if hasattr(loss, name)]
        needs(len(has) != 1, "prepare() and parameters()", f"{has} alone, which is never called")
        needs(
            getattr(loss, "relating", True) is True,
            "relating = True, or no such attribute",
            repr(getattr(loss, "relating", None)),
        )
    lesson = lesson_for(loss, feature_shape, teachers=3)
    if isinstance(loss, Trained):
        lesson = _prepared(clause, loss, lesson)
    values = _values(clause, loss, lesson)
    _by_sample(clause, loss, lesson, values)
    _by_teacher(clause, loss, lesson, values)
    _by_label(clause, loss, lesson)
    _derived(clause, loss, lesson)
    _by_weight(clause, loss, lesson, values)
    if isinstance(loss, Gated):
        _credits(clause, loss, lesson)
    with clause("no value is negative", "add what makes the best answer's loss 0; a reward is 1 minus itself"):
        needs(bool((values >= -1e-9).all()), "values of 0 or more", f"{float(values.detach().min()):.3g}")


def _values(clause: Clause, loss: Loss, lesson: LossInputs) -> Tensor:
    with clause("it gives one finite value per sample", "take no mean: the step does that"):
        values = loss(lesson)
        shaped(values, (len(lesson.labels),))
        needs(values.dtype == lesson.logits.dtype, f"{lesson.logits.dtype}, as the logits are", f"{values.dtype}")
    with clause("it leaves its lesson as it is", "no operations in place (div_, clamp_) on what the lesson holds"):
        shown = copy.deepcopy(lesson)
        loss(shown)
        for field in ("logits", "labels", "answers", "known", "weights"):
            same(getattr(shown, field), getattr(lesson, field), 0)
        for name, value in lesson.features.items():
            same(shown.features[name], value, 0)
    with clause(
        "of the same lesson it says the same, whatever came between", "keep nothing from call to call; draw nothing"
    ):
        loss(picked(lesson, turn(lesson)))
        same(loss(lesson), values, 0)
    return values


def _by_sample(clause: Clause, loss: Loss, lesson: LossInputs, values: Tensor) -> None:
    if isinstance(loss, Relating):
        with clause("the order of the samples does not matter", "compare every sample with every other"):
            same(loss(picked(lesson, turn(lesson))), values[turn(lesson)])
    else:
        with clause(
            "the value of a sample does not depend on the others", "no mean over the batch, or say relating = True"
        ):
            alone = [loss(picked(lesson, torch.tensor([row]))) for row in range(len(lesson.labels))]
            same(torch.cat(alone), values)


def _by_teacher(clause: Clause, loss: Loss, lesson: LossInputs, values: Tensor) -> None:
    with clause("the order of the teachers does not matter", "know teachers by name, in lesson.teachers"):
        same(loss(taught_by(lesson, [2, 0, 1])), values)
    with clause(
        "a teacher that knows nothing and has no weight is as good as gone",
        "mask by lesson.known: `soft_of(lesson, T)`",
    ):
        weights, known = lesson.weights.clone(), lesson.known.clone()
        weights[:, 2], known[:, 1] = 0.0, False
        deaf = dataclasses.replace(lesson, weights=weights / weights.sum(1, keepdim=True), known=known)
        same(loss(deaf), loss(taught_by(deaf, [0, 2])))
    with clause("a lesson that says that it is complete costs what it would without", "use it to spare masks alone"):
        whole = dataclasses.replace(lesson, known=torch.ones_like(lesson.known))
        same(loss(dataclasses.replace(whole, complete=True)), loss(whole))
    with clause(
        "without teachers, and with extreme logits, it stays finite", "log_softmax; no division by their number"
    ):
        shaped(loss(taught_by(lesson, [])), (len(lesson.labels),))
        shaped(loss(dataclasses.replace(lesson, logits=lesson.logits * 1e4)), (len(lesson.labels),))


def _by_label(clause: Clause, loss: Loss, lesson: LossInputs) -> None:
    silent = unlabelled(lesson)
    with clause(
        "a row without label (-1, no weight on it; perhaps no weight at all) stays finite",
        "-1 is no column: `streamkd.losses.match_gate.cross_entropy`",
    ):
        shaped(loss(silent), (len(lesson.labels),))
    with clause(
        "a row without label teaches no class of its own: with the classes in another order it costs the same",
        "-1 is no column, neither the last class nor, clamped, the first: `cross_entropy` gives 0 there",
    ):
        same(loss(reclassed(silent)), loss(silent))


def _by_weight(clause: Clause, loss: Loss, lesson: LossInputs, values: Tensor) -> None:
    with clause(
        "one that reads how the gate weighs its sources is Gated: it has per_source()",
        "add per_source(lesson), the loss's slope in each weight; without it read only lesson.weights.sum(1)",
    ):
        if not isinstance(loss, Gated):
            same(loss(dataclasses.replace(lesson, weights=lesson.weights.flip(1))), values)
    with clause(
        "a row whose weights are all 0 is held out: it teaches nothing",
        "multiply by lesson.weights, or by lesson.weights.sum(1), what each row counts",
    ):
        inputs, seen = _followed(silenced(lesson))
        # of what the student does not move there is no graph
        cost = loss(seen)[0] + 0 * sum(tensor.sum() for tensor in inputs)
        for slope in torch.autograd.grad(cost, inputs):
            needs(not bool(slope.any()), "no gradient from the row", f"one of up to {float(slope.abs().max()):.3g}")


def _followed(lesson: LossInputs) -> tuple[list[Tensor], LossInputs]:
    """What a student gives, as variables, and the lesson that is made of them."""
    inputs = [lesson.logits, *lesson.features.values()]
    inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    given = dict(zip(lesson.features, inputs[1:], strict=True))
    return inputs, dataclasses.replace(lesson, logits=inputs[0], features=given)


def _derived(clause: Clause, loss: Loss, lesson: LossInputs) -> None:
    with clause(
        "its gradient is its derivative, and reaches the student", "no detach() or argmax on logits and features"
    ):
        names = list(lesson.features)
        inputs, seen = _followed(lesson)

        def total(logits: Tensor, *features: Tensor) -> Tensor:
            given = dict(zip(names, features, strict=True))
            return loss(dataclasses.replace(seen, logits=logits, features=given)).sum()

        gradients = torch.autograd.grad(total(*inputs), inputs, allow_unused=True)
        needs(any(g is not None and bool(g.any()) for g in gradients), "a gradient to logits or features", "none")
        torch.autograd.gradcheck(total, inputs, fast_mode=True)
    if isinstance(loss, Trained) and (parameters := [*loss.parameters()]):
        with clause("its parameters get finite gradients", "let each take part in the loss; no detach() on its way"):
            for gradient in torch.autograd.grad(loss(lesson).sum(), parameters, allow_unused=True):
                needs(gradient is not None, "a gradient to each parameter", "none to one")
                needs(gradient is None or bool(gradient.isfinite().all()), "finite gradients", f"{gradient}")


def _prepared(clause: Clause, loss: Trained, lesson: LossInputs) -> LossInputs:
    """The loss with parameters for its layers, in float64; teachers' layers are made wider, so that it needs some."""
    wider = {
        key: {name: torch.cat([value, -value], 1) for name, value in layers.items()}
        for key, layers in lesson.teacher_features.items()
    }
    with clause(
        "prepare(student's shapes, teachers' shapes) makes parameters(), the same each time",
        "draw their first numbers from a generator with a fixed seed",
    ):
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


def _credits(clause: Clause, loss: Gated, lesson: LossInputs) -> None:
    """``per_source`` against the derivative of the loss by each weight, both derived by what the student gives."""
    with clause("per_source(lesson) is a finite number per sample and source", "column 0 is the hard label"):
        table = loss.per_source(lesson)
        shaped(table, tuple(lesson.weights.shape))
    with clause(
        "without a source's weight, and on rows without label, per_source stays finite",
        "mask by lesson.known and lesson.labels >= 0, before a logarithm",
    ):
        shaped(loss.per_source(unlabelled(lesson)), tuple(lesson.weights.shape))
    with clause(
        "per_source is the loss's slope in each weight, as far as the student moves it",
        "derive the loss by lesson.weights, in operations that have a gradient",
    ):
        inputs, seen = _followed(lesson)
        weights = lesson.weights.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(
            loss(dataclasses.replace(seen, weights=weights)).sum(), weights, create_graph=True
        )
        rest = slope - loss.per_source(seen)
        probe = torch.linspace(-1, 1, rest.numel(), dtype=rest.dtype).reshape(rest.shape)
        # of what the student does not move there is no graph
        total = (rest * probe).sum() + 0 * sum(tensor.sum() for tensor in inputs)
        for gradient in torch.autograd.grad(total, inputs):
            same(gradient, torch.zeros_like(gradient))
    with clause(
        "per_source of a label that is not there, and of a teacher that knows nothing, teaches nothing",
        "0 where a source says nothing: mask by lesson.known and lesson.labels >= 0",
    ):
        inputs, seen = _followed(unlabelled(lesson))
        silent = torch.cat([(seen.labels < 0).unsqueeze(1), ~seen.known.any(2)], 1)
        cost = loss.per_source(seen)[silent].sum() + 0 * sum(tensor.sum() for tensor in inputs)
        for slope in torch.autograd.grad(cost, inputs):
            needs(not bool(slope.any()), "no gradient", f"one of up to {float(slope.abs().max()):.3g}")
