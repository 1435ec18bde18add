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

from collections.abc import Callable, Iterable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from streamkd.hookspecs import Kind, Options, hookimpl
from streamkd.replay.rows import HeldOutFigures, RowsContext, StepRows
from streamkd.students.images import is_image, shifted


class VicinalOptions(Options):
    """Inputs drawn near a step's records, on which the teachers alone are heard."""

    rows: int = Field(default=120, ge=0, description="so many a step; 0: none")
    shift: int = Field(default=2, ge=0, le=8, description="images among them move by up to so many pixels; 0: none do")
    weight: float = Field(default=2.0, gt=0, description="what each counts, were all of the student's mistakes spared")


class VicinalRows:
    """Draws ``rows`` inputs near those of a step, each of which counts up to ``weight``.

    An image moves by up to ``shift`` pixels, edges repeated. Numbers of whole types other than bytes are names rather
    than amounts (tokens): nothing lies between two of them, and nothing is drawn.
    """

    def __init__(self, options: VicinalOptions, context: RowsContext) -> None:
        self.options = options
        self._generator = torch.Generator().manual_seed(context.seed)

    def draw(self, rows: StepRows, held_out: Callable[[], HeldOutFigures]) -> StepRows | None:
        """``None`` where nothing can be drawn near such inputs, or the teachers know no better than the student."""
        x, between = rows.x, rows.x.dtype == torch.uint8 or rows.x.dtype.is_floating_point
        if not self.options.rows or len(x) < 2 or not between or not (mass := self._mass(x, held_out())):
            return None
        pairs = torch.randint(len(x), (2, self.options.rows), generator=self._generator).to(x.device)
        share = torch.rand(self.options.rows, generator=self._generator).to(x.device)
        mixed = torch.lerp(x[pairs[0]].float(), x[pairs[1]].float(), share.view(-1, *[1] * (x.dim() - 1)))
        if self._moves(x):
            mixed = shifted(mixed, self.options.shift, self._generator)
        return StepRows.of(mixed.round().to(x.dtype) if x.dtype == torch.uint8 else mixed.to(x.dtype), mass=mass)

    def _mass(self, x: Tensor, known: HeldOutFigures) -> float:
        """What each row counts. An image is moved further than what was measured, and mixed: so the invariance counts
        by its fourth power.
        """
        return self.options.weight * known.error_reduction * (known.invariance**4 if self._moves(x) else 1.0)

    def _moves(self, x: Tensor) -> bool:
        return self.options.shift > 0 and is_image(tuple(x.shape[1:]))

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._generator.set_state(state["generator"])


@hookimpl
def streamkd_rows() -> Iterable[Kind]:
    """The built-in source."""
    yield Kind("vicinal", VicinalRows, VicinalOptions, "inputs between the step's records, for the teachers to teach")
