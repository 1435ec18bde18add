"""The learned optimiser: a rule that every coordinate shares, and how it is trained."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from streamkd_baselines import learned_optimizer
from streamkd_baselines.learned_optimizer import SHARPNESS, LearnedOptimizer, Rule, preprocess
from torch import nn


def _bowl(seed: int) -> tuple[nn.Parameter, torch.Tensor]:
    """A point and the scales of a quadratic around 0."""
    g = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.randn(6, generator=g)), torch.rand(6, generator=g) + 0.1


def _descend(optimizer: torch.optim.Optimizer, point: nn.Parameter, scales: torch.Tensor, steps: int) -> float:
    for _ in range(steps):
        optimizer.zero_grad()
        (scales * point**2).sum().backward()
        optimizer.step()
    return float((scales * point**2).sum().detach())


@given(st.floats(-1e6, 1e6).filter(bool))
def test_preprocessing_is_that_of_the_paper(gradient: float) -> None:
    """Appendix A: (log|g|/p, sign g) from e⁻ᵖ on, else (-1, eᵖg)."""
    got = preprocess(torch.tensor([gradient]))[0]
    g = torch.tensor(gradient).item()
    if abs(g) >= math.exp(-SHARPNESS):
        want = (math.log(abs(g)) / SHARPNESS, math.copysign(1, g))
    else:
        want = (-1.0, math.exp(SHARPNESS) * g)
    assert got.tolist() == pytest.approx(want, rel=1e-4, abs=1e-5)


def test_untrained_it_descends_by_sign() -> None:
    """Before it is trained, each coordinate moves by the rate against its gradient's sign."""
    point, scales = _bowl(0)
    before = point.detach().clone()
    _descend(LearnedOptimizer([point], Rule(0.01).eval()), point, scales, 1)
    torch.testing.assert_close(point.detach(), before - 0.01 * before.sign())


def test_coordinates_share_one_rule() -> None:
    """Permuting the coordinates permutes the step."""
    rule = Rule()
    nn.init.normal_(rule.out.weight, generator=torch.Generator().manual_seed(0))
    gradient, order = torch.randn(8), torch.randperm(8)
    whole, _ = rule(gradient, rule.fresh(8))
    turned, _ = rule(gradient[order], rule.fresh(8))
    torch.testing.assert_close(turned, whole[order])


def test_training_the_rule_pays() -> None:
    """A rule trained on some bowls ends lower on another than the untrained one."""
    rule = Rule(0.05)
    for seed in range(25):
        point, scales = _bowl(seed)
        _descend(LearnedOptimizer([point], rule, 0.01), point, scales, 16)
    ends = []
    for candidate in (Rule(0.05), rule):
        point, scales = _bowl(999)
        ends.append(_descend(LearnedOptimizer([point], candidate.eval()), point, scales, 16))
    assert ends[1] < ends[0]


def test_the_slope_to_the_rule_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a linear loss, whose gradient does not move, the surrogate's derivative is that of the summed outer loss."""
    g = torch.tensor([0.3, -2.0, 1.5])
    rule, point = Rule().double(), nn.Parameter(torch.zeros(3, dtype=torch.float64))
    nn.init.normal_(rule.out.weight, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(learned_optimizer, "WINDOW", 10**6)
    trainer = LearnedOptimizer([point], rule)
    for _ in range(4):
        point.grad = g.double()
        trainer.step()
    assert trainer._surrogate is not None
    found = torch.autograd.grad(trainer._surrogate, list(rule.parameters()), retain_graph=True)
    unit, state = g.double() / g.double().norm(), rule.fresh(3)
    total, at = torch.zeros((), dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for step in range(4):
        total = total + (unit * at).sum() if step else total
        delta, state = rule(g.double(), state)
        at = at + delta
    wanted = torch.autograd.grad(total, list(rule.parameters()))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_the_slope_to_the_rule_follows_a_parameter_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has come at its ends has not moved before: of the earlier steps the old part alone counts."""
    rule, point = Rule().double(), nn.Parameter(torch.zeros(2, 1, dtype=torch.float64))
    nn.init.normal_(rule.out.weight, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(learned_optimizer, "WINDOW", 10**6)
    trainer = LearnedOptimizer([point], rule)
    first, second = torch.tensor([[0.3], [-2.0]]).double(), torch.tensor([[0.5, 1.0], [-1.0, 2.0], [3.0, 0.1]]).double()
    point.grad = first
    trainer.step()
    point.data, point.grad = torch.zeros(3, 2, dtype=torch.float64), None
    point.grad = second
    trainer.step()
    assert trainer._surrogate is not None
    found = torch.autograd.grad(trainer._surrogate, list(rule.parameters()))
    delta, _ = rule(first.flatten(), rule.fresh(2))
    total = ((second / second.norm())[:2, 0] * delta).sum()
    # the LSTM itself has seen nothing before the first step
    wanted = torch.autograd.grad(total, list(rule.parameters()), materialize_grads=True, allow_unused=True)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_the_graph_ends_with_the_episode() -> None:
    """What was moved in one is not judged by the gradients of the next; the rule's state goes on."""
    point, scales = _bowl(0)
    optimizer = LearnedOptimizer([point], Rule())
    _descend(optimizer, point, scales, 3)
    assert optimizer._surrogate is not None
    optimizer.begin_stream(["ema"])
    assert optimizer._surrogate is None
    assert not optimizer.state[point]["hidden"].requires_grad
    assert optimizer.state[point]["hidden"].abs().sum() > 0
