"""Divergences between the student's probabilities and each teacher's, weighed by the gate.

    kd             w_0·CE(y, s) + Σ_k w_k·T²·KL(p_k^T ‖ s^T)
    decoupled-kd   w_0·CE(y, s) + Σ_k w_k·T²·(α·TCKD_k + β·NCKD_k)

``kd`` is Hinton et al. 2015, section 2, each teacher by itself: ``match-gate`` has its gradient and is cheaper, this
one can leave the label out. ``decoupled-kd`` is Zhao et al. 2022, equation 7: whether it is the label (binary), and
which of the others, are two matters, so that a teacher that is sure of the label still tells how the other classes
resemble it. The paper's β, 1 to 10, is for a finished teacher: on a stream, whose teachers have yet to learn the newest
classes, it holds the student back (docs/decisions/0022 has figures).

Teachers' probabilities are those over the classes that they know, the student's always over all.
"""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from streamkd.api import Kind, LossInputs, Options, cross_entropy, hookimpl, soft_of, source_losses


class KdOptions(Options):
    """Distillation by tempered probabilities."""

    temperature: float = Field(default=2.0, gt=0, description="softens the teachers' and the student's probabilities")
    labels: bool = Field(
        default=True, description="cross entropy on the label too; off beside another loss that has it"
    )


class DecoupledKdOptions(Options):
    """Distillation of the label and of the other classes, apart."""

    temperature: float = Field(default=2.0, gt=0, description="softens the teachers' and the student's probabilities")
    target: float = Field(default=1.0, ge=0, description="α: weight of the label against all others")
    others: float = Field(default=0.25, ge=0, description="β: weight of how the others share what the label leaves")
    labels: bool = Field(
        default=True, description="cross entropy on the label too; off beside another loss that has it"
    )


class Kd:
    """``source_losses`` under the gate's weights."""

    layers: tuple[str, ...] = ()
    teacher_layers: Mapping[str, tuple[str, ...]] = {}

    def __init__(self, options: KdOptions) -> None:
        self.temperature, self.labels = options.temperature, options.labels

    def __call__(self, lesson: LossInputs) -> Float[Tensor, "batch"]:
        return (lesson.weights * self.per_source(lesson)).sum(1)

    def per_source(self, lesson: LossInputs) -> Float[Tensor, "batch sources"]:
        """CE, and T²·KL(p_k^T ‖ s^T) of each teacher; without ``labels`` the first column is 0."""
        table = source_losses(lesson.logits, lesson.labels, soft_of(lesson, self.temperature), self.temperature)
        return table if self.labels else torch.cat([torch.zeros_like(table[:, :1]), table[:, 1:]], 1)


class DecoupledKd:
    """``decoupled`` under the gate's weights."""

    layers: tuple[str, ...] = ()
    teacher_layers: Mapping[str, tuple[str, ...]] = {}

    def __init__(self, options: DecoupledKdOptions) -> None:
        self.options, self.temperature = options, options.temperature

    def __call__(self, lesson: LossInputs) -> Float[Tensor, "batch"]:
        return (lesson.weights * self.per_source(lesson)).sum(1)

    def per_source(self, lesson: LossInputs) -> Float[Tensor, "batch sources"]:
        """CE, and T²·(α·TCKD + β·NCKD) of each teacher; T²·KL where there is no label to take apart."""
        o = self.options
        soft = soft_of(lesson, self.temperature)
        parts = decoupled(lesson.logits, lesson.labels, soft, self.temperature)
        apart = o.target * parts[0] + o.others * parts[1]
        if bool((lesson.labels < 0).any()):
            whole = source_losses(lesson.logits, lesson.labels, soft, self.temperature)[:, 1:]
            apart = torch.where((lesson.labels < 0).unsqueeze(1), whole, apart)
        hard = cross_entropy(lesson.logits, lesson.labels)
        return torch.cat([(hard if self.options.labels else torch.zeros_like(hard)).unsqueeze(1), apart], 1)


def decoupled(
    logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, "batch"],
    soft: Float[Tensor, "batch teachers classes"],
    temperature: float,
) -> tuple[Float[Tensor, "batch teachers"], Float[Tensor, "batch teachers"]]:
    """T²·TCKD and T²·NCKD of each teacher; neither is negative.

    TCKD = KL of (p_y, 1 - p_y), NCKD = KL of the classes other than y, each renormalised. KL = TCKD + (1 - p_y)·NCKD
    (equation 6), p of ``soft_of``. A teacher that knows nothing has 0 in both. Rows with label -1 hold no meaning.
    """
    if logits.shape[1] < 2:
        return torch.zeros_like(soft[..., 0]), torch.zeros_like(soft[..., 0])
    label = torch.nn.functional.one_hot(labels.clamp_min(0), logits.shape[1]).bool()
    student = torch.log_softmax(logits / temperature, -1)
    ours = student.masked_fill(label, -torch.inf)
    rest = torch.logsumexp(ours, 1)
    # the label's own place is 0, for 0·(-inf) is none
    among = (ours - rest.unsqueeze(1)).masked_fill(label, 0.0).unsqueeze(1)
    target = student.gather(1, labels.clamp_min(0).unsqueeze(1))
    theirs = soft.masked_fill(~label.unsqueeze(1), 0.0).sum(-1)
    left = soft.masked_fill(label.unsqueeze(1), 0.0).sum(-1)
    others = soft.masked_fill(label.unsqueeze(1), 0.0) / left.clamp_min(torch.finfo(left.dtype).tiny).unsqueeze(-1)
    binary = torch.xlogy(theirs, theirs) - theirs * target + torch.xlogy(left, left) - left * rest.unsqueeze(1)
    sharing = (torch.xlogy(others, others) - others * among).sum(-1)
    return temperature**2 * binary, temperature**2 * sharing


@hookimpl
def streamkd_losses() -> Iterable[Kind]:
    """Both divergences."""
    yield Kind("kd", Kd, KdOptions, "tempered probabilities of each teacher (Hinton et al. 2015)")
    yield Kind("decoupled-kd", DecoupledKd, DecoupledKdOptions, "label and other classes apart (Zhao et al. 2022)")
