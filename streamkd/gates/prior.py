"""The prior of the per-sample gate: every number by which it weighs before anything is learned, as one named vector.

    GatePrior ─► offsets, 0 where nothing has moved ─► ``streamkd meta-train --gate`` moves them ─► GatePrior

Each number moves on a scale of its own: a ratio, whose upper bound is 1, by its logit, any other by its logarithm. So
an offset of 0.1 is about a tenth of the number wherever it stands, and no offset leaves the bounds.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, ValidationError

from streamkd.gates.label_noise import LOUD, QUIET
from streamkd.hookspecs import Options

SIDES = ("ge", "gt", "le", "lt")
REACH = 3.0  # of an offset: twenty times as much, or a twentieth


class GatePrior(Options):
    """How the per-sample gate weighs before anything is learned; the defaults were set by hand (decision 20)."""

    floor: float = Field(default=0.3, ge=0, le=1, description="least weight of a label that is believed")
    hard: float = Field(default=0.5, ge=0, le=1, description="prior: weight of the label; the rest is distillation")
    doubt: float = Field(
        default=1.0, ge=0, le=10, description="prior: its weight on classes of which the teachers know nothing"
    )
    room: float = Field(
        default=0.02, gt=0, lt=0.5, description="prior: the label's weight is so far from 0 and 1 before it is moved"
    )
    trust: float = Field(default=1.0, ge=0, description="prior: shares go as p(label) to this power")
    slip: float = Field(default=0.2, ge=0, lt=1, description="prior: how far p(label) is drawn to chance before that")
    credit: float = Field(default=1.0, ge=0, description="prior: and as the class's held-out p(label) to this one")
    unmeasured: float = Field(
        default=0.5, gt=0, lt=1, description="prior: the held-out p(label) of teachers while nobody's was measured"
    )
    stale: float = Field(
        default=0.25, gt=0, description="prior: what all stale answers together count beside one that is given now"
    )
    present: float = Field(
        default=1.0, ge=0, description="prior: shares go as the worth on the newest records to this power"
    )
    noise_from: float = Field(
        default=QUIET, ge=0, lt=1, description="prior: share of wrong labels up to which labels are believed"
    )
    noise_range: float = Field(
        default=LOUD, gt=0, description="prior: so much more of them, and a label is doubted in full"
    )
    known_after: float = Field(
        default=60, gt=0, description="prior: replays after which a label is known by heart, and doubted most"
    )
    least_belief: float = Field(
        default=0.04, gt=0, lt=1, description="prior: what label noise leaves of the belief in a label"
    )


NAMES = tuple(GatePrior.model_fields)


def checked(given: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of a prior by name, as a file has them.

    Raises:
        ValueError: a name that there is not, or a number out of its bounds; it says which.
    """
    try:
        known = GatePrior.model_validate(given)
    except ValidationError as fault:
        first = fault.errors()[0]
        raise ValueError(f"gate_prior.{first['loc'][0]}: {first['msg']}, got {first['input']!r}") from None
    return {name: getattr(known, name) for name in given}


def moved(prior: GatePrior, offsets: Sequence[float]) -> GatePrior:
    """A prior whose numbers stand so far from those of ``prior``, in the order of ``NAMES``; 0 leaves the same bits.

    Raises:
        ValueError: there are more or fewer offsets than numbers.
    """
    found = {name: _moved(name, getattr(prior, name), by) for name, by in zip(NAMES, offsets, strict=True)}
    return GatePrior.model_validate(found)


def _moved(name: str, value: float, by: float) -> float:
    if by == 0:
        return value
    factor = math.exp(min(max(by, -REACH), REACH))
    low, high, ratio = _bounds(name)
    if ratio:
        return value * factor / (1 - value + value * factor)
    return min(max(value * factor, low), high)


def _bounds(name: str) -> tuple[float, float, bool]:
    """Where a number may lie, and whether it is a ratio."""
    rules = GatePrior.model_fields[name].metadata
    bounds = {side: float(getattr(rule, side)) for rule in rules for side in SIDES if hasattr(rule, side)}
    low, high = bounds.get("ge", bounds.get("gt", 0.0)), bounds.get("le", bounds.get("lt", math.inf))
    return low, high if "le" in bounds else math.nextafter(high, 0.0), high == 1
