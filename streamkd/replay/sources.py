"""The sources of a step's further rows, each guarded: a broken one hurts only itself.

    rows so far ─► source ─► checked: in type, shape and range what the step can learn ─► rows so far, and those

One that raises, or gives what cannot be learned, gives nothing to that step; after three strikes it is not asked again
(strikes are state, as teachers' are).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from streamkd.errors import PluginError
from streamkd.replay.rows import HeldOutFigures, RowSource, StepRows
from streamkd.strikes import Strikes


class RowSources:
    """Sources by key, in the order in which they are asked."""

    def __init__(self, sources: Mapping[str, RowSource]) -> None:
        self.sources = dict(sources)
        self.strikes = Strikes("source of rows")

    def draw(
        self, rows: StepRows, classes: int, held_out: Callable[[], HeldOutFigures]
    ) -> Iterator[tuple[str, StepRows]]:
        """Key and rows of each source that has some; each is shown those of the sources before it."""
        for key, source in self.sources.items():
            drawn = self.strikes.call(key, "draw", _drawn, source, rows, classes, held_out)
            if drawn is not None and len(drawn):
                rows = rows.and_(drawn)
                yield key, drawn

    def state_dict(self) -> dict[str, Any]:
        return {
            "sources": {key: source.state_dict() for key, source in self.sources.items()},
            "strikes": dict(self.strikes.counts),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the sources that are still there; a new one begins as it is."""
        for key, source in self.sources.items():
            if key in state["sources"]:
                source.load_state_dict(state["sources"][key])
        self.strikes.counts = {key: count for key, count in state["strikes"].items() if key in self.sources}


def _drawn(source: RowSource, rows: StepRows, classes: int, held_out: Callable[[], HeldOutFigures]) -> StepRows | None:
    given = [rows.x, rows.y, rows.mass, rows.met]
    written = [part._version for part in given]
    drawn = source.draw(rows, held_out)
    if written != [part._version for part in given]:
        raise PluginError("needed the step's rows as they were, got them changed", where="rows", fix="work on clones")
    if drawn is not None:
        refuse_unfit(drawn, rows, classes)
    return drawn


def refuse_unfit(drawn: Any, rows: StepRows, classes: int) -> None:
    """What does not fit ``rows``, or cannot be learned: one infinite number would cost each step anew.

    Raises:
        PluginError: what was needed, and what came.
    """
    if not isinstance(drawn, StepRows):
        raise PluginError(f"needed streamkd.api.StepRows, got {type(drawn).__name__}", where="rows")
    needed, got = (f"x {each.x.dtype} {list(each.x.shape[1:])} on {each.x.device}" for each in (rows, drawn))
    if got != needed:
        raise PluginError(f"needed {needed}, got {got}", where="rows")
    sizes = {name: list(getattr(drawn, name).shape) for name in ("y", "mass", "met")}
    if any(size != [len(drawn.x)] for size in sizes.values()):
        raise PluginError(f"needed y, mass and met of [{len(drawn.x)}], got {sizes}", where="rows")
    if not len(drawn):
        return
    if not -1 <= int(drawn.y.min()) <= int(drawn.y.max()) < classes:
        raise PluginError(f"needed columns in [0, {classes}) or -1, got {drawn.y.tolist()[:10]}", where="rows")
    if not bool(drawn.mass.isfinite().all()) or float(drawn.mass.min()) < 0:
        raise PluginError(f"needed a mass of 0 or more, got {drawn.mass.tolist()[:10]}", where="rows")
    if drawn.x.dtype.is_floating_point and not bool(drawn.x.isfinite().all()):
        raise PluginError("needed finite inputs, got some that are not", where="rows")
