"""Merging: two snapshots that say much the same become one, whose weights are the mean of theirs.

Snapshots of one average lie on one path, and the mean of weights along a path is often as good as its points
(stochastic weight averaging, Izmailov et al. 2018); whether it is here, held-out records say (``Pool``).
"""

import itertools

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from streamkd.teachers.teacher import SnapshotTeacher, copy_of

TEMPERATURE = 2.0


def closest(
    logits: Float[Tensor, "batch teachers classes"], known: Bool[Tensor, "batch teachers classes"]
) -> tuple[int, int] | None:
    """The two teachers of the least mean divergence, in their order; ``None`` where no two can be compared."""
    pairs = itertools.combinations(range(logits.shape[1]), 2)
    apart = {(a, b): divergence(logits[:, a], logits[:, b], known[:, a] & known[:, b]) for a, b in pairs}
    finite = {pair: distance for pair, distance in apart.items() if distance is not None}
    return min(finite, key=lambda pair: finite[pair]) if finite else None


def divergence(
    one: Float[Tensor, "batch classes"], other: Float[Tensor, "batch classes"], known: Bool[Tensor, "batch classes"]
) -> float | None:
    """Mean of KL(p ‖ q) and KL(q ‖ p) of tempered answers over the classes that both know.

    Only records count on which both know two classes or more; ``None`` without any.
    """
    rows = known.sum(1) > 1
    if not bool(rows.any()):
        return None
    p, q = (
        torch.log_softmax((logits[rows] / TEMPERATURE).masked_fill(~known[rows], -torch.inf), 1)
        for logits in (one, other)
    )
    terms = torch.where(known[rows], (p.exp() - q.exp()) * (p - q), 0.0)
    return float(terms.sum(1).mean() / 2)


@torch.no_grad()
def merged(old: SnapshotTeacher, young: SnapshotTeacher) -> SnapshotTeacher:
    """One snapshot in place of two, which count by the tasks that each stands for; rows of labels that only the
    younger knows, and its buffers, are the younger's.

    It is named after the first and the last of the tasks that it stands for.
    """
    name, _, first = old.key.partition("+")[0].rpartition("-")
    last = young.key.replace("+", "-").rpartition("-")[2]
    share = young.tasks / (old.tasks + young.tasks)
    result = SnapshotTeacher(f"{name}-{first}+{last}", copy_of(young.student), old.tasks + young.tasks)
    theirs = dict(old.student.named_parameters())
    for key, parameter in result.student.named_parameters():
        corner = tuple(slice(min(a, b)) for a, b in zip(theirs[key].shape, parameter.shape, strict=True))
        parameter[corner] = torch.lerp(theirs[key][corner], parameter[corner], share)
    return result
