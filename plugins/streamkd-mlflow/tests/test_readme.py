"""The README says what is true."""

import re
from pathlib import Path

import yaml
from streamkd_mlflow import observer
from streamkd_mlflow.observer import MlflowOptions

from streamkd import config
from streamkd.plugins import Registry

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def test_its_table_has_every_option_with_its_default() -> None:
    """None missing, none too many."""
    told = {
        name: None if value == "" else yaml.safe_load(value) or ""
        for name, value in re.findall(r"^\| `(\w+)` \| `?(.*?)`? ?\| .*\|$", README, re.M)
    }
    needed = {name: None if f.is_required() else f.default for name, f in MlflowOptions.model_fields.items()}
    assert told == needed


def test_its_yaml_is_taken() -> None:
    """As part of a configuration."""
    registry = Registry.load()
    if "mlflow" not in registry.names("observers"):
        registry.register(observer, "mlflow")
    [lines] = re.findall(r"```yaml\n(.*?)```", README, re.S)
    tree = yaml.safe_load(lines)
    found = config.from_tree({"stream": {"source": {"name": "replay", "dataset": "digits"}}, **tree}, registry)
    assert found.observers[0].values["model"] == "digits"
