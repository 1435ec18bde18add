"""Streams that drift: what their papers define, where they change, and that a seed always draws the same."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from streamkd.streams.replay import datasets, generators
from streamkd.streams.replay import source as replay
from streamkd.streams.replay.options import ReplayOptions
from streamkd.streams.replay.source import PARTITION


def group_a(function: int, a: dict[str, float]) -> bool:
    """Whether an applicant is of group A: the functions, written down case by case."""
    age, salary, level, loan = a["age"], a["salary"], a["elevel"], a["loan"]
    third = 0 if age < 40 else 1 if age < 60 else 2
    low, high = [(50_000, 100_000), (75_000, 125_000), (25_000, 75_000)][third]
    levels = [(0, 1), (1, 2, 3), (2, 3, 4)][third]
    if function == 1:
        return third in (0, 2)
    if function == 3:
        return level in levels
    if function == 4:
        within = [(25_000, 75_000), (50_000, 100_000), (50_000, 100_000)][third]
        low, high = within if level in levels else (low, high)
        return low <= salary <= high
    if function == 5:
        within = [(100_000, 300_000), (200_000, 400_000), (300_000, 500_000)][third]
        beyond = [(200_000, 400_000), (300_000, 500_000), (100_000, 300_000)][third]
        low, high = within if low <= salary <= high else beyond
        return low <= loan <= high
    return 0.67 * (salary + a["commission"]) - 0.2 * loan - 20_000 > 0


@pytest.mark.parametrize("function", generators.FUNCTIONS)
def test_agrawals_functions_are_those_of_the_paper(function: int) -> None:
    """Two thousand applicants are of the group that the paper's text puts them into, and both groups occur."""
    x = generators.applicants(np.random.default_rng(7), 2_000)
    told = [group_a(function, dict(zip(generators.COLUMNS, row, strict=True))) for row in x.tolist()]
    assert generators.FUNCTIONS[function](x).tolist() == told
    assert 0 < sum(told) < len(told)


def test_applicants_are_drawn_as_the_paper_says() -> None:
    """Who earns 75,000 or more has no commission, and a house is worth what its zip code says, within half."""
    x = generators.applicants(np.random.default_rng(0), 5_000)
    salary, commission, hvalue = x[:, 0], x[:, 1], x[:, 6]
    assert ((commission == 0) == (salary >= 75_000)).all()
    assert salary.min() >= 20_000
    assert salary.max() <= 150_000
    ratio = hvalue / ((9 - x[:, 5]) * 100_000)
    assert 0.5 <= ratio.min() < 0.51
    assert 1.49 < ratio.max() <= 1.5


@pytest.mark.parametrize("name", ["agrawal", "agrawal-recurring"])
def test_agrawals_concepts_change_every_ten_thousand_records(name: str) -> None:
    """Each stretch is labelled by its own function, but for what perturbation moved over an edge, and by no other."""
    drawn = generators.generate(name, 3)
    starts = 1 + np.flatnonzero(np.diff(drawn.concept))
    assert starts.tolist() == list(range(10_000, len(drawn.y), 10_000))
    for start in (0, *starts):
        part = slice(start, start + 10_000)
        agree = {n: float((f(drawn.x[part]) == drawn.y[part]).mean()) for n, f in generators.FUNCTIONS.items()}
        assert max(agree, key=lambda n: agree[n]) == drawn.concept[start]
        assert 0.85 < agree[int(drawn.concept[start])] < 1.0


def test_a_concept_that_recurs_has_its_own_number_again() -> None:
    """Of six stretches the last three are the first three."""
    concept = generators.generate("agrawal-recurring", 0).concept[::10_000]
    assert concept[:3].tolist() == concept[3:].tolist()


