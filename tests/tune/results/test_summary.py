"""A search in words: `streamkd inspect` tells it from a state directory."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from streamkd import inspection
from streamkd.cli import cli
from streamkd.errors import StateError
from streamkd.tune.results.outcome import read
from streamkd.tune.results.page import page
from streamkd.tune.results.summary import about, sentence, told
from streamkd.tune.study import Study

sys.path.append(str(Path(__file__).parents[1]))
from searches import SPACE, header, put, read_as, search


def inspect(*arguments: str) -> str:
    done = CliRunner().invoke(cli, ["inspect", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_a_search_is_told_from_a_state_directory(tmp_path: Path) -> None:
    """Trials by state, the share of the records, what is taken with its values, importances, and each failure."""
    found = read(search(tmp_path, 16))
    text = inspect(str(tmp_path))
    assert "search toy: 16 trials (1 running, " in text
    assert f"{found.records:,} records over 3 seeds, {100 * found.records / found.whole:.0f} % of" in text
    assert sentence(found) in text
    assert re.search(r"^  memory.policy.name +(reservoir|class-balanced)", text, re.M)
    assert re.search(r"^importance: \S+ 0\.\d\d, ", text, re.M)
    assert "1 trial was under way when it was stopped; the same command with --resume goes on" in text
    for one in found.failures:
        assert f"trial {one.number} failed: {one.reason}" in text


def test_the_json_is_the_same_account(tmp_path: Path) -> None:
    """`--json` gives plain values that a program can read."""
    study = search(tmp_path, 16, {"accuracy": "max", "forgetting": "min"})
    found, said = read(study), json.loads(inspect(str(tmp_path), "--json"))
    assert said == json.loads(json.dumps(about(found)))
    assert found.decision is not None
    assert said["best"]["trial"] == found.decision.taken.number
    assert sum(said["states"].values()) == said["trials"] == 16


def test_a_search_without_trials_is_told(tmp_path: Path) -> None:
    """Nothing has finished, and that is what is said."""
    Study.create(tmp_path, header())
    assert "No trial has finished" in inspect(str(tmp_path))


def test_what_is_neither_is_said(tmp_path: Path) -> None:
    """An empty folder is no state directory and no search; a file is no directory."""
    with pytest.raises(StateError, match="no state directory and no search"):
        inspection.inspect(tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(StateError, match="is a file"):
        inspection.inspect(tmp_path / "mine.txt")


def test_who_drives_a_search_is_named(tmp_path: Path) -> None:
    """While a process drives it the account has its id, and does not speak of trials that were left."""
    with search(tmp_path, 3).driven():
        text = inspect(str(tmp_path))
    assert f"process {os.getpid()} drives it: 0 running now" in text
    assert "--resume" not in text


def test_values_stand_beside_those_of_the_configuration(tmp_path: Path) -> None:
    """A value that the search moved is told with the one before; one that stayed is told alone."""
    study = Study.create(tmp_path, header())
    for number, rate in enumerate((0.001, 0.0123456)):
        put(study, {"rate": rate, "kind": "a"}, "finished", read_as([0.8 + number / 10] * 3))
    text = inspect(str(tmp_path))
    assert re.search(r"^  rate +0\.01235 +\(was 0\.001\)$", text, re.M)
    assert re.search(r"^  kind +a$", text, re.M)


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ((0.82, 0.83), "+0.0250, by seed +0.0200 and +0.0300, at 9,000 records. With 3 seeds or more"),
        ((0.7, 0.95), "its lead (+0.0250, by seed -0.1000 and +0.1500, at 9,000 records) is not one on every seed."),
        ((0.82,), "+0.0200 on one seed, at 9,000 records. With 3 seeds or more"),
        ((0.82, 0.83, 0.84), "+0.0300 ± 0.0058, the standard error of 3 seeds, at 9,000 records."),
    ],
)
def test_so_few_seeds_are_told_as_what_they_are(tmp_path: Path, seeds: tuple[float, ...], said: str) -> None:
    """Two seeds have no standard error: each one's lead is told, and that it is little; three and more have one."""
    study = Study.create(tmp_path, header())
    for figures in ([0.8] * len(seeds), seeds):
        put(study, {}, "finished", read_as(figures))
    found = read(study)
    text = sentence(found)
    assert said in text
    assert ("±" in text) == (len(seeds) > 2) == ("--seeds" not in text)
    assert about(found)["leads"] == pytest.approx([one - 0.8 for one in seeds])


def test_it_is_told_on_how_many_records_trials_are_measured(tmp_path: Path) -> None:
    """As many as were used, of as many as there are, in words and on the page."""
    found = read(search(tmp_path, 3))
    assert "measured on 2,000 of 8,000 validation records" in told(about(found))
    assert "measured on 2,000 of 8,000 validation records" in page(found, SPACE)
