"""What a search leaves: a table of every trial, a configuration that runs as it is, a front, on any file system."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from pyarrow import _fs, parquet

from streamkd import config as configuration
from streamkd import run
from streamkd.search import results
from streamkd.search.ledger import Ledger, TrialRecord
from streamkd.search.space import LogUniform, Parameter, Space

from .searches import REGISTRY, SPACE, reading, search


def test_the_table_has_a_row_for_every_trial(tmp_path: Path) -> None:
    """State, reason, figures of each seed and values; a value that a trial does not have is null."""
    ledger = search(tmp_path, 16)
    results.write(ledger, REGISTRY)
    rows = parquet.read_table(tmp_path / "trials.parquet").to_pylist()
    trials = ledger.trials()
    assert [row["trial"] for row in rows] == list(range(16))
    for row, one in zip(rows, trials, strict=True):
        assert (row["state"], row["reason"], row["records"]) == (one.state, one.reason, one.records)
        assert row["accuracy"] == one.objective("accuracy")
        assert row["accuracy.per_seed"] == one.readings[-1]["per_seed"]["accuracy"]
        assert {path: row[f"values.{path}"] for path in one.values} == dict(one.values)
        assert (row["values.optimizer.momentum"] is None) == (one.values["optimizer.name"] != "sgd")


def test_the_table_takes_values_of_any_kind(tmp_path: Path) -> None:
    """Whole numbers stay whole, truths truths; a mixture, lists and names are text; no trial at all is no row."""
    ledger = search(tmp_path, 0)
    assert results.table(results.outcome.read(ledger)).num_rows == 0
    for number, values in enumerate(
        ({"n": 1, "m": 1, "b": True, "l": [1]}, {"n": 2, "m": "x", "b": None, "l": [2, 3]})
    ):
        ledger.write(TrialRecord(number, values))
    rows = results.table(results.outcome.read(ledger))
    kinds = {name: rows.schema.field(f"values.{name}").type for name in "nmbl"}
    assert kinds == {"n": pa.int64(), "m": pa.string(), "b": pa.bool_(), "l": pa.string()}
    assert rows["values.l"].to_pylist() == ["[1]", "[2, 3]"]


def test_best_is_the_configuration_with_the_values_of_the_trial(tmp_path: Path) -> None:
    """best.yaml is read as the searched configuration with these values; on top it says where they come from."""
    ledger = search(tmp_path, 60)
    found = results.write(ledger, REGISTRY)
    assert found.verdict is not None
    assert found.verdict.taken.number != 0
    read = configuration.load(tmp_path / "best.yaml", (), REGISTRY)
    searched = configuration.from_tree(ledger.header["config"], REGISTRY)
    assert read == SPACE.apply(searched, found.verdict.taken.latest, REGISTRY)
    assert SPACE.values_of(read, REGISTRY) == dict(found.verdict.taken.latest)
    text = (tmp_path / "best.yaml").read_text()
    assert f"# Trial {found.verdict.taken.number} of the search toy: accuracy" in text
    assert "# command: streamkd tune toy.yaml" in text


def test_a_kept_default_is_the_configuration_as_it_was(tmp_path: Path) -> None:
    """Where trial 0 is taken, best.yaml is the searched configuration, and the comments say why."""
    ledger = search(tmp_path, 1)
    ledger.write(TrialRecord(0, {}, "finished", (reading(9000, 0.9, np.random.default_rng(0), ("accuracy",)),)))
    results.write(ledger, REGISTRY)
    read = configuration.load(tmp_path / "best.yaml", (), REGISTRY)
    assert read == configuration.from_tree(ledger.header["config"], REGISTRY)
    assert "kept as it stands" in (tmp_path / "best.yaml").read_text()


def test_the_values_after_the_last_change_are_taken(tmp_path: Path) -> None:
    """Of a trial whose rates moved in the running stream best.yaml has those that it ended with."""
    ledger = search(tmp_path, 1)
    values = SPACE.values_of(configuration.from_tree(ledger.header["config"], REGISTRY), REGISTRY)
    after = {**values, "optimizer.learning_rate": 0.0123}
    readings = (reading(9000, 0.99, np.random.default_rng(0), ("accuracy",)),)
    changes = ({"records": 3000, "values": after, "parent": 0},)
    ledger.write(TrialRecord(1, {**values, "optimizer.learning_rate": 0.05}, "finished", readings, changes=changes))
    results.write(ledger, REGISTRY)
    assert configuration.load(tmp_path / "best.yaml", (), REGISTRY).optimizer.learning_rate == 0.0123


def test_without_a_finished_trial_there_is_no_best(tmp_path: Path) -> None:
    """Table and report are there, also of no trial at all."""
    results.write(search(tmp_path, 0), REGISTRY)
    assert {path.name for path in tmp_path.iterdir()} == {"search.json", "trials.parquet", "report.html"}


def test_two_objectives_leave_a_front_with_configurations(tmp_path: Path) -> None:
    """front.yaml lists who is not beaten; each entry names a file that is that trial's configuration."""
    found = results.write(search(tmp_path, 60, {"accuracy": "max", "forgetting": "min"}), REGISTRY)
    rows = yaml.safe_load((tmp_path / "front.yaml").read_text())
    assert [row["trial"] for row in rows] == [one.number for one in found.front]
    assert len(rows) > 1
    for row, one in zip(rows, found.front, strict=True):
        read = configuration.load(tmp_path / row["config"], (), REGISTRY)
        assert SPACE.values_of(read, REGISTRY) == row["values"] == dict(one.values)
        assert row["objectives"] == {name: one.objective(name) for name in ("accuracy", "forgetting")}


