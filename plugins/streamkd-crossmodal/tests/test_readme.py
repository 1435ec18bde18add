"""The README, the stream and the script say what is true."""

import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from streamkd_crossmodal import sound
from streamkd_crossmodal.sound import SoundOptions

from streamkd import config
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.wiring import open_source, schema_of

HERE = Path(__file__).parents[1]
README = (HERE / "README.md").read_text("utf-8")


@pytest.fixture
def registry() -> Registry:
    """All that is installed, and this."""
    found = Registry.load()
    if "sound" not in found.names("students"):
        found.register(sound, "crossmodal-students")
    return found


def test_its_table_has_every_option_with_its_default() -> None:
    """None missing, none too many."""
    [rows] = re.findall(r"^\| of `sound` \| default \| \|\n\|[-|]+\|\n((?:\|.*\n)+)", README, re.M)
    told = {option: yaml.safe_load(value) for option, value in re.findall(r"^\| `(\w+)` \| `(.*?)` \|", rows, re.M)}
    assert told == {name: field.default for name, field in SoundOptions.model_fields.items()}


def test_its_yaml_is_taken(registry: Registry) -> None:
    """Every block is part of a configuration."""
    for lines in re.findall(r"```yaml\n(.*?)```", README, re.S):
        tree = yaml.safe_load(lines)
        tree["stream"] = {"source": {"name": "replay", "dataset": "digits"}, **tree.get("stream", {})}
        config.from_tree(tree, registry)


def recordings(count: int = 60) -> Iterator[dict[str, Any]]:
    """Ten tones, each with noise, by three speakers."""
    draw = np.random.default_rng(0)
    for number in range(10 * count):
        label, samples = number % 10, int(draw.integers(700, 1_200))
        wave = np.sin(2 * np.pi * (200 + 300 * label) * np.arange(samples) / 8_000) + draw.normal(0, 0.3, samples)
        yield {"pcm": (8_000 * wave).astype(np.int16), "label": label, "speaker": "abc"[number % 3]}


def test_what_the_script_pairs_is_heard(tmp_path: Path, registry: Registry) -> None:
    """Image and sound are of one class, no recording comes twice; the teacher of the stream knows what it heard."""
    pq.write_table(pa.Table.from_pylist(list(recordings())), tmp_path / "fsdd.parquet")
    script = runpy.run_path(str(HERE / "pairs.py"))
    labels = np.array([3, 1, 3, 3])
    places = script["matched"](labels, np.array([1, 3, 3, 1, 3]), np.random.default_rng(0))
    assert sorted(places[labels == 3]) == [1, 2, 4]
    script["main"](tmp_path / "fsdd.parquet", tmp_path)
    tree = yaml.safe_load((HERE / "streams" / "digits-heard.yaml").read_text("utf-8"))
    source = {**tree["stream"]["source"], "limit": 300, "unlabelled": 0.2}
    source |= {"path": str(tmp_path / "heard-train.parquet"), "test_path": str(tmp_path / "heard-test.parquet")}
    tree = {**tree, "device": "cpu", "vicinal": {"rows": 0}, "stream": {**tree["stream"], "source": source}}
    parts = config.from_tree(tree, registry)
    schema = schema_of(parts, registry)
    learner = Learner(parts, registry, open_source(parts, registry, schema)[0], schema)
    while learner.advance():
        pass
    learner.end_of_stream()
    assert learner.student.normalise.columns.schema.shape == (8, 8)
    [ears] = [teacher for teacher in learner.step.pool.teachers if teacher.key == "ears"]
    held = learner.step.memory.holdout
    assert held.x is not None
    x, y = held.x[: held.filled], held.y[: held.filled]
    assert ears.logits(x).argmax(1).eq(y).float().mean() > 0.9
    assert ears.part() is None
