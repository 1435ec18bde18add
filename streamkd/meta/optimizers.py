"""What moves the gate along its hypergradient: Adam, or an optimiser of a plugin, whose rule may have been learned.

``streamkd meta-train`` teaches a rule over its episodes and keeps it in the artefact; the stream that begins from it
loads the rule and leaves it as it is.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from streamkd.hookspecs import Kind, Options, hookimpl
from streamkd.students.optimizers import build


@runtime_checkable
class Ruled(Protocol):
    """An optimiser that moves parameters by a learned ``rule``, which its steps teach while it is in training mode."""

    rule: nn.Module


def adam(parameters: Sequence[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """Adam, fused where torch has that."""
    return build("adam", parameters, learning_rate=learning_rate)


@hookimpl
def streamkd_optimizers() -> Iterable[Kind]:
    """The built-in one."""
    yield Kind("adam", lambda options, *given: adam(*given), Options, "Adam")
