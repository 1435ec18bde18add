"""`streamkd bench gate`: its policies, its run book, figures under the names that are quoted, and what is timed."""

import json
import statistics
from pathlib import Path

import pytest
from baselines import with_baselines

from streamkd import config as configuration
from streamkd.bench import book, documents, gate, plots, policies, scenarios, streams, upkeep
from streamkd.bench.book import Row
from streamkd.errors import ConfigError, PluginError
from streamkd.gates import gate as gates
from streamkd.plugins import Registry


@pytest.mark.parametrize("policy", policies.POLICIES)
@pytest.mark.parametrize("scenario", ["clean", "experts"])
def test_a_policy_changes_the_gate_alone(scenario: str, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Teachers, stream and student stay; the configuration is one that can be run."""
    made = scenarios.tree(scenario, "digits")
    other = policies.under(made, policy)
    assert {key for key in other if other[key] != made.get(key)} <= {"gate", "adapt"}
    monkeypatch.setattr(Registry, "load", with_baselines)
    configuration.from_tree({**other, "seed": 0}, scenarios.registry_for(made, 0))


def test_the_grid_has_the_same_settings_everywhere() -> None:
    """Only who stands beside the base pool cannot be heard where nobody does."""
    everywhere = set(policies.POLICIES) - {"fixed-0.3-outside", "fixed-0.5-outside"}
    for scenario in scenarios.NAMES:
        wanted = everywhere if scenario in ("clean", "label-noise") else set(policies.POLICIES)
        assert set(policies.policies_of(scenario)) == wanted


def test_one_teacher_alone_is_one_teacher() -> None:
    """Several experts, or all snapshots, are not a single teacher."""
    assert policies.singles("permuted-teacher")[2::3] == ("fixed-0.3-outside", "fixed-0.5-outside")
    for scenario in ("clean", "growth", "experts"):
        assert set(policies.singles(scenario)) == {f"fixed-{h}-{t}" for h in (0.3, 0.5) for t in ("ema", "memory")}


def test_the_uniform_label_is_one_source_among_the_teachers() -> None:
    """Two teachers leave it a third, three a quarter."""
    for scenario, hard in (("clean", 1 / 3), ("random-teacher", 1 / 4)):
        assert policies.under(scenarios.tree(scenario, "digits"), "uniform")["gate"]["hard"] == hard


def _key(policy: str, **changed: object) -> str:
    return gate._key(gate.GateRun("clean", policy, 0, "digits", **changed))  # type: ignore[arg-type]


def test_a_run_is_known_by_what_decides_it() -> None:
    """Where nobody stands beside the base pool, all are the base: one run. Another gate is another."""
    assert _key("fixed-0.3-base") == _key("fixed-0.3-all")
    others = [_key("gate"), _key("gate", chosen_on=True), _key("scalar")]
    assert len({_key("fixed-0.3-all"), *others}) == 4


def test_two_tasks_of_one_key_are_one_run(tmp_path: Path) -> None:
    """The book runs one of them, and gives its row for both; what is kept is not run again."""
    done: list[str] = []

    def run_one(task: str) -> Row:
        done.append(task)
        return {"of": task}

    tasks = [("a", "first"), ("b", "second"), ("a", "third")]
    for _ in range(2):
        rows = book.run_all(tasks, run_one, tmp_path / "book.jsonl", 1, lambda d, t: None)
        assert rows[0] == rows[2] != rows[1] == {"of": "second"}
    assert len(done) == 2


def test_the_average_is_served() -> None:
    """No other model of the pool answers for it."""
    assert gate._tree(gate.GateRun("clean", "gate", 0, "digits"))["publish"] == {"model": "ema"}


def test_a_run_is_whole() -> None:
    """The default gate beside a wrong teacher gives student and average, both better than hearing everyone alike."""
    ours, even = (
        gate.run_one(gate.GateRun("permuted-teacher", name, 100, "digits", True)) for name in ("gate", "uniform")
    )
    for side in gate.SIDES:
        assert even[side] + 0.1 < ours[side] <= 1
    assert 0 < ours["overhead_ratio"] < 1


def _rows() -> list[Row]:
    """Two scenarios, two seeds; the best setting differs."""
    scores = {
        "clean": {"gate": 0.9, "fixed-0.3-ema": 0.8, "fixed-0.3-all": 0.85, "hard-only": 0.7},
        "permuted-teacher": {
            "gate": 0.8, "fixed-0.3-ema": 0.75, "fixed-0.3-all": 0.3, "hard-only": 0.7, "fixed-0.3-outside": 0.1
        },
    }  # fmt: skip
    return [
        {"scenario": scenario, "policy": policy, "seed": seed, "student": score + seed / 100, "served": score - 0.1}
        for scenario, each in scores.items()
        for policy, score in each.items()
        for seed in range(2)
    ]


def test_figures_bear_the_names_that_are_quoted() -> None:
    """The student's by scenario and policy, the average's under served; deviations over the seeds."""
    found = gate.figures(_rows())
    assert found["clean.gate"] == pytest.approx(0.905)
    assert found["clean.gate_std"] == pytest.approx(statistics.stdev([0.9, 0.91]))
    assert found["clean.served.gate"] == pytest.approx(0.8)
    assert found["average.gate"] == pytest.approx(0.855)
    assert found["average.gate_std"] == pytest.approx(statistics.stdev([0.85, 0.86]))
    json.dumps(found)


def test_the_best_are_found_afterwards() -> None:
    """best-fixed is each scenario's own; best-setting one for all; best-single does not hear several."""
    found = gate.figures(_rows())
    assert (found["clean.best-fixed"], found["permuted-teacher.best-fixed"]) == pytest.approx((0.855, 0.755))
    assert (found["clean.best-single"], found["permuted-teacher.best-single"]) == pytest.approx((0.805, 0.755))
    assert found["average.best-fixed"] == pytest.approx((0.855 + 0.755) / 2)
    assert found["average.best-setting"] == pytest.approx((0.805 + 0.755) / 2)


def test_what_was_not_run_everywhere_has_no_average() -> None:
    """outside is a figure of its scenario only."""
    found = gate.figures(_rows())
    assert "permuted-teacher.fixed-0.3-outside" in found
    assert "average.fixed-0.3-outside" not in found


def test_the_table_has_a_line_for_each_policy() -> None:
    """Ours first, then what was found afterwards; a policy that was not run has no line, and a gap where it was not."""
    head, lines = gate.table(_rows(), "student")
    assert head[1:] == ("clean", "permuted-teacher", "average")
    assert [line[0] for line in lines[:4]] == ["gate", "best-fixed", "best-single", "best-setting"]
    assert ("fixed-0.3-outside", "", "0.105 ± 0.007", "") in lines
    assert "uniform" not in [line[0] for line in lines]


def test_a_plot_has_the_gate_on_both_sides(tmp_path: Path) -> None:
    """An SVG per scenario and one of their average: the gate as student and served, everybody else as student."""
    panels = gate.panels(_rows())
    assert set(panels) == {row["scenario"] for row in _rows()} | {"average"}
    for scenario, lines in panels.items():
        assert {"streamkd, student", "streamkd, served", "best-fixed"} <= set(lines), scenario
        assert "gate" not in lines
    assert {file.stem for file in plots.write(panels, tmp_path)} == set(panels)


def test_the_document_keeps_what_people_wrote(tmp_path: Path) -> None:
    """Between the marks stands the newest table; around them nothing changes; a file without marks is refused."""
    file = tmp_path / "gate.md"
    file.write_text(f"before\n{documents.BEGIN}\nold\n{documents.END}\nafter\n")
    result = {
        "rows": _rows(),
        "figures": {"gate.overhead_ratio": 0.25},
        "best": {"student": {"clean": "x"}, "served": {}},
    }
    for _ in range(2):
        documents.write(file, gate.markdown(result))
    text = file.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert text.count("| gate | 0.905 ± 0.007 |") == 1
    assert "`gate.overhead_ratio` 0.250" in text
    file.write_text("only words")
    with pytest.raises(ConfigError, match="end of figures"):
        documents.write(file, "table")
    assert file.read_text() == "only words"
    documents.write(tmp_path / "new.md", "table")
    assert "table" in (tmp_path / "new.md").read_text()


def test_the_page_of_the_repository_takes_the_table() -> None:
    """docs/explanation/gate.md has the marks, and names every scenario and policy that is no cell of the grid."""
    page = (Path(__file__).parents[2] / "docs/explanation/gate.md").read_text("utf-8")
    assert page.index(documents.BEGIN) < page.index(documents.END)
    for name in (*scenarios.NAMES, *gate.FOUND, *(name for name in policies.POLICIES if "fixed-" not in name)):
        assert f"`{name}`" in page, name


def test_what_the_gate_costs_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns of both whole runs, and a burst for each task but the first; the figures are their medians."""
    monkeypatch.setattr(upkeep, "SIZES", "digits")
    monkeypatch.setattr(upkeep, "PER_CLASS", 60)
    monkeypatch.setitem(
        streams.STREAMS, "digits", streams._replay(200, [100], dataset="digits", classes_per_task=2, per_class=40)
    )
    figures, rows = upkeep.measure("digits", turns=1)
    (turn,) = (row for row in rows if "turn" in row)
    bursts = [row["seconds"] for row in rows if "burst" in row]
    assert figures["gate.overhead_ratio"] == (turn["gated"] - turn["fixed"]) / turn["gated"]
    assert len(bursts) == 4
    assert 0 < figures["gate.adaptation_seconds"] == statistics.median(bursts)


def test_a_policy_whose_gate_is_not_installed_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without streamkd-baselines the grid and our own gates can be run; hedge and the like say what to install."""
    bare = Registry()
    bare.register(gates, "gates")
    monkeypatch.setattr(Registry, "load", lambda: bare)
    policies.require_gates(["gate", "uniform", "adapted-never", "fixed-0.3-ema"])
    with pytest.raises(
        PluginError, match=r"policy hedge: there is no gate 'hedge'[\s\S]*pip install streamkd-baselines"
    ):
        gate.measure(["clean"], ["uniform", "hedge"], [0], tmp_path)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    """A scenario, policy or stream that there is not is an error that names those that there are."""
    with pytest.raises(ConfigError, match=r"(?s)no scenario 'cleen'.*clean"):
        gate.measure(["cleen"], ["gate"], [0], tmp_path)
    with pytest.raises(ConfigError, match=r"(?s)no policy 'gates'.*ca-mkd"):
        gate.measure(["clean"], ["gates"], [0], tmp_path)
    with pytest.raises(ConfigError, match=r"(?s)no stream 'digitz'.*digits"):
        gate.measure(["clean"], ["gate"], [0], tmp_path, stream="digitz")
