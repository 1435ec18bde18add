"""Runs over finite streams: the report holds what was measured."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import toys
from click.testing import CliRunner

from streamkd import config as configuration
from streamkd import run as runs
from streamkd.cli import cli
from streamkd.errors import ConfigError, SourceError
from streamkd.plugins import Registry

REGISTRY = Registry.load()
TREE = {
    "name": "small",
    "stream": {"source": {"name": "replay", "dataset": "digits", "classes_per_task": 5, "per_class": 50}},
    "student": {"name": "mlp", "hidden": [32]},
    "memory": {"size": 100},
    "teachers": toys.TEACHERS,
    "device": "cpu",
}


def test_a_run_reports_every_seed_and_their_means(tmp_path: Path) -> None:
    """Two seeds: the means are those of per_seed, the matrix is square, the page is there."""
    config = configuration.from_tree(TREE, REGISTRY)
    runs.run(config, REGISTRY, tmp_path, [0, 1])
    report = json.loads((tmp_path / "report.json").read_text())
    served = [seed["served"]["accuracy"]["final_average"] for seed in report["per_seed"]]
    assert report["schema"] == 1
    assert report["seeds"] == [0, 1]
    assert report["served"]["accuracy"]["final_average"] == pytest.approx(sum(served) / 2)
    assert [len(row) for row in report["served"]["accuracy"]["matrix"]] == [2, 2]
    assert report["stream"] == {"name": "small", "records": 500, "tasks": 2, "classes": 10, "refused": 0}
    assert (report["tests"]["records"], report["tests"]["given"], report["tests"]["by_task"]) == (364, 364, True)
    assert min(served) > 0.5
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page
    assert "tested on 364 of 364 test records" in page


def test_a_stream_without_end_is_refused(tmp_path: Path) -> None:
    """`run` on the embedded stream says that it never ends and what to set."""
    config = configuration.load(None, registry=REGISTRY)
    with pytest.raises(ConfigError, match="never ends"):
        runs.run(config, REGISTRY, tmp_path, [0])


def test_a_pushed_stream_is_refused(tmp_path: Path) -> None:
    """`run` on a push source says so."""
    tree = {**TREE, "stream": {"source": {"name": "http"}, "records": {"inputs": [{"name": "x"}]}}}
    config = configuration.from_tree(tree, REGISTRY)
    with pytest.raises(ConfigError, match="pushed"):
        runs.run(config, REGISTRY, tmp_path, [0])


def runs_of(labels: Sequence[int], each: int, tasks: str | None = None) -> pa.Table:
    """``each`` records of every label in a row, in this order: numbers around the label's own place."""
    y = np.repeat(labels, each)
    x = np.stack([np.cos(y), np.sin(y), y / 8], 1) + np.random.default_rng(len(y)).normal(0, 0.05, (len(y), 3))
    rows = {"x": pa.FixedSizeListArray.from_arrays(x.astype(np.float32).ravel(), 3), "label": pa.array(y)}
    if tasks is not None:
        rows["task"] = pa.array(np.repeat(list(tasks), each))
    return pa.table(rows)


def ran(tmp_path: Path, table: pa.Table, test: pa.Table | None = None, **changes: Any) -> dict[str, Any]:
    """The report of a small learner on a table that is read in order, tested on a fifth of it or on another table."""
    pq.write_table(table, tmp_path / "train.parquet")
    source: dict[str, Any] = {"name": "replay", "path": str(tmp_path / "train.parquet"), "order": "given"}
    if test is not None:
        pq.write_table(test, tmp_path / "test.parquet")
        source["test_path"] = str(tmp_path / "test.parquet")
    records: dict[str, Any] = {"inputs": [{"name": "x", "shape": [3]}], "label": "label", "label_type": "int"}
    records["task"] = "task" if "task" in table.column_names else None
    tree = {
        "name": "runs",
        "stream": {"source": {**source, **changes.pop("source", {})}, "records": records, "batch": {"size": 10}},
        "student": {"name": "mlp", "hidden": [16]},
        "memory": {"size": 60, "replay": 20},
        "adapt": {"every": 20, "on_task_steps": 1},
        "vicinal": {"rows": 0},
        "teachers": [{"name": "ema"}, {"name": "memory"}],
        "device": "cpu",
    }
    return runs.run(configuration.from_tree({**tree, **changes}, REGISTRY), REGISTRY, tmp_path / "report", [0])


