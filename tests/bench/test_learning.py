"""The learning benchmark: same records for all, runs that are kept, figures under the names that are quoted."""

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from baselines import REGISTRY

from streamkd import config as configuration
from streamkd.bench import baselines, documents, learning, peers, plots, streams
from streamkd.errors import ConfigError, SourceError
from streamkd.wiring import student_of

FOLDER = Path(__file__).parents[2] / "streams"
pytestmark = pytest.mark.filterwarnings("ignore")  # Avalanche warns of itself


@pytest.mark.parametrize("name", streams.STREAMS)
def test_the_streams_are_those_of_the_repository(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each definition is, completed, that of the file of its name in streams/, wherever its records lie."""
    told = yaml.safe_load((FOLDER / f"{name}.yaml").read_text("utf-8"))
    source = told["stream"]["source"]
    if "path" in source:
        monkeypatch.setenv("STREAMKD_DATA", str(tmp_path))
        for key in ("path", "test_path"):
            source[key] = str(tmp_path.resolve() / Path(source[key]).name)
            Path(source[key]).touch()
    ours, theirs = (configuration.from_tree(tree) for tree in (streams.tree(name), told | {"device": "cpu"}))
    assert ours == theirs


def test_settings_are_chosen_on_records_that_are_never_reported() -> None:
    """In the form to choose by, no training or test record of the reported form's tests occurs."""
    reported, chosen = (
        streams.arrays(streams.config_of(streams.tree("digits", form), REGISTRY, 100), REGISTRY) for form in (0, 1)
    )
    tested = {bytes(row.numpy()) for part in reported.test for row in part.x}
    assert not tested & {bytes(row.numpy()) for part in (*chosen.train, *chosen.test) for row in part.x}
    assert sum(len(part.y) for part in chosen.test) > 200


def test_arrays_are_the_stream_in_its_order() -> None:
    """Tasks come as the stream has them, labels are columns by arrival, two classes to a task."""
    data = streams.arrays(streams.config_of(streams.tree("digits"), REGISTRY, 3), REGISTRY)
    assert [sorted(set(part.y.tolist())) for part in data.train] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert [sorted(set(part.y.tolist())) for part in data.test] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert len(data.labels) == 10


def test_a_stream_without_its_data_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the file is not there the error names the variable that says where; such a stream is not available."""
    monkeypatch.setenv("STREAMKD_DATA", str(tmp_path))
    monkeypatch.setattr(streams, "DATA", ())
    few = {name: streams.STREAMS[name] for name in ("digits", "split-banking77")}
    monkeypatch.setattr(streams, "STREAMS", few)
    with pytest.raises(SourceError, match="STREAMKD_DATA"):
        streams.tree("split-banking77")
    assert streams.available() == ("digits",)


@pytest.mark.parametrize("name", peers.STRATEGIES)
def test_every_strategy_learns(name: str) -> None:
    """Each of Avalanche's strategies runs over two tasks, shows its network after each, and knows the first by then."""
    config = streams.config_of(streams.tree("digits"), REGISTRY, 0)
    data = streams.arrays(config, REGISTRY)
    network = student_of(config, REGISTRY, data.schema, 10)
    tasks = [(part.x, part.y) for part in data.train[:2]]
    settings = {"optimizer": "adam", "learning_rate": 0.01, "replay": 10, "alpha": 0.1, "beta": 0.5, "strength": 1.0}
    seen: list[float] = []
    before = network.head.weight.detach().clone()
    peers.train(
        name,
        tasks,
        network,
        peers.RunBudget(10, 40),
        settings,
        0,
        lambda model: seen.append(float((model(tasks[len(seen)][0]).argmax(1) == tasks[len(seen)][1]).float().mean())),
    )
    assert len(seen) == 2
    assert seen[0] > 0.8
    assert torch.equal(network.head.weight, before)  # the network that was given is not trained


def test_every_baseline_has_settings_of_its_grid() -> None:
    """Whatever is chosen stands in the grid, and every grid has something."""
    assert set(baselines.CHOSEN) == set(baselines.BASELINES)
    for name, settings in baselines.CHOSEN.items():
        assert settings in baselines.grid(name), name


@pytest.mark.parametrize("name", baselines.GATES)
def test_every_gate_is_a_configuration(name: str) -> None:
    """Each baseline that is a gate differs from ours in gate and teachers alone."""
    made = streams.tree("digits")
    other = baselines.gated(made, name, baselines.CHOSEN[name])
    assert {key for key in other if other[key] != made.get(key)} <= {"gate", "teachers"}
    configuration.from_tree(other, REGISTRY)


def _task(method: str = "fine-tuning", seed: int = 0) -> learning.LearningRun:
    return learning.LearningRun("digits", method, seed, baselines.CHOSEN.get(method, {}))


def test_a_run_that_is_kept_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed benchmark goes on: kept runs are read, one that was cut off is done anew, the order is the asked one."""
    done: list[learning.LearningRun] = []

    def run_one(task: learning.LearningRun) -> learning.Row:
        done.append(task)
        return {"stream": task.stream, "method": task.method, "seed": task.seed, "student": 0.5}

    monkeypatch.setattr(learning, "run_one", run_one)
    tasks = [_task(seed=seed) for seed in range(3)]
    first = learning.run_all(tasks[1:], tmp_path, 1, lambda d, t: None)
    kept = tmp_path / "learning.jsonl"
    kept.write_text(kept.read_text()[:-20])
    rows = learning.run_all(tasks, tmp_path, 1, lambda d, t: None)
    assert [task.seed for task in done] == [1, 2, 0, 2]
    assert [row["seed"] for row in rows] == [0, 1, 2]
    assert rows[1] == first[0]


def test_another_run_has_another_key() -> None:
    """A run is known by what decides it: another seed, method, setting or stream has another key."""
    key = learning._key(_task(), REGISTRY)
    assert key == learning._key(_task(), REGISTRY)
    others = [_task(seed=1), _task("iid"), learning.LearningRun("digits", "fine-tuning", 0, {"optimizer": "sgd"})]
    assert len({key, *(learning._key(task, REGISTRY) for task in others)}) == 4


@pytest.mark.parametrize(
    ("method", "another"), [("fine-tuning", False), ("iid", False), ("uniform", True), (baselines.OURS, True)]
)
def test_other_defaults_are_another_run_of_ours_alone(
    method: str, another: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads tensors does not see how our learner replays, so its run is kept."""
    key = learning._key(_task(method), REGISTRY)
    other = streams.STREAMS["digits"] | {"memory": {"size": 200, "replay": 7}}
    monkeypatch.setitem(streams.STREAMS, "digits", other)
    assert (learning._key(_task(method), REGISTRY) != key) is another


def test_two_names_of_one_configuration_share_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixed gate that is both the best of the grid and that of one average runs once; each row has its own name."""
    done: list[learning.LearningRun] = []

    def run_one(task: learning.LearningRun) -> learning.Row:
        done.append(task)
        return {"method": task.method, "student": 0.5}

    monkeypatch.setattr(learning, "run_one", run_one)
    settings = {"hard": 0.3, "teachers": ["ema"]}
    tasks = [
        learning.LearningRun("digits", "one-ema", 0, {"hard": 0.3}),
        learning.LearningRun("digits", "best-fixed", 0, settings),
    ]
    rows = learning.run_all(tasks, tmp_path, 1, lambda d, t: None)
    assert len(done) == 1
    assert [row["method"] for row in rows] == ["one-ema", "best-fixed"]


def test_a_larger_memory_is_another_run_of_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory's size decides the peers' runs too."""
    key = learning._key(_task("replay"), REGISTRY)
    monkeypatch.setitem(streams.STREAMS, "digits", streams.STREAMS["digits"] | {"memory": {"size": 300}})
    assert learning._key(_task("replay"), REGISTRY) != key


def test_ours_and_a_bound_run_whole() -> None:
    """Our learner gives student and served model, the joint bound a single accuracy above fine-tuning's."""
    ours = learning.run_one(_task(baselines.OURS))
    assert {"student", "served", "forgetting", "served_forgetting", "anytime", "served_anytime"} <= set(ours)
    tuned, joint = learning.run_one(_task("fine-tuning")), learning.run_one(_task("iid"))
    assert tuned["student"] < 0.4 < joint["student"]
    assert 0.4 < ours["student"] <= 1


def _rows() -> list[dict[str, Any]]:
    rows = []
    for seed in range(3):
        rows.append({"stream": "digits", "method": "streamkd", "seed": seed, "student": 0.8 + seed / 100,
                     "served": 0.9, "forgetting": 0.2, "served_forgetting": 0.05})  # fmt: skip
        rows.append({"stream": "digits", "method": "der", "seed": seed, "student": 0.7, "forgetting": 0.3})
        rows.append({"stream": "digits", "method": "joint", "seed": seed, "student": 0.95})
        rows.append({"stream": "digits", "method": "uniform", "seed": seed, "student": 0.6, "served": 0.9,
                     "forgetting": 0.4, "served_forgetting": 0.1, "analytic": 0.9})  # fmt: skip
    return rows


def test_figures_bear_the_names_that_are_quoted() -> None:
    """Ours are .student, .served and .forgetting (the served model's); others go by their names."""
    found = learning.figures(_rows())
    assert found["digits.student"] == pytest.approx(0.81)
    assert found["digits.student_std"] == pytest.approx(statistics.stdev([0.8, 0.81, 0.82]))
    assert (found["digits.served"], found["digits.forgetting"]) == (pytest.approx(0.9), pytest.approx(0.05))
    assert (found["digits.der"], found["digits.der.forgetting"]) == (pytest.approx(0.7), pytest.approx(0.3))
    assert found["digits.joint"] == pytest.approx(0.95)
    assert (found["digits.uniform"], found["digits.uniform.forgetting"]) == (pytest.approx(0.6), pytest.approx(0.4))
    assert all(np.isfinite(list(found.values())))
    json.dumps(found)


def test_the_table_has_a_line_for_each_method() -> None:
    """Ours come first, as served model and as student; a method without runs has no line."""
    head, lines = learning.table(_rows())
    assert head == ("final average accuracy", "digits")
    assert [line[0] for line in lines] == ["streamkd, served", "streamkd, student", "der", "uniform", "joint"]
    assert lines[1][1] == "0.810 ± 0.010"


def test_the_document_has_accuracy_and_forgetting() -> None:
    """Two tables; who sees no order of tasks stands in the first alone."""
    first, second = learning.markdown({"rows": _rows()}).split("\n\n")
    assert "| joint | 0.950 ± 0.000 |" in first
    assert "joint" not in second
    assert "| streamkd, served | 0.050 ± 0.000 |" in second
    assert "| der | 0.300 ± 0.000 |" in second


def test_the_page_of_the_repository_takes_the_tables() -> None:
    """docs/explanation/learning.md has the marks, and names every stream and every baseline."""
    page = (Path(__file__).parents[2] / "docs/explanation/learning.md").read_text("utf-8")
    assert page.index(documents.BEGIN) < page.index(documents.END)
    for name in (*streams.STREAMS, *baselines.BASELINES):
        assert f"`{name}`" in page, name


def test_a_plot_stands_alone(tmp_path: Path) -> None:
    """An SVG per stream with a dot per seed and the best method on top, without script or network."""
    (file,) = plots.write(learning.by_stream(_rows()), tmp_path)
    text = file.read_text()
    assert file.name == "digits.svg"
    assert text.count("<circle") == 15
    assert text.index(">joint<") < text.index(">streamkd, served<") < text.index(">der<")
    assert "<script" not in text
    assert text.count("http") == 1  # the name of the format


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    """A stream or method that there is not is an error that names those that there are."""
    with pytest.raises(ConfigError, match=r"(?s)no stream 'digitz'.*split-mnist-5k"):
        learning.measure(["digitz"], ["der"], [0], tmp_path)
    with pytest.raises(ConfigError, match=r"(?s)no method 'derr'.*er-ace"):
        learning.measure(["digits"], ["derr"], [0], tmp_path)


def test_the_best_of_the_grid_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings are ranked by their mean over streams and the seeds 100 and 101, on the form to choose by."""
    asked: list[learning.LearningRun] = []

    def run_one(task: learning.LearningRun) -> learning.Row:
        asked.append(task)
        return {"method": task.method, "settings": task.settings, "student": task.settings["learning_rate"]}

    monkeypatch.setattr(learning, "run_one", run_one)
    chosen = learning.choose(["digits"], ["streamkd", "uniform", "iid"], tmp_path)["chosen"]
    assert chosen == {"iid": {"optimizer": "sgd", "learning_rate": 0.05}}
    assert {task.seed for task in asked} == {100, 101}
    assert all(task.chosen_on for task in asked)
