"""What a student, a gate and a loss say, checked to be what a step can go on with: each is named where it is not.

student ─► logits [batch, classes]    gate ─► weights [batch, 1 + teachers]    loss ─► values [batch]
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from streamkd.errors import PluginError
from streamkd.gates.gate import Gate, GateInputs
from streamkd.losses.match_gate import Loss, LossInputs
from streamkd.process import lacks_memory
from streamkd.strikes import blame
from streamkd.students.networks import Student

if TYPE_CHECKING:
    from streamkd.learning.step import Step

ORDINARY = 1e4  # logits below it overflow in no formula that is right


def logits_of(student: Student, x: Tensor) -> Tensor:
    """The student's; without them nothing can be learned.

    Raises:
        PluginError: it fails.
    """
    try:
        logits = student(x)
        if logits.shape != (len(x), student.classes):
            raise PluginError(f"needed logits {[len(x), student.classes]}, got {told(logits)}")
    except Exception as fault:
        if lacks_memory(fault):
            raise
        raise blame(f"student {type(student.body).__name__}", "forward", fault) from fault
    return logits


def weights_by(gate: Gate, evidence: GateInputs) -> Tensor:
    """What a gate says of a step.

    Raises:
        PluginError: it is no weight for each row's label and teachers.
    """
    weights = gate(evidence)
    needed = (len(evidence.labels), 1 + len(evidence.teachers))
    if not isinstance(weights, Tensor) or weights.shape != needed or not weights.is_floating_point():
        raise PluginError(f"needed weights [batch, 1 + teachers] = {list(needed)}, got {told(weights)}")
    return weights


def value_by(loss: Loss, lesson: LossInputs) -> Tensor:
    """What a loss says of a step.

    Raises:
        PluginError: it is no value for each row.
    """
    value = loss(lesson)
    if not isinstance(value, Tensor) or value.shape != lesson.labels.shape:
        raise PluginError(f"needed one value per sample, [batch] = {[len(lesson.labels)]}, got {told(value)}")
    return value


def told(value: Any) -> str:
    """What came, in a few words."""
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else f"{value!r:.80}"


@torch.no_grad()
def strike_who_is_not_finite(step: "Step", lesson: LossInputs, seen: Sequence[LossInputs]) -> None:
    """Where student and teachers said ordinary numbers, the gate or a loss has made others of them.

    ``seen`` is the lesson as each term has it.
    """
    if not bool(lesson.logits.abs().max() < ORDINARY):
        return
    if not bool(lesson.weights.isfinite().all()):
        fault = PluginError("needed finite weights, got some that are not", fix="mask who is not heard, then divide")
        step.gate_strikes.strike(step.gate_name, "forward", fault)
        return
    for term, its in zip(step.terms, seen, strict=True):
        if step.loss_strikes.off(term.name) or bool(term.loss(its).isfinite().all()):
            continue
        fault = PluginError("needed finite values, got some that are not", fix="use log_softmax, clamp logarithms")
        step.loss_strikes.strike(term.name, "loss", fault)
