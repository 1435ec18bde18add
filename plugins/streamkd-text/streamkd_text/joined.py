"""The rows ``text-joined``: the beginning of one text and the end of another, on which the teachers alone are heard.

    two rows of a step ─► each cut between two words ─► front of the one, back of the other ─► unlabelled row

Numbers have something between them, texts do not: what ``vicinal`` does for numbers these do for texts. A teacher that
knows a frozen encoder can say of a text that nobody wrote what it is like; a student of n-grams hears so of many more
pairs of words than the memory holds. They count as vicinal rows do: by how many of the student's mistakes the teachers
would spare it.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from pydantic import Field

from streamkd.api import HeldOutFigures, Kind, Options, RowsContext, StepRows, hookimpl
from streamkd_text import reading


class JoinedOptions(Options):
    """Texts of two parts."""

    count: int = Field(default=20, ge=0, description="so many a step; 0: none")
    weight: float = Field(default=2.0, gt=0, description="what each counts, were all of the student's mistakes spared")


class JoinedRows:
    """Draws ``count`` texts from those of a step."""

    def __init__(self, options: JoinedOptions, context: RowsContext) -> None:
        reading.require_text(context.schema.only(context.schema.student).shape, f"rows {context.key}")
        self.options = options
        self._generator = torch.Generator().manual_seed(context.seed)

    def draw(self, rows: StepRows, held_out: Callable[[], HeldOutFigures]) -> StepRows | None:
        """``None`` where there are not two texts, or the teachers know no better than the student."""
        mass = self.options.weight * held_out().error_reduction
        if len(rows) < 2 or not self.options.count or not mass:
            return None
        pairs = torch.randint(len(rows), (2, self.options.count), generator=self._generator)
        cuts = torch.rand(2, self.options.count, generator=self._generator)
        fronts, backs = (reading.texts(rows.x[of.to(rows.x.device)]) for of in pairs)
        made = [
            f"{_part(front, float(at), False)} {_part(back, float(to), True)}".strip()
            for front, back, at, to in zip(fronts, backs, *cuts, strict=True)
        ]
        return StepRows.of(reading.rows_of(made, rows.x), mass=mass)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._generator.set_state(state["generator"])


def _part(text: str, at: float, back: bool) -> str:
    words = text.split()
    cut = round(at * len(words))
    return " ".join(words[cut:] if back else words[:cut])


@hookimpl
def streamkd_rows() -> Iterable[Kind]:
    """The one source."""
    yield Kind("text-joined", JoinedRows, JoinedOptions, "the beginning of one text and the end of another")
