"""N-grams: what they are, that a bag is a linear layer over them, and that a text is told by itself."""

import zlib
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streamkd_text.ngrams import Bag, Hashed, hashed


def oracle(text: str, places: int) -> list[float]:
    """The sum by places, one n-gram after the other."""
    words = "".join(c if c.isalnum() or c == "_" else " " for c in text.lower()).split()
    inside = []
    for word in words:
        padded = f" {word} "
        inside += sorted({padded[i : i + n] for n in (3, 4, 5) for i in range(len(padded) - n + 1)})
    whole = [f"w{word}" for word in words] + [f"w{a} {b}" for a, b in pairwise(words)]
    found = [0.0] * places
    for grams in (inside, whole):
        for gram in grams:
            found[zlib.crc32(gram.encode()) % places] += (0.5 / len(grams)) ** 0.5
    return found


TEXTS = ["My card is LOST!", "", "a", "what's the rate?", "ÜBER späte Überweisung", "???", "my my my"]


def test_hashed_is_the_sum_over_ngrams() -> None:
    """Each row is what a loop over its n-grams gives; the empty text is zeros."""
    got = Hashed(64)(TEXTS)
    torch.testing.assert_close(got / 8**0.5, torch.tensor([oracle(text, 64) for text in TEXTS]))


def test_a_bag_is_a_linear_layer_over_them() -> None:
    """The weighted sum of rows is the product with the hashed row."""
    bag = Bag(64, 5)
    expected = Hashed(64)(TEXTS) / 8**0.5 @ bag.table.weight
    torch.testing.assert_close(bag(TEXTS), expected)
    with torch.inference_mode():  # as requests are answered
        torch.testing.assert_close(bag(TEXTS), expected.detach())


@settings(deadline=None)
@given(st.lists(st.text(max_size=30), max_size=5))
def test_each_text_is_told_by_itself(texts: list[str]) -> None:
    """Whatever is beside it."""
    together = Hashed(32)(texts)
    assert together.shape == (len(texts), 32)
    for row, text in zip(together, texts, strict=True):
        torch.testing.assert_close(row, Hashed(32)([text])[0])


@pytest.mark.parametrize("text", ["my card is lost", "x"])
def test_both_halves_weigh_alike(text: str) -> None:
    """Characters and words have norm 1/√2 each."""
    _, _, weights = hashed([text])
    assert float((weights**2).sum()) == pytest.approx(1.0)
