"""The README says what is true."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from streamkd_river import bench
from streamkd_river.models import MODELS
from streamkd_river.teacher import RiverOptions

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def test_its_example_is_valid() -> None:
    """The options in the example are taken by the options' class."""
    tree = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)[0])
    RiverOptions.model_validate({key: value for key, value in tree["teachers"][2].items() if key not in ("name", "id")})


def test_its_tables_name_every_option_and_model() -> None:
    """Each option stands in one, each model in the other."""
    listed = set(re.findall(r"^\| `([\w.-]+)` \|", README, re.MULTILINE))
    assert listed >= {*RiverOptions.model_fields, *MODELS, "last-label", "linear"}


def test_its_command_writes_such_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each teacher and table, with labels by order of arrival and without the concepts' column."""
    table = pa.table({"a": [0.0, 1.0] * 20, "concept": [7] * 40, "label": ["up", "down"] * 20})
    pq.write_table(table, tmp_path / "turns.parquet")
    assert bench.read(tmp_path / "turns.parquet", ["concept"])[0].shape == (40, 1)
    bench.main([str(tmp_path / "turns.parquet"), "--teachers", "last-label", "neighbors.KNNClassifier"])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [line[:4] for line in lines[2:]] == [
        ["last-label", "turns", "40", "0.025"],
        ["neighbors.KNNClassifier", "turns", "40", lines[3][3]],
    ]
    assert float(lines[3][3]) > 0.8
