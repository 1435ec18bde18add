"""The network of a sentence encoder of BERT's kind, in plain torch, its weights under their published names.

    tokens ─► words + places + segment ─► LayerNorm ─► layers of attention, GELU ─► mean over tokens ─► length 1

Torch's own encoder layer is BERT's (Devlin et al. 2019): query, key and value lie in one matrix there, and that is all
that has to be moved. Mean pooling and length 1 are those of Sentence-BERT (Reimers & Gurevych 2019).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    """What ``config.json`` says of a network of BERT's kind."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Sizes":
        """Those that a ``config.json`` says.

        Raises:
            KeyError: one is not there. ValueError: it is of another kind of network.
        """
        if (kind := config.get("model_type")) != "bert" or config.get("hidden_act") != "gelu":
            raise ValueError(f"needed model_type bert with hidden_act gelu, got {kind} with {config.get('hidden_act')}")
        return cls(**{field.name: config[field.name] for field in fields(cls)})


class Bert(nn.Module):
    """Token numbers [batch, tokens], none of them padding, to sentence vectors [batch, hidden] of length 1."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.hidden_size
        self.words = nn.Embedding(sizes.vocab_size, width)
        self.places = nn.Embedding(sizes.max_position_embeddings, width)
        self.segments = nn.Embedding(sizes.type_vocab_size, width)
        self.norm = nn.LayerNorm(width, sizes.layer_norm_eps)
        layer = nn.TransformerEncoderLayer(
            width,
            sizes.num_attention_heads,
            sizes.intermediate_size,
            dropout=0.0,
            activation="gelu",
            layer_norm_eps=sizes.layer_norm_eps,
            batch_first=True,
        )
        self.layers = nn.TransformerEncoder(layer, sizes.num_hidden_layers, enable_nested_tensor=False)

    def forward(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch hidden"]:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        h = self.words(tokens) + self.places(places) + self.segments.weight[0]
        return F.normalize(self.layers(self.norm(h)).mean(1), dim=1)


_OWN = {
    "embeddings.word_embeddings.weight": "words.weight",
    "embeddings.position_embeddings.weight": "places.weight",
    "embeddings.token_type_embeddings.weight": "segments.weight",
    "embeddings.LayerNorm": "norm",
}
_LAYER = {
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "linear1",
    "output.dense": "linear2",
    "output.LayerNorm": "norm2",
}


def renamed(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Published tensors under the names of ``Bert``; what it has no use for (the pooler) is left out.

    Raises:
        KeyError: a tensor that it needs is not there.
    """
    tensors = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    found = {}
    for theirs, ours in _OWN.items():
        if theirs.endswith(".weight"):
            found[ours] = tensors[theirs]
        else:
            found |= {f"{ours}.{part}": tensors[f"{theirs}.{part}"] for part in ("weight", "bias")}
    for number in range(layers):
        theirs, ours = f"encoder.layer.{number}", f"layers.layers.{number}"
        for part in ("weight", "bias"):
            each = [tensors[f"{theirs}.attention.self.{name}.{part}"] for name in ("query", "key", "value")]
            found[f"{ours}.self_attn.in_proj_{part}"] = torch.cat(each)
            found |= {f"{ours}.{to}.{part}": tensors[f"{theirs}.{of}.{part}"] for of, to in _LAYER.items()}
    return found
