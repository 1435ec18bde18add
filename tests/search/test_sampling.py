"""Proposals for trials: of Optuna, at random, of a grid."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from streamkd.errors import ConfigError
from streamkd.search.ledger import TrialRecord
from streamkd.search.sampling import propose
from streamkd.search.settings import Settings
from streamkd.search.space import Choice, LogUniform, Parameter, Space, Uniform

SPACE = Space(
    (
        Parameter("rate", LogUniform(1e-4, 1.0)),
        Parameter("share", Uniform(0.0, 1.0, step=0.1)),
        Parameter("every", LogUniform(1, 256), integer=True),
        Parameter("layers", Uniform(1, 5), integer=True),
        Parameter("kind", Choice(("a", None, 3))),
        Parameter("depth", Uniform(-1.0, 1.0), when={"kind": ("a",)}),
    )
)
MAX = {"accuracy": "max"}


def record(number: int, values: Any, figure: float | None, state: Any = "finished", **other: Any) -> TrialRecord:
    """A trial with one reading."""
    readings = () if figure is None else ({"records": 100, "objectives": {"accuracy": figure, **other}},)
    return TrialRecord(number, values, state, readings, reason="nan" if state == "failed" else "")


def run(sampler: str, figure: Any, trials: int = 24, space: Space = SPACE, seed: int = 0) -> list[TrialRecord]:
    """A search without an engine: each proposal is told before the next."""
    settings = Settings(trials=trials, sampler=sampler, seed=seed)
    done: list[TrialRecord] = []
    for number in range(1, trials):
        values = propose(space, settings, MAX, number, done)
        if values is None:
            break
        done.append(record(number, values, figure(values)))
    return done


@pytest.mark.parametrize("sampler", ["optuna", "random", "grid"])
def test_proposals_lie_in_the_space(sampler: str) -> None:
    """Every value is in its domain, whole where need be; conditional ones are there when they count."""
    for one in run(sampler, lambda values: values["share"]):
        assert SPACE.contains(one.values), one.values
        assert isinstance(one.values["every"], int)
        assert ("depth" in one.values) == (one.values["kind"] == "a")


@pytest.mark.parametrize("sampler", ["optuna", "random", "grid"])
def test_the_same_seed_proposes_the_same(sampler: str) -> None:
    """Two searches with the same results are the same; another seed gives another search."""
    first, again, other = (run(sampler, lambda v: -v["rate"], 16, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_a_proposal_depends_on_what_is_known_alone() -> None:
    """Asking for a trial again, after others were asked for and told in another order, gives the same values."""
    done = run("optuna", lambda values: values["share"], 20)
    settings = Settings(trials=20)
    asked = propose(SPACE, settings, MAX, 20, done)
    propose(SPACE, settings, MAX, 21, done[:5])
    assert propose(SPACE, settings, MAX, 20, done) == asked


def test_optuna_goes_where_the_figures_are_better() -> None:
    """With a figure that is best at one rate, late proposals are nearer to it than random ones (medians of 3 seeds)."""

    def figure(values: Any) -> float:
        return -abs(float(np.log10(values["rate"])) + 2)

    def late(sampler: str) -> float:
        return float(
            np.median([figure(one.values) for seed in range(3) for one in run(sampler, figure, 40, seed=seed)[20:]])
        )

    assert late("optuna") > late("random") + 0.2


@pytest.mark.parametrize("state", ["pruned", "failed"])
def test_ended_trials_are_told_as_worse(state: str) -> None:
    """Where trials with a high rate were pruned or failed, few later ones have it."""
    good = [record(n, _values(rate), 0.9) for n, rate in enumerate(np.geomspace(1e-4, 1e-3, 10), 1)]
    bad = [
        record(n, _values(rate), 0.1 if state == "pruned" else None, state)
        for n, rate in enumerate(np.geomspace(1e-2, 1.0, 10), 11)
    ]
    asked = [propose(SPACE, Settings(seed=seed), MAX, 21, good + bad) for seed in range(10)]
    assert sum(values["rate"] < 5e-3 for values in asked if values) >= 8


def test_the_configuration_may_stand_outside_the_space() -> None:
    """Trial 0 with a value that its domain does not have is told for its other values, and nothing breaks."""
    outside = record(0, {**_values(5.0), "kind": "z"}, 0.5)
    values = propose(SPACE, Settings(), MAX, 9, [outside, *[record(n, _values(0.1), 0.4) for n in range(1, 9)]])
    assert values is not None
    assert SPACE.contains(values)


def test_trials_under_way_and_two_objectives_are_told() -> None:
    """A running trial keeps others from its place; two objectives make a study of two directions."""
    done = [record(n, _values(r), r, size=n) for n, r in enumerate(np.geomspace(1e-3, 1e-1, 12), 1)]
    known = [*done, record(13, _values(0.1), None, "running"), record(14, _values(0.2), 0.1, "pruned")]
    for directions in (MAX, {"accuracy": "max", "size": "min"}):
        values = propose(SPACE, Settings(), directions, 15, known)
        assert values is not None
        assert SPACE.contains(values)


def test_a_small_grid_is_walked_whole_and_ends() -> None:
    """With as many trials as it has points every one comes once, then there is none."""
    space = Space((Parameter("a", Choice((1, 2, 3))), Parameter("b", Uniform(0.0, 1.0))))
    done = run("grid", lambda values: 0.0, 40, space)
    points = {(one.values["a"], one.values["b"]) for one in done}
    assert len(points) == len(done)
    assert len(done) == 3 * 13
    few = run("grid", lambda values: 0.0, 5, space)
    assert len({(one.values["a"], one.values["b"]) for one in few}) == 4


def test_a_grid_without_end_is_refused() -> None:
    """Twenty dimensions of two points are more than anybody runs."""
    space = Space(tuple(Parameter(f"p{i}", Uniform(0.0, 1.0)) for i in range(20)))
    with pytest.raises(ConfigError, match="grid"):
        propose(space, Settings(sampler="grid"), MAX, 1, [])


def _values(rate: float) -> dict[str, Any]:
    return {"rate": float(rate), "share": 0.5, "every": 16, "layers": 2, "kind": None}


def test_nothing_to_search_ends_after_the_configuration() -> None:
    """A space without parameters has no trial but trial 0."""
    settings: Sequence[Settings] = [Settings(sampler=name) for name in ("optuna", "random", "grid")]
    assert [propose(Space(()), one, MAX, 1, []) for one in settings] == [None, None, None]
