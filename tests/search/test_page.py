"""The report of a search: opens without network, draws every kind of trial, and says what is taken and what failed."""

import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import Page

from streamkd.search import outcome
from streamkd.search.coordinates import axis
from streamkd.search.ledger import TrialRecord
from streamkd.search.page import page
from streamkd.search.plots import tight

from .searches import SPACE, reading, search

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TWO = {"accuracy": "max", "forgetting": "min"}


def shown(tmp_path: Path, count: int, objectives: dict[str, str] | None = None) -> str:
    return page(outcome.read(search(tmp_path / "s", count, objectives)))


@pytest.mark.parametrize(("count", "objectives", "charts"), [(0, None, 0), (1, None, 2), (16, None, 4), (60, TWO, 5)])
def test_the_page_needs_no_network_and_no_script(
    tmp_path: Path, count: int, objectives: dict[str, str] | None, charts: int
) -> None:
    """For a search of any size nothing is to be fetched or run, every element is closed, every number is one."""
    text = shown(tmp_path, count, objectives)
    found = Page(text)
    assert (found.open, found.outside) == ([], [])
    drawings = re.findall(r"<svg.*?</svg>", text, re.S)
    for drawing in drawings:
        ElementTree.fromstring(drawing)
        assert not re.search(r"\b(nan|inf|None)\b", re.sub(r"<title>.*?</title>", "", drawing, flags=re.S))
    assert len(drawings) == charts


def test_every_trial_is_drawn(tmp_path: Path) -> None:
    """Each has its mark in the history, its line through the parameters, and its row."""
    text = shown(tmp_path, 16)
    history = next(d for d in re.findall(r"<svg.*?</svg>", text, re.S) if 'aria-label="History"' in d)
    parallel = next(d for d in re.findall(r"<svg.*?</svg>", text, re.S) if 'aria-label="Parallel' in d)
    for number in range(16):
        assert f"<title>trial {number}," in history
        assert f"<title>trial {number}," in parallel
        assert f"<td >{number}</td>" in text


def test_failed_trials_are_named_with_their_reasons(tmp_path: Path) -> None:
    """Every reason is there, and so is a file among the trials that is none."""
    ledger = search(tmp_path, 30)
    ledger.store.write("trials/notes.txt", b"mine")
    text = page(outcome.read(ledger))
    for one in ledger.trials():
        if one.state == "failed":
            assert f"trial {one.number}</td>" in text
            assert one.reason in text
    assert "notes.txt" in text


def test_the_page_says_what_is_taken_and_by_how_much(tmp_path: Path) -> None:
    """The taken trial, its figure, the default's, the lead with its error."""
    found = outcome.read(search(tmp_path, 60))
    verdict = found.verdict
    assert verdict is not None
    assert verdict.default is not None
    text = Page(page(found)).text
    assert f"Trial {verdict.taken.number} is taken with accuracy {verdict.taken.objective('accuracy'):.4f}" in text
    assert f"{verdict.lead:+.4f} ± {verdict.error:.4f}" in text
    assert f"{verdict.default.objective('accuracy'):.4f}" in text


def test_a_default_that_is_kept_is_said_beside_the_higher_trial(tmp_path: Path) -> None:
    """Where the lead is within its error both are named."""
    ledger = search(tmp_path, 0)
    for number, seeds in enumerate(([0.8, 0.8, 0.8], [0.7, 0.8, 0.93])):
        one = {"records": 9000, "objectives": {"accuracy": float(np.mean(seeds))}, "per_seed": {"accuracy": seeds}}
        ledger.write(TrialRecord(number, {}, "finished", (one,)))
    text = Page(page(outcome.read(ledger))).text
    assert "kept as it stands: trial 1 was higher in accuracy, but its lead (+0.0100" in text


def test_a_trial_that_was_read_once_is_seen(tmp_path: Path) -> None:
    """Its learning curve is a dash, where a line of one point would be nothing."""
    ledger = search(tmp_path, 0)
    once = {**reading(300, 0.8, np.random.default_rng(0), ("accuracy",)), "curve": [(300, 0.8)]}
    whole = reading(9000, 0.8, np.random.default_rng(1), ("accuracy",))
    ledger.write(TrialRecord(0, {"a": 1.0}, "finished", (once, whole)))
    ledger.write(TrialRecord(1, {"a": 2.0}, "pruned", (once,)))
    curves = next(
        d for d in re.findall(r"<svg.*?</svg>", page(outcome.read(ledger)), re.S) if 'aria-label="Learning' in d
    )
    paths = re.findall(r'<path d="([^"]*)" class="line trial', curves)
    assert len(paths) == 2
    assert all("L" in path or "H" in path for path in paths)


def test_few_trials_are_measured_against_chance(tmp_path: Path) -> None:
    """The bars of few trials have the line that chance reaches; those of a forest have none."""
    for count, there in ((16, True), (60, False)):
        text = page(outcome.read(search(tmp_path / str(count), count)))
        drawing = next(d for d in re.findall(r"<svg.*?</svg>", text, re.S) if 'aria-label="Importance"' in d)
        assert ('class="ideal"' in drawing) == there


