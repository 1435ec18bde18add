"""The n-grams of texts as numbers: characters (3 to 5, inside words) and words (1 and 2), by hashing.

    text ─► words ─► of each: its numbers, kept ─► ids [n-grams], weights [n-grams], where each text begins [texts]

The characters of a text have norm 1/√2 and its words too, as in streamkd's own hashing of texts, but a word that came
before costs a look-up. A bag of rows under these numbers is a linear layer over the hashed features.
"""

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

WORDS = 65_536  # whose numbers are kept, and as many pairs
_WORD = re.compile(r"\w+")


def hashed(texts: Sequence[str]) -> tuple[Int[Tensor, "ngrams"], Int[Tensor, "texts"], Float[Tensor, "ngrams"]]:
    """Numbers of 32 bits, where each text begins among them, and weights."""
    ids, counts = [np.zeros(0, np.int64)], list[int]()
    for text in texts:
        words = _WORD.findall(text.lower())
        inside = [_characters(word) for word in words]
        whole = [*map(_word, words), *map(_pair, words, words[1:])]
        ids += [*inside, np.array(whole, np.int64)]
        counts += [sum(map(len, inside)), len(whole)]
    weights = np.array([(0.5 / (count or 1)) ** 0.5 for count in counts], np.float32)
    return (
        torch.from_numpy(np.concatenate(ids)),
        torch.from_numpy(np.cumsum([0, *counts[:-1]])[: len(counts) : 2]),
        torch.from_numpy(np.repeat(weights, counts)),
    )


def _text_of(starts: Int[Tensor, "texts"], ngrams: int) -> Int[Tensor, "ngrams"]:
    """Which text each n-gram is of."""
    lengths = torch.diff(starts, append=starts.new_tensor([ngrams]))
    return torch.repeat_interleave(torch.arange(len(starts), device=starts.device), lengths)


@lru_cache(WORDS)
def _characters(word: str) -> np.ndarray:
    """int64 of a word between two spaces: its parts of 3 to 5 characters; a shorter word is one part."""
    padded = f" {word} "
    parts = {padded[at : at + n] for n in (3, 4, 5) for at in range(len(padded) - n + 1)}
    return np.array([zlib.crc32(part.encode()) for part in sorted(parts)], np.int64)


@lru_cache(WORDS)
def _word(word: str) -> int:
    return zlib.crc32(f"w{word}".encode())


@lru_cache(WORDS)
def _pair(first: str, second: str) -> int:
    return zlib.crc32(f"w{first} {second}".encode())


class Hashed(nn.Module):
    """Texts to [texts, buckets]: the weights of the n-grams of each bucket, summed, times √(buckets / 8)."""

    def __init__(self, buckets: int) -> None:
        super().__init__()
        self.buckets = buckets

    def forward(self, texts: Sequence[str]) -> Float[Tensor, "texts buckets"]:
        ids, starts, weights = hashed(texts)
        rows = _text_of(starts, len(ids))
        found = torch.zeros(len(texts) * self.buckets)
        found.index_add_(0, rows * self.buckets + ids % self.buckets, weights * (self.buckets / 8) ** 0.5)
        return found.reshape(len(texts), self.buckets)


class Bag(nn.Module):
    """Texts to [texts, width]: the weighted sum of a row for each n-gram, of ``buckets`` rows that they share."""

    def __init__(self, buckets: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(buckets, width)
        nn.init.uniform_(self.table.weight, -(width**-0.5) / 4, width**-0.5 / 4)

    def forward(self, texts: Sequence[str]) -> Float[Tensor, "texts width"]:
        ids, starts, weights = (part.to(self.table.weight.device) for part in hashed(texts))
        ids = ids % self.table.num_embeddings
        if (
            torch.is_inference_mode_enabled()
        ):  # several times as fast, but without forward mode, by which the gate learns
            return F.embedding_bag(ids, self.table.weight, starts, mode="sum", per_sample_weights=weights)
        parts = self.table(ids) * weights.unsqueeze(1)
        return parts.new_zeros(len(texts), parts.shape[1]).index_add(0, _text_of(starts, len(ids)), parts)
