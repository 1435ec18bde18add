"""The drift benchmark: the same records for all, every prediction before its label is known, peers apart."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamkd.bench import drift, drifting, gears, online_peers, prequential, scatter
from streamkd.bench.drift import OURS, DriftRun
from streamkd.errors import ConfigError, SourceError
from streamkd.plugins import Registry

REGISTRY = Registry.load()
pytestmark = pytest.mark.filterwarnings("ignore")  # Avalanche warns of itself
PLAIN = ("no-change", "majority")


def of_file(folder: Path, y: np.ndarray, concept: np.ndarray | None = None) -> Path:
    """``folder`` with an electricity.parquet of these labels, whose one input says nothing."""
    columns = {"x": np.random.default_rng(0).normal(size=len(y)).astype(np.float32), "label": y}
    pq.write_table(pa.table(columns if concept is None else {**columns, "concept": concept}), folder / "sea.parquet")
    return folder


def test_a_file_is_learned_in_its_order_and_its_concepts_are_not_shown(tmp_path: Path) -> None:
    """Inputs are all columns but label and concept; no record tests, and no task is told."""
    y, concept = np.random.default_rng(1).integers(0, 3, 500), np.repeat([0, 1], 250)
    config = drifting.checked("sea", of_file(tmp_path, y, concept), None, REGISTRY, 0)
    stream = drifting.drifting("sea", config, REGISTRY)
    assert stream.x.shape == (500, 1)
    assert stream.concept is not None
    assert stream.concept.tolist() == concept.tolist()
    column = {label: number for number, label in enumerate(dict.fromkeys(y.tolist()))}
    assert stream.y.tolist() == [column[label] for label in y.tolist()]
    assert config.stream.records is not None
    assert config.stream.records.task is None


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    """The error names the option; such a stream is not available, generated ones are."""
    with pytest.raises(SourceError, match="--data"):
        drifting.tree("weather", tmp_path)
    assert drifting.available(tmp_path) == drifting.generators.NAMES


@pytest.mark.parametrize("delay", [3, *(pytest.param(delay, marks=pytest.mark.soak) for delay in (0, 25))])
def test_nothing_is_learned_before_its_label_is_known(delay: int, tmp_path: Path) -> None:
    """Labels that only their own record tells cannot be foreseen; one that is always the same can, once it is known.

    Of a stream whose label changes from 0 to 1 for good, nobody of ours says 1 before ``delay`` records have passed.
    """
    y = np.repeat([0, 1, 0], [40, 200, 200])
    config = drifting.checked("sea", of_file(tmp_path, y), None, REGISTRY, 0)
    stream = drifting.drifting("sea", config, REGISTRY)
    for one in drift.ours(config, REGISTRY, stream, delay):
        first = np.flatnonzero(one.predicted == 1)
        assert len(one.predicted) == len(y)
        assert not len(first) or first[0] >= 40 + delay
    found = {one.name: one.predicted for one in drift.ours(config, REGISTRY, stream, delay)}
    assert {"student", "served", "ema"} <= set(found)
    assert (found["student"][150:240] == 1).mean() > 0.5


def test_every_record_is_predicted_once_whatever_the_delay(tmp_path: Path) -> None:
    """A delay that no batch divides leaves no record without the student's answer, after the first batch."""
    y = np.random.default_rng(2).integers(0, 2, 333)
    config = drifting.checked("sea", of_file(tmp_path, y), None, REGISTRY, 0)
    stream = drifting.drifting("sea", config, REGISTRY)
    for delay in (0, 7, 48):
        student = next(one for one in drift.ours(config, REGISTRY, stream, delay) if one.name == "student")
        assert (student.predicted == -1).sum() == (10 + delay if delay else 0)


@pytest.mark.parametrize("delay", [0, 2])
def test_a_peer_learns_each_label_when_it_is_known(delay: int) -> None:
    """The last label, run as a peer, is ``no_change`` of the figures."""
    y = np.random.default_rng(3).integers(0, 4, 60)
    found = online_peers.run(online_peers.NoChange(), np.zeros((60, 1)), y, delay)
    assert found["predicted"].tolist() == prequential.no_change(y, delay).tolist()
    assert 0 <= found["answer_seconds"] <= found["seconds"]


