"""Several inner steps: the chain through the optimiser's memory, and what the first-order sum leaves out."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import toys
from torch import Tensor, nn
from torch.func import functional_call

from streamkd.meta import hypergradient
from streamkd.meta.hypergradient import OptimizerMoments, Update

OPTIMIZERS = {
    "sgd": ("sgd", {"lr": 0.02}),
    "momentum-decay": ("sgd", {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.02}),
    "nesterov": ("sgd", {"lr": 0.02, "momentum": 0.9, "nesterov": True}),
    "adam": ("adam", {"lr": 0.01}),
    "adam-decay": ("adam", {"lr": 0.01, "weight_decay": 0.02}),
    "adamw": ("adamw", {"lr": 0.01, "weight_decay": 0.02}),
}


class Run:
    """Some weighted steps of torch's optimiser on a small network in float64, recorded, and a query after them."""

    def __init__(self, kind: str, steps: int, *, warm: int = 2, rate: float | None = None) -> None:
        g = torch.Generator().manual_seed(3)
        self.module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        with torch.no_grad():
            for p in self.module.parameters():
                p.copy_(0.7 * torch.randn(p.shape, generator=g, dtype=torch.float64))
        self.name, self.settings = OPTIMIZERS[kind]
        if rate is not None:
            self.settings = self.settings | {"lr": rate}
        self.parameters = list(self.module.parameters())
        self.optimizer = toys.optimizer_of(self.name, self.parameters, **self.settings)
        drawn = [self._batch(g) for _ in range(warm + steps)]
        for x, y, w in drawn[:warm]:
            self._step(x, y, w)
        self.start = [p.detach().clone() for p in self.parameters]
        self.state = [
            {k: v.clone() if isinstance(v, Tensor) else v for k, v in self.optimizer.state.get(p, {}).items()}
            for p in self.parameters
        ]
        self.batches = drawn[warm:]
        self.updates = [self._step(*batch) for batch in self.batches]
        self.query = self._batch(g, 20)[:2]

    def _batch(self, g: torch.Generator, rows: int = 6) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.randn(rows, 4, generator=g, dtype=torch.float64)
        return x, torch.randint(3, (rows,), generator=g), 0.5 + torch.rand(rows, generator=g, dtype=torch.float64)

    def loss(self, parameters: Sequence[Tensor], x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        names = [name for name, _ in self.module.named_parameters()]
        z = functional_call(self.module, dict(zip(names, parameters, strict=True)), (x,))
        return (w * nn.functional.cross_entropy(z, y, reduction="none")).mean()

    def _step(self, x: Tensor, y: Tensor, w: Tensor) -> Update:
        self.optimizer.zero_grad()
        self.loss(self.parameters, x, y, w).backward()
        before = [p.detach().clone() for p in self.parameters]
        gradients = [p.grad.clone() for p in self.parameters]
        self.optimizer.step()
        moments = hypergradient.moments_of(self.optimizer, self.parameters)
        kept = [OptimizerMoments(m.first.clone(), m.second.clone(), m.count) for m in moments]
        return Update(before, gradients, None, kept)

    def table(self) -> list[Tensor]:
        """∂L_out/∂w of each step by ``directions``: ⟨u, ∇ℓ_i⟩ / rows."""
        outer = torch.autograd.grad(
            self.loss(self.parameters, *self.query, torch.ones(20, dtype=torch.float64)), self.parameters
        )
        us = hypergradient.directions(self.optimizer, self.parameters, self.updates, outer, None)
        tables = []
        for (x, y, w), update, u in zip(self.batches, self.updates, us, strict=True):
            weights = w.clone().requires_grad_()
            before = [p.clone().requires_grad_() for p in update.before]
            grads = torch.autograd.grad(self.loss(before, x, y, weights), before, create_graph=True)
            along = sum((g * d).sum() for g, d in zip(grads, u, strict=True))
            tables.append(torch.autograd.grad(along, weights)[0])
        return tables

    def unrolled(self, *, hessians: bool) -> list[Tensor]:
        """The same by reverse mode through all steps; without Hessians each gradient is taken at a θ that is given."""
        weights = [w.clone().requires_grad_() for _, _, w in self.batches]
        theta = [p.clone().requires_grad_() for p in self.start]
        states: list[dict[str, Any]] = [dict(s) for s in self.state]
        for (x, y, _), w in zip(self.batches, weights, strict=True):
            at = theta if hessians else [p.detach().requires_grad_() for p in theta]
            grads = torch.autograd.grad(self.loss(at, x, y, w), at, create_graph=True)
            theta = [self._moved(p, a, g, s) for p, a, g, s in zip(theta, at, grads, states, strict=True)]
        outer = self.loss(theta, *self.query, torch.ones(20, dtype=torch.float64))
        return list(torch.autograd.grad(outer, weights))

    def _moved(self, p: Tensor, at: Tensor, g: Tensor, state: dict[str, Any]) -> Tensor:
        """One step by the documented formulas; ``at`` is θ as the gradient and the decay see it."""
        rate, decay = self.settings["lr"], self.settings.get("weight_decay", 0.0)
        if self.name == "adamw":
            p = p - rate * decay * at
        else:
            g = g + decay * at
        if self.name == "sgd":
            m = self.settings.get("momentum", 0.0)
            state["momentum_buffer"] = g + m * state["momentum_buffer"] if state else g
            return p - rate * (
                g + m * state["momentum_buffer"] if self.settings.get("nesterov") else state["momentum_buffer"]
            )
        state["exp_avg"] = 0.9 * state.get("exp_avg", 0.0) + 0.1 * g
        state["exp_avg_sq"] = 0.999 * state.get("exp_avg_sq", 0.0) + 0.001 * g * g
        state["step"] = float(state.get("step", 0)) + 1
        first = state["exp_avg"] / (1 - 0.9 ** state["step"])
        second = state["exp_avg_sq"] / (1 - 0.999 ** state["step"])
        return p - rate * first / (second.sqrt() + 1e-8)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_sum_goes_through_the_optimisers_memory_exactly(kind: str, steps: int) -> None:
    """Reverse mode through n steps, each gradient at a given θ, is what the chain gives, to 1e-10."""
    run = Run(kind, steps)
    for got, wanted in zip(run.table(), run.unrolled(hessians=False), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10 * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_what_is_left_out_hardly_turns_it_over_five_steps(kind: str) -> None:
    """Against the exact unroll, Hessians included, the cosine over five steps is above 0.99."""
    run = Run(kind, 5)
    got, wanted = torch.cat(run.table()), torch.cat(run.unrolled(hessians=True))
    assert float(torch.cosine_similarity(got, wanted, dim=0)) > 0.99


def test_the_last_step_alone_would_not_do() -> None:
    """Under momentum the newest step's own weights are the lesser part of what five steps owe to the gate."""
    run = Run("momentum-decay", 5)
    tables = run.table()
    sizes = [float(table.norm()) for table in tables]
    assert sizes[0] > sizes[-1]
    assert math.hypot(*sizes[:-1]) > 2 * sizes[-1]


@pytest.mark.parametrize("kind", ["momentum-decay", "adam"])
def test_a_parameter_that_has_grown_is_cut_back(kind: str) -> None:
    """A step before the head grew is told of the part that was there."""
    run = Run(kind, 3)
    plain = hypergradient.directions(run.optimizer, run.parameters, run.updates, run.parameters, None)
    head, last = run.parameters[2], run.updates[-1]
    wide = [torch.cat([t, t[:1]]) for t in (last.before[2], last.gradients[2])]
    moments = list(last.moments)
    if moments:
        m = moments[2]
        moments[2] = OptimizerMoments(torch.cat([m.first, m.first[:1]]), torch.cat([m.second, m.second[:1]]), m.count)
    before, gradients = list(last.before), list(last.gradients)
    before[2], gradients[2] = wide
    outer = list(run.parameters)
    outer[2] = torch.cat([head, head[:1]])
    grown = [*run.updates[:-1], Update(before, gradients, None, moments)]
    found = hypergradient.directions(run.optimizer, run.parameters, grown, outer, None)
    for step in (0, 1):
        torch.testing.assert_close(found[step][2], plain[step][2])
    torch.testing.assert_close(found[2][2][:-1], plain[2][2])
