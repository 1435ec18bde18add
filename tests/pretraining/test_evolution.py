"""Evolution strategies: better by comparisons alone, and the same from the same seed."""

import json

import numpy as np
import pytest

from streamkd.pretraining.evolution import Evolution, signed_ranks


def _run(one: Evolution, generations: int, pairs: int = 8) -> Evolution:
    """Against a quadratic bowl, each pair under a shift of its own that both halves share."""
    centre = np.linspace(-1, 1, len(one.mean))
    for _ in range(generations):
        shift = np.random.default_rng(one.generation).normal(scale=10.0, size=pairs)
        values = [
            [add - float(((half - centre) ** 2).sum()) for half in pair]
            for pair, add in zip(one.candidates(pairs), shift, strict=True)
        ]
        one = one.told([first - second for first, second in values])
    return one


def test_it_comes_near_the_top_of_a_quadratic() -> None:
    """To less than a tenth of the distance, though the common part of a pair is far louder."""
    found = _run(Evolution((0.0,) * 12, rate=0.1), 150)
    centre = np.linspace(-1, 1, 12)
    assert np.linalg.norm(np.array(found.mean) - centre) < 0.1 * np.linalg.norm(centre)


def test_its_pull_is_to_where_it_began() -> None:
    """Where nobody is better it goes back."""
    one = Evolution((1.0, -1.0), rate=0.1, pull=1.0)
    for _ in range(20):
        one = one.told([0.0] * 4)
    assert np.abs(one.mean).max() < 0.2


def test_both_halves_of_a_pair_stand_opposite() -> None:
    """Their middle is the mean, and the next generation draws others."""
    one = Evolution((0.5, 2.0), sigma=0.3)
    for first, second in one.candidates(4):
        np.testing.assert_allclose((first + second) / 2, one.mean)
    assert not np.allclose(one.noise(4), one.told([1.0, 0.0, 0.0, 0.0]).noise(4))


def test_going_on_from_json_ends_in_the_same_bits() -> None:
    """A generation follows from what is kept of the one before."""
    whole = _run(Evolution((0.0, 0.0, 0.0), seed=3), 9)
    half = _run(Evolution((0.0, 0.0, 0.0), seed=3), 4)
    assert _run(Evolution.from_json(json.loads(json.dumps(half.as_json()))), 5) == whole


def test_signed_ranks_are_those_of_wilcoxon() -> None:
    """By the size of a difference, with its sign; equals share their rank, 0 stays 0."""
    found = signed_ranks(np.array([0.5, -0.1, 0.0, 0.1]))
    assert found.tolist() == pytest.approx([1.0, -2.5 / 4, 0.0, 2.5 / 4])
