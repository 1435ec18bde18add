"""The closed-form hypergradient against double backward through the whole optimiser step."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import oracles
import pytest
import torch
import toys
from torch import Tensor, nn

from streamkd.errors import ConfigError
from streamkd.losses.match_gate import LossInputs, MatchGate, MatchGateOptions, match_gate, soft_of, source_losses
from streamkd.meta import hypergradient, jacobian
from streamkd.meta.hypergradient import Update

OPTIMIZERS = {
    "sgd": ("sgd", {"lr": 0.1}),
    "sgd-decay": ("sgd", {"lr": 0.1, "weight_decay": 0.02}),
    "momentum": ("sgd", {"lr": 0.1, "momentum": 0.9}),
    "momentum-decay": ("sgd", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.02}),
    "nesterov": ("sgd", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adam": ("adam", {"lr": 0.01}),
    "adam-decay": ("adam", {"lr": 0.01, "weight_decay": 0.02}),
    "adamw": ("adamw", {"lr": 0.01, "weight_decay": 0.02}),
}
CLIPS = {"unclipped": None, "clipped": 0.05, "loosely clipped": 1e3}
TEMPERATURE = 2.0

every_optimizer = pytest.mark.parametrize("kind", OPTIMIZERS)
every_clip = pytest.mark.parametrize("clip", CLIPS)


class Problem:
    """A network with a dead unit and a dead input, an optimiser some steps old, a support and a query batch."""

    def __init__(self, kind: str, *, warm: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        self.module = _network(g).to(dtype)
        name, settings = OPTIMIZERS[kind]
        self.parameters = list(self.module.parameters())
        self.optimizer = toys.optimizer_of(name, self.parameters, **settings)
        parts = toys.lesson(seed, batch=7, teachers=3, classes=4, dtype=dtype)
        self.labels, self.weights = parts["labels"], parts["weights"]
        self.answers, self.known = parts["answers"], parts["known"]
        self.x, self.query = (torch.randn(n, 5, generator=g, dtype=torch.float64).to(dtype) for n in (7, 9))
        self.x[:, 4] = self.query[:, 4] = 0.0
        self.query_labels = torch.randint(4, (9,), generator=g)
        for _ in range(warm):
            x = torch.randn(7, 5, generator=g, dtype=torch.float64).to(dtype)
            x[:, 4] = 0.0
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.module(x), self.labels).backward()
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.ask()

    def ask(self) -> None:
        """What the teachers ask of the module as it is."""
        z = self.module(self.x).detach()
        self.soft = soft_of(LossInputs(z, self.labels, self.answers, self.known, self.weights, len(z)), TEMPERATURE)

    def inner(self, parameters: dict[str, Tensor], weights: Tensor) -> Tensor:
        z = oracles.call(self.module, parameters, self.x)
        return (weights * source_losses(z, self.labels, self.soft, TEMPERATURE)).sum(1).mean()

    def outer(self, parameters: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(oracles.call(self.module, parameters, self.query), self.query_labels)

    def grads(self) -> tuple[Tensor, ...]:
        loss = match_gate(self.module(self.x), self.labels, self.soft, self.weights, TEMPERATURE).mean()
        return torch.autograd.grad(loss, self.parameters)

    def direction(self, clip: float | None, outer: Sequence[Tensor] | None = None) -> list[Tensor]:
        """u from what is left of a step that torch's own optimiser has taken; ``outer``: or the query's slope after it.

        Parameters and optimiser are put back.
        """
        grads, before = self.grads(), [p.detach().clone() for p in self.parameters]
        state = copy.deepcopy(self.optimizer.state_dict())
        for p, g in zip(self.parameters, grads, strict=True):
            p.grad = g.clone()
        if clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, clip)
        self.optimizer.step()
        moments = hypergradient.moments_of(self.optimizer, self.parameters)
        norm = None if clip is None else hypergradient.norm_of(grads)
        update = Update(before, list(grads), norm, moments)
        outer = outer or torch.autograd.grad(self.outer(dict(self.module.named_parameters())), self.parameters)
        u = hypergradient.directions(self.optimizer, self.parameters, [update], outer, clip)[0]
        for p, old in zip(self.parameters, before, strict=True):
            p.data, p.grad = old, None
        self.optimizer.load_state_dict(state)
        return u

    def forward(self, clip: float | None) -> Tensor:
        return self.table(jacobian.forward, self.direction(clip))

    def finite_difference(self, clip: float | None) -> Tensor:
        return self.table(jacobian.difference, self.direction(clip))

    def table(self, measure: Any, u: list[Tensor]) -> Tensor:
        z = self.module(self.x).detach()
        lesson = LossInputs(z, self.labels, self.answers.to(z.dtype), self.known, self.weights, len(z))
        at = {name: p.detach() for name, p in self.module.named_parameters()} | dict(self.module.named_buffers())
        return measure(self.module, self.x, at, u).table(MatchGate(MatchGateOptions(temperature=TEMPERATURE)), lesson)

    def oracle(self, clip: float | None) -> Tensor:
        return oracles.hypergradient(self.module, self.optimizer, self.inner, self.outer, self.weights, clip)


def _network(g: torch.Generator) -> nn.Module:
    module = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=g))
        module[0].bias[2] = -100.0  # a unit that no input wakes
    return module


def _apart(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


@every_clip
@every_optimizer
def test_forward_mode_is_the_double_backward(kind: str, clip: str) -> None:
    """In float64 the table equals batch · dL_out/dw by double backward, to 1e-10, dead units and filled buffers too."""
    problem = Problem(kind)
    wanted = problem.oracle(CLIPS[clip])
    got = problem.forward(CLIPS[clip])
    assert wanted.norm() > 1e-6
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10 * float(wanted.abs().max()))


def test_rates_may_differ_by_group() -> None:
    """Each parameter moves by the rate of its own group, and so does its derivative."""
    problem = Problem("adam")
    first, *others = problem.parameters
    groups = [{"params": [first], "lr": 0.03}, {"params": others}]
    problem.optimizer, outer = torch.optim.Adam(groups, lr=0.01), problem.grads()
    u = problem.direction(None, outer)
    for rate, at in ((0.03, 0), (0.01, 1)):
        problem.optimizer = torch.optim.Adam(problem.parameters, lr=rate)
        alone = problem.direction(None, outer)
        torch.testing.assert_close(u[at], alone[at])


@pytest.mark.parametrize("kind", ["momentum", "nesterov", "adam", "adamw"])
def test_the_very_first_step_is_exact_too(kind: str) -> None:
    """Without a buffer yet, torch begins with the gradient itself."""
    problem = Problem(kind, warm=0)
    wanted = problem.oracle(None)
    torch.testing.assert_close(problem.forward(None), wanted, rtol=1e-9, atol=1e-10 * float(wanted.abs().max()))


@every_clip
@every_optimizer
def test_finite_difference_is_near_in_float32(kind: str, clip: str) -> None:
    """Two plain passes in float32 are within 1e-3 of the double backward in float64."""
    exact = Problem(kind)
    problem = Problem(kind)
    for part in (problem.module, exact.module):
        part.double()
    _to_float32(problem)
    assert _apart(problem.finite_difference(CLIPS[clip]), exact.oracle(CLIPS[clip])) < 1e-3


def _to_float32(problem: Problem) -> None:
    problem.module.float()
    for name in ("soft", "weights", "answers", "x", "query"):
        setattr(problem, name, getattr(problem, name).float())
    for state in problem.optimizer.state.values():
        for key, value in state.items():
            if isinstance(value, Tensor):
                state[key] = value.float()


@every_clip
@every_optimizer
def test_forward_mode_is_near_in_float32(kind: str, clip: str) -> None:
    """Forward mode in float32 is within 1e-4 of the double backward in float64."""
    exact, problem = Problem(kind), Problem(kind)
    _to_float32(problem)
    assert _apart(problem.forward(CLIPS[clip]), exact.oracle(CLIPS[clip])) < 1e-4


@every_optimizer
def test_the_oracles_own_step_is_torchs(kind: str) -> None:
    """The oracle goes through the same optimiser as torch, or it proves nothing."""
    problem = Problem(kind)
    grads = problem.grads()
    moved = oracles.optimizer_step(problem.optimizer, problem.parameters, oracles.clip(grads, 0.05))
    for p, g in zip(problem.parameters, grads, strict=True):
        p.grad = g.clone()
    nn.utils.clip_grad_norm_(problem.parameters, 0.05)
    problem.optimizer.step()
    for p, m in zip(problem.parameters, moved, strict=True):
        torch.testing.assert_close(m, p.detach(), rtol=1e-12, atol=1e-14)


def test_a_pixel_that_is_dead_in_support_does_not_blind_the_finite_difference() -> None:
    """Under Adam an input that was never on has v̂ = 0; a query where it is on must not drown the other directions."""
    exact, problem = Problem("adam"), Problem("adam")
    exact.query[:, 4] = problem.query[:, 4] = 1.0
    _to_float32(problem)
    assert _apart(problem.finite_difference(None), exact.oracle(None)) < 1e-3


def test_batch_normalisation_in_training_mode_has_a_forward_pass() -> None:
    """Dual numbers go through BatchNorm in training mode, where each sample's logits depend on the others."""
    problem = Problem("sgd")
    problem.module = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4)).double().train()
    problem.parameters = list(problem.module.parameters())
    problem.optimizer = torch.optim.SGD(problem.parameters, lr=0.1)
    problem.ask()
    torch.testing.assert_close(problem.forward(None), problem.oracle(None), rtol=1e-8, atol=1e-10)


def test_a_direction_of_zero_gives_a_table_of_zeros() -> None:
    """Where the query asks for nothing, finite difference divides by no zero."""
    problem = Problem("sgd")
    u = [torch.zeros_like(p) for p in problem.parameters]
    table = problem.table(jacobian.difference, u)
    assert torch.equal(table, torch.zeros_like(table))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.RMSprop(p, lr=0.1),
        lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
        lambda p: torch.optim.SGD(p, lr=0.1, maximize=True),
    ],
    ids=["rmsprop", "amsgrad", "dampening", "maximize"],
)
def test_an_optimiser_without_a_closed_form_is_refused(make: Callable[[list[Any]], torch.optim.Optimizer]) -> None:
    """Better no hypergradient than a wrong one."""
    problem = Problem("sgd")
    with pytest.raises(ConfigError, match="hypergradient"):
        hypergradient.directions(make(problem.parameters), problem.parameters, [], problem.grads(), None)
