"""The shared scorer: one small network scores every teacher of every sample, whatever the size of the pool."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from streamkd.gates.gate import GateInputs, at_labels, share, weights_of
from streamkd.gates.label_noise import doubt
from streamkd.gates.likelihood import likelihood_of_samples
from streamkd.gates.prior import GatePrior
from streamkd.hookspecs import Kind, hookimpl


class PerSampleOptions(GatePrior):
    """A shared scorer: one small network scores every teacher of every sample."""

    hidden: int = Field(default=16, gt=0)
    span: float = Field(default=2.0, gt=0, description="how far, in logits, the scorer may move the prior")


class PerSampleGate(nn.Module):
    """Weights per sample from a scorer that all teachers share, so that it survives the pool's growth.

    The prior over C classes, with c_k the teachers' held-out log-likelihood of the sample's class, n the number of
    stale teachers heard, b the belief in the sample's label, 1 where labels are right (``belief``), and r_k what the
    teacher was worth on the newest records, where the world has changed (``GateInputs.present``):

        v_k ∝ ((1 - slip)·p_k(y) + slip / C)^(b·trust) · exp(c_k)^credit · (stale / n where k is stale) · r_k^present
        w_0 = max(hard, doubt·(1 - Σ v_k·exp(c_k) / (1 - noise))) · b

    Where a label may be wrong, what a teacher says of it tells less than what it said of held-out ones. A new record's
    wrong label is one of many and is met once; that of a remembered one is met again and again, until the student knows
    it by heart: there it has to be believed less. Answers of another day teach the student what it was then.

    The scorer, whose last layer begins at zero, moves shares and label's weight in logits. Its features do not depend
    on how many teachers there are: the label's log probability, entropy, divergence from the student, and the teacher's
    held-out accuracy and age. Without a label the credit on the classes that a teacher answers with stands in the place
    of the label's log probability.
    """

    def __init__(self, options: PerSampleOptions) -> None:
        super().__init__()
        self.options, self.span = options, options.span
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.score, self.hard = _scorer(options.hidden), _scorer(options.hidden)

    def forward(self, evidence: GateInputs) -> Float[Tensor, "batch sources"]:
        features, likelihood = _features(evidence)
        believed = self._belief(evidence)
        scores, credit = self._prior(evidence, likelihood, believed)
        shares = share(scores + self.span * torch.tanh(self.score(features).squeeze(-1)), evidence.heard)
        mixed = (shares.unsqueeze(-1) * features).sum(1)
        known = (shares * credit.exp()).sum(1) / max(1 - evidence.noise, 0.5)  # a wrong label was nobody's to know
        options = self.options
        first = (options.doubt * (1 - known)).clamp_min(options.hard) * believed
        prior = torch.logit(first.clamp(options.room, 1 - options.room))
        hard = torch.sigmoid(prior + self.span * torch.tanh(self.hard(mixed).squeeze(-1)))
        return weights_of(hard.maximum(options.floor * believed), shares, evidence.heard, evidence.labelled)

    def _prior(
        self, evidence: GateInputs, likelihood: Float[Tensor, "batch teachers"], believed: Float[Tensor, "batch"]
    ) -> tuple[Float[Tensor, "batch teachers"], Float[Tensor, "batch teachers"]]:
        """Scores of the teachers before anything was learned, and their credit."""
        options, classes = self.options, evidence.logits.shape[1]
        drawn = torch.log((1 - options.slip) * likelihood.exp() + options.slip / classes)
        credit = likelihood_of_samples(evidence, options.unmeasured)
        scores = believed.unsqueeze(1) * options.trust * drawn + options.credit * credit
        if evidence.stale is not None:
            count = (evidence.heard & evidence.stale).sum(1, keepdim=True).clamp_min(1).to(scores.dtype)
            scores = scores + torch.where(evidence.stale, torch.log(options.stale / count), 0.0)
        if evidence.present is not None:
            scores = scores + options.present * evidence.present.clamp_min(LEAST_PRESENT).log()
        return scores, credit

    def _belief(self, evidence: GateInputs) -> Float[Tensor, "batch"]:
        if evidence.met is None:
            return torch.ones_like(evidence.logits[:, 0])
        return belief(evidence.noise, evidence.met.to(evidence.logits.dtype), self.options)


def belief(noise: float, met: Float[Tensor, "batch"], prior: GatePrior) -> Float[Tensor, "batch"]:
    """How far labels are believed where a part ``noise`` of them seems wrong, each learned ``met`` times before.

    A label that is known by heart, because it was met ``known_after`` times, is believed less by the doubt that the
    noise raises, and never less than ``least_belief``. Until then its belief falls evenly: a new class is learned from
    labels that were met a few times, right or wrong.
    """
    doubted = min(doubt(noise, prior.noise_from, prior.noise_range), 1 - prior.least_belief)
    return 1 - doubted * (met / prior.known_after).clamp_max(1)


FEATURES = 7  # of a teacher on a sample
CREDIT = 3.0  # a mean over records, so it varies less than what one label says
LEAST_PRESENT = 1e-4  # a teacher that was worth nothing has no weight, and a finite score


def _scorer(hidden: int) -> nn.Sequential:
    """Two layers, the last one zero: it begins without an opinion."""
    last = nn.Linear(hidden, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(FEATURES, hidden), nn.Tanh(), last)


def _features(
    evidence: GateInputs,
) -> tuple[Float[Tensor, "batch teachers features"], Float[Tensor, "batch teachers"]]:
    """Features of each teacher on each sample, about unit size, 0 where it is not heard; and log p_k(y)."""
    heard = evidence.heard
    classes = evidence.logits.shape[1]
    log_soft = torch.log_softmax(evidence.answers.masked_fill(~evidence.known, -torch.inf), dim=-1)
    log_soft = log_soft.nan_to_num(nan=0.0, neginf=-30.0)
    soft = log_soft.exp() * evidence.known
    likelihood = at_labels(log_soft, evidence).clamp_min(-10.0)
    if not bool(evidence.labelled.all()):  # what a teacher says of itself is no measure: held-out records are
        likelihood = torch.where(evidence.labelled.unsqueeze(1), likelihood, _expected_credit(evidence, soft))
    likelihood = likelihood.masked_fill(~heard, 0.0)
    own = torch.log_softmax(evidence.logits, dim=-1)
    entropy = -(soft * log_soft).sum(-1) / max(torch.log(torch.tensor(float(max(classes, 2)))).item(), 1e-6)
    apart = (soft * (log_soft - own.unsqueeze(1).clamp_min(-30.0))).sum(-1).clamp(0, 10)
    ours = own.gather(1, evidence.labels.clamp_min(0).unsqueeze(1)).squeeze(1)
    ours = torch.where(evidence.labelled, ours, (own.exp() * own).sum(1)).clamp_min(-10.0)
    facts = evidence.facts.unsqueeze(0).expand(heard.shape[0], -1, -1)
    columns = [likelihood / 3, likelihood.exp(), entropy, apart / 3, ours.unsqueeze(1).expand_as(likelihood) / 3]
    features = torch.cat([torch.stack(columns, dim=-1), facts], dim=-1)
    return features * heard.unsqueeze(-1), likelihood


def _expected_credit(
    evidence: GateInputs, soft: Float[Tensor, "batch teachers classes"]
) -> Float[Tensor, "batch teachers"]:
    """Held-out log-likelihood of each teacher on the classes that it answers with, as it weighs them."""
    credit = evidence.credit.nan_to_num(nan=-2.0)
    return CREDIT * (soft * credit).sum(-1)


@hookimpl
def streamkd_gates() -> Iterable[Kind]:
    """The shared scorer."""
    yield Kind("per-sample", PerSampleGate, PerSampleOptions, "a shared scorer over samples and teachers, meta-adapted")
