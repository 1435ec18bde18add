"""The device that a configuration asks for."""

import torch

from streamkd.errors import ConfigError


def device_of(name: str) -> torch.device:
    """``auto`` takes CUDA, else the CPU: MPS has no float64, in which students keep their normalisation's moments.

    Raises:
        ConfigError: CUDA is asked for, and torch finds none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    elif name == "cuda" and not torch.cuda.is_available():
        why = "finds no GPU" if torch.version.cuda else "is built without CUDA"
        raise ConfigError(
            f"needed a GPU, this torch {why}", where="device", fix="set device: auto, which takes the CPU"
        )
    return torch.device(name)
