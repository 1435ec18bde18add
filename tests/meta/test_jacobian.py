"""Table A of each loss: the closed form of match-gate, and whatever else the gate may weigh."""

from typing import Any

import pytest
import torch
import toys
from baselines import REGISTRY
from torch import Tensor, nn

from streamkd.losses.match_gate import Gated, LossInputs, MatchGate, MatchGateOptions
from streamkd.meta import jacobian
from streamkd.testing.specimens import lesson_for


class Plain(MatchGate):
    """The same loss as a stranger to its closed form: its table is read through ``per_source``."""


def lesson(seed: int, **changes: Any) -> LossInputs:
    parts = toys.lesson(seed)
    known = [parts[key] for key in ("logits", "labels", "answers", "known", "weights")]
    return LossInputs(*known, fresh=3, **changes)


def tangent(logits: Tensor, seed: int = 1) -> jacobian.ForwardMode:
    g = torch.Generator().manual_seed(seed)
    return jacobian.ForwardMode((logits, torch.randn(logits.shape, generator=g, dtype=logits.dtype)), {})


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("unlabelled", [False, True])
def test_the_closed_form_is_the_derivative_of_each_sources_loss(seed: int, unlabelled: bool) -> None:
    """A of match-gate equals the forward-mode derivative of CE and of each T²·KL, silent teachers and -1 included."""
    seen = lesson(seed)
    if unlabelled:
        seen.labels[:2] = -1
    slope, options = tangent(seen.logits), MatchGateOptions(temperature=3.0)
    closed, read = slope.table(MatchGate(options), seen), slope.table(Plain(options), seen)
    torch.testing.assert_close(closed, read, rtol=1e-10, atol=1e-12)
    assert not closed[:2, 0].any() or not unlabelled


OF_LAYERS = ("feature", "attention", "relational", "attention-transfer")  # whose options name them
GATED = sorted(name for name in REGISTRY.names("losses") if name not in OF_LAYERS)


@pytest.mark.parametrize("name", GATED)
def test_both_ways_agree_on_every_gated_loss(name: str) -> None:
    """In float64 the central difference of each built-in loss of logits is its forward-mode table, to 1e-4."""
    kind = REGISTRY.kind("losses", name)
    loss = kind.make(kind.options())
    if not isinstance(loss, Gated):
        pytest.skip("the gate does not weigh its sources")
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    seen = lesson_for(loss, (4, 6, 6), teachers=3)
    x = torch.randn(len(seen.labels), 3, dtype=torch.float64)
    at = {key: p.detach() for key, p in student.named_parameters()}
    u = [0.1 * torch.randn_like(p) for p in at.values()]
    forward = jacobian.forward(student, x, at, u).table(loss, seen)
    difference = jacobian.difference(student, x, at, u).table(loss, seen)
    assert forward.norm() > 0
    torch.testing.assert_close(forward, difference, rtol=1e-3, atol=1e-4 * float(forward.abs().max()))


@pytest.mark.parametrize("measure", [jacobian.forward, jacobian.difference])
def test_layers_that_a_loss_names_are_read_along(measure: Any) -> None:
    """Outputs of named layers change along u as the logits do."""

    class Hint:
        layers, teacher_layers = ("0",), {}

        def __call__(self, lesson: LossInputs) -> Tensor:
            return self.per_source(lesson).sum(1)

        def per_source(self, lesson: LossInputs) -> Tensor:
            return torch.stack([lesson.features["0"].sum(1), lesson.logits.sum(1)], 1)

    student = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4, bias=False)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    at = {name: p.detach() for name, p in student.named_parameters()}
    u = [torch.zeros_like(p) for p in at.values()]
    u[1].fill_(1.0)  # the first layer's bias
    table = measure(student, x, at, u, ("0",)).table(Hint(), lesson(0))
    torch.testing.assert_close(table[:, 0], torch.full((5,), 5.0, dtype=torch.float64))
    torch.testing.assert_close(table[:, 1], student[1].weight.sum().detach().expand(5))


def test_the_pass_leaves_the_student_alone() -> None:
    """Neither way moves running statistics, nor leaves a hook behind."""
    student = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 4)).double().train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    at = {name: value.detach().clone() for name, value in student.state_dict().items()}
    u = [torch.ones_like(p) for p in student.parameters()]
    for measure in (jacobian.forward, jacobian.difference):
        measure(student, torch.randn(6, 3, dtype=torch.float64), at, u, ("1",))
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    assert not any(module._forward_hooks for module in student.modules())
