"""Mistakes of optimisers of the gate."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mistakes.mistake import ALOOF, Mistake


class Descent(torch.optim.Optimizer):
    """An optimiser that is right: down the slope, with momentum."""

    def __init__(self, options: Any, parameters: Any, learning_rate: float) -> None:
        super().__init__(list(parameters), {"lr": learning_rate})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.move(parameter, group["lr"])

    def move(self, parameter: Any, rate: float) -> None:
        speed = self.state[parameter].get("speed", torch.zeros_like(parameter))
        self.state[parameter]["speed"] = 0.5 * speed + parameter.grad
        parameter.sub_(rate * self.state[parameter]["speed"])


class Taught(Descent):
    """Another that is right: with a rule."""

    def __init__(self, options: Any, parameters: Any, learning_rate: float) -> None:
        super().__init__(options, parameters, learning_rate)
        self.rule = nn.ParameterList([nn.Parameter(torch.ones(1))]).eval()

    def move(self, parameter: Any, rate: float) -> None:
        super().move(parameter, rate)
        if self.rule.training:
            self.rule[0].mul_(0.9)


class Loose:
    """No optimiser of torch's."""

    def __init__(self, options: Any, parameters: Any, learning_rate: float) -> None: ...


class Copying(Descent):
    """Moves copies."""

    def __init__(self, options: Any, parameters: Any, learning_rate: float) -> None:
        super().__init__(options, [nn.Parameter(p.detach().clone()) for p in parameters], learning_rate)


class Climbing(Descent):
    def move(self, parameter: Any, rate: float) -> None:
        super().move(parameter, -rate)


class Decaying(Descent):
    """Draws every parameter to 0, also one without gradient."""

    def step(self, closure: Any = None) -> Any:
        super().step()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.mul_(0.99)


class Clipping(Descent):
    """Clips the gradients where they lie."""

    def move(self, parameter: Any, rate: float) -> None:
        parameter.grad.clamp_(-0.1, 0.1)
        super().move(parameter, rate)


class Rigid(Descent):
    """Keeps a number of its own for each coordinate that it began with."""

    def move(self, parameter: Any, rate: float) -> None:
        kept = self.state[parameter].setdefault("kept", torch.zeros(parameter.numel()))
        self.state[parameter]["kept"] = kept + parameter.grad.flatten()
        parameter.sub_(rate * parameter.grad)


class Counting(Descent):
    """Slows down as it goes, and counts its steps where no checkpoint looks."""

    def __init__(self, options: Any, parameters: Any, learning_rate: float) -> None:
        super().__init__(options, parameters, learning_rate)
        self.count = 0

    def move(self, parameter: Any, rate: float) -> None:
        self.count += 1
        super().move(parameter, rate / self.count**0.5)


class Noisy(Descent):
    """Adds a little noise, from torch's generator."""

    def move(self, parameter: Any, rate: float) -> None:
        super().move(parameter, rate)
        parameter.add_(1e-4 * torch.randn_like(parameter))


class Restless(Taught):
    """Teaches its rule on the stream too."""

    def move(self, parameter: Any, rate: float) -> None:
        super().move(parameter, rate)
        self.rule[0].mul_(0.9)


class Dull(Taught):
    """Never teaches it."""

    def move(self, parameter: Any, rate: float) -> None:
        Descent.move(self, parameter, rate)


def optimizer(name: str, clause: str, make: Callable[..., Any]) -> Mistake:
    return Mistake("optimizers", name, clause, make)


GIVES = "`make(options, parameters, learning_rate)` gives a torch.optim.Optimizer of these parameters"
MISTAKES = (
    optimizer("no optimiser of torch's", GIVES, Loose),
    optimizer("moves copies", GIVES, Copying),
    optimizer("goes uphill", "its steps lower what the gradients are of", Climbing),
    optimizer("decays what has no gradient", "a parameter without gradient stays where it is", Decaying),
    optimizer("clips the gradients in place", "it leaves the gradients as they are", Clipping),
    optimizer("as many numbers as there were at first", "a parameter that has grown at its ends is moved", Rigid),
    optimizer("counts its steps, and has no state", "stopped after any step and restored, it goes on", Counting),
    optimizer("noise from torch's generator", ALOOF, Noisy),
    optimizer("teaches its rule on the stream", "its rule stays as it is until then", Restless),
    optimizer("never teaches its rule", "its rule is taught by its steps in training mode", Dull),
)