def test_results_go_to_any_file_system(tmp_path: Path) -> None:
    """Beside a ledger in memory, as in a bucket, all files are there and can be read."""
    files = _fs._MockFileSystem()
    local = search(tmp_path, 16)
    ledger = Ledger.create("bucket/s", local.header, files)
    for one in local.trials():
        ledger.write(one)
    results.write(ledger, REGISTRY)
    table = ledger.store.read("trials.parquet")
    assert table is not None
    assert parquet.read_table(io.BytesIO(table)).num_rows == 16
    assert b"</html>" in (ledger.store.read("report.html") or b"")
    assert ledger.store.read("best.yaml")


def test_best_runs_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration with a relative path, searched in one folder, is run from another as it was written."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    dice = np.random.default_rng(0)
    labels = dice.integers(0, 4, 400)
    rows = {"x": [(np.eye(4)[k] + dice.normal(0, 0.1, 4)).tolist() for k in labels], "label": labels.tolist()}
    parquet.write_table(pa.table(rows), here / "rows.parquet")
    (here / "own.yaml").write_text(
        "name: own\n"
        "stream:\n  source: {name: replay, path: rows.parquet, classes_per_task: 2}\n"
        "  records: {inputs: [{name: x, shape: [4]}], label: label}\n"
        "teachers: [{name: ema}]\nvicinity: {rows: 0}\npublish: {model: ema}\n"
    )
    monkeypatch.chdir(here)
    config = configuration.load(Path("own.yaml"), (), REGISTRY)
    space = Space((Parameter("optimizer.learning_rate", LogUniform(1e-4, 1e-1)),))
    ledger = search(
        tmp_path / "s", 0, name="own", config=configuration.dump(config), space=space.to_json(), seeds=[100, 101, 102]
    )
    ledger.write(
        TrialRecord(
            1,
            {"optimizer.learning_rate": 0.02},
            "finished",
            (reading(9, 0.9, np.random.default_rng(0), ("accuracy",)),),
        )
    )
    results.write(ledger, REGISTRY)
    monkeypatch.chdir(there)
    best = configuration.load(tmp_path / "s" / "best.yaml", (), REGISTRY)
    assert best.optimizer.learning_rate == 0.02
    report = run.run(best, REGISTRY, there / "report", [0])
    assert report["served"]["accuracy"]["final_average"] > 0.6
