"""Optimisers of the student: built from names, their state as plain tensors by parameter index."""

import inspect
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

Name = Literal["sgd", "adam", "adamw"]

# torch keeps its compiler out of these methods, and imports it for that at the first call
for _method in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
    if (_plain := getattr(getattr(torch.optim.Optimizer, _method), "__wrapped__", None)) is not None:
        vars(_plain).setdefault("__dynamo_disable", _plain)


def _uncompiled(kind: type[torch.optim.Optimizer]) -> type[Any]:
    """The optimiser whose step does not import torch's compiler, to tell it where to stop: 1.1 s of the processor at
    every start of a learner that compiles nothing.
    """
    return type(kind.__name__, (kind,), {"step": torch.no_grad()(inspect.unwrap(kind.step))})


SGD, Adam, AdamW = map(_uncompiled, (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW))


def build(
    name: Name,
    parameters: Iterable[nn.Parameter],
    *,
    learning_rate: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """SGD (with momentum, Nesterov), Adam (decay in the gradient) or AdamW (decoupled decay).

    Adam's update is one fused pass where torch has one: half the time of the step-by-step form on a CPU.
    """
    parameters = list(parameters)
    if name == "sgd":
        return SGD(parameters, lr=learning_rate, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    kind = Adam if name == "adam" else AdamW
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return kind(parameters, lr=learning_rate, weight_decay=weight_decay, fused=fused)


class RateDecay:
    """The learning rate begins ``start`` times as high and settles: η_t = η·(1 + (start - 1)·exp(-t / steps)).

    A stream has no end that a schedule could aim at, but it has a beginning, where there is most to learn.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, start: float, steps: int) -> None:
        self._optimizer, self.start, self.steps = optimizer, start, steps
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]
        self.taken = 0
        self._apply()

    def step(self) -> None:
        """One step has been taken."""
        if self.start != 1.0:
            self.taken += 1
            self._apply()

    def _apply(self) -> None:
        factor = 1.0 + (self.start - 1.0) * math.exp(-self.taken / self.steps)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = state["taken"]
        self._apply()


def state_of(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """The moments of each parameter by its index, without rates."""
    return {str(index): dict(moments) for index, moments in optimizer.state_dict()["state"].items()}


def restore(optimizer: torch.optim.Optimizer, state: dict[str, dict[str, Any]], first: int | None = None) -> None:
    """Put moments back, those of the ``first`` parameters or all; the rates stay those that it was built with."""
    groups = optimizer.state_dict()["param_groups"]
    moments = {int(index): dict(moment) for index, moment in state.items() if first is None or int(index) < first}
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


@torch.no_grad()
def follow(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], origin: Sequence[Tensor]
) -> list[Tensor]:
    """Catch up with parameters that have grown in place, at their ends: moments get 0 there.

    ``origin``, where the parameters began, gets the values that the new parts have now; returns it.
    """
    caught = []
    for parameter, begun in zip(parameters, origin, strict=True):
        if begun.shape != parameter.shape:
            old = tuple(slice(n) for n in begun.shape)
            for name, moment in optimizer.state.get(parameter, {}).items():
                if isinstance(moment, Tensor) and moment.shape == begun.shape:
                    wider = optimizer.state[parameter][name] = torch.zeros_like(parameter)
                    wider[old] = moment
            wider = parameter.detach().clone()
            wider[old] = begun
            begun = wider
        caught.append(begun)
    return caught
