"""A search in words: `streamkd inspect` tells it from a state directory, also in a bucket's folder."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from streamkd import inspection
from streamkd.cli import cli
from streamkd.errors import StateError
from streamkd.search import outcome
from streamkd.search.ledger import TrialRecord
from streamkd.search.page import page
from streamkd.search.summary import about, in_words, sentence

from .searches import reading, search


def inspect(*arguments: str) -> str:
    done = CliRunner().invoke(cli, ["inspect", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_search_is_told_from_a_state_directory(tmp_path: Path, scheme: str) -> None:
    """Trials by state, the share of the records, what is taken with its values, and each failure, by folder or URI."""
    ledger = search(tmp_path, 16)
    ledger.store.write("trials/notes.txt", b"mine")
    found = outcome.read(ledger)
    text = inspect(f"{scheme}{tmp_path}")
    assert "search toy: 16 trials (1 running, " in text
    assert f"{found.records:,} records over 3 seeds, {100 * found.records / found.whole:.0f} % of" in text
    assert sentence(found) in text
    assert re.search(r"^  memory.policy +(reservoir|class-balanced)", text, re.M)
    assert "trial was under way when it was stopped; the same command with --resume goes on" in text
    for one in found.failures:
        assert f"trial {one.number} failed: {one.reason}" in text
    assert "trials/notes.txt is left out: it is empty or cut off" in text


def test_the_json_is_the_same_account(tmp_path: Path) -> None:
    """`--json` gives plain values that a program can read."""
    ledger = search(tmp_path, 16, {"accuracy": "max", "forgetting": "min"})
    told = json.loads(inspect(str(tmp_path), "--json"))
    found = outcome.read(ledger)
    assert told == json.loads(json.dumps(about(found)))
    assert found.verdict is not None
    assert told["best"]["trial"] == found.verdict.taken.number
    assert sum(told["states"].values()) == told["trials"] == 16


def test_a_search_without_trials_is_told(tmp_path: Path) -> None:
    """Nothing has finished, and that is what is said."""
    search(tmp_path, 0)
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
    ledger = search(tmp_path, 16)
    with ledger.lock():
        text = inspect(str(tmp_path))
    assert f"process {os.getpid()} drives it: 1 running now" in text
    assert "--resume" not in text


def test_another_header_is_said(tmp_path: Path) -> None:
    """A search.json that lacks what a search needs is named with what it lacks, not met by a traceback."""
    search(tmp_path, 2)
    (tmp_path / "search.json").write_text('{"schema": 1, "settings": {}}')
    with pytest.raises(StateError, match=r"config, space, objectives, seeds, total missing"):
        inspection.inspect(tmp_path)


def test_values_stand_beside_those_of_the_configuration(tmp_path: Path) -> None:
    """A value that the search moved is told with the one before; one that stayed is told alone."""
    ledger = search(tmp_path, 0)
    for number, rate in enumerate((0.001, 0.0123456)):
        readings = (reading(9000, 0.8 + number / 10, np.random.default_rng(0), ("accuracy",)),)
        ledger.write(TrialRecord(number, {"rate": rate, "kind": "a"}, "finished", readings))
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
    ledger = search(tmp_path, 0)
    for number, figures in enumerate([[0.8] * len(seeds), list(seeds)]):
        mean = sum(figures) / len(figures)
        one = {"records": 9000, "objectives": {"accuracy": mean}, "per_seed": {"accuracy": figures}}
        ledger.write(TrialRecord(number, {}, "finished", (one,)))
    found = outcome.read(ledger)
    text = sentence(found)
    assert said in text
    assert ("±" in text) == (len(seeds) > 2) == ("--seeds" not in text)
    assert about(found)["leads"] == pytest.approx([one - 0.8 for one in seeds])


def test_it_is_told_on_how_many_records_trials_are_measured(tmp_path: Path) -> None:
    """As many as were used, of as many as there are, in words and on the page; of older searches nothing."""
    noted = outcome.read(search(tmp_path / "new", 3, validation={"records": 2000, "given": 8000}))
    older = outcome.read(search(tmp_path / "old", 3))
    assert "measured on 2,000 of 8,000 validation records" in in_words(noted)
    assert "measured on 2,000 of 8,000 validation records" in page(noted)
    assert "validation records" not in in_words(older)
