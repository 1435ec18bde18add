"""A network of torchvision, timm or efficientnet-lite with weights from a local file, ready to answer.

weights.safetensors ─► checked: every tensor there, of its shape, finite ─► network in evaluation mode
"""

import difflib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from streamkd.api import Label, PluginError


@dataclass(frozen=True)
class Weights:
    """What a file holds: tensors by name, the labels in the order of the outputs if it says them, and its hash."""

    tensors: dict[str, Tensor]
    classes: tuple[Label, ...] | None
    sha256: str


def read(path: Path) -> Weights:
    """The weights in a safetensors file; its metadata may hold ``classes`` as a JSON list.

    Raises:
        PluginError: the file cannot be read, is no safetensors file, or holds a number that is not finite.
    """
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        with safe_open(path, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
            said = (opened.metadata() or {}).get("classes")
        classes = tuple(json.loads(said)) if said else None
    except (OSError, SafetensorError, ValueError) as fault:
        raise PluginError(
            f"weights cannot be read: {fault}",
            where=str(path),
            fix="name a safetensors file; the README of streamkd-vision shows how to write one",
        ) from None
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise PluginError(f"the tensor {name!r} holds a number that is not finite", where=str(path))
    return Weights(tensors, classes, sha256)


def build(name: str, outputs: int, tensors: Mapping[str, Tensor], where: str) -> nn.Module:
    """The network of that name with these weights; nothing random is drawn from the caller's generator.

    Raises:
        PluginError: no such network, or weights that are not its own.
    """
    network = _empty(name, outputs, where)
    _refuse_misfit(name, outputs, network.state_dict(), tensors, where)
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False)


def headless(name: str, weights: Weights, where: str) -> tuple[nn.Module, int]:
    """The network without its last linear layer, and the width of what that read.

    Raises:
        PluginError: as of ``build``; or it does not end in a linear layer.
    """
    linear = [layer for layer, module in _empty(name, 2, where).named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise PluginError(f"needed a network that ends in a linear layer, got {name}", where=where)
    head = f"{linear[-1]}.weight"
    outputs = len(weights.tensors[head]) if head in weights.tensors else 1_000
    found = build(name, outputs, weights.tensors, where)
    width = cast(nn.Linear, found.get_submodule(linear[-1])).in_features
    found.set_submodule(linear[-1], nn.Identity())
    return found, width


def _empty(name: str, outputs: int, where: str) -> nn.Module:
    """A network of that name with weights that mean nothing."""
    known, make = _library(name, where)
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        fix = (f"did you mean {near[0]!r}? " if near else "") + f"known networks: {', '.join(known)}"
        raise PluginError(f"there is no network {name!r}", where=where, fix=fix)
    with torch.random.fork_rng(devices=[]):
        return make(outputs)


def _library(name: str, where: str) -> tuple[Sequence[str], Callable[[int], nn.Module]]:
    """The networks that a package knows, under our names, and what makes the one of that name."""
    try:
        if name.startswith("timm/"):
            import timm

            known = [f"timm/{each}" for each in timm.list_models()]
            return known, lambda outputs: timm.create_model(name.removeprefix("timm/"), num_classes=outputs)
        if name.startswith("efficientnet-lite"):
            from efficientnet_lite_pytorch import EfficientNet

            known = [f"efficientnet-lite{size}" for size in range(5)]
            return known, lambda outputs: EfficientNet.from_name(name, num_classes=outputs)
    except ImportError as fault:
        package = "timm" if name.startswith("timm/") else "efficientnet-lite-pytorch"
        raise PluginError(f"{name} needs {package}: {fault}", where=where, fix=f"pip install {package}") from None
    from torchvision import models

    return models.list_models(module=models), lambda outputs: models.get_model(name, weights=None, num_classes=outputs)


def _refuse_misfit(name: str, outputs: int, needed: Mapping[str, Any], got: Mapping[str, Tensor], where: str) -> None:
    faults = [f"{key} is missing" for key in needed if key not in got]
    faults += [f"{key} is unknown" for key in got if key not in needed]
    faults += [
        f"{key}: needed {tuple(needed[key].shape)}, got {tuple(got[key].shape)}"
        for key in needed
        if key in got and needed[key].shape != got[key].shape
    ]
    if faults:
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise PluginError(
            f"the weights are not those of {name} with {outputs} outputs: {'; '.join(faults[:3])}{more}",
            where=where,
            fix="name the network that the file was written from, and one class per output, in order",
        )
