"""The terms of the student's loss: each a loss with its weight, and perhaps a gate of its own.

prepare    layers of student and teachers ─► shapes ─► the losses' own parameters, for the optimiser
total      LossInputs ─► Σ weight · mean over the rows
state_of   what a checkpoint keeps of them
"""

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamkd.errors import PluginError
from streamkd.gates.gate import Gate, GateInputs
from streamkd.learning import checked
from streamkd.losses.match_gate import Loss, LossInputs, MatchGate, MatchGateOptions, Trained
from streamkd.records import RecordSchema
from streamkd.strikes import Strikes
from streamkd.students.networks import Student, at_rest, torch_dtype
from streamkd.teachers.pool import Pool
from streamkd.teachers.teacher import layer_outputs

BUILT_IN = MatchGate(MatchGateOptions())
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Term:
    """One loss with its weight; ``gate`` weighs its sources, or else the step's gate does."""

    loss: Loss
    weight: float
    gate: Gate | None = None
    name: str = "loss"


def layers_of(terms: Sequence[Term]) -> tuple[str, ...]:
    """The student's layers that the losses want to see."""
    return tuple(sorted({name for term in terms for name in term.loss.layers}))


def teacher_layers_of(terms: Sequence[Term]) -> dict[str, tuple[str, ...]]:
    """The layers of each teacher that the losses want to see."""
    merged: dict[str, set[str]] = {}
    for term in terms:
        for key, layers in term.loss.teacher_layers.items():
            merged.setdefault(key, set()).update(layers)
    return {key: tuple(sorted(layers)) for key, layers in merged.items()}


@torch.no_grad()
def prepare(terms: Sequence[Term], student: Student, pool: Pool, schema: RecordSchema) -> list[nn.Parameter]:
    """Show the losses the shapes of the layers that they named; the parameters that they made, on the student's device.

    One record of zeros goes through the student and the named teachers, in evaluation mode.

    Raises:
        PluginError: a layer or a teacher is not there, or layers cannot be compared.
    """
    layers, theirs = layers_of(terms), teacher_layers_of(terms)
    x = torch.zeros(1, *schema.shape, dtype=torch_dtype[schema.dtype.name], device=next(student.parameters()).device)
    with at_rest(student):
        ours = _shapes(layer_outputs(student, x, layers)) if layers else {}
    shown = {key: _shapes(outputs) for key, outputs in pool.features(x, theirs).items()}
    for key, names in theirs.items():
        _refuse_hidden(key, names, shown[key])
    for term in terms:
        if isinstance(term.loss, Trained):
            term.loss.prepare(ours, shown)
    made = parameters_of(terms)
    for parameter in made:
        parameter.data = parameter.data.to(x.device)
    return made


def _shapes(outputs: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(output.shape[1:]) for name, output in outputs.items()}


def _refuse_hidden(key: str, names: Iterable[str], shown: Mapping[str, Any]) -> None:
    hidden = [name for name in names if name not in shown]
    if hidden:
        raise PluginError(
            f"the teacher {key!r} shows no layer {hidden[0]!r}",
            where="losses",
            fix="name a layer within it if it only holds others (a list of layers is never called), or a teacher "
            "that is a network",
        )


def parameters_of(terms: Sequence[Term]) -> list[nn.Parameter]:
    """The parameters that belong to losses, in the order of the terms."""
    return [p for term in terms if isinstance(term.loss, Trained) for p in term.loss.parameters()]


def own_weights(terms: Sequence[Term], evidence: GateInputs, strikes: Strikes) -> dict[int, Tensor]:
    """By the place of each term with a gate of its own: that gate's weights [batch, 1 + teachers].

    One that fails has none: the step's are the term's then.
    """
    said: dict[int, Tensor] = {}
    for place, term in enumerate(terms):
        if term.gate is not None:
            weights = strikes.call(f"of {term.name}", "forward", checked.weights_by, term.gate, evidence)
            said |= {} if weights is None else {place: weights}
    return said


def total(terms: Sequence[Term], lesson: LossInputs, strikes: Strikes | None = None) -> Tensor:
    """Σ weight · mean over the rows, each term under its own gate's weights or the lesson's.

    Without terms that fail; where all do, the student learns by the built-in loss.
    """
    if strikes is None:
        parts = [term.weight * term.loss(seen(lesson, place)).mean() for place, term in enumerate(terms)]
        return sum(parts[1:], parts[0])
    parts = []
    for place, term in enumerate(terms):
        value = strikes.call(term.name, "loss", checked.value_by, term.loss, seen(lesson, place))
        parts += [] if value is None else [term.weight * value.mean()]
    return sum(parts[1:], parts[0]) if parts else BUILT_IN(lesson).mean()


def seen(lesson: LossInputs, place: int) -> LossInputs:
    """The lesson as the term at that place sees it."""
    own = lesson.own_weights.get(place)
    return lesson if own is None else dataclasses.replace(lesson, weights=own)


def state_of(terms: Sequence[Term]) -> list[dict[str, Any]]:
    """Parameters and gate of each term, as a tree for a checkpoint."""
    return [
        {
            "parameters": [p.detach() for p in parameters_of([term])],
            "gate": term.gate.state_dict() if term.gate is not None else {},
        }
        for term in terms
    ]


@torch.no_grad()
def restore(terms: Sequence[Term], state: Sequence[Mapping[str, Any]]) -> bool:
    """Put back what ``state_of`` said; ``False``: an adapter no longer fits its layers, and begins anew."""
    fitting = len(terms) == len(state)
    for term, saved in zip(terms, state, strict=False):
        if term.gate is not None:
            term.gate.load_state_dict(saved["gate"])
        mine, before = parameters_of([term]), saved["parameters"]
        if [p.shape for p in mine] != [p.shape for p in before]:
            logger.warning("an adapter of a loss no longer fits the layers that it joins, and begins anew")
            fitting = False
            continue
        for parameter, value in zip(mine, before, strict=True):
            parameter.copy_(value)
    return fitting
