"""A population on a stream that drifts, with real trials."""

from pathlib import Path

import numpy as np
import pytest

from streamkd import config as configuration
from streamkd.plugins import Registry
from streamkd.scale.tune import RayEngine
from streamkd.search import driver, spacefile
from streamkd.search.settings import Settings

DRIFTING = {
    "name": "digits-drift",
    "stream": {
        "source": {
            "name": "replay",
            "dataset": "digits",
            "classes_per_task": 2,
            "variations": ["plain", "rotate-90", "invert"],
        }
    },
    "memory": {"size": 200},
    "student": {"name": "mlp", "hidden": [100, 100]},
}
"""Ten digits, two at a time; then all of them turned by a quarter; then inverted."""


def best(place: Path, scheduler: str, seed: int) -> float:
    """The highest any-time accuracy of eight trials whose first values are those of the seed."""
    registry = Registry.load()
    config = configuration.from_tree(DRIFTING, registry)
    space = spacefile.load(None, config, registry)
    settings = Settings(
        trials=8, seeds=(100,), scheduler=scheduler, sampler="random", seed=seed, concurrency=2
    )  # fmt: skip
    found = driver.tune(config, registry, space, settings, place, {"ray": RayEngine})
    assert found.verdict is not None
    return float(found.verdict.highest.objective("accuracy") or 0.0)


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.usefixtures("ray_cluster")
def test_a_population_is_as_good_as_the_best_of_as_many_fixed_trials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the same eight values of the default space, over three draws of them: what the population ends with is on
    average at least what the best of the fixed trials ends with. All six figures are printed.
    """
    pairs = [(best(tmp_path / f"pbt-{s}", "pbt", s), best(tmp_path / f"none-{s}", "none", s)) for s in range(3)]
    with capsys.disabled():
        for seed, (moved, fixed) in enumerate(pairs):
            print(f"\nseed {seed}: population {moved:.4f}, best of the fixed trials {fixed:.4f}")
    moved, fixed = np.mean(pairs, axis=0)
    assert moved >= fixed
