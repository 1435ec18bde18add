"""The gate ``confidence``: teachers by their cross entropy on the sample itself, with nothing to learn (CA-MKD).

v_k = (1 - softmax_k(CE_k)) / (K - 1)
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from streamkd.api import GateInputs, Kind, Options, at_labels, hookimpl, log_answers, share, weights_of


class ConfidenceOptions(Options):
    """Teachers by the cross entropy of their answer on the sample itself (CA-MKD)."""

    hard: float = Field(default=0.5, ge=0, le=1, description="weight of the hard label, and so its floor")


class ConfidenceGate(nn.Module):
    """v_k = (1 - exp(CE_k)/Σ_j exp(CE_j)) / (K - 1) over the K teachers heard; K = 1 gives that one all.

    CA-MKD, Zhang et al. 2022, equation 3. Without a label a teacher's CE is that of its own answer: its entropy.
    """

    def __init__(self, options: ConfidenceOptions) -> None:
        super().__init__()
        self.hard = options.hard

    def forward(self, evidence: GateInputs) -> Float[Tensor, "batch sources"]:
        heard = evidence.heard
        logs = log_answers(evidence)
        wrong = share(-at_labels(logs, evidence), heard)
        others = heard.sum(1, keepdim=True) - 1
        shares = torch.where(others > 0, (1 - wrong) / others.clamp_min(1), 1.0) * heard
        hard = torch.full_like(evidence.logits[:, 0], self.hard)
        return weights_of(hard, shares, heard, evidence.labelled)


@hookimpl
def streamkd_gates() -> Iterable[Kind]:
    """CA-MKD's weights."""
    yield Kind("confidence", ConfidenceGate, ConfidenceOptions, "teachers by cross entropy on the sample (CA-MKD)")
