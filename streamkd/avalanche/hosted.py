"""The teachers' term beside a host's own loss, as a loss of the step.

    L = L_host + 1/n · [ Σ_i weight · Σ_k a·w_ik·T²·KL(p_ik^T ‖ s_i^T)                             the host's n rows
                       + Σ_j (1 - a·Σ_k w_jk)·CE(y_j, s_j) + Σ_k a·w_jk·T²·KL(p_jk^T ‖ s_j^T) ]    replayed rows

The hard label of the host's rows is the host's business. a in [0, 1) is the teachers' advantage.
"""

import dataclasses
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from streamkd.losses.match_gate import LossInputs, MatchGate, MatchGateOptions


class HostedLoss:
    """The match-gate loss where a host has its own for the rows that arrived; the step's mean over all rows is L's."""

    layers: tuple[str, ...] = ()
    teacher_layers: Mapping[str, tuple[str, ...]] = {}

    def __init__(self, weight: float, temperature: float) -> None:
        self.weight, self.advantage = weight, 0.0
        self._taught = MatchGate(MatchGateOptions(temperature=temperature))

    def __call__(self, lesson: LossInputs) -> Float[Tensor, "batch"]:
        given = lesson.weights
        weights = self.advantage * given
        weights[:, 0] += (1 - self.advantage) * given.sum(1).detach()
        weights[: lesson.fresh, 0] = 0.0
        return self._share(lesson) * self._taught(dataclasses.replace(lesson, weights=weights))

    def per_source(self, lesson: LossInputs) -> Float[Tensor, "batch sources"]:
        """Up to the part of the label that no gate weighs, (1 - a)·CE."""
        asks = self.advantage * self._share(lesson).unsqueeze(1).repeat(1, lesson.weights.shape[1])
        asks[: lesson.fresh, 0] = 0.0
        return asks * self._taught.per_source(lesson)

    def _share(self, lesson: LossInputs) -> Float[Tensor, "batch"]:
        """What each row counts: as much as one of the host's n."""
        share = torch.full_like(lesson.weights[:, 0], len(lesson.labels) / lesson.fresh)
        share[: lesson.fresh] *= self.weight
        return share
