"""Which trial is taken.

    finished trials ─► the highest ─► beats trial 0 by more than chance? ─► it, else trial 0

Trial 0 is the configuration as it stands. The best of many trials looks better than it is, so it is taken only
where its mean lead over trial 0, seed by seed, exceeds the standard error of that lead:

    d_s = objective of the trial − objective of trial 0 on seed s      taken if mean(d) > std(d) / √seeds

Fewer than ``FEWEST`` seeds have no standard error to speak of: there the trial has to lead on every seed, which of two
equal trials one does in one of four cases, and whoever is told of it is told so. Both are compared where both were last
read: trial 0 may have failed on the way.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamkd.tune.record import TrialRecord

SIGN = {"max": 1.0, "min": -1.0}
FEWEST = 3
"""Seeds whose standard error is told and decided by: of two it is half of their difference, which says nothing."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What is taken, and why: the highest trial, and its lead over trial 0 (``None``: they could not be compared).

    Leads are positive where the trial is better, whatever the direction; ``leads`` are those of each seed, ``lead``
    their mean, ``error`` its standard error where there are seeds enough; ``records`` is where both were read.
    """

    taken: TrialRecord
    highest: TrialRecord
    default: TrialRecord | None
    lead: float | None = None
    error: float | None = None
    records: int | None = None
    leads: tuple[float, ...] = ()

    @property
    def kept(self) -> bool:
        """Whether the configuration stays as it stands although another trial was higher."""
        return self.taken is not self.highest


def choose(trials: Sequence[TrialRecord], objective: str, direction: str = "max") -> Decision | None:
    """The decision over all trials of a search; ``None`` where none finished with a figure."""
    first = highest(trials, objective, direction)
    if first is None:
        return None
    default = next((one for one in trials if one.number == 0), None)
    if default is None or default is first:
        return Decision(first, first, default)
    records, leads = _leads(first, default, objective, SIGN[direction])
    if not leads:
        return Decision(first, first, default)
    lead, error = float(np.mean(leads)), standard_error(leads)
    stays = default.state != "failed" and (min(leads) <= 0 if error is None else lead <= error)
    return Decision(default if stays else first, first, default, lead, error, records, tuple(leads))


def highest(trials: Sequence[TrialRecord], objective: str, direction: str) -> TrialRecord | None:
    """The finished trial with the best figure, the first of equals."""
    sign = SIGN[direction]
    known = [(sign * value, -one.number, one) for one in trials if (value := one.final(objective)) is not None]
    return max(known, key=lambda each: each[:2])[2] if known else None


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean; ``None`` of fewer than ``FEWEST`` values."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) >= FEWEST else None


def _leads(trial: TrialRecord, default: TrialRecord, objective: str, sign: float) -> tuple[int | None, list[float]]:
    """Seed by seed, at the last records at which both were read."""
    theirs = {reading["records"]: reading for reading in default.readings}
    for ours in reversed(trial.readings):
        other = theirs.get(ours["records"])
        pairs = zip(*(_per_seed(one, objective) for one in (ours, other)), strict=False) if other else ()
        leads = [sign * (a - b) for a, b in pairs if a is not None and b is not None]
        if leads:
            return int(ours["records"]), leads
    return None, []


def _per_seed(reading: Mapping[str, Any], objective: str) -> Sequence[float | None]:
    values: Sequence[float | None] = (reading.get("per_seed") or {}).get(objective) or []
    return values or [reading["objectives"].get(objective)]
