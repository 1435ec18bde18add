"""What a search leaves: a configuration that runs as it is, and a front of such."""

import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from pyarrow import parquet

from streamkd import config as configuration
from streamkd import run
from streamkd.tune.results import files
from streamkd.tune.results.files import rooted, written
from streamkd.tune.results.outcome import Outcome
from streamkd.tune.space.domains import Interval, Parameter
from streamkd.tune.space.space import Space
from streamkd.tune.study import Study

sys.path.append(str(Path(__file__).parents[1]))
from searches import CONFIG, REGISTRY, SPACE, header, put, read_as, search


def write(study: Study) -> Outcome:
    return files.write(study, SPACE, CONFIG, REGISTRY)


def test_best_is_the_configuration_with_the_values_of_the_trial(tmp_path: Path) -> None:
    """best.yaml is read as the searched configuration with these values; on top it says where they come from."""
    found = write(search(tmp_path, 60))
    assert found.verdict is not None
    assert found.verdict.taken.number != 0
    best = configuration.load(tmp_path / "best.yaml", (), REGISTRY)
    assert best == SPACE.apply(CONFIG, found.verdict.taken.values, REGISTRY)
    assert SPACE.values_of(best, REGISTRY) == dict(found.verdict.taken.values)
    text = (tmp_path / "best.yaml").read_text()
    assert f"# Trial {found.verdict.taken.number} of the search toy: accuracy" in text
    assert "# command: streamkd tune toy.yaml" in text


def test_a_kept_default_is_the_configuration_as_it_was(tmp_path: Path) -> None:
    """Where trial 0 is taken, best.yaml is the searched configuration, and the comments say why."""
    study = Study.create(tmp_path, header())
    put(study, {}, "finished", read_as([0.9, 0.9, 0.9]))
    write(study)
    assert configuration.load(tmp_path / "best.yaml", (), REGISTRY) == CONFIG
    assert "kept as it stands" in (tmp_path / "best.yaml").read_text()


def test_without_a_finished_trial_there_is_no_best(tmp_path: Path) -> None:
    """The report is there, also of no trial at all."""
    write(Study.create(tmp_path, header()))
    assert {path.name for path in tmp_path.iterdir()} == {"journal.log", "report.html"}


def test_two_objectives_leave_a_front_with_configurations(tmp_path: Path) -> None:
    """front.yaml lists who is not beaten, best first; each entry names a file that is that trial's configuration."""
    objectives = {"accuracy": "max", "forgetting": "min"}
    found = write(search(tmp_path, 30, objectives))
    rows = yaml.safe_load((tmp_path / "front.yaml").read_text())
    figures = {one.number: (one.final("accuracy"), one.final("forgetting")) for one in found.trials}
    whole = {n: (a, f) for n, (a, f) in figures.items() if a is not None and f is not None}
    unbeaten = {
        n for n, (a, f) in whole.items() if not any(x >= a and y <= f and (x, y) != (a, f) for x, y in whole.values())
    }
    assert {row["trial"] for row in rows} == unbeaten
    assert len(rows) > 1
    assert [row["objectives"]["accuracy"] for row in rows] == sorted((whole[n][0] for n in unbeaten), reverse=True)
    for row, one in zip(rows, found.front, strict=True):
        best = configuration.load(tmp_path / row["config"], (), REGISTRY)
        assert SPACE.values_of(best, REGISTRY) == row["values"] == dict(one.values)


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
    space = Space((Parameter("optimizer.learning_rate", Interval(1e-4, 1e-1, log=True)),))
    study = Study.create(tmp_path / "s", header(name="own", directory=os.getcwd()))
    for rate in (0.001, 0.02):
        put(study, {"optimizer.learning_rate": rate}, "finished", read_as([0.8 + rate] * 3))
    files.write(study, space, config, REGISTRY)
    monkeypatch.chdir(there)
    best = configuration.load(tmp_path / "s" / "best.yaml", (), REGISTRY)
    assert best.optimizer.learning_rate == 0.02
    report = run.run(best, REGISTRY, there / "report", [0])
    assert report["served"]["accuracy"]["final_average"] > 0.6


OWN = """
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
    (tmp_path / "c.yaml").write_text(OWN)
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
    (tmp_path / "c.yaml").write_text(OWN.replace("old/model", "net"))
    moved = rooted(configuration.load(tmp_path / "c.yaml", (), REGISTRY), REGISTRY, Path("/here"))
    assert moved.share is not None
    assert moved.share.teacher == "net"


@pytest.mark.parametrize("name", ["split-mnist-5k", "digits", "fashion-mnist-live", "embedded"])
def test_a_written_configuration_is_read_as_the_same(tmp_path: Path, name: str) -> None:
    """Every stream of the repository goes to YAML and back; comments cannot end in the middle of the file."""
    config = configuration.load(Path(__file__).parents[3] / "streams" / f"{name}.yaml", (), REGISTRY)
    moved = rooted(config, REGISTRY, Path(os.getcwd()))
    text = written(moved, ["found by a search", "command: streamkd tune x\nname: injected"])
    (tmp_path / "best.yaml").write_text(text)
    assert configuration.load(tmp_path / "best.yaml", (), REGISTRY) == moved
    assert text.startswith("# found by a search\n# command: streamkd tune x name: injected\n")
    assert yaml.safe_load(text)["name"] == config.name
