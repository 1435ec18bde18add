"""The ablation: whose difference is told in which world, and that what is left out is left out."""

from pathlib import Path
from typing import Any

import pytest

from streamkd import config as configuration
from streamkd.bench import ablation, streams
from streamkd.plugins import Registry


def test_differences_are_those_of_the_same_stream_and_seed() -> None:
    """What the defaults have more: points of accuracy and microseconds, the mean over streams and seeds of a world."""
    rows = [
        {
            "stream": stream,
            "seed": seed,
            "variant": variant,
            "answer": answer,
            "student": 0.5,
            "seconds_a_record": us / 1e6,
        }
        for stream, seed, variant, answer, us in (
            ("digits", 0, "defaults", 0.90, 500),
            ("digits", 1, "defaults", 0.80, 600),
            ("hyperplane", 0, "defaults", 0.70, 700),
            ("digits", 0, "teacher ema", 0.88, 400),
            ("digits", 1, "teacher ema", 0.80, 400),
            ("hyperplane", 0, "teacher ema", 0.71, 650),
        )
    ]
    found = ablation.figures(rows)
    assert found["teacher ema.adding.answer"] == pytest.approx(1.0)
    assert found["teacher ema.adding.us"] == pytest.approx(150)
    assert found["teacher ema.changing.answer"] == pytest.approx(-1.0)
    _, [line] = ablation.table(rows)
    assert line == ("teacher ema", "+1.0 ± 1.0", "+0.0 ± 0.0", "+150", "-1.0 ± 0.0", "+0.0 ± 0.0", "+50")


def test_a_variant_is_the_defaults_but_for_what_it_names() -> None:
    """The teachers that it lists are those of the defaults, and every variant is a configuration."""
    registry = Registry.load()
    defaults = streams.config_of(streams.tree("digits"), registry, 0)
    assert tuple(choice.name for choice in defaults.teachers) == ablation.TEACHERS
    for name, change in ablation.variants().items():
        tree = ablation.merged(streams.tree("digits"), change)
        assert (configuration.from_tree({**tree, "seed": 0}, registry) == defaults) == (name == "defaults"), name


def test_a_run_tells_both_accuracies_and_its_price(tmp_path: Path) -> None:
    """Of both worlds; what is there is not run again."""

    def measured() -> dict[str, Any]:
        names = ["batches of 160"]
        return ablation.measure(["digits", "hyperplane"], range(1), tmp_path, names=names, limit=300)

    result = measured()
    assert [row["stream"] for row in result["rows"]] == ["digits", "hyperplane"] * 2
    assert all(0 < row["student"] <= 1 and row["seconds_a_record"] > 0 for row in result["rows"])
    assert measured()["rows"] == result["rows"]
