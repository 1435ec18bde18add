"""A frozen network's vectors: whose they are, that each is asked for once, and that misfits are said."""

import copy
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from streamkd_vision import features, network
from streamkd_vision.view import IMAGENET_MEAN, IMAGENET_STD
from torch import nn

from streamkd.errors import PluginError

NAME = "mobilenet_v3_small"
NORM = IMAGENET_MEAN, IMAGENET_STD


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 8, 8), generator=torch.Generator().manual_seed(seed)).float() / 255


def of(weights: Path, name: str = NAME) -> features.Features:
    return features.find(name, weights, (8, 8), 32, *NORM)


def test_a_vector_is_what_the_last_layer_would_read(weights: Path, network: nn.Module) -> None:
    """Through that layer it becomes the network's own output."""
    found, x = of(weights), images(3)
    head = network.get_submodule("classifier.3")
    view = (x.unsqueeze(1).repeat(1, 3, 1, 1)).contiguous()
    view = torch.nn.functional.interpolate(view, (32, 32), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(part).view(-1, 1, 1) for part in NORM)
    with torch.no_grad():
        torch.testing.assert_close(head(found(x)), network((view - mean) / std), rtol=1e-4, atol=1e-4)


def test_an_image_is_looked_at_once_whoever_asks_and_by_itself(weights: Path) -> None:
    """A copy shares what was seen; beside others, and after the cache is emptied, the same bits."""
    found, x = of(weights), images(4)
    found.forget()
    first = found(x[:2])
    asked: list[str] = []
    handle = found._network.register_forward_pre_hook(lambda *_: asked.append("again"))
    assert torch.equal(copy.deepcopy(of(weights))(x[:2]), first)
    assert asked == []
    handle.remove()
    found.forget()
    assert torch.equal(found(x)[:2], first)
    assert found(x[:0]).shape == (0, found.width)


def test_no_more_than_so_many_are_kept(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes."""
    found = of(weights)
    found.forget()
    monkeypatch.setattr(features, "CACHED", 2)
    found(images(3))
    kept = list(found._kept)
    found(images(1))
    assert len(kept) == len(found._kept) == 2
    assert kept[0] not in found._kept


@pytest.mark.parametrize(("scale", "shift", "said"), [(1, 0, 0), (1 / 255, 0, 1), (255, 0, 1), (4, -2, 1)])
def test_numbers_of_another_range_are_said(
    weights: Path, scale: float, shift: float, said: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Scaled twice, not at all, or by mean and std, an image is another one: once, and in words."""
    found = features.Features(NAME, weights, (8, 8), 32)
    found(torch.zeros(1, 8, 8))  # as what is tried before a stream begins
    with caplog.at_level(logging.WARNING):
        found(images(2) * scale + shift)
    assert ["scale" in record.message for record in caplog.records] == [True] * said


@pytest.mark.parametrize(("name", "said"), [("squeezenet1_0", "ends in a linear layer"), ("resnet", "did you mean")])
def test_networks_that_do_not_fit_are_refused(weights: Path, name: str, said: str) -> None:
    """One that ends otherwise, one that is none."""
    with pytest.raises(PluginError, match=said):
        of(weights, name)


@pytest.mark.parametrize("name", ["timm/mobilenetv3_small_050", "efficientnet-lite0"])
def test_other_packages_networks_are_known_by_their_names(name: str, tmp_path: Path) -> None:
    """With any number of outputs; where the package is not there, it is named."""
    try:
        made = network._empty(name, 5, "here")
    except PluginError as fault:
        assert fault.fix.startswith("pip install ")  # noqa: PT017 - one claim where it is installed, another where not
        pytest.skip(str(fault))
    save_file(made.state_dict(), tmp_path / "weights.safetensors")
    found = features.find(name, tmp_path / "weights.safetensors", (8, 8), 32, *NORM)
    assert found(images(2)).shape == (2, found.width)
    with pytest.raises(PluginError, match="did you mean"):
        network._empty(f"{name}x", 5, "here")
