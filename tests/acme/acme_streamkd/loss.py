"""The loss ``brier``: squared errors of probabilities in place of logarithms, of the label and of each teacher.

    L_i = w_i0 · ‖s_i - e_y‖² + Σ_k w_ik · ‖s_i - p_ik‖²

Bounded by 2, so that a wrong label or a bad teacher pulls no harder than that (Brier 1950).
"""

from collections.abc import Iterable, Mapping

import torch

from streamkd.api import Kind, LossInputs, Options, hookimpl, soft_answers


class Brier:
    """Linear in the gate's weights, so that the gate learns from it (``Gated``)."""

    layers: tuple[str, ...] = ()
    teacher_layers: Mapping[str, tuple[str, ...]] = {}

    def __init__(self, options: Options) -> None: ...

    def __call__(self, inputs: LossInputs) -> torch.Tensor:
        return (inputs.weights * self.per_source(inputs)).sum(1)

    def per_source(self, inputs: LossInputs) -> torch.Tensor:
        student = inputs.logits.softmax(1).unsqueeze(1)
        labelled = (inputs.labels >= 0).unsqueeze(1)
        right = torch.nn.functional.one_hot(inputs.labels.clamp_min(0), inputs.logits.shape[1]).to(student)
        targets = torch.cat([right.unsqueeze(1), soft_answers(inputs.answers, inputs.known, 1.0)], 1)
        counted = torch.cat([labelled, inputs.known.any(2)], 1)
        return (student - targets).square().sum(2) * counted


@hookimpl
def streamkd_losses() -> Iterable[Kind]:
    """One loss."""
    yield Kind("brier", Brier, Options, "squared errors of probabilities", hook_version=1)
