"""Relations between the samples of a batch, as a layer of the student and of each teacher sees them.

    L_i = Σ_k w_ik · ( λ_D·mean_j l(ψ(i, j), ψ_k(i, j)) + λ_A·mean_jm l(∠(j, i, m), ∠_k(j, i, m)) )

Relational knowledge distillation, Park et al. 2019, section 3.2: ψ is the distance between two outputs, divided by the
mean distance in the batch; ∠ is the cosine of the angle at i between the ways to j and to m; l is Huber's loss. The
paper's sums over pairs and triples are means, so that the term's weight does not depend on the batch: sample i has the
mean of its relations to the others. A sample alone has no relation, its loss is 0.

Neither scale nor direction is compared, so the layers may have any two sizes. As for other hints, remembered rows have
the loss 0, and rows that a teacher does not answer are left out of its relations. The hard label has no part here.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from streamkd.api import Kind, LossInputs, hookimpl
from streamkd_baselines.features import FeatureOptions, hint_table

NEAR = 1e-4  # of the mean distance: closer samples coincide


class RelationalOptions(FeatureOptions):
    """Whose relations, and how much distances and angles count."""

    distance: float = Field(default=1.0, ge=0, description="λ_D: weight of the distances between two samples")
    angle: float = Field(default=2.0, ge=0, description="λ_A: weight of the angles between three")


class Relational:
    """``relations_apart`` under the gate's weights."""

    relating: Literal[True] = True

    def __init__(self, options: RelationalOptions) -> None:
        self.options = options
        self.layers = (options.student,)
        self.teacher_layers: Mapping[str, tuple[str, ...]] = {key: (name,) for key, name in options.teacher.items()}

    def __call__(self, lesson: LossInputs) -> Float[Tensor, "batch"]:
        return (lesson.weights * self.per_source(lesson)).sum(1)

    def per_source(self, lesson: LossInputs) -> Float[Tensor, "batch sources"]:
        """λ_D·distances + λ_A·angles of each named teacher; 0 elsewhere, as for other hints."""
        return hint_table(lesson, self.options, self._apart)

    def _apart(self, key: str, ours: Tensor, theirs: Tensor, shown: Tensor) -> Tensor:
        distances, angles = relations_apart(ours.flatten(1), theirs.flatten(1), shown)
        return self.options.distance * distances + self.options.angle * angles


def relations_apart(
    ours: Float[Tensor, "batch features"], theirs: Float[Tensor, "batch others"], among: Bool[Tensor, "batch"]
) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch"]]:
    """Huber's loss between the relations of both, of each sample its mean over the others: distances, and angles.

    Only rows ``among`` which relations are counted have any. Neither changes under a shift, a rotation or a scale of
    either's outputs. Two samples that coincide have no direction: their angles are left out. Time and memory go as
    batch³.
    """
    pair = among.unsqueeze(0) & among.unsqueeze(1) & ~torch.eye(len(among), dtype=torch.bool, device=among.device)
    (near, ways, see), (near_k, ways_k, see_k) = _geometry(ours, pair), _geometry(theirs, pair)
    distances = _mean(F.smooth_l1_loss(near, near_k, reduction="none"), pair, (1,))
    see = see & see_k
    triple = see.unsqueeze(1) & see.unsqueeze(2) & pair.unsqueeze(0)
    angles = F.smooth_l1_loss(ways @ ways.mT, ways_k @ ways_k.mT, reduction="none")
    return distances, _mean(angles, triple, (1, 2))


def _geometry(
    outputs: Float[Tensor, "batch features"], pair: Bool[Tensor, "batch batch"]
) -> tuple[Float[Tensor, "batch batch"], Float[Tensor, "batch batch features"], Bool[Tensor, "batch batch"]]:
    """ψ(i, j), the unit vector from i to j, and where there is one."""
    ways = outputs.unsqueeze(0) - outputs.unsqueeze(1)
    square = ways.square().sum(-1)
    lengths = torch.where(square > 0, square, 1.0).sqrt() * (square > 0)
    mean = ((lengths * pair).sum() / pair.sum().clamp_min(1)).clamp_min(NEAR)
    apart = pair & (lengths > NEAR * mean)
    units = ways / torch.where(apart, lengths, 1.0).unsqueeze(-1) * apart.unsqueeze(-1)
    return lengths / mean, units, apart


def _mean(values: Tensor, where: Tensor, axes: tuple[int, ...]) -> Tensor:
    return torch.where(where, values, 0.0).sum(axes) / where.sum(axes).clamp_min(1)


@hookimpl
def streamkd_losses() -> Iterable[Kind]:
    """The relational loss."""
    yield Kind("relational", Relational, RelationalOptions, "distances and angles between samples (Park et al. 2019)")
