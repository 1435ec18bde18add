"""Losses: one value per sample of a lesson, whatever the number of teachers.

A term of the student's loss is a ``Loss``; one whose sources the gate weighs is ``Gated`` too, one with parameters
of its own ``Trained``. ``match-gate`` lives here, others are plugins (``streamkd-baselines``).

``match-gate`` is the expected-log reading of L = -g·log S(y|x) - (1-g)·log F(y|x), F's term taken over
all classes::

    L_i = w_i0 · CE(y_i, s_i) + (1 - w_i0) · T² · KL(q_i^T ‖ s_i^T),   q_i^T = Σ_k v_ik · p_ik^T

with w_ik = (1 - w_i0)·v_ik from the gate. Of the classes that a teacher does not know p_ik^T is the student's own
(``soft_of``): there it asks nothing. T² keeps the gradient's size over temperatures (Hinton et al. 2015,
section 2). One fused target: its gradient to the student is that of the weighted sum of each teacher's
KL, at the cost of one.

A label of -1 stands for none: such a row has no cross entropy, and learns from teachers alone.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from streamkd.hookspecs import Kind, Options, hookimpl


@dataclass(frozen=True, slots=True)
class LossInputs:
    """What a loss sees of one step. Rows up to ``fresh`` have just arrived, the others are remembered.

    ``labels`` are columns, -1 where a row has none.
    ``answers`` are the teachers' logits; ``known`` is where a teacher has one: it is asked, and knows the class.
    ``weights`` column 0 is the hard label, column 1 + k teacher k: 0 where a teacher knows nothing. A row sums to what
    it counts in the mean over the rows, to 1 where all count alike; a row without label that no teacher answers sums
    to 0. A term with a gate of its own sees that gate's weights; ``own_weights`` holds these by the term's place.
    ``own_logits`` are ``logits`` as constants: they stand for what a teacher does not know.
    ``complete`` says that all of ``known`` is true, so that masking can be spared.
    ``features`` and ``teacher_features`` hold the outputs of the layers that the losses named, the teachers' for
    fresh rows only.
    """

    logits: Float[Tensor, "batch classes"]
    labels: Int[Tensor, "batch"]
    answers: Float[Tensor, "batch teachers classes"]
    known: Bool[Tensor, "batch teachers classes"]
    weights: Float[Tensor, "batch sources"]
    fresh: int
    teachers: tuple[str, ...] = ()
    complete: bool = False
    features: Mapping[str, Tensor] = field(default_factory=dict)
    teacher_features: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    own_weights: Mapping[int, Tensor] = field(default_factory=dict)
    own_logits: Tensor | None = None

    def __post_init__(self) -> None:
        if self.own_logits is None:
            object.__setattr__(self, "own_logits", self.logits.detach())


@runtime_checkable
class Loss(Protocol):
    """A term of the student's loss."""

    layers: tuple[str, ...]
    """Names of the student's layers whose outputs it wants in ``lesson.features``."""
    teacher_layers: Mapping[str, tuple[str, ...]]
    """Per teacher, the layers whose outputs it wants in ``lesson.teacher_features``."""

    def __call__(self, lesson: LossInputs) -> Float[Tensor, "batch"]:
        """The loss of each sample; its gradient reaches the student through ``logits`` and ``features``."""
        ...


@runtime_checkable
class Gated(Loss, Protocol):
    """A loss whose sources the gate weighs, so that the gate can be credited for it."""

    def per_source(self, lesson: LossInputs) -> Float[Tensor, "batch sources"]:
        """∂L_i/∂w_ik, up to what does not depend on the student; 0 where a source says nothing.

        Of a loss that is linear in the weights this is ℓ_ik, what source k alone would ask of sample i: the weights are
        not read, and Σ_k w_ik·ℓ_ik has the gradient of L_i. One that is not linear reads them, as constants.
        Its derivative along u is the table A of ``streamkd.meta.hypergradient``.
        """
        ...


Shapes = Mapping[str, tuple[int, ...]]
"""Shape of one sample's output, by layer."""


@runtime_checkable
class Trained(Loss, Protocol):
    """A loss with parameters of its own (adapters), moved by the student's optimiser."""

    def prepare(self, student: Shapes, teachers: Mapping[str, Shapes]) -> None:
        """Make the parameters for layers of these shapes; called once, before the first step.

        Raises:
            PluginError: the layers cannot be compared.
        """
        ...

    def parameters(self) -> Iterable[nn.Parameter]: ...


@runtime_checkable
class Relating(Loss, Protocol):
    """A loss of relations: a sample's value depends on the other samples, though not on their order."""

    relating: Literal[True]


