"""The learned temperature: the outer loss moves T of one gated term, as it moves the gate.

dL_out/d log T = T·Σ_ik w_ik·∂A_ik/∂T / batch,  by a central difference of readings of a slope that is there already
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from streamkd.errors import ConfigError
from streamkd.losses.match_gate import Gated, LossInputs
from streamkd.meta.jacobian import Jvp

LEAST, MOST = 0.5, 10.0  # chosen by hand


@runtime_checkable
class Tempered(Gated, Protocol):
    """A gated loss with a temperature that may be moved."""

    temperature: float


class Temperature:
    """log T as a parameter, within [0.5, 10] or as far as what was configured."""

    def __init__(self) -> None:
        self.log = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.loss: Tempered | None = None
        self.slope = 0.0
        self._bounds = (LEAST, MOST)

    @property
    def value(self) -> float | None:
        """T as it is; ``None`` before it belongs to a loss."""
        return None if self.loss is None else self.loss.temperature

    def of(self, losses: Sequence[Any]) -> None:
        """Whose it is: that of the first of these losses, whose tables the engine gives, that has one.

        Raises:
            ConfigError: none has.
        """
        self.loss = next((loss for loss in losses if isinstance(loss, Tempered)), None)
        if self.loss is None:
            raise ConfigError(
                "no gated loss has a temperature that this engine can move",
                where="adapt.temperature",
                fix="take the loss match-gate and the engine auto, or leave adapt.temperature false",
            )
        configured = float(self.loss.temperature)
        self._bounds = (min(LEAST, configured), max(MOST, configured))
        self.restore(math.log(configured))

    def note(self, weight: float, slope: Jvp, lesson: LossInputs, reach: float = 1e-3) -> None:
        """Add dL_out/d log T = T·Σ w·∂A/∂T / batch: two more readings of a slope that is there."""
        assert self.loss is not None
        here, sides = self.loss.temperature, []
        for sign in (reach, -reach):
            self.loss.temperature = here * (1 + sign)
            sides.append((slope.table(self.loss, lesson) * lesson.weights).sum())
        self.loss.temperature = here
        self.slope += float(weight * (sides[0] - sides[1]) / (2 * reach * len(lesson.labels)))

    def begin(self) -> None:
        """Hand the derivative to the optimiser."""
        self.log.grad = torch.full_like(self.log, self.slope)
        self.slope = 0.0

    def end(self) -> None:
        """The optimiser has moved it: keep it in bounds, and tell the loss."""
        low, high = map(math.log, self._bounds)
        self.restore(min(max(float(self.log), low), high))

    @torch.no_grad()
    def restore(self, log: float) -> None:
        """Take up log T, and tell the loss."""
        assert self.loss is not None
        self.log.fill_(log)
        self.loss.temperature = math.exp(log)
