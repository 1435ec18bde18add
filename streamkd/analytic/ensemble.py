"""The ensemble: the averaged student and the analytic teacher together, p ∝ p_student^share · p_analytic^(1-share).

    held-out records ─► both models' logits ─► share of the best likelihood ─► Served ─► published version

The two err differently: one was trained by gradient on what the memory replays, the other in closed form on every
record once.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from streamkd.analytic.readout import Readout
from streamkd.gates.label_noise import doubt
from streamkd.hookspecs import Kind, hookimpl
from streamkd.students.networks import at_rest
from streamkd.teachers.served import Candidates, Model, Served

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the student, among which held-out records choose
PULL = 3.0  # nats times the distance from one half: what so few held-out records say is partly chance


class Ensemble:
    """The average where there is one (and it is asked for), else the student, pooled with the first analytic teacher.

    Of the ``shares`` held-out records choose; without any it is half and half. Without shares the student is alone.
    """

    def __init__(self, average: bool, shares: tuple[float, ...]) -> None:
        self.average, self.shares = average, shares

    @torch.no_grad()
    def choose(self, candidates: Candidates) -> Model:
        average = candidates.average if self.average else None
        student = candidates.student if average is None else average
        analytic = next((part for part in candidates.teachers.values() if isinstance(part, Readout)), None)
        if analytic is None or not self.shares:
            return student
        share = 0.5
        if candidates.held is not None:
            x, y = candidates.held
            with at_rest(student):
                tolerance = doubt(candidates.noise)
                share = best_share(student(x), analytic(x), analytic.known, y, self.shares, tolerance)
        if share == 1.0:
            return student
        return Served({"student": student, "analytic": analytic}, self.combine, {"share": share})

    def combine(
        self,
        logits: Float[Tensor, "batch parts classes"],
        known: Bool[Tensor, "parts classes"],
        how: Mapping[str, Any],
    ) -> Float[Tensor, "batch classes"]:
        return pooled(logits[:, 0], logits[:, 1], known[1], how["share"])


@hookimpl
def streamkd_selectors() -> Iterable[Kind]:
    """The built-in selectors."""
    yield Kind(
        "auto", lambda options: Ensemble(True, SHARES), summary="of the following, what held-out records bear out"
    )
    yield Kind("ensemble", lambda options: Ensemble(True, SHARES[1:-1]), summary="the average and the analytic teacher")
    yield Kind("ema", lambda options: Ensemble(True, ()), summary="the moving average")
    yield Kind("student", lambda options: Ensemble(False, ()), summary="the student")


def pooled(
    first: Float[Tensor, "batch classes"],
    second: Float[Tensor, "batch classes"],
    known: Bool[Tensor, "classes"],
    share: float,
) -> Float[Tensor, "batch classes"]:
    """Log-probabilities of the geometric pool of two models' logits over the classes that the second one knows.

    The others keep the first model's probability, and the known ones what that leaves. Share 1 is the first model;
    share 0 is the second, where it knows all classes.
    """
    whole = torch.log_softmax(first, 1)
    both = share * whole + (1 - share) * torch.log_softmax(second.masked_fill(~known, -torch.inf), 1)
    left = whole.masked_fill(~known, -torch.inf).logsumexp(1, keepdim=True)
    return torch.where(known, left + both.masked_fill(~known, -torch.inf).log_softmax(1), whole)


def best_share(
    first: Float[Tensor, "batch classes"],
    second: Float[Tensor, "batch classes"],
    known: Bool[Tensor, "classes"],
    y: Int[Tensor, "batch"],
    shares: tuple[float, ...] = SHARES,
    tolerance: float = 0.0,
) -> float:
    """The share whose pool is least surprised by the labels; the fewer they are, the nearer to one half.

    Surprise is (1 - p^q) / q with q the ``tolerance`` of wrong labels: -log p where they are right. Else that
    would choose whoever is least sure; 1 - p, at q = 1, costs every pool alike for a wrong label (generalised cross
    entropy, Zhang & Sabuncu 2018, section 3.2).
    """

    def lost(share: float) -> float:
        given = pooled(first, second, known, share).gather(1, y.unsqueeze(1))
        surprise = -torch.expm1(tolerance * given) / tolerance if tolerance else -given
        return float(surprise.sum()) + PULL * abs(share - 0.5)

    return min(shares, key=lost)