def plane(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The least-squares plane between two classes [inputs + 1]."""
    return np.linalg.lstsq(np.c_[x, np.ones(len(x))], 2 * y - 1, rcond=None)[0]


def agrees(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    return float(((np.c_[x, np.ones(len(x))] @ weights > 0) == y).mean())


def test_the_hyperplane_turns_a_little_with_every_record() -> None:
    """A plane found on one stretch has nearly the noise's ceiling on the next, and far less a long time after."""
    drawn = generators.generate("hyperplane", 1)
    found = plane(drawn.x[:1_000], drawn.y[:1_000])
    assert agrees(found, drawn.x[1_000:1_500], drawn.y[1_000:1_500]) > 0.88
    assert agrees(found, drawn.x[-2_000:], drawn.y[-2_000:]) < 0.8
    assert agrees(plane(drawn.x[-1_000:], drawn.y[-1_000:]), drawn.x[-2_000:-1_000], drawn.y[-2_000:-1_000]) > 0.88


def nearest(x: np.ndarray, y: np.ndarray, near: np.ndarray, told: np.ndarray) -> float:
    """How often the nearest of some records has the label."""
    found = ((near[:, None] - x[None]) ** 2).sum(2).argmin(1)
    return float((y[found] == told).mean())


def test_moving_clusters_leave_their_places() -> None:
    """Records of now tell those of now, and not those of forty thousand records later."""
    drawn = generators.generate("moving-clusters", 0)
    known, soon, late = slice(0, 3_000), slice(3_000, 3_500), slice(43_000, 43_500)
    now = nearest(drawn.x[known], drawn.y[known], drawn.x[soon], drawn.y[soon])
    then = nearest(drawn.x[known], drawn.y[known], drawn.x[late], drawn.y[late])
    assert now > then + 0.2


def test_more_and_more_clusters_interchange() -> None:
    """Every three thousand records one cluster more than before has another place, at last all fifteen."""
    drawn = generators.generate("interchanging-clusters", 0)
    centres = np.array([[drawn.x[(drawn.concept == c) & (drawn.y == k)].mean(0) for k in range(15)] for c in range(15)])
    moved = (np.linalg.norm(np.diff(centres, axis=0), axis=2) > 0.04).sum(1)
    assert moved.tolist() == list(range(2, 16))
    assert (np.bincount(drawn.concept) == 3_000).all()


@pytest.mark.parametrize("name", generators.NAMES)
def test_a_seed_draws_the_same_stream(name: str) -> None:
    """Twice the same seed gives the same records; another gives others."""
    first, again, other = (generators.generate(name, seed) for seed in (4, 4, 5))
    assert np.array_equal(first.x, again.x)
    assert np.array_equal(first.y, again.y)
    assert not np.array_equal(first.x, other.x)


def played(**options: Any) -> replay.Replay:
    checked = ReplayOptions.model_validate({"order": "given", **options})
    schema = replay.describe(checked)
    assert schema is not None
    return replay.Replay(checked, schema)


@pytest.mark.parametrize("name", generators.NAMES)
def test_a_generated_stream_is_played_in_its_order(name: str) -> None:
    """``replay`` gives its records by number, with their concept as task; its end, which nobody trains on, tests."""
    drawn, source = generators.generate(name, 6), played(dataset=name, seed=6)
    total = len(drawn.y) - datasets.TESTED
    assert source.end(PARTITION) == total
    rows = source.read(PARTITION, total - 100, 200).rows
    assert rows.column("label").to_pylist() == drawn.y[total - 100 : total].tolist()
    assert rows.column("task").to_pylist() == drawn.concept[total - 100 : total].astype(str).tolist()
    first = generators.columns(name)[0]
    assert rows.column(first).to_pylist() == drawn.x[total - 100 : total, 0].tolist()
    (tests,) = source.tests().values()
    assert tests.column("label").to_pylist() == drawn.y[total:].tolist()


@pytest.mark.parametrize("options", [{"order": "seed"}, {"order": "given", "classes_per_task": 1}])
def test_a_generated_stream_in_another_order_is_refused(options: dict[str, Any]) -> None:
    """Its drift lies in its order: a shuffled one would be another stream under its name."""
    with pytest.raises(ValidationError, match="order: given"):
        ReplayOptions.model_validate({"dataset": "hyperplane", **options})
