"""The ensemble: the averaged student and the analytic teacher together, p ∝ p_student^share · p_analytic^(1-share).

    held-out records ─► both models' logits ─► share of the best likelihood ─► Ensemble ─► published version

The two err differently: one was trained by gradient on what the memory replays, the other in closed form on every
record once. A version directory of an ensemble holds the student as any other does, and ``ensemble.safetensors``
beside it; whoever reads the student alone (the teacher ``checkpoint``) finds it where it always is.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from streamkd.analytic import features as extractor
from streamkd.analytic.readout import Readout
from streamkd.analytic.teacher import AnalyticTeacher
from streamkd.errors import StateError
from streamkd.gates.label_noise import doubt
from streamkd.plugins import Registry
from streamkd.replay.memory import Ring
from streamkd.students import networks
from streamkd.students.networks import LoadedVersion, Student, at_rest

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the student, among which held-out records choose
PULL = 3.0  # nats times the distance from one half: what so few held-out records say is partly chance
FILE = "ensemble.safetensors"


class Ensemble(nn.Module):
    """Raw inputs [batch, *shape] to log-probabilities [batch, classes] of the pool, to be read as logits."""

    def __init__(self, student: Student, analytic: Readout, share: float) -> None:
        super().__init__()
        self.student, self.analytic, self.share = student, analytic, share

    def forward(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        return pooled(self.student(x), self.analytic(x), self.analytic.known, self.share)

    @property
    def classes(self) -> int:
        """Width of its answers."""
        return self.student.classes


Model = Student | Ensemble
"""What may be served."""


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


@torch.no_grad()
def chosen(
    student: Student, teacher: AnalyticTeacher, holdout: Ring, shares: tuple[float, ...] = SHARES, noise: float = 0.0
) -> Model:
    """The pool that held-out records bear out, or the student where that is it alone; without any, half and half.

    ``noise`` is the part of their labels that seems to be wrong.
    """
    share = 0.5
    if holdout.x is not None and holdout.filled:
        x, y = holdout.x[: holdout.filled], holdout.y[: holdout.filled]
        with at_rest(student):
            share = best_share(student(x), teacher.network(x), teacher.known(), y, shares, doubt(noise))
    return student if share == 1.0 else Ensemble(student, teacher.network, share)


def write(directory: Path, model: Model, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Write a version into an empty directory; ``meta`` as for ``students.write_published``."""
    if isinstance(model, Student):
        return networks.write_published(directory, model, meta)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.analytic.learned().items()}
    (directory / FILE).write_bytes(save(weights))
    features = extractor.write(directory, model.analytic.extractor)
    return networks.write_published(
        directory, model.student, {**meta, "ensemble": {"share": model.share, "features": features}}
    )


def load(directory: Path, registry: Registry, version: int = 0) -> LoadedVersion:
    """The version in a directory, ensemble or not.

    Raises:
        StateError: files are missing or do not fit each other.
    """
    published = networks.load_published(directory, registry, version)
    about = json.loads((directory / "model.json").read_text("utf-8")).get("ensemble")
    if about is None:
        return published
    try:
        normalise, features = extractor.load(directory, about["features"], published.schema, registry)
        analytic = Readout(normalise, features, len(published.classes))
        analytic.load_learned(load_file(directory / FILE))
        share = float(about["share"])
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as fault:
        raise StateError(f"a published ensemble cannot be loaded: {fault}", where=str(directory)) from fault
    model = Ensemble(cast(Student, published.student), analytic, share)
    return dataclasses.replace(published, student=model.eval().requires_grad_(False))
