"""Credit: how likely a teacher finds the labels, and a gate that goes by it, with nothing to learn.

    v_k ∝ exp(trust · credit_k[y]), credit_k[c] = mean log p_k(c) on held-out records of class c

The credit is the signal that the literal formula L = -g·log S - (1-g)·log F gives its gate: dL/dg = log F - log S,
whoever puts more probability on the true label is trusted. Held-out records, so that a teacher earns nothing by having
been trained on a sample; per class, since a teacher may know some classes only.
"""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from streamkd.gates.gate import GateInputs, at_labels, share, weights_of
from streamkd.hookspecs import Kind, Options, hookimpl

WORST = -5.0  # one confident mistake among a handful of held-out records must not decide
PSEUDO = 2.0  # records' worth of the teacher's own mean that each class's mean begins with


def held_out_likelihood(
    logits: Float[Tensor, "batch teachers classes"],
    known: Bool[Tensor, "batch teachers classes"],
    labels: Int[Tensor, "batch"],
) -> Float[Tensor, "teachers classes"]:
    """Mean log p_k(y) of each teacher on the records of each class, drawn towards its mean over all that it heard.

    credit_k[c] = (Σ_{i: y_i = c} log p_ik(c) + 2·mean_k) / (n_kc + 2), each log p at least -5. A class without records
    has the teacher's mean; a teacher that heard nothing is NaN.
    """
    return drawn_to_mean(*label_likelihoods(logits, known, labels))


def label_likelihoods(
    logits: Float[Tensor, "batch teachers classes"],
    known: Bool[Tensor, "batch teachers classes"],
    labels: Int[Tensor, "batch"],
) -> tuple[Float[Tensor, "teachers classes"], Float[Tensor, "teachers classes"]]:
    """Σ log p_k(y) of each teacher over the records of each class, each at least -5, and how many of them it heard."""
    teachers, classes = logits.shape[1:]
    column = labels.view(-1, 1, 1).expand(-1, teachers, 1)
    heard = known.gather(2, column).squeeze(2)
    logs = torch.log_softmax(logits.masked_fill(~known, -torch.inf), dim=-1).gather(2, column).squeeze(2)
    logs = logs.nan_to_num(nan=0.0, neginf=WORST).clamp_min(WORST) * heard
    member = torch.nn.functional.one_hot(labels, classes).to(logs.dtype)
    return logs.T @ member, heard.to(logs.dtype).T @ member


def drawn_to_mean(
    sums: Float[Tensor, "teachers classes"], counts: Float[Tensor, "teachers classes"]
) -> Float[Tensor, "teachers classes"]:
    """Mean by class, as if ``PSEUDO`` more records had told the teacher's own mean; NaN for one that heard nothing."""
    total = counts.sum(1, keepdim=True)
    mean = torch.where(total > 0, sums.sum(1, keepdim=True) / total, torch.nan)
    return (sums + PSEUDO * mean) / (counts + PSEUDO)


class LikelihoodOptions(Options):
    """Teachers by their held-out likelihood of the sample's class."""

    floor: float = Field(default=0.3, ge=0, le=1, description="least weight of the hard label")
    trust: float = Field(default=1.0, ge=0, description="shares go as the held-out likelihood to this power")
    doubt: float = Field(default=1.0, ge=0, description="hard-label weight is this times 1 - held-out p(label)")


class LikelihoodGate(nn.Module):
    """v_k ∝ exp(trust·credit_k[y]) and w_0 = max(floor, doubt·(1 - Σ v_k·exp(credit_k[y]))), at most 1.

    A teacher whose credit was not measured yet counts as the mean of those heard beside it; where no one's was, the
    shares are even and p(label) is ½. trust to 0 is even, to infinity the best teacher of each class alone.
    """

    def __init__(self, options: LikelihoodOptions) -> None:
        super().__init__()
        self.floor, self.trust, self.doubt = options.floor, options.trust, options.doubt

    def forward(self, evidence: GateInputs) -> Float[Tensor, "batch sources"]:
        credit = likelihood_of_samples(evidence)
        shares = share(self.trust * credit, evidence.heard)
        trusted = (shares * credit.exp()).sum(1)
        hard = (self.doubt * (1 - trusted)).clamp(self.floor, 1.0)
        return weights_of(hard, shares, evidence.heard, evidence.labelled)


def likelihood_of_samples(evidence: GateInputs, unmeasured: float = 0.5) -> Float[Tensor, "batch teachers"]:
    """The credit of each teacher at each sample's label; what was not measured is filled from the others heard.

    Where nobody's was, it is the logarithm of ``unmeasured``. Without a label it is the mean over what a teacher
    answers.
    """
    table = evidence.credit.to(evidence.logits.dtype)
    told = evidence.heard & torch.isfinite(table[:, 0])
    credit = at_labels(table.nan_to_num(0.0).expand(len(evidence.labels), -1, -1), evidence)
    count = told.sum(1, keepdim=True)
    mean = (credit * told).sum(1, keepdim=True) / count.clamp_min(1)
    return torch.where(told, credit, torch.where(count > 0, mean, math.log(unmeasured)))


@hookimpl
def streamkd_gates() -> Iterable[Kind]:
    """The gate without parameters that goes by likelihood."""
    yield Kind("likelihood", LikelihoodGate, LikelihoodOptions, "teachers by held-out likelihood of the class")