def of_bins(side: dict[str, Any]) -> float:
    """Accuracy on all test records, from the bins of the calibration."""
    filled = [one for one in side["calibration"]["bins"] if one["records"]]
    return sum(one["accuracy"] * one["records"] for one in filled) / sum(one["records"] for one in filled)


def test_a_stream_without_tasks_is_tested_at_its_end(tmp_path: Path) -> None:
    """Its one test set is not the first task of a detector: the figure is that of the end, as the bins have it."""
    report = ran(tmp_path, runs_of([0, 1, 2, 3], 300))
    assert report["stream"]["tasks"] == 4
    for side in ("student", "served"):
        found = report[side]["accuracy"]
        assert found["final_average"] == pytest.approx(of_bins(report[side]))
        assert np.shape(found["matrix"]) == (1, 1)
        assert found["anytime_average"] is None
    assert (report["tests"]["records"], report["tests"]["given"], report["tests"]["by_task"]) == (240, 240, False)


@pytest.mark.parametrize("detectors", [[], [{"name": "new-label"}]])
def test_all_test_records_count_where_detectors_name_the_tasks(tmp_path: Path, detectors: list[Any]) -> None:
    """Tasks that no detector saw, and tasks shorter than a detector's grace, are tested like all others."""
    report = ran(tmp_path, runs_of(range(8), 100), source={"classes_per_task": 1}, detectors=detectors)
    assert report["stream"]["tasks"] == (3 if detectors else 1)
    assert (report["tests"]["records"], report["tests"]["given"]) == (160, 160)
    assert sum(one["records"] for one in report["served"]["calibration"]["bins"]) == 160
    ends = [one["accuracy"] for one in report["served"]["accuracy"]["per_test"]]
    assert len(ends) == 8
    assert report["served"]["accuracy"]["final_average"] == pytest.approx(np.mean(ends))


def test_sets_of_unequal_size_count_by_their_records(tmp_path: Path) -> None:
    """Sixty records that are right and twenty that are wrong, in two sets: the end is over all of them, as the bins."""
    rows = runs_of([0], 80)
    test = rows.set_column(1, "label", pa.array([0] * 60 + [1] * 20))
    report = ran(tmp_path, runs_of([0, 1], 300), test, source={"classes_per_task": 1})
    for side in ("student", "served"):
        found = report[side]["accuracy"]
        ends = [one["accuracy"] for one in found["per_test"]]
        assert abs(ends[0] - ends[1]) > 0.5
        assert found["final_average"] == pytest.approx(of_bins(report[side]))


def test_a_task_that_never_was_the_learners_refuses_the_report(tmp_path: Path) -> None:
    """Tasks of five records in batches of ten: every second one has no row of the matrix, so there is no matrix."""
    names = "abcdefgh"
    with pytest.raises(SourceError, match="'a', 'c', 'e', 'g'") as caught:
        ran(tmp_path, runs_of(range(8), 5, names), runs_of(range(8), 4, names))
    assert "batch.size" in caught.value.fix


def test_the_last_row_is_the_end_though_tasks_come_again(tmp_path: Path) -> None:
    """Tasks a, b, a: what is final was measured after the last of them, on both."""
    report = ran(tmp_path, runs_of([0, 1, 0], 100, "aba"), runs_of([0, 1], 20, "ab"))
    found = report["student"]
    assert found["accuracy"]["final_average"] == pytest.approx(of_bins(found))
    ends = {one["task"]: one["accuracy"] for one in found["accuracy"]["per_test"]}
    assert found["accuracy"]["matrix"][-1] == [ends["b"], ends["a"]]


def test_a_learned_task_without_test_records_is_told(tmp_path: Path) -> None:
    """Task c comes last and is tested by nobody: the end is after it all the same, and the report says so."""
    report = ran(tmp_path, runs_of([0, 1, 2], 100, "abc"), runs_of([0, 1], 20, "ab"))
    assert report["tests"]["untested"] == ["c"]
    assert report["student"]["accuracy"]["final_average"] == pytest.approx(of_bins(report["student"]))
    assert "1 learned task without test records" in (tmp_path / "report" / "report.html").read_text()


