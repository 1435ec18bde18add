"""The report of a search: opens without network, has every trial, and says what is taken and what failed."""

import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from pages import Page

from streamkd.tune.results import outcome
from streamkd.tune.results.page import page
from streamkd.tune.study import Study

sys.path.append(str(Path(__file__).parents[1]))
from searches import SPACE, header, put, read_as, search

TWO = {"accuracy": "max", "forgetting": "min"}


def shown(study: Study) -> str:
    return page(outcome.read(study), SPACE)


@pytest.mark.parametrize(("count", "objectives", "charts"), [(0, None, 0), (1, None, 1), (16, None, 2), (30, TWO, 2)])
def test_the_page_needs_no_network_and_no_script(
    tmp_path: Path, count: int, objectives: dict[str, str] | None, charts: int
) -> None:
    """For a search of any size nothing is to be fetched or run, every element is closed, every number is one."""
    text = shown(search(tmp_path, count, objectives))
    found = Page(text)
    assert (found.open, found.outside) == ([], [])
    drawings = re.findall(r"<svg.*?</svg>", text, re.S)
    for drawing in drawings:
        ElementTree.fromstring(drawing)
        assert not re.search(r"\b(nan|inf|None)\b", re.sub(r"<title>.*?</title>", "", drawing, flags=re.S))
    assert len(drawings) == charts


def test_every_trial_has_its_row(tmp_path: Path) -> None:
    """With its state, its figure and its values; who is taken is marked."""
    study = search(tmp_path, 16)
    text, found = shown(study), outcome.read(study)
    for one in found.trials:
        assert re.search(rf"<td >{one.number}</td><td >{one.state}", text)
    assert found.verdict is not None
    assert f"<td >{found.verdict.taken.number}</td><td >finished, taken</td>" in text


def test_failed_trials_are_named_with_their_reasons(tmp_path: Path) -> None:
    """Every reason is there."""
    study = search(tmp_path, 30)
    text = shown(study)
    for one in study.trials():
        if one.state == "failed":
            assert f"trial {one.number}</td>" in text
            assert one.reason in text


def test_the_page_says_what_is_taken_and_by_how_much(tmp_path: Path) -> None:
    """The taken trial, its figure, the default's, the lead with its error."""
    study = search(tmp_path, 60)
    verdict = outcome.read(study).verdict
    assert verdict is not None
    assert verdict.default is not None
    text = Page(shown(study)).text
    assert f"Trial {verdict.taken.number} is taken with accuracy {verdict.taken.objective('accuracy'):.4f}" in text
    assert f"{verdict.lead:+.4f} ± {verdict.error:.4f}" in text
    assert f"{verdict.default.objective('accuracy'):.4f}" in text


def test_a_default_that_is_kept_is_said_beside_the_higher_trial(tmp_path: Path) -> None:
    """Where the lead is within its error both are named."""
    study = Study.create(tmp_path, header())
    for seeds in ([0.8, 0.8, 0.8], [0.7, 0.8, 0.93]):
        put(study, {}, "finished", read_as(seeds))
    text = Page(shown(study)).text
    assert "kept as it stands: trial 1 was higher in accuracy, but its lead (+0.0100" in text


def test_text_of_users_is_escaped(tmp_path: Path) -> None:
    """Names, values and reasons with markup are text in the page."""
    evil = "<script>alert(1)</script>"
    study = Study.create(tmp_path, header(name=evil, command=evil))
    for number in range(8):
        values = {"optimizer.name": evil if number % 2 else "b"}
        put(study, values, "failed" if number == 3 else "finished", read_as([0.8] * 3), reason=evil * (number == 3))
    text = shown(study)
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 5
