"""Gates: how much each sample listens to its hard label and to each teacher.

    Evidence (who says what of the labels) ─► gate ─► weights [batch, 1 + teachers], rows sum to 1

Column 0 is the hard label and never falls below the gate's floor. A gate's parameters are never trained by the
loss that the student minimises: they have the outer loss of ``streamkd.meta``.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from streamkd.hookspecs import Kind, Options, hookimpl


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a gate may know of a lesson, without gradient.

    ``heard`` [batch, teachers] is where a teacher knows the sample's label; only those can be given weight.
    ``facts`` [teachers, 2]: held-out accuracy, and 1 / (1 + age in tasks).
    """

    logits: Float[Tensor, "batch classes"]
    labels: Int[Tensor, "batch"]
    answers: Float[Tensor, "batch teachers classes"]
    known: Bool[Tensor, "batch teachers classes"]
    heard: Bool[Tensor, "batch teachers"]
    facts: Float[Tensor, "teachers facts"]
    teachers: tuple[str, ...]
    complete: bool = False
    """All of ``known`` and ``heard`` is true."""


@runtime_checkable
class Gate(Protocol):
    """A gate is a ``torch.nn.Module`` whose forward gives the weights; no parameters means nothing to adapt."""

    def __call__(self, evidence: Evidence) -> Float[Tensor, "batch sources"]: ...

    def parameters(self) -> Iterable[nn.Parameter]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


def share(
    scores: Float[Tensor, "batch teachers"], heard: Bool[Tensor, "batch teachers"]
) -> Float[Tensor, "batch teachers"]:
    """Softmax over the teachers that are heard; rows sum to 1, or are 0 where no one is."""
    return torch.softmax(scores.masked_fill(~heard, -torch.inf), dim=1).nan_to_num(0.0)


def weights_of(
    hard: Float[Tensor, "batch"], shares: Float[Tensor, "batch teachers"], heard: Bool[Tensor, "batch teachers"]
) -> Float[Tensor, "batch sources"]:
    """Hard-label weights and shares as one row per sample; where no teacher is heard, the label has it all."""
    first = torch.where(heard.any(1), hard, 1.0).unsqueeze(1)
    return torch.cat([first, (1.0 - first) * shares], dim=1)


class FixedOptions(Options):
    """Weights that stay as they are."""

    hard: float = Field(default=0.5, ge=0, le=1, description="weight of the hard label")
    teachers: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default={}, description="relative weight of each teacher by its id; others 1"
    )


class FixedGate(nn.Module):
    """The same weights for every sample, shared out again where a teacher is not heard."""

    def __init__(self, options: FixedOptions) -> None:
        super().__init__()
        self._hard = options.hard
        self._weights = dict(options.teachers)
        self._row: tuple[tuple[str, ...], Tensor] | None = None

    def forward(self, evidence: Evidence) -> Float[Tensor, "batch sources"]:
        if not evidence.complete:
            return self._shared_out(evidence)
        if self._row is None or self._row[0] != evidence.teachers:
            self._row = (evidence.teachers, self._shared_out(evidence)[:1].clone())
        return self._row[1].expand(len(evidence.labels), -1)

    def _shared_out(self, evidence: Evidence) -> Float[Tensor, "batch sources"]:
        relative = evidence.logits.new_tensor([self._weights.get(name, 1.0) for name in evidence.teachers])
        shares = relative * evidence.heard
        total = shares.sum(1, keepdim=True)
        hard = torch.where(total[:, 0] > 0, self._hard, 1.0)
        return torch.cat([hard.unsqueeze(1), (1 - hard).unsqueeze(1) * shares / total.clamp_min(1e-12)], dim=1)


@hookimpl
def streamkd_gates() -> Iterable[Kind]:
    """The built-in gates."""
    yield Kind("fixed", FixedGate, FixedOptions, "the same weights for every sample")
