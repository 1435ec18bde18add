"""Mistakes of gates."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mistakes.mistake import ALOOF, Mistake
from streamkd.gates.gate import FixedGate, FixedOptions


def weighing(change: Callable[[Any, Tensor], Tensor]) -> Callable[..., nn.Module]:
    """The fixed gate, and what a mistake does to its weights."""

    class Weighing(FixedGate):
        def forward(self, evidence: Any) -> Tensor:
            return change(evidence, super().forward(evidence))

    return lambda options: Weighing(FixedOptions(hard=0.4))


class Base(FixedGate):
    """A gate that is right, with one parameter that moves the label's weight."""

    def __init__(self, options: Any) -> None:
        super().__init__(FixedOptions(hard=0.4, teachers={"teacher-1": 2.0}))
        self.tilt = nn.Parameter(torch.zeros(()))

    def forward(self, evidence: Any) -> Tensor:
        return self.tilted(evidence, super().forward(evidence), self.tilt)

    @staticmethod
    def tilted(evidence: Any, weights: Tensor, tilt: Tensor) -> Tensor:
        """A share of the teachers' weight goes to the label where there is one."""
        moved = torch.sigmoid(tilt) * 0.5 * evidence.labelled.unsqueeze(1)
        return torch.cat(
            [weights[:, :1] + (weights[:, 1:] * moved).sum(1, keepdim=True), weights[:, 1:] * (1 - moved)], 1
        )


class Learning(Base):
    """Its parameter creeps at each call."""

    def forward(self, evidence: Any) -> Tensor:
        given = super().forward(evidence)
        self.tilt.data += 1e-7
        return given


class Buffered(Base):
    """Gives the same tensor each time, one for each shape."""

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.kept: dict[tuple[int, ...], Tensor] = {}

    def forward(self, evidence: Any) -> Tensor:
        given = super().forward(evidence).detach()
        return self.kept.setdefault(tuple(given.shape), torch.zeros_like(given)).copy_(given)


class Masking(Base):
    """Marks rows in the evidence."""

    def forward(self, evidence: Any) -> Tensor:
        given = super().forward(evidence)
        evidence.logits.clamp_(-1, 1)
        return given


class Hasty(Base):
    """Leaves the label out where the evidence is complete."""

    def forward(self, evidence: Any) -> Tensor:
        given = super().forward(evidence)
        return torch.full_like(given, 1 / given.shape[1]) if evidence.complete else given


class Detached(Base):
    def forward(self, evidence: Any) -> Tensor:
        return super().forward(evidence).detach()


class Measuring(Base):
    """Needs what was not measured."""

    def forward(self, evidence: Any) -> Tensor:
        return super().forward(evidence) + 0 * evidence.met.sum()


class Forgetful(Base):
    """Its learned number is no parameter."""

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.count = 0.0

    def feedback(self, evidence: Any, table: Tensor) -> None:
        if bool(table.isfinite().all()):
            self.count = self.count + float(table.abs().mean().clamp_max(1))

    def forward(self, evidence: Any) -> Tensor:
        return self.tilted(evidence, super().forward(evidence), torch.tensor(self.count))


class Poisoned(Base):
    """Learns from prices that are no numbers."""

    def feedback(self, evidence: Any, table: Tensor) -> None:
        self.tilt.data += table.mean()


class Pricing(Base):
    def feedback(self, evidence: Any, table: Tensor) -> None:
        table.sub_(table.mean())


class Exponential(Base):
    """A softmax by hand."""

    def forward(self, evidence: Any) -> Tensor:
        sure = evidence.logits.exp().amax(1, keepdim=True)
        return super().forward(evidence) * (sure / sure)


def credulous(evidence: Any, weights: Tensor) -> Tensor:
    """A label that is not there is given all weight."""
    label = torch.zeros_like(weights)
    label[:, 0] = 1
    return torch.where(evidence.labelled.unsqueeze(1), weights, label)


def shuffled(evidence: Any, weights: Tensor) -> Tensor:
    """Teachers weighed by their place."""
    places = torch.arange(1, weights.shape[1], dtype=weights.dtype) * evidence.heard
    total = places.sum(1, keepdim=True)
    return torch.cat([weights[:, :1], (1 - weights[:, :1]) * places / total.clamp_min(1)], 1)


def halved(evidence: Any, weights: Tensor) -> Tensor:
    """Rows without label weigh half."""
    return torch.where(evidence.labelled.unsqueeze(1), weights, weights / 2)


def batched(evidence: Any, weights: Tensor) -> Tensor:
    """The label's weight hangs on how many rows there are."""
    given = 1 / (1 + len(weights))
    return torch.cat([weights[:, :1] + given * weights[:, 1:].sum(1, keepdim=True), weights[:, 1:] * (1 - given)], 1)


def restless(evidence: Any, weights: Tensor) -> Tensor:
    """Draws a little noise, and rows still sum to 1."""
    return weights * (1 + 1e-7 * torch.rand(()))


def mistake(name: str, clause: str, make: Callable[..., Any], **given: Any) -> Mistake:
    return Mistake("gates", name, clause, make, given)


MISTAKES = (
    mistake("rows sum to 2", "sum to 1", weighing(lambda evidence, weights: weights * 2)),
    mistake("no column for the label", "sum to 1", weighing(lambda evidence, weights: weights[:, 1:])),
    mistake(
        "softmax over teachers that are not heard", "only teachers that are heard", weighing(lambda e, w: w.softmax(1))
    ),
    mistake("rows in another order", "only teachers that are heard", weighing(lambda e, w: w.roll(1, 0))),
    mistake("weighs by the size of the batch", "each sample is weighed by itself", weighing(batched)),
    mistake("weighs by place", "permuting the teachers permutes their weights", weighing(shuffled)),
    mistake("believes a label that is not there", "rows without label listen to teachers alone", weighing(credulous)),
    mistake("rows without label sum to 1/2", "rows without label listen to teachers alone", weighing(halved)),
    mistake(
        "falls below its floor", "the hard label never falls below the floor 0.5", weighing(lambda e, w: w), floor=0.5
    ),
    mistake("draws from torch's generator", ALOOF, weighing(restless)),
    mistake("moves a parameter as it weighs", "weighing changes nothing", Learning),
    mistake("writes into its evidence", "it leaves its evidence and the weights that it gave as they are", Masking),
    mistake("gives one tensor each time", "it leaves its evidence and the weights that it gave as they are", Buffered),
    mistake("cuts its parameters off", "the gradient of its weights reaches its parameters", Detached),
    mistake("exp() of logits", "extreme logits give finite weights", Exponential),
    mistake("needs what was not measured", "what was not measured is None or NaN", Measuring),
    mistake("weighs complete evidence otherwise", "evidence that says that it is complete", Hasty),
    mistake("takes prices that are no numbers", "feedback(evidence, table) takes any prices", Poisoned),
    mistake("writes into the prices", "feedback(evidence, table) takes any prices, and leaves them", Pricing),
    mistake("leaves what prices taught out of its state", "a state dict carries the gate over", Forgetful),
)
