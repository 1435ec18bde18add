"""What the student's optimiser says of one step of each parameter: its rates, by group."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamkd.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Rates:
    """What an optimiser's group says of one step of a parameter."""

    learning_rate: float
    weight_decay: float
    momentum: float
    nesterov: bool
    betas: tuple[float, float]
    eps: float


def rates_of(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> list[Rates]:
    """The rates of each parameter, by its group.

    Raises:
        ConfigError: the optimiser is none of SGD, Adam, AdamW, or one of their variants without a closed form here.
    """
    if not isinstance(optimizer, torch.optim.SGD | torch.optim.Adam | torch.optim.AdamW):
        raise ConfigError(
            f"the gate's hypergradient needs SGD, Adam or AdamW, got {type(optimizer).__name__}",
            where="optimizer",
            fix="take one of these, or a gate without parameters (fixed)",
        )
    by_parameter: dict[int, Rates] = {}
    for group in optimizer.param_groups:
        odd = [name for name in ("amsgrad", "dampening", "maximize") if group.get(name)]
        if odd:
            raise ConfigError(
                f"the gate's hypergradient has no closed form for {odd[0]}",
                where="optimizer",
                fix="leave it at its default, or take a gate without parameters (fixed)",
            )
        by_parameter |= dict.fromkeys(map(id, group["params"]), _rates(group))
    return [by_parameter[id(p)] for p in parameters]


def _rates(group: dict[str, Any]) -> Rates:
    beta1, beta2 = group.get("betas", (0.0, 0.0))
    return Rates(
        float(group["lr"]),
        float(group["weight_decay"]),
        float(group.get("momentum", 0.0)),
        bool(group.get("nesterov", False)),
        (float(beta1), float(beta2)),
        float(group.get("eps", 0.0)),
    )
