"""The optimiser ``learned``: one small LSTM moves every coordinate of the gate.

    (log|g|, sign g) of a coordinate ─► LSTM, its own state each ─► linear ─► Δφ

Andrychowicz et al. 2016, "Learning to learn by gradient descent by gradient descent", equation 3 and the
preprocessing of its appendix A. `streamkd meta-train` teaches it by Σ_t ⟨∇L_out(φ_t), φ_t⟩ with the gradients held
constant: the derivative of the summed outer loss to the LSTM, without second derivatives, as the paper's section 2.1.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from streamkd.api import Kind, Options, hookimpl

SHARPNESS = 10.0  # p of the preprocessing: gradients below e⁻ᵖ are given as they are
HIDDEN = 16  # cells, chosen by hand
WINDOW = 8  # steps through which the rule is taught at once, chosen by hand


class Rule(nn.Module):
    """What one coordinate does with its gradient; all coordinates share it.

    Its output layer begins at zero beside a step of ``rate`` against the gradient's sign, so that untrained it
    is sign descent.
    """

    def __init__(self, rate: float = 0.01) -> None:
        super().__init__()
        self.rate: Tensor
        self.register_buffer("rate", torch.tensor(rate))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.cell = nn.LSTMCell(2, HIDDEN)
            self.out = nn.Linear(HIDDEN, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, gradient: Float[Tensor, "coordinates"], state: tuple[Tensor, Tensor]
    ) -> tuple[Float[Tensor, "coordinates"], tuple[Tensor, Tensor]]:
        """Δ of each coordinate and its next state; |Δ| is at most twice ``rate``."""
        seen = preprocess(gradient)
        hidden, cell = self.cell(seen, state)
        return self.rate * (torch.tanh(self.out(hidden).squeeze(-1)) - seen[:, 1].clamp(-1, 1)), (hidden, cell)

    def fresh(self, coordinates: int) -> tuple[Tensor, Tensor]:
        """The state before the first gradient."""
        zeros = self.rate.new_zeros(coordinates, HIDDEN)
        return zeros, zeros.clone()


def preprocess(gradient: Float[Tensor, "coordinates"]) -> Float[Tensor, "coordinates two"]:
    """(log|g|/p, sign g), or (-1, eᵖg) where |g| < e⁻ᵖ: both about unit size over many magnitudes."""
    size = gradient.abs()
    large = size >= math.exp(-SHARPNESS)
    first = torch.where(large, size.clamp_min(1e-30).log() / SHARPNESS, -1.0)
    second = torch.where(large, gradient.sign(), math.exp(SHARPNESS) * gradient)
    return torch.stack([first, second], dim=1)


class LearnedOptimizer(torch.optim.Optimizer):
    """A torch optimiser whose step is the rule's; each parameter's LSTM state is its optimiser state.

    While the rule is in training mode, its steps teach it, truncated after ``WINDOW`` of them. The surrogate's slope to
    each Δ_s is Σ_{t>s} g_t: what moving earlier would have been worth at every later gradient.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], rule: Rule, teaching_rate: float = 3e-3) -> None:
        super().__init__(list(parameters), {})
        self.rule = rule
        self._teacher = torch.optim.Adam(rule.parameters(), lr=teaching_rate)
        self._moved: dict[nn.Parameter, Tensor] = {}
        self._surrogate: Tensor | None = None
        self._steps = 0

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every parameter that has a gradient, and every ``WINDOW`` steps the rule, if it is taught."""
        taught = self.rule.training
        with torch.set_grad_enabled(taught):
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._move(parameter, parameter.grad.detach().flatten(), taught)
            self._steps += taught
            if taught and self._steps % WINDOW == 0:
                self._learn()
        return closure() if closure else None

    def _move(self, parameter: nn.Parameter, gradient: Tensor, taught: bool) -> None:
        if parameter in self._moved:
            self._judge(_grown(self._moved[parameter], parameter), gradient)
        delta, state = self.rule(gradient, self._state(parameter))
        if taught:
            self._moved[parameter] = _grown(self._moved.get(parameter), parameter) + delta.view_as(parameter)
        with torch.no_grad():
            parameter.add_(delta.view_as(parameter))
        self.state[parameter]["hidden"], self.state[parameter]["cell"] = state

    def _judge(self, moved: Tensor, gradient: Tensor) -> None:
        """What has been moved so far, by this gradient: in units of its size, whatever the loss's scale."""
        gain = (gradient / gradient.norm().clamp_min(1e-12) * moved.flatten()).sum()
        self._surrogate = gain if self._surrogate is None else self._surrogate + gain

    def _state(self, parameter: nn.Parameter) -> tuple[Tensor, Tensor]:
        kept: Mapping[str, Any] = self.state.get(parameter, {})
        if kept and len(kept["hidden"]) == parameter.numel():
            return kept["hidden"], kept["cell"]
        return self.rule.fresh(parameter.numel())  # new, or a parameter that has grown

    def _learn(self) -> None:
        if self._surrogate is not None:
            self._teacher.zero_grad()
            self._surrogate.backward()
            nn.utils.clip_grad_norm_(self.rule.parameters(), 1.0)
            self._teacher.step()
        self._cut()

    def begin_stream(self, teachers: Collection[str]) -> None:
        """Another episode begins: what was moved in the last one is judged no further."""
        self._cut()

    def _cut(self) -> None:
        self._moved, self._surrogate = {}, None
        for state in self.state.values():
            state["hidden"], state["cell"] = state["hidden"].detach(), state["cell"].detach()


def _grown(moved: Tensor | None, parameter: Tensor) -> Tensor:
    """How far a parameter has moved, 0 in what has come at its ends since, and everywhere for ``None``."""
    if moved is not None and moved.shape == parameter.shape:
        return moved
    wider = torch.zeros_like(parameter, requires_grad=False)
    if moved is not None:
        wider[tuple(slice(n) for n in moved.shape)] = moved
    return wider


def learned(parameters: Sequence[nn.Parameter], learning_rate: float) -> LearnedOptimizer:
    """An optimiser whose rule is sign descent until an artefact's is loaded; it is not taught unless somebody asks."""
    return LearnedOptimizer(parameters, Rule(learning_rate).to(parameters[0].device).eval())


@hookimpl
def streamkd_optimizers() -> Iterable[Kind]:
    """The learned one."""
    summary = "a small LSTM moves each coordinate; `streamkd meta-train` teaches it"
    yield Kind("learned", lambda options, *given: learned(*given), Options, summary)
