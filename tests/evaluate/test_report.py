"""The report: the documented keys, JSON that is JSON, and a page that opens without network."""

import json
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import Page

from streamkd.evaluate.measures import of_tests
from streamkd.evaluate.report import assess, summarise, write_report

TASKS = ["0", "1", "2"]


def _model(seed: int) -> dict[str, Any]:
    dice = np.random.default_rng(seed)
    matrix = np.tril(dice.uniform(0.6, 1.0, (3, 3)))
    rows, labels = dice.dirichlet(np.ones(6), 100), dice.integers(0, 6, 100)
    measured = of_tests([f"class-{c}" for c in range(6)], labels, rows)
    found = assess(matrix, 0.8, rows, labels, np.full(3, 0.1))
    return {**found, "measures": {"arrival": {**measured, "kappa_temporal": 0.25}, "tests": measured}}


def _seed(seed: int) -> dict[str, Any]:
    records = range(100, 3100, 100)
    weights = [{"record": r, "hard": 0.4, "weights": {"ema": 0.35, "memory": 0.25}} for r in records]
    line = [{"record": r, "prequential": 0.8, "holdout": 0.7, "forgetting": r / 1e5} for r in records]
    gains = [{"record": r, "marginal_gain": 0.6} for r in records]
    timed = [{"form": "eager", "batch": batch, "p50": 1e-4, "p95": 2e-4} for batch in (1, 32)]
    return {
        "seed": seed,
        "student": _model(seed),
        "served": _model(seed + 10),
        "fidelity": [{"teacher": "ema", "agreement": 0.9, "kl": 0.1}],
        "gate": {"weights": weights, "overhead_ratio": 0.3},
        "efficiency": {"parameters": 10, "bytes": 40, "flops": 20, "latency_seconds": timed},
        "throughput": {"samples_per_second": 8000.0 + seed, "seconds": 1.5},
        "teachers": [{"name": "ema", "marginal_gain": gains}, {"name": "memory", "marginal_gain": gains}],
        "boundaries": [{"record": 1000 * task, "detector": "task-column", "task": str(task)} for task in range(3)],
        "history": line,
    }


def _write(path: Path, seeds: int = 3, **stream: Any) -> dict[str, Any]:
    about = {"name": "split-digits", "records": 3000, "tasks": TASKS, "classes": 6, **stream}
    return write_report(path, [_seed(seed) for seed in range(seeds)], {"name": "x"}, about, {"torch": "2"})


def _parse(path: Path) -> Page:
    return Page((path / "report.html").read_text(encoding="utf-8"))


def test_the_report_has_the_documented_keys(tmp_path: Path) -> None:
    """Every key of the schema is there, with deviations beside the figures."""
    _write(tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["schema"], report["seeds"], len(report["per_seed"])) == (1, [0, 1, 2], 3)
    assert report["stream"] == {"name": "split-digits", "records": 3000, "tasks": TASKS, "classes": 6}
    for model in ("student", "served"):
        found = report[model]
        assert {"final_average", "final_average_std", "anytime_average", "prequential", "matrix"} <= set(
            found["accuracy"]
        )
        assert {"average", "average_std", "per_task"} <= set(found["forgetting"])
        assert {"backward", "forward"} <= set(found["transfer"])
        assert {"nll", "ece", "ece_std"} <= set(found["calibration"])
    assert set(report["fidelity"][0]) == {"teacher", "agreement", "agreement_std", "kl", "kl_std"}
    assert {"weights", "overhead_ratio"} <= set(report["gate"])
    assert {"parameters", "bytes", "flops", "latency_seconds"} <= set(report["efficiency"])
    assert [one["batch"] for one in report["efficiency"]["latency_seconds"]] == [1, 32]
    assert {"samples_per_second", "seconds"} <= set(report["throughput"])
    assert (report["environment"], report["config"]) == ({"torch": "2"}, {"name": "x"})


def test_figures_are_the_means_of_the_seeds(tmp_path: Path) -> None:
    """The mean and sample deviation of per_seed, recomputed from the file."""
    report = _write(tmp_path)
    for path in (("accuracy", "final_average"), ("forgetting", "average"), ("calibration", "nll")):
        each = [seed["served"][path[0]][path[1]] for seed in report["per_seed"]]
        assert report["served"][path[0]][path[1]] == pytest.approx(np.mean(each))
        assert report["served"][path[0]][f"{path[1]}_std"] == pytest.approx(np.std(each, ddof=1))


def test_classes_are_matched_by_their_label_over_seeds(tmp_path: Path) -> None:
    """Seeds list classes in another order each; recall and confusion are means of the same class's."""
    report = _write(tmp_path)
    each = [
        {one["label"]: one for one in seed["served"]["measures"]["tests"]["classes"]} for seed in report["per_seed"]
    ]
    for one in report["served"]["measures"]["tests"]["classes"]:
        mine = [classes[one["label"]] for classes in each]
        assert one["recall"] == pytest.approx(np.mean([m["recall"] for m in mine]))
        assert one["answered"]["class-0"] == pytest.approx(np.mean([m["answered"]["class-0"] for m in mine]))


