"""Vicinal rows: inputs near those of a step, without label, on which the teachers alone are heard.

    two rows of a step ─► λ·x_a + (1-λ)·x_b, λ ~ U(0, 1) ─► (images) shifted by a few pixels ─► unlabelled row

A teacher is a function, and the memory shows it at a few hundred points only, at most of which the label already
says all. Between and around them teacher and student differ, and there the student can learn what the teacher knows
of records that are long gone. The inputs are those of mixup (Zhang et al. 2018; vicinal risk, Chapelle et al. 2000);
the targets are the teachers' answers there, not mixed labels.

How much such rows count is measured, not set: by how many of the student's mistakes on held-out records the teachers
would spare it, and by how much of what they know of an image they still know once it has moved by a pixel
(``streamkd.learning.held_out``). Where they know no better than the student, or where a pixel's neighbours mean nothing
(pixels in another order), nothing is drawn.
"""

from typing import Any

import torch
from torch import Tensor

from streamkd.students.images import is_image, shifted


class VicinalRows:
    """Draws ``rows`` inputs near those of a step, each of which counts up to ``weight``.

    An image moves by up to ``shift`` pixels, edges repeated. Numbers of whole types other than bytes are names rather
    than amounts (tokens): nothing lies between two of them, and nothing is drawn.
    """

    def __init__(self, rows: int, shift: int, seed: int, weight: float = 1.0) -> None:
        self.rows, self.shift, self.weight = rows, shift, weight
        self._generator = torch.Generator().manual_seed(seed)

    def mass(self, x: Tensor, error_reduction: float, invariance: float) -> float:
        """What each row near x [batch, *shape] counts. It is moved further than what was measured, and mixed: so the
        invariance of images counts by its fourth power.
        """
        return self.weight * error_reduction * (invariance**4 if self._moves(x) else 1.0)

    def draw(self, x: Tensor) -> Tensor | None:
        """[rows, *shape] in the type of x [batch, *shape], or ``None``: nothing can be drawn near such inputs."""
        if not self.rows or len(x) < 2 or not (x.dtype == torch.uint8 or x.dtype.is_floating_point):
            return None
        pairs = torch.randint(len(x), (2, self.rows), generator=self._generator).to(x.device)
        share = torch.rand(self.rows, generator=self._generator).to(x.device).view(-1, *[1] * (x.dim() - 1))
        mixed = torch.lerp(x[pairs[0]].float(), x[pairs[1]].float(), share)
        if self._moves(x):
            mixed = shifted(mixed, self.shift, self._generator)
        return mixed.round().to(x.dtype) if x.dtype == torch.uint8 else mixed.to(x.dtype)

    def _moves(self, x: Tensor) -> bool:
        return self.shift > 0 and is_image(tuple(x.shape[1:]))

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._generator.set_state(state["generator"])
