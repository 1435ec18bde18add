"""The contract of optimisers of the gate: downhill, also as the gate grows, and the same after a restart."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from streamkd.hookspecs import Kind, Options
from streamkd.meta.optimizers import Ruled
from streamkd.students import optimizers
from streamkd.testing.clauses import Clause, Given, begin, carried, needs, same

RATE, STEPS = 0.01, 40


def check_optimizer(kind: Kind, options: Given = None) -> None:
    """An optimiser: over a bowl it goes down, and leaves alone what has no gradient; its rule, if it has one, learns.

    Raises:
        ContractBroken: a clause is broken; the text names it.
    """
    clause, chosen = begin("optimizer", kind, options)
    with clause(
        "`make(options, parameters, learning_rate)` gives a torch.optim.Optimizer of these parameters",
        "subclass torch.optim.Optimizer and hand the parameters to its __init__",
    ):
        point = _point()
        optimizer = kind.make(chosen, point, RATE)
        needs(isinstance(optimizer, torch.optim.Optimizer), "a torch.optim.Optimizer", repr(optimizer))
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        needs(held == [id(p) for p in point], "the parameters that it was given", f"{len(held)} others")
    _goes_down(clause, kind, chosen)
    with clause(
        "a parameter that has grown at its ends is moved like any other",
        "make anew whatever you keep by a parameter, and does not fit it any more",
    ):
        point = _point()
        optimizer = kind.make(chosen, point, RATE)
        origin = [p.detach().clone() for p in point]
        _descend(optimizer, point, 3)
        point[0].data = torch.cat([point[0].data, torch.ones(2, 3)])
        optimizers.follow(optimizer, point, origin)
        _descend(optimizer, point, STEPS)
        needs(float(point[0][3:].detach().mean()) < 1, "less than 1, where the new rows began", f"{point[0][3:]}")
    with clause(
        "stopped after any step and restored, it goes on as if never stopped",
        "keep all that you go by in `self.state[parameter]`, as tensors and numbers by name",
    ):
        for stop in (0, 1, 5):
            whole, part = _point(), _point()
            _descend(kind.make(chosen, whole, RATE), whole, 9)
            first = kind.make(chosen, part, RATE)
            _descend(first, part, stop)
            second = kind.make(chosen, part, RATE)
            optimizers.restore(second, carried(optimizers.state_of(first)))
            _descend(second, part, 9 - stop)
            for one, other in zip(part, whole, strict=True):
                same(one, other, 0)
    if isinstance(optimizer, Ruled):
        _learns(clause, lambda point: kind.make(chosen, point, RATE))


def _goes_down(clause: Clause, kind: Kind, options: Options) -> None:
    with clause("its steps lower what the gradients are of", "move against the gradient, by about the learning rate"):
        point = _point()
        before = float(_height(point).detach())
        _descend(kind.make(options, point, RATE), point, STEPS)
        after = float(_height(point).detach())
        needs(after < before, f"less than {before:.3g} after {STEPS} steps", f"{after:.3g}")
    with clause("a parameter without gradient stays where it is", "pass over parameters whose grad is None"):
        point, still = _point(), nn.Parameter(torch.ones(2))
        _descend(kind.make(options, [*point, still], RATE), point, 3)
        same(still, torch.ones(2), 0)
    with clause("it leaves the gradients as they are", "work on copies of them"):
        point = _point()
        _height(point).backward()
        shown = [_gradient(p).clone() for p in point]
        kind.make(options, point, RATE).step()
        for parameter, gradient in zip(point, shown, strict=True):
            same(_gradient(parameter), gradient, 0)


def _learns(clause: Clause, make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> None:
    for training in (False, True):
        with clause(
            f"its rule {'is taught by its steps in training mode' if training else 'stays as it is until then'}",
            "make it in evaluation mode; where `rule.training` is true, let step() move its weights",
        ):
            point = _point()
            optimizer = make(point)
            assert isinstance(optimizer, Ruled)  # as before, of the same options
            needs(not optimizer.rule.training, "a rule in evaluation mode", "one in training mode")
            optimizer.rule.train(training)
            before = copy.deepcopy(optimizer.rule.state_dict())
            _descend(optimizer, point, STEPS)
            now = optimizer.rule.state_dict()
            moved = any(not torch.equal(now[name], value) for name, value in before.items())
            needs(moved is training, "weights that move" if training else "the same weights", "the other")


def _point() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(1 + torch.rand(shape, generator=generator)) for shape in ((3, 3), (4,))]


def _height(point: list[nn.Parameter]) -> Tensor:
    """A bowl around 0, steeper along some coordinates than along others."""
    return sum(((1 + torch.arange(p.numel()).view_as(p)) * p**2).sum() for p in point) / 10  # type: ignore[return-value]


def _descend(optimizer: torch.optim.Optimizer, point: list[nn.Parameter], steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        _height(point).backward()
        optimizer.step()


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None  # of a height that depends on every parameter
    return parameter.grad
