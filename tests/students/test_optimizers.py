"""Optimisers by name, and the rate that comes down."""

import math

import pytest
import torch
from torch import nn

from streamkd.students import optimizers


def test_a_settling_rate_comes_down_to_its_own() -> None:
    """η·(1 + (start - 1)·exp(-t/steps)) from start·η to η."""
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))]
    optimizer = optimizers.build("sgd", parameters, learning_rate=0.1)
    rate_decay = optimizers.RateDecay(optimizer, start=3.0, steps=20)
    rates = []
    for _ in range(200):
        rates.append([group["lr"] for group in optimizer.param_groups])
        rate_decay.step()
    assert rates[0] == pytest.approx([0.3])
    assert rates[20] == pytest.approx([0.1 * (1 + 2 / math.e)])
    assert rates[-1] == pytest.approx([0.1], rel=1e-3)


def test_a_settling_rate_goes_on_where_it_was() -> None:
    """What is restored has the rate of what was never stopped."""
    kept, other = (optimizers.build("adam", [nn.Parameter(torch.zeros(2))], learning_rate=0.1) for _ in range(2))
    rate_decay, twin = optimizers.RateDecay(kept, 3.0, 10), optimizers.RateDecay(other, 3.0, 10)
    for _ in range(7):
        rate_decay.step()
    twin.load_state_dict(rate_decay.state_dict())
    assert other.param_groups[0]["lr"] == kept.param_groups[0]["lr"]


def test_a_rate_that_does_not_settle_is_left_alone() -> None:
    """Start 1 is the plain rate, also where somebody else moves it."""
    optimizer = optimizers.build("sgd", [nn.Parameter(torch.zeros(2))], learning_rate=0.1)
    rate_decay = optimizers.RateDecay(optimizer, 1.0, 10)
    optimizer.param_groups[0]["lr"] = 0.2
    rate_decay.step()
    assert optimizer.param_groups[0]["lr"] == 0.2


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_steps_are_torchs_bit_for_bit(name: optimizers.Name) -> None:
    """What keeps torch's compiler away changes no step, of parameters that need a gradient and of state."""
    theirs = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
        "adam": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.0, fused=True),
    }
    sides = []
    for make in (lambda p: optimizers.build(name, p, learning_rate=0.1), theirs[name]):
        generator = torch.Generator().manual_seed(0)
        parameters = [nn.Parameter(torch.randn(4, 3, generator=generator))]
        optimizer = make(parameters)
        for _ in range(5):
            optimizer.zero_grad()
            (parameters[0] ** 2 * torch.randn(4, 3, generator=generator)).sum().backward()
            optimizer.step()
        assert parameters[0].requires_grad
        sides.append(parameters[0].detach())
    assert torch.equal(*sides)
