"""The loss beside a host's own, and models with a head for each task."""

import dataclasses

import torch
import toys
from avalanche.models import MultiHeadClassifier
from torch import Tensor

from streamkd.avalanche.copies import ByTask
from streamkd.avalanche.hosted import HostedLoss
from streamkd.losses.match_gate import LossInputs, soft_of, source_losses

ADVANTAGE, FRESH = 0.4, 4


def lesson() -> LossInputs:
    return toys.lesson_of(toys.lesson(0, batch=7), fresh=FRESH)


def loss() -> HostedLoss:
    hosted = HostedLoss(0.7, 2.0)
    hosted.advantage = ADVANTAGE
    return hosted


def written_out(seen: LossInputs, weights: Tensor) -> Tensor:
    """1/n · [Σ_i weight·Σ_k a·w_ik·KL_ik + Σ_j (1 - a·Σ_k w_jk)·CE_j + Σ_k a·w_jk·KL_jk], T² within the KL."""
    sources = source_losses(seen.logits, seen.labels, soft_of(seen, 2.0), 2.0)
    total = torch.zeros((), dtype=torch.float64)
    for row, (asks, given) in enumerate(zip(sources, weights, strict=True)):
        taught = ADVANTAGE * (given[1:] * asks[1:]).sum()
        own = (1 - ADVANTAGE * given[1:].sum()) * asks[0]
        total = total + (0.7 * taught if row < FRESH else own + taught)
    return total / FRESH


def test_its_gradient_is_the_formulas() -> None:
    """The step's mean over all rows has the gradient of what the docstring says, of the host's rows and of replayed."""
    seen = lesson()
    logits = seen.logits.detach().requires_grad_()
    seen = dataclasses.replace(seen, logits=logits)
    (ours,) = torch.autograd.grad(loss()(seen).mean(), logits)
    (theirs,) = torch.autograd.grad(written_out(seen, seen.weights), logits)
    torch.testing.assert_close(ours, theirs)


def test_per_source_is_its_derivative_by_the_weights() -> None:
    """What a source asks is what the loss changes by when the source weighs more; the host's labels have no price."""
    toys.check_per_source(loss(), lesson())
    assert not loss().per_source(lesson())[:FRESH, 0].any()


def test_where_the_teachers_have_no_advantage_the_host_is_left_alone() -> None:
    """Its rows add nothing, replayed ones their cross entropy."""
    seen, alone = lesson(), HostedLoss(1.0, 2.0)
    asked = torch.nn.functional.cross_entropy(seen.logits[FRESH:], seen.labels[FRESH:], reduction="none")
    expected = torch.cat([torch.zeros(FRESH, dtype=torch.float64), asked * len(seen.labels) / FRESH])
    torch.testing.assert_close(alone(seen).detach(), expected.detach())


def test_rows_of_a_task_without_a_head_have_no_answer() -> None:
    """They are NaN, which nobody listens to; the others are the module's own."""
    heads = MultiHeadClassifier(6, masking=False)
    heads.known_train_tasks_labels = {0}
    module, x = ByTask(heads, torch.Size([6])), torch.randn(3, 6)
    logits = module(ByTask.rows(x, torch.tensor([0, 1, 0])))
    assert torch.equal(logits[[0, 2]], heads(x[[0, 2]], torch.tensor([0, 0])))
    assert logits[1].isnan().all()
