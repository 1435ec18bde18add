"""Worth: what teachers are good for on held-out records, and what a pool can do without.

    logits, known [records, teachers, classes], labels ─► Assessment ─► marginal worth, by which teachers come and go

A pool is worth the mean over records of max_k p_k(y): what its best teacher of each record gives the label. A teacher
is worth what the pool would lose with it, so of two that say the same neither is missed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Assessment:
    """Of each record and teacher: p_k(y) over the classes that it knows, 0 where it does not know y."""

    likelihood: Float[Tensor, "batch teachers"]
    heard: Bool[Tensor, "batch teachers"]
    right: Bool[Tensor, "batch teachers"]

    def accuracy(self) -> Float[Tensor, "teachers"]:
        """On records of labels that a teacher knows; 0 without any."""
        return self.right.sum(0) / self.heard.sum(0).clamp_min(1)

    def marginal(self) -> Float[Tensor, "teachers"]:
        """What the pool loses without each teacher: never negative, 0 for one of two equals."""
        count = self.likelihood.shape[1]
        return (
            torch.stack(
                [
                    self.gain([k for k in range(count) if k != index], self.likelihood[:, index])
                    for index in range(count)
                ]
            )
            if count
            else self.likelihood.new_zeros(0)
        )

    def gain(self, among: Sequence[int], likelihood: Float[Tensor, "batch"]) -> Float[Tensor, ""]:
        """What a teacher of that likelihood adds to the teachers ``among``."""
        rest = self.likelihood[:, list(among)]
        best = rest.max(1).values if rest.shape[1] else torch.zeros_like(likelihood)
        return (torch.maximum(best, likelihood) - best).mean()


def assessment(
    logits: Float[Tensor, "batch teachers classes"],
    known: Bool[Tensor, "batch teachers classes"],
    labels: Int[Tensor, "batch"],
) -> Assessment:
    """What teachers' answers are worth on labelled records."""
    soft = torch.softmax(logits.masked_fill(~known, -torch.inf), -1).nan_to_num(0.0)
    column = labels.view(-1, 1, 1).expand(-1, known.shape[1], 1)
    heard = known.gather(2, column).squeeze(2)
    right = (soft.argmax(-1) == labels.unsqueeze(1)) & heard
    return Assessment(soft.gather(2, column).squeeze(2) * heard, heard, right)
