"""``streamkd.load``: the version that is served, as a plain module, with rows as they come."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

import streamkd
from streamkd.errors import CheckpointDamaged, PluginError, RecordError, StateError
from streamkd.plugins import Registry
from streamkd.state.directory import StateDirectory
from streamkd.state.versions import VersionStore
from streamkd.teachers import served

from .conftest import REGISTRY


def pixels(rows: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 17, (rows, 8, 8), dtype=np.uint8)


def test_a_state_directory_gives_what_it_serves(state: Path) -> None:
    """The module answers as the version does, bit for bit, and has its labels, schema, number and records."""
    model = streamkd.load(state)
    assert isinstance(model, nn.Module)
    found = served.load(state / "published/1", REGISTRY)
    with torch.no_grad():
        said = torch.softmax(model(torch.from_numpy(pixels(5))), 1)
    assert np.array_equal(said.numpy(), found.predict(pixels(5)))
    assert (model.labels, model.schema, model.version, model.records) == (found.classes, found.schema, 1, found.records)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_pinned_version_is_the_one_that_is_given(state: Path, tmp_path: Path) -> None:
    """As to whoever asks the server: after a rollback its number."""
    shutil.copytree(state, tmp_path / "state")
    versions = VersionStore(StateDirectory(tmp_path / "state"))
    assert versions.rollback(1) == 2
    versions.close()
    assert streamkd.load(tmp_path / "state").version == 2


def test_a_version_may_be_named_itself_and_is_looked_at(state: Path, tmp_path: Path) -> None:
    """Its directory gives the same; a byte that has changed in it is told."""
    shutil.copytree(state / "published/1", tmp_path / "version")
    assert streamkd.load(tmp_path / "version").version == 1
    weights = tmp_path / "version/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointDamaged, match="sha256"):
        streamkd.load(tmp_path / "version")


def test_where_there_is_no_version_the_way_out_is_told(tmp_path: Path) -> None:
    """A folder of something else, and a state directory that has not published yet."""
    with pytest.raises(StateError, match=r"no published version.*\n.*streamkd serve"):
        streamkd.load(tmp_path)
    StateDirectory(tmp_path / "new").create()
    with pytest.raises(StateError, match="has no published version yet"):
        streamkd.load(tmp_path / "new")


def test_rows_are_encoded_in_any_form(state: Path) -> None:
    """A mapping for each row, a sequence for each column, or Arrow: the same tensor; also one row alone."""
    model, images = streamkd.load(state), pixels(4)
    wanted = torch.from_numpy(images)
    assert torch.equal(model.encode([{"image": image} for image in images]), wanted)
    assert torch.equal(model.encode({"image": images}), wanted)
    assert torch.equal(model.encode({"image": [torch.from_numpy(image) for image in images]}), wanted)
    assert torch.equal(model.encode(pa.RecordBatch.from_pydict({"image": images.tolist()})), wanted)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"image": pixels(1)[0]}, {"image": [[1, 2]]}], r"row 1: 1 rows cannot be read.*needed 8 values"),
        ([{"picture": 1}], "column 'image': needed"),
        ([{"image": "a"}, {"image": 1}], "needed columns of one type"),
    ],
)
def test_rows_that_do_not_fit_are_told(state: Path, rows: Any, said: str) -> None:
    """By the row and the column, as of records that arrive."""
    with pytest.raises(RecordError, match=said):
        streamkd.load(state).encode(rows)


def test_a_registry_may_be_given(state: Path) -> None:
    """What is not in it cannot be loaded, and is named."""
    with pytest.raises(PluginError, match="no selector 'ensemble'"):
        streamkd.load(state, Registry.load(only=["students"]))
