"""The vicinity of remembered records: inputs without label, on which the teachers alone are heard, and moved images.

    two rows of a step ─► λ·x_a + (1-λ)·x_b, λ ~ U(0, 1) ─► (images) shifted by a few pixels ─► unlabelled row

A teacher is a function, and the memory shows it at a few hundred points only, at most of which the label already
says all. Between and around them teacher and student differ, and there the student can learn what the teacher knows
of records that are long gone. The inputs are those of mixup (Zhang et al. 2018; vicinal risk, Chapelle et al. 2000);
the targets are the teachers' answers there, not mixed labels.

How much such rows count is measured, not set: by how many of the student's mistakes on held-out records the teachers
would not have made, and by how much of what they know of an image they still know once it has moved. Where they know no
better than the student, or where a pixel's neighbours mean nothing (pixels in another order), nothing is drawn or paid.

A remembered image is replayed hundreds of times, until the student knows its pixels by heart. So some of them come
moved by a pixel, with their label and what the teachers say of the image as it lies (the noisy student of Xie et al.
2020), as far as the teachers still know held-out images that have moved.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from streamkd.students.images import is_image, shifted

EVERY = 20  # steps between two measurements of what the rows should count
NUDGE = 1  # pixels by which a replayed image moves
PSEUDO = 2.0  # records that begin the count of the newest task: there may be few of it, or none
# what teachers still know of moved images: up to there none is moved, from here all that may be
SHAKEN, STEADY = 0.75, 0.85


def advantage(
    taught: Float[Tensor, "batch classes"], own: Float[Tensor, "batch classes"], labels: Int[Tensor, "batch"]
) -> float:
    """1 - (e + 1) / (s + 1), at least 0: what part of the student's mistakes the teachers would spare it.

    e and s are mistakes of the teachers' mixture and of the student on held-out records, one more each because there
    are few. Mistakes and not likelihoods: a student is sure of records that it has met, however little it knows.
    A record of which no teacher speaks (a row of zeros) is a mistake too.
    """
    theirs, ours = (len(labels) - int(_right(p, labels).sum()) for p in (taught, own))
    return max(0.0, 1.0 - (theirs + 1) / (ours + 1))


def steadiness(
    taught: Float[Tensor, "batch classes"],
    moved: Float[Tensor, "batch classes"],
    labels: Int[Tensor, "batch"],
    newest: Bool[Tensor, "batch"],
) -> float:
    """The share of held-out records, of those that the teachers know and one more, which they know when moved too.

    The smaller one of all records' and of those of the newest task, which begin with ``PSEUDO`` that are like all: a
    task that has just begun may be the first whose images cannot be moved.
    """
    right = _right(taught, labels)
    still = right & _right(moved, labels)
    every = int(still.sum()) / (int(right.sum()) + 1)
    return min(every, (int((still & newest).sum()) + PSEUDO * every) / (int((right & newest).sum()) + PSEUDO))


def _right(p: Float[Tensor, "batch classes"], labels: Int[Tensor, "batch"]) -> Bool[Tensor, "batch"]:
    """Where the most probable class is the label; nowhere where nothing has a probability."""
    best, place = p.max(1)
    return (place == labels) & (best > 0)


class VicinalRows:
    """Draws ``rows`` inputs near those of a step, and moves a part ``moved`` of the images that are replayed.

    A drawn image moves by up to ``shift`` pixels, a replayed one by up to ``NUDGE``, edges repeated. Numbers of whole
    types other than bytes are names rather than amounts (tokens): nothing lies between two of them, and nothing is
    drawn. ``mass`` is what each drawn row counts, at most ``weight``; ``steady`` how much the teachers know of moved
    images. ``due`` says whether they should be measured anew, ``measured`` takes the measurement.
    """

    def __init__(self, rows: int, shift: int, seed: int, weight: float = 1.0, moved: float = 0.0) -> None:
        self.rows, self.shift, self.weight, self.part = rows, shift, weight, moved
        self.mass = 0.0
        self.steady = 0.0
        self.age = 0
        self._generator = torch.Generator().manual_seed(seed)

    def due(self, x: Tensor) -> bool:
        """Whether teachers and student should be compared on records like x [batch, *shape]; called once a step."""
        self.age += 1
        return self.age % EVERY == 1 and (self.rows > 0 or (self.part > 0 and self._may_move(x)))

    def measured(self, advantage: float, steadiness: float | None) -> None:
        """What part of its mistakes the teachers would spare the student, and what they know of images moved a little.

        ``None`` where nothing is moved. A drawn row is moved further, and mixed: it counts by the fourth power.
        """
        self.mass = self.weight * advantage * (1.0 if steadiness is None else steadiness**4)
        self.steady = steadiness or 0.0

    def nudged(self, x: Tensor) -> Tensor | None:
        """x [batch, *shape], each moved by up to ``NUDGE`` pixels, or ``None``: it is no image, or images stay."""
        return shifted(x, NUDGE, self._generator) if self._may_move(x) else None

    def replayed(self, x: Tensor) -> Tensor | None:
        """x [batch, *shape] with a part of the images moved, or ``None``: all stay, or moving hides what they are."""
        part = self.part * min(1.0, max(0.0, (self.steady - SHAKEN) / (STEADY - SHAKEN)))
        if not part or (nudged := self.nudged(x)) is None:
            return None
        moves = (torch.rand(len(x), generator=self._generator) < part).to(x.device)
        return torch.where(moves.view(-1, *[1] * (x.dim() - 1)), nudged, x)

    def draw(self, x: Tensor) -> Tensor | None:
        """[rows, *shape] in the type of x [batch, *shape], or ``None``: nothing can be drawn near such inputs."""
        if not self.rows or not self.mass or len(x) < 2 or not (x.dtype == torch.uint8 or x.dtype.is_floating_point):
            return None
        pairs = torch.randint(len(x), (2, self.rows), generator=self._generator).to(x.device)
        share = torch.rand(self.rows, generator=self._generator).to(x.device).view(-1, *[1] * (x.dim() - 1))
        mixed = torch.lerp(x[pairs[0]].float(), x[pairs[1]].float(), share)
        if self._may_move(x):
            mixed = shifted(mixed, self.shift, self._generator)
        return mixed.round().to(x.dtype) if x.dtype == torch.uint8 else mixed.to(x.dtype)

    def _may_move(self, x: Tensor) -> bool:
        return self.shift > 0 and is_image(tuple(x.shape[1:]))

    def state_dict(self) -> dict[str, Any]:
        state = {"mass": self.mass, "steady": self.steady, "age": self.age}
        return {"generator": self._generator.get_state(), **state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._generator.set_state(state["generator"])
        self.mass, self.steady, self.age = state["mass"], state.get("steady", 0.0), state["age"]
