"""The rule by which a trial is taken, the Pareto front, and a configuration that can be moved."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from streamkd import config as configuration
from streamkd.plugins import Registry
from streamkd.search.best import choose, front, rooted, written
from streamkd.search.ledger import TrialRecord

REGISTRY = Registry.load()


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


def two(number: int, accuracy: float | None, forgetting: float | None, state: Any = "finished") -> TrialRecord:
    objectives = {"accuracy": accuracy, "forgetting": forgetting}
    return TrialRecord(number, {}, state, ({"records": 9, "objectives": objectives, "per_seed": {}},))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    """Nobody on it is beaten in one objective without loss in the other; everybody off it is."""
    trials = [two(n, a / 5, f / 5) for n, (a, f) in enumerate(points)]
    found = front(trials, {"accuracy": "max", "forgetting": "min"})
    on = {one.number for one in found}
    for n, (a, f) in enumerate(points):
        beaten = any(x >= a and y <= f and (x, y) != (a, f) for x, y in points)
        assert (n in on) == (not beaten)
    highest_first = [one.objective("accuracy") or 0.0 for one in found]
    assert highest_first == sorted(highest_first, reverse=True)


def test_the_front_is_of_finished_trials_with_both_figures() -> None:
    """Pruned and unmeasured trials are not on it."""
    trials = [two(0, 0.9, None), two(1, 0.99, 0.0, "pruned"), two(2, 0.5, 0.5)]
    assert [one.number for one in front(trials, {"accuracy": "max", "forgetting": "min"})] == [2]


CONFIG = """
name: own
stream:
  source: {name: replay, path: data/my.parquet, test_path: /abs/test.parquet}
  records: {inputs: [{name: x, shape: [4]}]}
teachers: [{name: ema}, {name: checkpoint, id: net, path: teachers/net}]
share: {teacher: old/model}
meta: meta
serve: {tokens: tokens.txt}
"""


def test_paths_are_made_absolute_wherever_they_stand(tmp_path: Path) -> None:
    """Of the configuration, of plugins' options, of `share`; absolute ones and everything else stay."""
    (tmp_path / "c.yaml").write_text(CONFIG)
    config = configuration.load(tmp_path / "c.yaml", (), REGISTRY)
    moved = rooted(config, REGISTRY, Path("/here"))
    assert moved.stream.source.values["path"] == "/here/data/my.parquet"
    assert moved.stream.source.values["test_path"] == "/abs/test.parquet"
    assert moved.teachers[1].values["path"] == "/here/teachers/net"
    assert (moved.share and moved.share.teacher, moved.meta) == ("/here/old/model", Path("/here/meta"))
    assert moved.serve.tokens == Path("/here/tokens.txt")
    before, after = configuration.dump(config), configuration.dump(moved)
    assert (before["optimizer"], before["teachers"][0]) == (after["optimizer"], after["teachers"][0])
    assert rooted(moved, REGISTRY, Path("/elsewhere")) == moved


def test_a_shared_teacher_by_its_key_is_no_path(tmp_path: Path) -> None:
    """`share.teacher` that names a teacher of the configuration stays that name."""
    (tmp_path / "c.yaml").write_text(CONFIG.replace("old/model", "net"))
    moved = rooted(configuration.load(tmp_path / "c.yaml", (), REGISTRY), REGISTRY, Path("/here"))
    assert moved.share is not None
    assert moved.share.teacher == "net"


@pytest.mark.parametrize("name", ["split-mnist-5k", "digits", "fashion-mnist-live", "embedded"])
def test_a_written_configuration_is_read_as_the_same(tmp_path: Path, name: str) -> None:
    """Every stream of the repository goes to YAML and back; comments cannot end in the middle of the file."""
    config = configuration.load(Path(__file__).parents[2] / "streams" / f"{name}.yaml", (), REGISTRY)
    moved = rooted(config, REGISTRY, Path(os.getcwd()))
    text = written(moved, ["found by a search", "command: streamkd tune x\nname: injected"])
    (tmp_path / "best.yaml").write_text(text)
    assert configuration.load(tmp_path / "best.yaml", (), REGISTRY) == moved
    assert text.startswith("# found by a search\n# command: streamkd tune x name: injected\n")
    assert yaml.safe_load(text)["name"] == config.name