def test_the_peers_see_what_our_student_sees() -> None:
    """Inputs have mean 0 and deviation 1 over the first thousand records, a constant one stays finite."""
    x = np.random.default_rng(4).normal(5, 3, (2_000, 2)) * [1, 0]
    found = online_peers.standardised(x)
    assert found[:1_000, 0].mean() == pytest.approx(0)
    assert found[:1_000, 0].std() == pytest.approx(1)
    assert np.isfinite(found).all()


def test_peers_run_in_their_own_python(tmp_path: Path) -> None:
    """A Python without any stream learner has the two that need none; what it says is told where it is none."""
    assert set(PLAIN) <= set(drift.peers_of(sys.executable))
    with pytest.raises(ConfigError, match="--peers"):
        drift.peers_of(str(tmp_path / "python"))
    assert drift.peers_of(None) == {}


def test_figures_table_and_plots_name_every_line(tmp_path: Path) -> None:
    """Ours stand by what answered, peers by their name, streams with their delay; what ran is not run again."""
    data, work = tmp_path / "data", tmp_path / "work"
    data.mkdir()
    of_file(data, np.repeat([0, 1], 100), np.repeat([0, 1], 100))
    how = {"data": data, "python": sys.executable, "methods": [OURS, *PLAIN]}
    result = drift.measure(["sea"], [0, 1], work, **how)
    assert json.loads(json.dumps(result)) == result
    assert {row["method"] for row in result["rows"]} == {OURS, *PLAIN}
    assert result["figures"]["sea.no-change.accuracy"] == pytest.approx(198 / 200)
    assert result["figures"]["sea.no-change.kappa"] == 0
    assert result["figures"]["sea.majority.accuracy"] == pytest.approx(99 / 200)
    assert "sea.streamkd, served.accuracy_std" in result["figures"]
    head, lines = drift.table(result["rows"], "prequential accuracy")
    assert head == ("prequential accuracy", "sea")
    assert ("no-change", "0.990") in lines
    assert "| streamkd, student |" in drift.markdown(result)
    assert set(drift.panels(result["rows"])) == {"sea"}
    kept = (work / "drift.jsonl").read_bytes()
    assert drift.measure(["sea"], [0, 1], work, **how)["rows"] == result["rows"]
    assert (work / "drift.jsonl").read_bytes() == kept


def test_gears_are_lines_of_their_own_with_their_price(tmp_path: Path) -> None:
    """What is answered in other batches stands beside the defaults, in the plot of prices too; teachers do not."""
    of_file(tmp_path, np.repeat([0, 1], 100))
    how = {"data": tmp_path, "python": sys.executable, "methods": [OURS, "no-change"]}
    rows = drift.measure(["sea"], [0], tmp_path / "work", geared=True, **how)["rows"]
    lines = drift.points(rows)["sea.price"]
    ours = ["streamkd, served", "streamkd, student", *(f"streamkd, served{gear}" for gear in gears.DRIFTING[1:])]
    assert sorted(lines) == sorted([*ours, "no-change"])
    assert lines["streamkd, served, batches of 160"][0] < lines["streamkd, served"][0]
    (plot,) = scatter.write(drift.points(rows), tmp_path)
    assert plot.name == "sea.price.svg"
    assert plot.read_text().count("<circle") == len(lines)


def test_what_there_is_not_is_refused(tmp_path: Path) -> None:
    """Streams and methods by name, those that there are beside."""
    with pytest.raises(ConfigError, match="no stream 'river'"):
        drift.measure(["river"], [0], tmp_path)
    with pytest.raises(ConfigError, match="no method 'arf-10'"):
        drift.measure(["agrawal"], [0], tmp_path, methods=["arf-10"])


def test_a_run_is_known_by_what_decides_it(tmp_path: Path) -> None:
    """Our seed, delay and stream make another run of ours, and of a peer its package's version too."""
    task = DriftRun("agrawal", OURS, 0, 0, None, None)
    keys = [
        drift._key(task, None, REGISTRY),
        drift._key(DriftRun("agrawal", OURS, 1, 0, None, None), None, REGISTRY),
        drift._key(DriftRun("agrawal", OURS, 0, 48, None, None), None, REGISTRY),
        drift._key(DriftRun("agrawal", "hat", 0, 0, None, None, "python"), "river 0.23.0", REGISTRY),
        drift._key(DriftRun("agrawal", "hat", 0, 0, None, None, "python"), "capymoa 0.15.1", REGISTRY),
    ]
    assert len(set(keys)) == len(keys)