def soft_answers(
    answers: Float[Tensor, "batch teachers classes"],
    known: Bool[Tensor, "batch teachers classes"],
    temperature: float,
) -> Float[Tensor, "batch teachers classes"]:
    """Each teacher's tempered probabilities p^T over the classes that it knows.

    Rows sum to 1; a teacher that knows nothing of a row gives it zeros; temperature to infinity is uniform.
    """
    masked = (answers / temperature).masked_fill(~known, -torch.inf)
    return torch.softmax(masked, dim=-1).nan_to_num(0.0)


def soft_of(lesson: LossInputs, temperature: float) -> Float[Tensor, "batch teachers classes"]:
    """What each teacher asks for: ``soft_answers`` in the mass that the student gives to the classes that the teacher
    knows, and in the others what the student says itself; zeros where it knows nothing of a row.

    With K what it knows and S_K the student's mass there, its gradient to a logit of K is T·S_K·(s_c/S_K - p_c), and 0
    to the others. Of its own classes alone it would ask that all others be impossible (decision 55).
    """
    if lesson.complete:
        return torch.softmax(lesson.answers / temperature, dim=-1)
    assert lesson.own_logits is not None
    known = lesson.known
    own = torch.softmax(lesson.own_logits / temperature, dim=-1).unsqueeze(1) * known.any(-1, keepdim=True)
    # 1, not nearly, where all is known; and what rounds to less than nothing is nothing
    left = (1 - (own * ~known).sum(-1, keepdim=True)).clamp_min(0)
    return torch.where(known, soft_answers(lesson.answers, known, temperature) * left, own)


def fused_target(
    soft: Float[Tensor, "batch teachers classes"], weights: Float[Tensor, "batch sources"]
) -> Float[Tensor, "batch classes"]:
    """Q = Σ_k w_k·p_k^T = (1 - w_0)·q^T: the linear pool of the teachers, with the mass that the hard label leaves."""
    return torch.bmm(weights[:, 1:].unsqueeze(1), soft).squeeze(1)


def cross_entropy(logits: Float[Tensor, "batch classes"], labels: Int[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """-log S(y|x) of each sample; 0, without gradient, where there is no label (-1)."""
    return F.cross_entropy(logits, labels, ignore_index=-1, reduction="none")


def match_gate(
    logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, "batch"],
    soft: Float[Tensor, "batch teachers classes"],
    weights: Float[Tensor, "batch sources"],
    temperature: float,
) -> Float[Tensor, "batch"]:
    """w_0·CE(y, s) + (1 - w_0)·T²·KL(q^T ‖ s^T) per sample; never negative; 0 only where both terms agree.

    Gradient to the logits: w_0·(s - e_y) + T·((1 - w_0)·s^T - Q), Q of ``fused_target``.
    """
    target = fused_target(soft, weights) * temperature**2
    hard = cross_entropy(logits, labels)
    student = F.log_softmax(logits / temperature, dim=-1)
    rest = target.sum(-1)
    # Σ Q·log(Q/(1-w0)) - Q·log s: KL times the mass 1 - w0, without a division where that mass is 0; a common factor
    # of Q and 1 - w0 goes through. kl_div is Σ Q·(log Q - log s), pointwise
    divergence = F.kl_div(student, target, reduction="none").sum(-1) - torch.xlogy(rest, rest)
    return torch.addcmul(divergence, weights[:, 0], hard)


def source_losses(
    logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, "batch"],
    soft: Float[Tensor, "batch teachers classes"],
    temperature: float,
) -> Float[Tensor, "batch sources"]:
    """What each source alone would ask of the student: CE for the hard label, T²·KL(p_k^T ‖ s^T) for teacher k."""
    hard = cross_entropy(logits, labels)
    student = F.log_softmax(logits / temperature, dim=-1).unsqueeze(1)
    divergence = (torch.xlogy(soft, soft) - soft * student).sum(-1)
    return torch.cat([hard.unsqueeze(1), temperature**2 * divergence], dim=1)


class MatchGateOptions(Options):
    """The gate's own loss."""

    temperature: float = Field(default=2.0, gt=0, description="softens the teachers' and the student's probabilities")


class MatchGate:
    """``match_gate`` over a lesson."""

    layers: tuple[str, ...] = ()
    teacher_layers: Mapping[str, tuple[str, ...]] = {}

    def __init__(self, options: MatchGateOptions) -> None:
        self.temperature = options.temperature

    def __call__(self, lesson: LossInputs) -> Float[Tensor, "batch"]:
        soft = soft_of(lesson, self.temperature)
        return match_gate(lesson.logits, lesson.labels, soft, lesson.weights, self.temperature)

    def per_source(self, lesson: LossInputs) -> Float[Tensor, "batch sources"]:
        """CE, and T²·KL(p_k^T ‖ s^T) of each teacher: ``source_losses``."""
        return source_losses(lesson.logits, lesson.labels, soft_of(lesson, self.temperature), self.temperature)


@hookimpl
def streamkd_losses() -> Iterable[Kind]:
    """The built-in losses."""
    yield Kind("match-gate", MatchGate, MatchGateOptions, "gated hard label and fused teacher target")