def test_text_of_users_is_escaped(tmp_path: Path) -> None:
    """Names, paths, values and reasons with markup are text in the page."""
    evil = "<script>alert(1)</script>"
    ledger = search(tmp_path, 0, name=evil, command=evil)
    for number in range(8):
        readings = (reading(9000, 0.8, np.random.default_rng(number), ("accuracy",)),)
        state: Any = "failed" if number == 3 else "finished"
        ledger.write(TrialRecord(number, {f"a.{evil}": evil if number % 2 else "b"}, state, readings, evil))
    text = page(outcome.read(ledger))
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 5


def test_changes_of_a_running_trial_are_listed(tmp_path: Path) -> None:
    """What the taken trial's values became, when, and from whom."""
    ledger = search(tmp_path, 0)
    before = SPACE.sample(np.random.default_rng(0))
    after = {**before, "optimizer.learning_rate": 0.0321}
    readings = (reading(9000, 0.8, np.random.default_rng(0), ("accuracy",)),)
    changes = ({"records": 3000, "values": after, "parent": 7},)
    ledger.write(TrialRecord(1, before, "finished", readings, changes=changes))
    text = Page(page(outcome.read(ledger))).text
    assert "Changes of trial 1" in text
    assert re.search(r"3,000 trial 7 optimizer.learning_rate [\d.e-]+ → 0.0321", text)


def test_an_axis_places_what_was_tried() -> None:
    """Numbers evenly or in the logarithm, choices in their order, nothing for a parameter that does not count."""
    rates = axis("rate", [1e-4, 1e-2, None], log=True)
    assert [rates.place(v) for v in (1e-4, 1e-3, 1e-2)] == pytest.approx([0, 0.5, 1])
    assert rates.place(None) is None
    assert axis("n", [0, 10]).place(2.5) == 0.25
    sizes = axis("every", [5, 40, 10], choices=(5, 10, 20, 40))
    assert [sizes.place(v) for v in (5, 10, 20, 40)] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert axis("kind", ["b", "a", True]).names == ("True", "a", "b")
    assert axis("one", [3, 3]).place(3) == 0.5
    assert [text for _, text in axis("whole", [1, 3], log=True).ticks()] == ["1", "2", "3"]
    assert axis("zero", [0.0, 1.0], log=True).place(0.5) == 0.5


@pytest.mark.parametrize("values", [[0.8, 0.9], [0.5], [0.0, 0.0], [1.0, 1.0], [-2.0, 5.0], [0.91, 0.9101], [3e5, 4e5]])
def test_the_range_holds_the_values(values: list[float]) -> None:
    """Round ends, all inside, shares not above 1."""
    low, high = tight(values)
    assert low <= min(values) + 1e-12
    assert high >= max(values) - 1e-12
    assert low < high
    assert max(values) > 1 or high <= 1.0 or low == 0.0


def test_one_far_away_does_not_flatten_the_others() -> None:
    """A trial that learned nothing is left outside the range."""
    low, _ = tight([*np.linspace(0.85, 0.9, 20).tolist(), 0.1])
    assert low > 0.6


@pytest.mark.skipif(BROWSER is None, reason="no chromium to open the page with")
def test_texts_of_the_charts_do_not_overlap(tmp_path: Path) -> None:
    """Laid out by a browser, no two texts of a chart cover each other, and none leaves its card."""
    script = """<script>
      addEventListener("load", () => {
        const bad = [];
        for (const svg of document.querySelectorAll("svg")) {
          const boxes = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()]);
          const card = svg.parentElement.getBoundingClientRect();
          boxes.forEach(([a, p], i) => {
            if (p.left < card.left - 1 || p.right > card.right + 1) bad.push(a + " leaves its card");
            boxes.slice(i + 1).forEach(([b, q]) => {
              const over = Math.min(p.right, q.right) - Math.max(p.left, q.left);
              const deep = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
              if (over > 1 && deep > 3) bad.push(a + " covers " + b);
            });
          });
        }
        document.title = "overlaps: " + JSON.stringify(bad);
      });</script></body>"""
    for count, objectives in ((16, None), (60, TWO)):
        text = page(outcome.read(search(tmp_path / str(count), count, objectives)))
        text = re.sub(r"<meta http-equiv[^>]*>", "", text).replace("</body>", script)
        (tmp_path / "page.html").write_text(text, encoding="utf-8")
        assert BROWSER
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,2000", "--virtual-time-budget=1000")
        done = subprocess.run(
            [BROWSER, *flags, f"--user-data-dir={tmp_path}/profile", "--dump-dom", f"file://{tmp_path}/page.html"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "<title>overlaps: []</title>" in done.stdout, re.findall("<title>overlaps.*?</title>", done.stdout)