def test_what_cannot_be_measured_is_null() -> None:
    """One task has no forgetting and no transfer; the JSON says null, not NaN."""
    model = assess(np.array([[0.9]]), None, np.full((4, 2), 0.5), np.zeros(4, int))
    assert model["forgetting"] == {"average": None, "per_task": []}
    assert model["transfer"] == {"backward": None, "forward": None}
    json.dumps(model, allow_nan=False)


def test_no_results_are_refused() -> None:
    """A report of nothing is a mistake of the caller."""
    with pytest.raises(ValueError, match="one seed at least"):
        summarise([], {}, {}, {})


def test_the_page_needs_no_network_and_no_script(tmp_path: Path) -> None:
    """Nothing to fetch or run is in it, and every element is closed."""
    _write(tmp_path)
    page = _parse(tmp_path)
    assert page.open == []
    assert page.outside == []


def test_the_page_shows_every_part(tmp_path: Path) -> None:
    """A heading for each part that the report promises, and the first figures."""
    report = _write(tmp_path)
    text = _parse(tmp_path).text
    for part in ("Accuracy matrix", "Forgetting over time", "Gate weights over time", "Marginal gain of each teacher"):
        assert part in text
    for part in (
        "Measures",
        "Answers by class, served on arrival",
        "label ↓ answered →",
        "class-5",
        "Balanced accuracy",
    ):
        assert part in text
    for part in ("Boundaries", "Calibration", "Efficiency", "Fidelity to the teachers", "Each seed", "task-column"):
        assert part in text
    assert f"{100 * report['served']['accuracy']['final_average']:.1f} %" in text


def test_every_chart_is_well_formed(tmp_path: Path) -> None:
    """Each SVG parses as XML and has no coordinate that is not a number."""
    _write(tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    charts = ["<svg" + rest.split("</svg>")[0] + "</svg>" for rest in html.split("<svg")[1:]]
    assert len(charts) >= 7
    for chart in charts:
        ElementTree.fromstring(chart)
        assert not any(word in chart for word in ("nan", "inf,", "None"))


def test_names_of_users_are_text(tmp_path: Path) -> None:
    """A stream, task or teacher named like markup is shown and never run."""
    bad = "<script>alert(1)</script>\"'&"
    seed = _seed(0)
    seed["teachers"][0]["name"] = seed["fidelity"][0]["teacher"] = bad
    seed["gate"]["weights"][0]["weights"][bad] = 0.5
    seed["boundaries"][0]["task"] = bad
    stream = {"name": bad, "records": 1, "tasks": [bad, "1", "2"], "classes": 2}
    write_report(tmp_path, [seed], {"name": bad}, stream, {"cpu": bad})
    page = _parse(tmp_path)
    assert page.outside == []
    assert bad in page.text


def test_a_thin_run_still_has_a_page(tmp_path: Path) -> None:
    """One seed, one task, no teachers, no history: the page says what was not measured."""
    model = assess(np.array([[0.9]]), 0.5, np.full((4, 2), 0.5), np.zeros(4, int))
    stream = {"name": "main", "records": 4, "tasks": 1, "classes": ["a", "b"]}
    write_report(tmp_path, [{"seed": 0, "student": model}], {}, stream, {})
    text = _parse(tmp_path).text
    assert "90.0 %" in text
    assert "Not measured: gate weights" in text


def test_many_tasks_fit(tmp_path: Path) -> None:
    """A hundred tasks: the matrix has all cells and names that do not touch."""
    model = assess(np.tril(np.full((100, 100), 0.5)), 0.5, np.full((4, 2), 0.5), np.zeros(4, int))
    write_report(tmp_path, [{"seed": 0, "served": model}], {}, {"name": "m", "tasks": 100, "records": 9}, {})
    html = (tmp_path / "report.html").read_text()
    assert html.count('class="cell') == 10_000
    assert html.count(">after ↓ on →<") == 1


def test_a_report_replaces_the_one_before(tmp_path: Path) -> None:
    """Writing again leaves one JSON, one page and nothing else."""
    _write(tmp_path, seeds=1)
    _write(tmp_path, seeds=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]
    assert json.loads((tmp_path / "report.json").read_text())["seeds"] == [0, 1]


@pytest.mark.slow
def test_a_browser_draws_it(tmp_path: Path) -> None:
    """Headless Chromium renders the page into a picture that is not empty."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    _write(tmp_path)
    picture = tmp_path / "page.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,2400", f"--user-data-dir={tmp_path}/u"]
    command = [browser, *flags, f"--screenshot={picture}", (tmp_path / "report.html").as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=90)
    from PIL import Image

    with Image.open(picture) as image:
        colours = image.convert("RGB").getcolors(1 << 24)
    assert len(colours) > 200
