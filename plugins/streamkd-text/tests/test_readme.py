"""The README and the streams say what is true."""

import json
import re
from pathlib import Path

import pytest
import yaml
from streamkd_text.joined import JoinedOptions
from streamkd_text.students import EncoderOptions, NgramOptions

from streamkd import config
from streamkd.plugins import Registry
from streamkd.run import run_seed

HERE = Path(__file__).parents[1]
README = (HERE / "README.md").read_text("utf-8")
KINDS = {"text-encoder": EncoderOptions, "text-ngrams": NgramOptions, "text-joined": JoinedOptions}
STREAMS = sorted((HERE / "streams").glob("*.yaml"))


@pytest.mark.parametrize("kind", KINDS)
def test_its_tables_have_every_option_with_its_default(kind: str) -> None:
    """None missing, none too many."""
    [rows] = re.findall(rf"^\| of `{kind}` \| default \| \|\n\|[-|]+\|\n((?:\|.*\n)+)", README, re.M)
    told = {option: yaml.safe_load(value) for option, value in re.findall(r"^\| `(\w+)` \| `?(.*?)`? ?\|", rows, re.M)}
    assert told == {name: field.default for name, field in KINDS[kind].model_fields.items()}


@pytest.mark.parametrize("lines", re.findall(r"```yaml\n(.*?)```", README, re.S))
def test_its_yaml_is_taken(lines: str, registry: Registry) -> None:
    """Every block is part of a configuration."""
    tree = {"stream": {"source": {"name": "replay", "dataset": "digits"}}}
    found = yaml.safe_load(lines)
    found["stream"] = {**tree["stream"], **found.get("stream", {})}
    config.from_tree(found, registry)


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_its_streams_run(path: Path, folder: Path, tmp_path: Path, registry: Registry) -> None:
    """With another encoder and a few texts each comes to its end; what is served knows them."""
    if "text-encoder" not in Registry.load().names("students"):
        pytest.skip("streamkd-text is not installed: what is served finds its kinds by entry points")
    said = path.read_text("utf-8").replace("text-encoder", f"text-encoder, encoder: {folder}")
    tree = yaml.safe_load(said.replace("classes_per_task: 11", "classes_per_task: 2"))
    asked = {"lost": "my card is lost", "rate": "what is the rate", "late": "the transfer is late"}
    for part, numbers in (("train", range(40)), ("test", range(90, 95))):
        rows = [json.dumps({"text": f"{text} {n}", "label": label}) for n in numbers for label, text in asked.items()]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(rows))
    tree["stream"]["source"] |= {"path": str(tmp_path / "train.jsonl"), "test_path": str(tmp_path / "test.jsonl")}
    found = run_seed(config.from_tree({**tree, "device": "cpu"}, registry), registry)
    assert found["served"]["accuracy"]["final_average"] == 1.0
