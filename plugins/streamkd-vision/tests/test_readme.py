"""The README says what is true."""

import re
from pathlib import Path

import pytest
import yaml
from streamkd_vision import network
from streamkd_vision.teacher import TorchvisionOptions
from streamkd_vision.transfer import AttentionTransferOptions

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def test_its_example_is_valid() -> None:
    """The options in the example are taken by the options' classes."""
    tree = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)[0])
    teacher, term = tree["teachers"][1], tree["losses"][1]
    assert teacher.pop("id") == term["teacher"]
    TorchvisionOptions.model_validate({k: v for k, v in teacher.items() if k != "name"})
    AttentionTransferOptions.model_validate({k: v for k, v in term.items() if k not in ("name", "weight")})


def test_its_tables_name_every_option() -> None:
    """Each option of both kinds stands in a table."""
    listed = {
        name for row in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", README, re.MULTILINE) for name in row.split(", ")
    }
    for options in (TorchvisionOptions, AttentionTransferOptions):
        assert {f"`{name}`" for name in options.model_fields} <= listed


def test_its_script_writes_weights_that_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The few lines that write weights run, and what they write is read back with its labels."""
    monkeypatch.chdir(tmp_path)
    exec(re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0], {})
    weights = network.read(tmp_path / "network.safetensors")
    assert weights.classes == ("cat", "dog", "cow", "hen")
    network.build("resnet18", 4, weights.tensors, "here")
