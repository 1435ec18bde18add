"""Gates: how much each sample listens to its hard label and to each teacher.

    GateInputs (who says what of the labels) ─► gate ─► weights [batch, 1 + teachers], rows sum to 1

Column 0 is the hard label and never falls below the gate's floor; a row without label (-1) gives it nothing. A
gate's parameters are never trained by the loss that the student minimises: they have the outer loss of
``streamkd.meta``.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from streamkd.hookspecs import Kind, Options, hookimpl


class Measured(NamedTuple):
    """What held-out records say: the teachers' credit [teachers, classes], and the label noise in [0, 1)."""

    credit: Tensor
    noise: float = 0.0


@dataclass(frozen=True, slots=True)
class GateInputs:
    """What a gate may know of a lesson, without gradient.

    ``labels`` are columns, -1 where a record came without label. ``heard`` [batch, teachers] is where a teacher knows
    the sample's label, or on a row without label answers at all; only those can be given weight.
    ``facts`` [teachers, 2]: held-out accuracy, and 1 / (1 + age in tasks). ``met`` [batch] is how often a label was
    learned before, 0 where it has just arrived; ``stale`` [teachers] is who gave its answers on another day: what was
    recorded, and snapshots. ``None`` stands for never and for nobody.
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
    measure: Callable[[], Measured] | None = None
    """Gives ``credit`` and ``noise``; it is called only by gates that want them."""
    met: Int[Tensor, "batch"] | None = None
    stale: Bool[Tensor, "teachers"] | None = None
    present: Float[Tensor, "teachers"] | None = None
    """Where the world has changed, what each teacher's answers to the newest records were worth beside the others':
    1 is as much as they on average. ``None``: all are 1.
    """

    @property
    def labelled(self) -> Bool[Tensor, "batch"]:
        """Where there is a label."""
        return self.labels >= 0

    @property
    def credit(self) -> Float[Tensor, "teachers classes"]:
        """Mean log-likelihood of each teacher on held-out records of each class; NaN where none was measured."""
        if self.measure is None:
            return self.logits.new_full((len(self.teachers), self.logits.shape[1]), torch.nan)
        return self.measure().credit

    @property
    def noise(self) -> float:
        """What part of the labels seems to be wrong (``streamkd.gates.label_noise``); 0 where it was not measured."""
        return 0.0 if self.measure is None else self.measure().noise


@runtime_checkable
class Gate(Protocol):
    """A gate is a ``torch.nn.Module`` whose forward gives the weights; no parameters means nothing to adapt.

    Parameters may grow, in place and at their ends, when the pool or the label space has grown.
    """

    def __call__(self, evidence: GateInputs) -> Float[Tensor, "batch sources"]: ...

    def parameters(self) -> Iterable[nn.Parameter]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


@runtime_checkable
class Hedging(Protocol):
    """A gate that learns from prices: ``feedback`` is called with each table that was measured."""

    def feedback(self, evidence: GateInputs, table: Float[Tensor, "batch sources"]) -> None:
        """``table`` [i, k] is batch · dL_out/dw_ik at the weights that ``evidence`` led to."""
        ...


@runtime_checkable
class Mixing(Protocol):
    """A gate that mixes the weights of several policies: ``odds`` is told as the metric ``gate_policy_ratio``."""

    def odds(self) -> dict[str, float]:
        """How far each policy is trusted, by its name; they sum to 1."""
        ...


def share(
    scores: Float[Tensor, "batch teachers"], heard: Bool[Tensor, "batch teachers"]
) -> Float[Tensor, "batch teachers"]:
    """Softmax over the teachers that are heard; rows sum to 1, or are 0 where no one is."""
    return torch.softmax(scores.masked_fill(~heard, -torch.inf), dim=1).nan_to_num(0.0)


def weights_of(
    hard: Float[Tensor, "batch"],
    shares: Float[Tensor, "batch teachers"],
    heard: Bool[Tensor, "batch teachers"],
    labelled: Bool[Tensor, "batch"],
) -> Float[Tensor, "batch sources"]:
    """Hard-label weights and shares as one row per sample, which sums to 1.

    Where no teacher is heard the label has it all; where there is no label the teachers do. With neither, a row is 0.
    """
    first = torch.where(labelled, torch.where(heard.any(1), hard, 1.0), 0.0).unsqueeze(1)
    return torch.cat([first, (1.0 - first) * shares], dim=1)


def log_answers(evidence: GateInputs) -> Float[Tensor, "batch teachers classes"]:
    """log p_k(c) over the classes that teacher k knows; -30 elsewhere, and where it knows nothing."""
    logs = torch.log_softmax(evidence.answers.masked_fill(~evidence.known, -torch.inf), dim=-1)
    return logs.nan_to_num(nan=-30.0, neginf=-30.0).clamp_min(-30.0)


def at_labels(values: Float[Tensor, "batch teachers classes"], evidence: GateInputs) -> Float[Tensor, "batch teachers"]:
    """``values`` at each sample's label; without one, their mean under the teacher's own answer."""
    columns = evidence.labels.clamp_min(0).view(-1, 1, 1).expand(-1, values.shape[1], 1)
    picked = values.gather(2, columns).squeeze(2)
    labelled = evidence.labelled
    if bool(labelled.all()):
        return picked
    expected = (log_answers(evidence).exp() * values * evidence.known).sum(-1)
    return torch.where(labelled.unsqueeze(1), picked, expected)


def imbalance(weights: Float[Tensor, "batch sources"], heard: Bool[Tensor, "batch teachers"]) -> Float[Tensor, ""]:
    """KL(m ‖ u): how far the teachers' part m of a batch's weights is from an even one among those heard, u.

    0 where every row is shared evenly, at most -log of the least part in u; rows of equal mass make that log K. A gate
    that adds a little of it to its outer loss does not fall onto one teacher for good (the load balance of sparse
    mixtures, Shazeer et al. 2017, section 4, on batch means). How much the hard label has does not matter to it.
    """
    given = weights[:, 1:]
    total = given.sum()
    if not given.numel() or float(total.detach()) <= 0.0:
        return weights.sum() * 0.0
    even = heard.to(weights.dtype) / heard.sum(1, keepdim=True).clamp_min(1)
    mean = given.sum(0) / total
    wanted = (even * given.sum(1, keepdim=True)).sum(0) / total
    # both are 0 for a teacher that nobody heard, and the clamped logarithm keeps its gradient finite
    return (mean * (mean.clamp_min(1e-12).log() - wanted.clamp_min(1e-12).log())).sum()


class FixedOptions(Options):
    """Weights that stay as they are."""

    hard: float = Field(default=0.5, ge=0, le=1, description="weight of the hard label")
    teachers: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default={}, description="relative weight of each teacher by its id"
    )
    others: float = Field(default=1.0, ge=0, description="relative weight of teachers that are not named")


class FixedGate(nn.Module):
    """The same weights for every sample, shared out again where a teacher is not heard."""

    def __init__(self, options: FixedOptions) -> None:
        super().__init__()
        self._hard = options.hard
        self._weights, self._others = dict(options.teachers), options.others
        self._row: tuple[tuple[str, ...], Tensor] | None = None

    @property
    def named(self) -> tuple[str, ...]:
        """The teachers whose weight is written down."""
        return tuple(self._weights)

    def forward(self, evidence: GateInputs) -> Float[Tensor, "batch sources"]:
        if not evidence.complete or not bool(evidence.labelled.all()):
            return self._shared_out(evidence)
        if self._row is None or self._row[0] != evidence.teachers:
            self._row = (evidence.teachers, self._shared_out(evidence)[:1].clone())
        return self._row[1].expand(len(evidence.labels), -1)

    def _shared_out(self, evidence: GateInputs) -> Float[Tensor, "batch sources"]:
        relative = evidence.logits.new_tensor([self._weights.get(name, self._others) for name in evidence.teachers])
        shares = relative * evidence.heard
        total = shares.sum(1, keepdim=True)
        hard = torch.full_like(total[:, 0], self._hard)
        return weights_of(hard, shares / total.clamp_min(1e-12), shares > 0, evidence.labelled)


@hookimpl
def streamkd_gates() -> Iterable[Kind]:
    """The built-in gates."""
    yield Kind("fixed", FixedGate, FixedOptions, "the same weights for every sample")
