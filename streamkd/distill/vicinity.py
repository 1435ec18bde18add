"""Records from the vicinity of remembered ones: inputs without label, on which the teachers alone can be heard.

    two rows of a step ─► λ·x_a + (1-λ)·x_b, λ ~ U(0, 1) ─► (images) shifted by a few pixels ─► unlabelled row

A teacher is a function, and the memory shows it at a few hundred points only, at most of which the label already
says all. Between and around them teacher and student differ, and there the student can learn what the teacher knows
of records that are long gone. The inputs are those of mixup (Zhang et al. 2018; vicinal risk, Chapelle et al. 2000);
the targets are the teachers' answers there, not mixed labels.

How much such rows count is measured, not set: by how many of the student's mistakes on held-out records the teachers
would not have made, and by how much of what they know of an image they still know once it has moved. Where they know no
better than the student, or where a pixel's neighbours mean nothing (pixels in another order), nothing is drawn or paid.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from streamkd.distill.randomfeatures import is_image

EVERY = 20  # steps between two measurements of what the rows should count


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
    taught: Float[Tensor, "batch classes"], moved: Float[Tensor, "batch classes"], labels: Int[Tensor, "batch"]
) -> float:
    """The square of the share of held-out records, of those that the teachers know, which they know when moved too.

    Squared, because a drawn row is moved and mixed. 1 where they know none: then there is no advantage either.
    """
    right = _right(taught, labels)
    still = right & _right(moved, labels)
    return (int(still.sum()) / int(right.sum())) ** 2 if right.any() else 1.0


def _right(p: Float[Tensor, "batch classes"], labels: Int[Tensor, "batch"]) -> Bool[Tensor, "batch"]:
    """Where the most probable class is the label; nowhere where nothing has a probability."""
    best, place = p.max(1)
    return (place == labels) & (best > 0)


class Vicinity:
    """Draws ``rows`` inputs near those of a step; images move by up to ``shift`` pixels, edges repeated.

    Numbers of whole types other than bytes are names rather than amounts (tokens): nothing lies between two of them,
    and nothing is drawn. ``mass`` is what each row counts, at most ``weight``; ``due`` says whether it should be
    measured anew, ``worth`` takes the measurement.
    """

    def __init__(self, rows: int, shift: int, seed: int, weight: float = 1.0) -> None:
        self.rows, self.shift, self.weight = rows, shift, weight
        self.mass = 0.0
        self.age = 0
        self._generator = torch.Generator().manual_seed(seed)

    def due(self) -> bool:
        """Whether the teachers' advantage should be measured; called once a step."""
        self.age += 1
        return self.rows > 0 and self.age % EVERY == 1

    def worth(self, share: float) -> None:
        """What share of the student's mistakes the teachers would spare it, in [0, 1]."""
        self.mass = self.weight * share

    def moved(self, x: Tensor) -> Tensor | None:
        """x [batch, *shape] as a drawn row would be moved, or ``None``: it is no image, or images stay."""
        return self._shifted(x) if self.shift and is_image(tuple(x.shape[1:])) else None

    def draw(self, x: Tensor) -> Tensor | None:
        """[rows, *shape] in the type of x [batch, *shape], or ``None``: nothing can be drawn near such inputs."""
        if not self.rows or not self.mass or len(x) < 2 or not (x.dtype == torch.uint8 or x.dtype.is_floating_point):
            return None
        pairs = torch.randint(len(x), (2, self.rows), generator=self._generator).to(x.device)
        share = torch.rand(self.rows, generator=self._generator).to(x.device).view(-1, *[1] * (x.dim() - 1))
        mixed = torch.lerp(x[pairs[0]].float(), x[pairs[1]].float(), share)
        if (moved := self.moved(mixed)) is not None:
            mixed = moved
        return mixed.round().to(x.dtype) if x.dtype == torch.uint8 else mixed.to(x.dtype)

    def _shifted(self, x: Tensor) -> Tensor:
        """Each image [height, width, ...] moved by its own offset."""
        span = 2 * self.shift + 1
        moves = torch.randint(span, (2, len(x), 1), generator=self._generator).to(x.device) - self.shift
        down, across = (
            (torch.arange(side, device=x.device) + move).clamp(0, side - 1)
            for side, move in zip(x.shape[1:3], moves, strict=True)
        )
        return x[torch.arange(len(x), device=x.device).view(-1, 1, 1), down.unsqueeze(2), across.unsqueeze(1)]

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self._generator.get_state(), "mass": self.mass, "age": self.age}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._generator.set_state(state["generator"])
        self.mass, self.age = state["mass"], state["age"]
