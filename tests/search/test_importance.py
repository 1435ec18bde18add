"""Importance: what decides comes first, what does not has nothing, and missing values are no values."""

from typing import Any

import numpy as np
import pytest

from streamkd.search.importance import FEW, importance, order
from streamkd.search.ledger import TrialRecord


def trial(
    number: int, values: dict[str, Any], objective: float | None, records: int = 900, state: Any = "finished"
) -> Any:
    reading = {"records": records, "objectives": {"accuracy": objective}, "per_seed": {}, "seconds": 1.0}
    return TrialRecord(number, values, state, (reading,))


def searched(count: int, seed: int = 0) -> list[TrialRecord]:
    """``rate`` decides, peaked; ``kind`` shifts; ``width`` counts under kind b alone; ``idle`` does nothing."""
    dice = np.random.default_rng(seed)
    trials = []
    for number in range(count):
        rate, kind = 10 ** dice.uniform(-4, -1), str(dice.choice(["a", "b"]))
        values = {"rate": rate, "kind": kind, "idle": dice.uniform(), "fixed": 3}
        values |= {"width": int(dice.integers(8, 64))} if kind == "b" else {}
        objective = 0.9 + 0.1 * np.log10(rate) / 3 + (0.01 if kind == "b" else 0.0) + dice.normal(0, 0.002)
        trials.append(trial(number, values, float(objective)))
    return trials


@pytest.mark.parametrize(("count", "method"), [(16, "rank correlation"), (120, "permutation importance")])
def test_what_decides_comes_first(count: int, method: str) -> None:
    """With few trials and with many the rate leads, the idle one is near nothing, the fixed one was not measured."""
    found = importance(searched(count), "accuracy")
    assert (found.method, found.trials) == (method, count)
    assert next(iter(found.shares)) == "rate"
    assert (found.shares["rate"] or 0) > 0.5
    assert (found.shares["idle"] or 0) < 0.15
    assert found.shares["fixed"] is None


def test_a_forest_sees_a_peak_that_no_correlation_sees() -> None:
    """An objective that is best in the middle of an interval: much of the order is explained."""
    dice = np.random.default_rng(1)
    xs = dice.uniform(-1, 1, (2 * FEW, 2))
    found = importance(
        [trial(i, {"x": float(x), "y": float(y)}, -float(x * x)) for i, (x, y) in enumerate(xs)], "accuracy"
    )
    assert (found.shares["x"] or 0) > 0.7
    assert (found.explained or 0) > 0.7


def test_a_choice_has_no_order() -> None:
    """Three kinds of which the middle one is best: found with few trials, however the kinds are named."""
    kinds = {"a": 0.1, "b": 0.9, "c": 0.1}
    trials = [trial(i, {"kind": "abc"[i % 3]}, kinds["abc"[i % 3]] + i / 1e4) for i in range(15)]
    assert (importance(trials, "accuracy").shares["kind"] or 0) > 0.6


def test_the_order_is_who_came_farther_then_who_was_higher() -> None:
    """A pruned trial stands below all that went on, whatever it had; equals share their place."""
    trials = [trial(0, {}, 0.5), trial(1, {}, 0.9, 100, "pruned"), trial(2, {}, 0.7), trial(3, {}, 0.5)]
    assert order(trials, "accuracy").tolist() == [0.5, 0.0, 1.0, 0.5]
    assert order(trials[:1] + trials[2:3], "accuracy", "min").tolist() == [1.0, 0.0]


def test_trials_without_a_figure_do_not_count() -> None:
    """Failed, running and unmeasured trials are left out; with fewer than five nothing is said."""
    few = searched(4)
    rest = [
        trial(9, {"rate": 1.0}, None),
        trial(10, {"rate": 1.0}, 0.5, state="running"),
        TrialRecord(11, {}, "failed"),
    ]
    found = importance([*few, *rest], "accuracy")
    assert (found.method, found.trials) == ("too few trials", 4)
    assert set(found.shares.values()) == {None}


def test_the_same_trials_give_the_same_numbers() -> None:
    """Forest and shuffles have seeds of their own."""
    assert importance(searched(60), "accuracy") == importance(searched(60), "accuracy")


def test_noise_alone_explains_nothing() -> None:
    """Objectives that no parameter decides: the forest says so, and every share is small."""
    dice = np.random.default_rng(3)
    noise = [trial(i, {f"p{k}": float(dice.uniform()) for k in range(5)}, float(dice.uniform())) for i in range(80)]
    found = importance(noise, "accuracy")
    assert (found.explained or 0) < 0.1
    assert all((share or 0) < 0.15 for share in found.shares.values())


def test_chance_reaches_its_level_one_time_in_twenty() -> None:
    """Of many parameters that decide nothing, about that share of them is above the level that is named."""
    dice = np.random.default_rng(4)
    above = []
    for _ in range(20):
        trials = [
            trial(i, {f"p{k}": float(dice.uniform()) for k in range(20)}, float(dice.uniform())) for i in range(16)
        ]
        found = importance(trials, "accuracy")
        assert found.chance is not None
        above += [(share or 0) > found.chance for share in found.shares.values()]
    assert 0.02 < np.mean(above) < 0.09


def test_trials_that_are_all_equal_are_taken() -> None:
    """Where every trial came equally far and high there is nothing to explain, and nothing breaks."""
    for count in (10, 40):
        found = importance([trial(i, {"x": i / count, "kind": "ab"[i % 2]}, 0.5) for i in range(count)], "accuracy")
        assert all(not share for share in found.shares.values())
