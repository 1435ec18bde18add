"""The network of a sentence encoder of BERT's kind, in plain torch, its weights under their published names.

    tokens ─► words + places + segment ─► LayerNorm ─► layers of attention, GELU ─► mean over tokens ─► length 1

The layers are BERT's (Devlin et al. 2019), mean pooling and length 1 are those of Sentence-BERT (Reimers & Gurevych
2019). Tokens of several texts lie one behind the other, without padding: all but attention takes them as they are. The
last layers' weights of query and value may be shifted, which is how an adapter acts.
"""

from collections.abc import Mapping, Sequence
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


class Layer(nn.Module):
    """Attention and two linear maps, each added to what came in, and that normalised: [tokens, hidden] to the same."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, inner = sizes.hidden_size, sizes.intermediate_size
        self.heads = sizes.num_attention_heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm_out, self.norm_narrow = (nn.LayerNorm(width, sizes.layer_norm_eps) for _ in range(2))

    def forward(
        self, h: Float[Tensor, "tokens hidden"], lengths: Sequence[int], shifts: Tensor | None = None
    ) -> Float[Tensor, "tokens hidden"]:
        """``lengths``: tokens of each text; ``shifts`` [2, hidden, hidden] are added to query's and value's weights."""
        on_query, on_value = (None, None) if shifts is None else shifts
        read = (_shifted(self.query, on_query, h), self.key(h), _shifted(self.value, on_value, h))
        parts = zip(*(part.split(lengths) for part in read), strict=True)
        h = self.norm_out(h + self.out(torch.cat([self._attended(*text) for text in parts])))
        return self.norm_narrow(h + self.narrow(F.gelu(self.wide(h))))

    def _attended(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[tokens, hidden] of one text; torch's own attention has no forward mode, by which the gate learns."""
        q, k, v = (part.unflatten(1, (self.heads, -1)).transpose(0, 1) for part in (query, key, value))
        pull = torch.softmax(q @ k.transpose(1, 2) * q.shape[2] ** -0.5, 2)
        return (pull @ v).transpose(0, 1).flatten(1)


def _shifted(linear: nn.Linear, shift: Tensor | None, h: Tensor) -> Tensor:
    return linear(h) if shift is None else F.linear(h, linear.weight + shift, linear.bias)


class Bert(nn.Module):
    """Token numbers [tokens] of one text to its sentence vector [hidden] of length 1."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.hidden_size
        self.words = nn.Embedding(sizes.vocab_size, width)
        self.places = nn.Embedding(sizes.max_position_embeddings, width)
        self.segments = nn.Embedding(sizes.type_vocab_size, width)
        self.norm = nn.LayerNorm(width, sizes.layer_norm_eps)
        self.layers = nn.ModuleList([Layer(sizes) for _ in range(sizes.num_hidden_layers)])

    def forward(self, tokens: Int[Tensor, "tokens"]) -> Float[Tensor, "hidden"]:
        return self.pooled(self.below(tokens, 0), [len(tokens)])[0]

    def below(self, tokens: Int[Tensor, "tokens"], above: int) -> Float[Tensor, "tokens hidden"]:
        """What comes out of all but the last ``above`` layers."""
        places = torch.arange(len(tokens), device=tokens.device)
        h = self.norm(self.words(tokens) + self.places(places) + self.segments.weight[0])
        for layer in self.layers[: len(self.layers) - above]:
            h = layer(h, [len(tokens)])
        return h

    def above(
        self, h: Float[Tensor, "tokens hidden"], lengths: Sequence[int], shifts: Float[Tensor, "layers 2 hidden hidden"]
    ) -> Float[Tensor, "texts hidden"]:
        """Sentence vectors of several texts from what ``below`` said of each, the last layers shifted."""
        for layer, shift in zip(self.layers[-len(shifts) :], shifts, strict=True):
            h = layer(h, lengths, shift)
        return self.pooled(h, lengths)

    @staticmethod
    def pooled(h: Float[Tensor, "tokens hidden"], lengths: Sequence[int]) -> Float[Tensor, "texts hidden"]:
        return F.normalize(torch.stack([text.mean(0) for text in h.split(lengths)]), dim=1)


_OWN = {
    "embeddings.word_embeddings.weight": "words.weight",
    "embeddings.position_embeddings.weight": "places.weight",
    "embeddings.token_type_embeddings.weight": "segments.weight",
    "embeddings.LayerNorm": "norm",
}
_LAYER = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "norm_out",
    "intermediate.dense": "wide",
    "output.dense": "narrow",
    "output.LayerNorm": "norm_narrow",
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
        theirs, ours = f"encoder.layer.{number}", f"layers.{number}"
        for part in ("weight", "bias"):
            found |= {f"{ours}.{to}.{part}": tensors[f"{theirs}.{of}.{part}"] for of, to in _LAYER.items()}
    return found
