"""Optimisers by name: rates that differ by parameter."""

import math

import pytest
import torch
from torch import nn

from streamkd.students import optimizers


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_factors_scale_each_parameter_s_own_step(name: str) -> None:
    """A parameter with factor f moves as one whose whole optimiser has f times the rate; those behind have 1."""
    factors = [2.0, 2.0, 0.5]
    torch.manual_seed(0)
    begun = [torch.randn(3) for _ in range(4)]
    gradients = [torch.randn(3) for _ in range(4)]

    def moved(rate: float, factors: list[float]) -> list[torch.Tensor]:
        parameters = [nn.Parameter(p.clone()) for p in begun]
        optimizer = optimizers.build(name, parameters, learning_rate=rate, factors=factors)  # type: ignore[arg-type]
        for _ in range(3):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
        return [p.detach() for p in parameters]

    ours = moved(0.01, factors)
    for place, factor in enumerate([*factors, 1.0]):
        torch.testing.assert_close(ours[place], moved(0.01 * factor, [])[place])


def test_groups_keep_the_order_of_parameters() -> None:
    """State goes by a parameter's place whatever the factors: it is restored into the same parameters."""
    parameters = [nn.Parameter(torch.full((2,), float(n))) for n in range(4)]
    optimizer = optimizers.build("adam", parameters, learning_rate=0.1, factors=[1.0, 3.0, 1.0])
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert all(p is q for p, q in zip(parameters, held, strict=True))
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.3, 0.1])
    assert len(optimizers.build("adam", parameters, learning_rate=0.1).param_groups) == 1


def test_a_settling_rate_comes_down_to_its_own() -> None:
    """η·(1 + (start - 1)·exp(-t/steps)) in every group, from start·η to η."""
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))]
    optimizer = optimizers.build("sgd", parameters, learning_rate=0.1, factors=[0.5, 1.0])
    rate_decay = optimizers.RateDecay(optimizer, start=3.0, steps=20)
    rates = []
    for _ in range(200):
        rates.append([group["lr"] for group in optimizer.param_groups])
        rate_decay.step()
    assert rates[0] == pytest.approx([0.15, 0.3])
    assert rates[20] == pytest.approx([0.05 * (1 + 2 / math.e), 0.1 * (1 + 2 / math.e)])
    assert rates[-1] == pytest.approx([0.05, 0.1], rel=1e-3)


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