def test_test_records_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    """Without a label nothing can be tested; a label that was never learned is wrong, and told."""
    test = runs_of([0, 1, 7], 20)
    labels = pa.array([None, *test["label"].to_pylist()[1:]], pa.int64())
    report = ran(tmp_path, runs_of([0, 1], 100), test.set_column(1, "label", labels))
    found = report["tests"]
    assert (found["records"], found["given"], found["of_labels_never_learned"]) == (59, 60, 20)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "tested on 59 of 60 test records · 20 of them of labels that were never learned" in page


def test_records_that_are_refused_are_told(tmp_path: Path) -> None:
    """Three records without label are not learned, and the report says how many they are."""
    train = runs_of([0, 1], 50)
    labels = pa.array([*train["label"].to_pylist()[:-3], None, None, None], pa.int64())
    report = ran(tmp_path, train.set_column(1, "label", labels), runs_of([0, 1], 20))
    assert (report["stream"]["records"], report["stream"]["refused"]) == (97, 3)
    assert "3 records refused" in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.parametrize("tasks", ["column", "classes"])
def test_test_records_of_no_task_are_refused(tmp_path: Path, tasks: str) -> None:
    """A test file with a task, or with a label, that the train file never has: neither would be tested, in silence."""
    names = ("ab", "abc") if tasks == "column" else (None, None)
    source = {} if tasks == "column" else {"classes_per_task": 1}
    with pytest.raises(SourceError, match="20 test records are of a task or label"):
        ran(tmp_path, runs_of([0, 1], 100, names[0]), runs_of([0, 1, 2], 20, names[1]), source=source)


def test_a_stream_that_is_cut_short_is_tested_on_what_it_reached(tmp_path: Path) -> None:
    """With a limit within an ordered file, tasks beyond it are no part of the stream."""
    report = ran(tmp_path, runs_of(range(4), 100, "abcd"), runs_of(range(4), 20, "abcd"), source={"limit": 200})
    assert [one["task"] for one in report["tests"]["sets"]] == ["a", "b"]


def test_a_stream_without_test_records_is_measured_by_what_arrives(tmp_path: Path) -> None:
    """All of it is learned; what a test would say is null, and page and figures are those of arriving records."""
    report = ran(tmp_path, runs_of([0, 1], 200), source={"test_ratio": 0})
    assert (report["stream"]["records"], report["tests"]["given"], report["tests"]["by_task"]) == (400, 0, False)
    for side in ("student", "served"):
        found = report[side]
        assert found["accuracy"]["prequential"] == found["measures"]["arrival"]["accuracy"] > 0.5
        assert (found["accuracy"]["final_average"], found["calibration"]["ece"], found["measures"]["tests"]) == (
            None,
            None,
            {"records": 0, "records_std": 0.0},
        )
    assert report["fidelity"] == []
    page = (tmp_path / "report" / "report.html").read_text()
    assert "no test records" in page
    assert "Answers by class, served on arrival" in page
    assert "Test records" not in page


def test_the_served_model_is_judged_on_what_arrives(tmp_path: Path) -> None:
    """A copy answers each record before it is learned: of two labels that come one after the other, the first fifty
    records of the second one are answered by a copy that does not know it.
    """
    found = ran(tmp_path, runs_of([0, 1], 200), publish={"model": "student"})["served"]["accuracy"]
    assert found["prequential_records"] == 310  # a fifth of 400 is held out, ten came before there was a model
    assert found["refresh_records"] == 100
    assert found["prequential"] == pytest.approx(260 / 310, abs=0.02)


@pytest.mark.parametrize("ratio", [0.2, 0])
def test_the_command_says_on_how_much_it_tested(tmp_path: Path, ratio: float) -> None:
    """Its last lines: what the served model ends with and had on arrival, and on how much it tested, if at all."""
    pq.write_table(runs_of([0, 1], 50), tmp_path / "train.parquet")
    inputs = "[{name: x, shape: [3]}]"
    (tmp_path / "it.yaml").write_text(
        f"stream: {{source: {{name: replay, path: {tmp_path}/train.parquet, test_ratio: {ratio}}},\n"
        f"  records: {{inputs: {inputs}}}}}\n"
        "student: {name: mlp, hidden: [8]}\nteachers: [{name: ema}]\ndevice: cpu\n"
    )
    done = CliRunner().invoke(cli, ["run", str(tmp_path / "it.yaml"), "--report", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "on arriving records 0." in done.output
    assert ("final average accuracy" in done.output) == bool(ratio)
    assert ("tested on 20 of 20 test records" if ratio else "no test records: ") in done.output
