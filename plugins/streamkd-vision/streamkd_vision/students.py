"""The student ``vision-features``: a small network over what a frozen one sees in an image.

    image ─► frozen network ─► vector, mean 0 and variance 1 ─► ReLU layer, or random features beside it ─► head

The frozen network is no part of a state or a version: they keep the hash of its weights, and whoever loads them needs
the same file where the configuration says.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from streamkd.api import Kind, Options, hookimpl
from streamkd_vision import features
from streamkd_vision.view import IMAGENET_MEAN, IMAGENET_STD


class FeaturesOptions(Options):
    """A frozen network of images under a small one."""

    network: str = Field(description="of torchvision by its name, `timm/...`, `efficientnet-lite0`")
    weights: Path = Field(description="a local safetensors file with the network's own state dict")
    size: int = Field(default=224, gt=0, description="height and width that the network sees")
    mean: tuple[float, ...] = Field(default=IMAGENET_MEAN, description="per channel, of values in 0..1")
    std: tuple[float, ...] = Field(default=IMAGENET_STD, description="per channel, of values in 0..1")
    hidden: int = Field(default=256, ge=0, description="width of the layer under the head; 0: none")
    random: int = Field(default=0, ge=0, le=8_192, description="random features beside the vector; hidden: 0 alone")

    @model_validator(mode="after")
    def _random_features_are_read_by_the_head(self) -> "FeaturesOptions":
        if self.random and self.hidden:
            raise ValueError("random features are for a head that reads them itself: set hidden: 0")
        return self


class FeaturesStudent(nn.Module):
    """Images of 0 to 1, [batch, height, width] or [batch, height, width, channels], to logits [batch, classes]."""

    sha256: Tensor

    def __init__(self, options: FeaturesOptions, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        view = shape, options.size, options.mean, options.std
        self._frozen = features.find(options.network, options.weights.resolve(), *view)
        width = self._frozen.width
        self.hidden = nn.Linear(width, options.hidden) if options.hidden else None
        self.random = _random(width, options.random) if options.random else None
        self.head = nn.Linear(options.hidden or width + options.random, classes)
        self.register_buffer("sha256", torch.tensor([*bytes.fromhex(self._frozen.sha256)], dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        h = self._frozen(x).to(x.device)
        h = F.layer_norm(h, h.shape[1:])  # numbers of about 1, as of other inputs
        if self.hidden is not None:
            return self.head(torch.relu(self.hidden(h)))
        return self.head(h if self.random is None else torch.cat([h, torch.relu(self.random(h))], 1))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """What was learned on another network's vectors means nothing on these: an error of the loading."""
        kept = state_dict.get(f"{prefix}sha256")
        if kept is not None and kept.tolist() != self.sha256.tolist():
            errors: list[str] = others[-1]
            errors.append(f"it was learned over the weights {_named(kept)}, these are {_named(self.sha256)}")
        super()._load_from_state_dict(state_dict, prefix, *others)


def _named(sha256: Tensor) -> str:
    return f"{bytes(sha256.tolist()).hex()[:12]}…"


def _random(width: int, count: int) -> nn.Linear:
    """A layer that is drawn and never learned, as that of streamkd's random features: N(0, 1/n), biases N(0, 0.25)."""
    layer = nn.Linear(width, count).requires_grad_(False)
    nn.init.normal_(layer.weight, std=width**-0.5)
    nn.init.normal_(layer.bias, std=0.5)
    return layer


@hookimpl
def streamkd_students() -> Iterable[Kind]:
    """The one student."""
    yield Kind("vision-features", FeaturesStudent, FeaturesOptions, "a frozen network of images under a small one")
