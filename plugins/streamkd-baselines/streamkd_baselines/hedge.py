"""The hedge: a gate over gates, which prices whole policies with the table of the outer loss.

    policies   adapted (the inner gate, meta-adapted), frozen (the same as it began), likelihood, uniform, hard-only
    price_p    Σ_ik A_ik·w_ik^p / batch: what the outer loss gains to first order if p alone had weighed the step
    π_p        ← (1 - α)·π_p·exp(-rate·price_p / scale) / Z + α / P       fixed-share Hedge
    weights    Σ_p π_p·w^p

One table A prices every policy at no further pass through the student. Fixed share (Herbster & Warmuth 1998, section 5)
keeps each policy within reach, so that the best one may change with the stream. Prices are divided by a running root
mean square of their spread, so that the rate has no unit. The mixture, and not the policy of the largest π alone: on
split-mnist-5k (seeds 100 to 102, clean and with a teacher of turned classes) it gave the student 0.874 against 0.868
and its average 0.860 against 0.844; with rate 0.3 it gave 0.872 and 0.854.
"""

import copy
from collections.abc import Collection, Iterable
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field, TypeAdapter, field_validator
from torch import Tensor, nn

from streamkd.api import (
    GateInputs,
    Kind,
    LikelihoodGate,
    LikelihoodOptions,
    Options,
    PerSampleGate,
    PerSampleOptions,
    hookimpl,
    weights_of,
)
from streamkd_baselines.shared import PerClassGate, ScalarGate, SharedOptions, SharedWeights

POLICIES = ("adapted", "frozen", "likelihood", "uniform", "hard-only")
LEARNED = {
    "per-sample": Kind("per-sample", PerSampleGate, PerSampleOptions),
    "per-class": Kind("per-class", PerClassGate, SharedOptions),
    "scalar": Kind("scalar", ScalarGate, SharedOptions),
}


class HedgeOptions(Options):
    """A posterior over policies, moved by their prices."""

    floor: float = Field(default=0.3, ge=0, le=1, description="least weight of the hard label, under every policy")
    gate: dict[str, Any] = Field(
        default={"name": "per-sample"},
        description="the learned gate: name (per-sample, per-class, scalar), its options",
    )
    rate: float = Field(default=0.1, gt=0, description="how fast the posterior follows prices of unit spread")
    share: float = Field(
        default=0.02, gt=0, lt=1, description="part of the posterior that is dealt out evenly each time"
    )
    memory: float = Field(default=0.95, ge=0, lt=1, description="how much of the prices' old spread is kept each time")

    @field_validator("gate")
    @classmethod
    def _gate_is_learned(cls, gate: dict[str, Any]) -> dict[str, Any]:
        name = gate.get("name")
        if name not in LEARNED:
            raise ValueError(f"needed the name of a learned gate ({', '.join(LEARNED)}), got {name!r}")
        TypeAdapter(LEARNED[name].options).validate_python({k: v for k, v in gate.items() if k != "name"})
        return gate


class Hedge(nn.Module):
    """Weights mixed from those of ``POLICIES`` by the posterior π, which ``feedback`` moves.

    The gradient is that of the adapted policy alone and in full, whatever its π: it learns as if it ruled, else one
    that has lost would never catch up. Every policy keeps the floor, so their mixture does.
    """

    adapted: nn.Module
    frozen: nn.Module
    posterior: Tensor
    spread: Tensor
    settled: Tensor

    def __init__(self, options: HedgeOptions) -> None:
        super().__init__()
        self.floor, self.rate, self.share, self.memory = options.floor, options.rate, options.share, options.memory
        kind = LEARNED[options.gate["name"]]
        settings = {k: v for k, v in options.gate.items() if k != "name"}
        self.adapted = kind.make(kind.options.model_validate({"floor": options.floor, **settings}))
        self.frozen = copy.deepcopy(self.adapted)
        self.likelihood = LikelihoodGate(LikelihoodOptions(floor=options.floor))
        self.register_buffer("posterior", torch.full((len(POLICIES),), 1 / len(POLICIES)))
        self.register_buffer("spread", torch.zeros(()))
        self.register_buffer("settled", torch.zeros(()))
        self.freeze()

    def freeze(self) -> None:
        """Let the frozen policy be the inner gate as it is now: as it was made, or as meta-training left it."""
        self.frozen.load_state_dict(self.adapted.state_dict())
        self.frozen.requires_grad_(False)

    @torch.no_grad()
    def begin_stream(self, teachers: Collection[str]) -> None:
        """The inner gate begins with what it has learned, frozen as it is then; no policy has been priced yet."""
        if isinstance(self.adapted, SharedWeights):
            self.adapted.begin_stream(teachers)
        self.freeze()
        self.posterior.fill_(1 / len(POLICIES))
        self.spread.zero_()
        self.settled.zero_()

    def forward(self, evidence: GateInputs) -> Float[Tensor, "batch sources"]:
        adapted = self.adapted(evidence)
        every = torch.stack([adapted, *self._others(evidence)])
        mixed = torch.einsum("p,pbs->bs", self.posterior.to(every.dtype), every.detach())
        return mixed + (adapted - adapted.detach())

    def _others(self, evidence: GateInputs) -> list[Float[Tensor, "batch sources"]]:
        """The weights of all policies but the first."""
        heard = evidence.heard
        count = heard.sum(1).to(evidence.logits.dtype)
        even = heard / count.clamp_min(1).unsqueeze(1)
        uniform = weights_of((1 / (1 + count)).clamp_min(self.floor), even, heard, evidence.labelled)
        label = weights_of(torch.ones_like(count), even, heard, evidence.labelled)
        return [self.frozen(evidence), self.likelihood(evidence), uniform, label]

    @torch.no_grad()
    def feedback(self, evidence: GateInputs, table: Float[Tensor, "batch sources"]) -> None:
        """Move the posterior by what each policy would have paid; one that is not finite, or all 0, moves nothing."""
        every = torch.stack([self.adapted(evidence), *self._others(evidence)])
        prices = (table * every).sum((1, 2)) / len(table)
        if not bool(torch.isfinite(prices).all() & table.any()):  # prices of 0 would only thin out their spread
            return
        spread = prices.var(correction=0)
        self.settled += 1
        # a mean over the first prices, an exponential one later
        step = max(1 - self.memory, 1 / float(self.settled))
        self.spread += step * (spread - self.spread)
        moved = self.posterior.log() - self.rate * (prices - prices.min()) / self.spread.sqrt().clamp_min(1e-12)
        self.posterior.copy_((1 - self.share) * torch.softmax(moved, 0) + self.share / len(POLICIES))

    def odds(self) -> dict[str, float]:
        """The posterior by policy."""
        return dict(zip(POLICIES, self.posterior.tolist(), strict=True))


@hookimpl
def streamkd_gates() -> Iterable[Kind]:
    """The gate over gates."""
    yield Kind("hedge", Hedge, HedgeOptions, "a posterior over adapted, frozen, likelihood, uniform, hard-only")
