"""The two other readings of the source's formula L = -g·log S(y|x) - (1-g)·log F(y|x), beside ``match-gate``.

``match-gate-literal`` is the formula as it stands, summed over the teachers::

    L_i = -w_i0·log S(y_i|x_i) - Σ_k w_ik·log p_ik(y_i)

The teachers' part has no gradient to the student, so the gate is a rate of learning, and the loss is the baseline that
the source describes. Its derivative by w_ik is what the likelihood gate credits.

``match-gate-mixture`` draws the sum inside the logarithm::

    L_i = -log( w_i0·S(y_i|x_i) + Σ_k w_ik·p_ik(y_i) )

It is convex in the weights, whose likelihood it is (Jacobs et al. 1991, equation 1.3); the student learns less of what
a teacher knows already. A row without label has no likelihood: it is 0 in both.
"""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from streamkd.api import Kind, LossInputs, Options, cross_entropy, hookimpl

MOST = 30.0  # a source more than e³⁰ times as likely as the mixture is as good as certain


class LiteralOptions(Options):
    """The formula as it stands; it has no temperature."""


class MixtureOptions(Options):
    """The likelihood of the label under the mixture of all sources; it has no temperature."""


class Literal:
    """-w_0·log S(y|x) - Σ_k w_k·log p_k(y), linear in the weights."""

    layers: tuple[str, ...] = ()
    teacher_layers: Mapping[str, tuple[str, ...]] = {}

    def __init__(self, options: LiteralOptions) -> None: ...

    def __call__(self, lesson: LossInputs) -> Float[Tensor, "batch"]:
        return (lesson.weights * self.per_source(lesson)).sum(1)

    def per_source(self, lesson: LossInputs) -> Float[Tensor, "batch sources"]:
        """The negative log-likelihood of the label under each source; 0 where a teacher does not know it."""
        likelihoods, told = label_likelihoods(lesson)
        return -likelihoods.masked_fill(~told, 0.0)


class Mixture:
    """-log of the label's probability under the weighted mixture of student and teachers."""

    layers: tuple[str, ...] = ()
    teacher_layers: Mapping[str, tuple[str, ...]] = {}

    def __init__(self, options: MixtureOptions) -> None: ...

    def __call__(self, lesson: LossInputs) -> Float[Tensor, "batch"]:
        return -mixture_likelihood(lesson)[0]

    def per_source(self, lesson: LossInputs) -> Float[Tensor, "batch sources"]:
        """∂L/∂w = -p_k(y) / (the mixture's), at the lesson's weights, which enter it; at least -e³⁰."""
        mixture, likelihoods, told = mixture_likelihood(lesson)
        return -(likelihoods - mixture.unsqueeze(1)).clamp_max(MOST).exp().masked_fill(~told, 0.0)


def label_likelihoods(lesson: LossInputs) -> tuple[Float[Tensor, "batch sources"], Bool[Tensor, "batch sources"]]:
    """log S(y|x) and log p_k(y) of each teacher, and where the source knows the label; elsewhere the number is any."""
    columns = lesson.labels.clamp_min(0)
    teachers = lesson.answers.shape[1]
    wanted = columns.view(-1, 1, 1).expand(-1, teachers, 1)
    knows = lesson.known.gather(2, wanted).squeeze(2)
    answers = torch.where(lesson.known, lesson.answers, -torch.inf)
    # a row that is -inf everywhere has no softmax, not even a derivative of it
    answers = torch.where(knows.unsqueeze(2), answers, 0.0)
    theirs = torch.log_softmax(answers, -1).gather(2, wanted).squeeze(2)
    ours = -cross_entropy(lesson.logits, columns)
    told = torch.cat([torch.ones_like(ours, dtype=torch.bool).unsqueeze(1), knows], 1)
    return torch.cat([ours.unsqueeze(1), theirs], 1), told & (lesson.labels >= 0).unsqueeze(1)


def mixture_likelihood(
    lesson: LossInputs,
) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch sources"], Bool[Tensor, "batch sources"]]:
    """log Σ_k w_k·p_k(y), 0 in rows where no source with weight knows a label; with ``label_likelihoods``."""
    likelihoods, told = label_likelihoods(lesson)
    weighed = told & (lesson.weights > 0)
    parts = torch.where(weighed, lesson.weights, 1.0).log() + likelihoods
    answered = weighed.any(1)
    parts = torch.where(weighed, parts, -torch.inf)
    parts = torch.where(answered.unsqueeze(1), parts, 0.0)
    return torch.where(answered, torch.logsumexp(parts, 1), 0.0), likelihoods, told


@hookimpl
def streamkd_losses() -> Iterable[Kind]:
    """Both readings."""
    yield Kind("match-gate-literal", Literal, LiteralOptions, "the formula as it stands: the gate is a learning rate")
    yield Kind("match-gate-mixture", Mixture, MixtureOptions, "likelihood of the label under all sources together")
