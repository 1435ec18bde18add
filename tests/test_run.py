"""Runs over finite streams: the report holds what was measured."""

import json
from pathlib import Path

import pytest

from streamkd import config as configuration
from streamkd import run as runs
from streamkd.errors import ConfigError
from streamkd.plugins import Registry

REGISTRY = Registry.load()
TREE = {
    "name": "small",
    "stream": {"source": {"name": "replay", "dataset": "digits", "classes_per_task": 5}},
    "student": {"name": "mlp", "hidden": [32]},
    "memory": {"size": 100},
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
    assert report["stream"] == {"name": "small", "records": 1433, "tasks": 2, "classes": 10}
    assert min(served) > 0.5
    assert "<svg" in (tmp_path / "report.html").read_text()


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
