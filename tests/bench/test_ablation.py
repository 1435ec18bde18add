"""The ablation: whose difference is told in which world, and that what is left out is left out."""

from pathlib import Path
from typing import Any

import pytest

from streamkd import config as configuration
from streamkd.bench import ablation, streams
from streamkd.plugins import Registry


def test_differences_are_those_of_the_same_stream_and_seed() -> None:
    """What the defaults have more, in points of accuracy: the mean over streams and seeds of a world; prices beside."""
    rows = [
        {"stream": stream, "seed": seed, "variant": variant, "answer": answer, "student": 0.5}
        for stream, seed, variant, answer in (
            ("digits", 0, "defaults", 0.90),
            ("digits", 1, "defaults", 0.80),
            ("hyperplane", 0, "defaults", 0.70),
            ("digits", 0, "teacher ema", 0.88),
            ("digits", 1, "teacher ema", 0.80),
            ("hyperplane", 0, "teacher ema", 0.71),
        )
    ]
    found = ablation.figures(rows)
    assert found["teacher ema.adding.answer"] == pytest.approx(1.0)
    assert found["teacher ema.changing.answer"] == pytest.approx(-1.0)
    _, [line] = ablation.table({"rows": rows, "prices": {"teacher ema": {"adding": 150.2, "changing": -50}}})
    assert line == ("teacher ema", "+1.0 ± 1.0", "+0.0 ± 0.0", "+150", "-1.0 ± 0.0", "+0.0 ± 0.0", "-50")


def test_a_variant_is_the_defaults_but_for_what_it_names() -> None:
    """The teachers that it lists are those of the defaults, and every variant is a configuration."""
    registry = Registry.load()
    defaults = streams.config_of(streams.tree("digits"), registry, 0)
    assert tuple(choice.name for choice in defaults.teachers) == ablation.TEACHERS
    for name, change in ablation.variants().items():
        tree = streams.merged(streams.tree("digits"), change)
        assert (configuration.from_tree({**tree, "seed": 0}, registry) == defaults) == (name == "defaults"), name


def test_a_run_tells_both_accuracies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is not run again, and larger batches are cheaper."""

    def measured() -> dict[str, Any]:
        names = ["batches of 160"]
        return ablation.measure(["hyperplane"], range(1), tmp_path, names=names, limit=300)

    monkeypatch.setattr(ablation, "WARM", 50)
    monkeypatch.setattr(ablation, "RECORDS", 400)
    result = measured()
    assert [row["stream"] for row in result["rows"]] == ["hyperplane"] * 2
    assert all(0 < row["student"] <= 1 for row in result["rows"])
    assert measured()["rows"] == result["rows"]
    assert all(price > 0 for price in ablation.priced(result)["prices"]["batches of 160"].values())
