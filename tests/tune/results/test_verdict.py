"""The rule by which a trial is taken."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkd.tune.record import TrialRecord
from streamkd.tune.results.verdict import choose


def trial(number: int, *per_seed: float | None, state: Any = "finished", at: int = 900) -> TrialRecord:
    """A trial whose seeds had these figures at its last reading, and a tenth less at each reading before."""
    readings = []
    for records in range(300, at + 1, 300):
        figures = [None if f is None else f - (at - records) / 3000 for f in per_seed]
        mean = float(np.mean([f for f in figures if f is not None])) if any(f is not None for f in figures) else None
        readings.append({"records": records, "objectives": {"accuracy": mean}, "per_seed": {"accuracy": figures}})
    return TrialRecord(number, {"x": number}, state, tuple(readings))


def oracle(default: list[float], other: list[float], sign: int) -> bool:
    """Whether the other one is taken, written out."""
    leads = [sign * (b - a) for a, b in zip(default, other, strict=True)]
    mean = math.fsum(leads) / len(leads)
    if len(leads) == 1:
        return mean > 0
    deviation = math.sqrt(math.fsum((lead - mean) ** 2 for lead in leads) / (len(leads) - 1))
    return mean > deviation / math.sqrt(len(leads))


figures = st.integers(0, 1000).map(lambda n: n / 1000)


@given(st.lists(st.tuples(figures, figures), min_size=1, max_size=6), st.sampled_from(["max", "min"]))
def test_the_winner_must_beat_the_default_by_more_than_its_standard_error(
    pairs: list[tuple[float, float]], direction: str
) -> None:
    """For any figures of the seeds, and both directions: the rule as it is written in words."""
    default, other = [a for a, _ in pairs], [b for _, b in pairs]
    verdict = choose([trial(0, *default), trial(1, *other)], "accuracy", direction)
    sign = 1 if direction == "max" else -1
    higher = sign * (math.fsum(other) - math.fsum(default)) > 1e-9
    assert verdict is not None
    leads = [sign * (b - a) for a, b in pairs]
    if abs(np.mean(leads) - (np.std(leads, ddof=1) / math.sqrt(len(leads)) if len(leads) > 1 else 0)) < 1e-9:
        return  # a tie but for rounding
    assert verdict.taken.number == (1 if higher and oracle(default, other, sign) else 0)


def test_the_rule_is_paired() -> None:
    """A lead that every seed has is taken although the seeds differ by far more than it."""
    verdict = choose([trial(0, 0.5, 0.7, 0.9), trial(1, 0.51, 0.71, 0.912)], "accuracy")
    assert verdict is not None
    assert verdict.taken.number == 1
    assert verdict.lead == pytest.approx(0.032 / 3)


def test_the_verdict_names_both() -> None:
    """Where the default is kept, the trial that was higher, its lead and the error are there to be shown."""
    verdict = choose([trial(0, 0.8, 0.8, 0.8), trial(4, 0.75, 0.8, 0.88)], "accuracy")
    assert verdict is not None
    assert verdict.kept
    assert (verdict.taken.number, verdict.highest.number) == (0, 4)
    assert verdict.lead == pytest.approx(0.01)
    assert verdict.error == pytest.approx(0.065574 / math.sqrt(3), abs=1e-6)


@pytest.mark.parametrize(("seeds", "taken"), [((0.81, 0.99), 1), ((0.79, 0.99), 0), ((0.8, 0.99), 0), ((0.81,), 1)])
def test_so_few_seeds_have_no_standard_error(seeds: tuple[float, ...], taken: int) -> None:
    """One or two seeds: no ± is told, and whoever is taken leads on every one of them, however far on one."""
    verdict = choose([trial(0, *(0.8 for _ in seeds)), trial(1, *seeds)], "accuracy")
    assert verdict is not None
    assert verdict.error is None
    assert verdict.leads == pytest.approx([one - 0.8 for one in seeds])
    assert verdict.taken.number == taken


def test_equal_trials_are_taken_in_their_order() -> None:
    """Of two with the same figure the earlier one."""
    verdict = choose([trial(0, 0.5), trial(2, 0.9), trial(1, 0.9)], "accuracy")
    assert verdict is not None
    assert verdict.taken.number == 1


def test_only_finished_trials_win() -> None:
    """Pruned, failed and running ones do not, however high they stood; where none finished there is no verdict."""
    others = [trial(1, 0.99, state="pruned"), trial(2, 0.99, state="failed"), trial(3, 0.99, state="running")]
    verdict = choose([*others, trial(4, 0.5)], "accuracy")
    assert verdict is not None
    assert verdict.taken.number == 4
    assert choose(others, "accuracy") is None
    assert choose([trial(0, None)], "accuracy") is None


def test_a_pruned_default_is_compared_where_both_were_read() -> None:
    """At the default's last reading; a trial that was no better there does not replace it."""
    default = trial(0, 0.6, 0.6, state="pruned", at=300)
    ahead, behind = trial(1, 0.9, 0.9), trial(1, 0.7, 0.7)
    for other, taken in ((ahead, 1), (behind, 0)):
        verdict = choose([default, other], "accuracy")
        assert verdict is not None
        assert (verdict.taken.number, verdict.records) == (taken, 300)
        assert verdict.lead == pytest.approx(other.readings[0]["objectives"]["accuracy"] - 0.6)


def test_a_default_that_failed_or_gave_nothing_does_not_stand_in_the_way() -> None:
    """The highest is taken without a comparison."""
    for default in (TrialRecord(0, {}, "failed", reason="nan: loss"), trial(0, 0.99, state="failed")):
        verdict = choose([default, trial(1, 0.5)], "accuracy")
        assert verdict is not None
        assert verdict.taken.number == 1
