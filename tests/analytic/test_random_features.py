"""Random features: what they are, that they follow from the seed alone, and that images may be of any size."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from streamkd.analytic import random_features
from streamkd.analytic.random_features import RandomFeatures


def inputs(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(12, 9), (8, 8), (10, 11, 3)])
def test_filters_are_a_convolution_averaged_over_a_grid(shape: tuple[int, ...]) -> None:
    """Rows together, channels last: it equals ReLU of a valid convolution, pooled to 4×4, channel by channel."""
    random = RandomFeatures(shape, 6, 0, seed=1)
    x = inputs(20, *shape)
    depth = shape[2] if len(shape) > 2 else 1
    filters = random.filters.reshape(6, 5, 5, depth).permute(0, 3, 1, 2)
    channels = x.unsqueeze(1) if x.dim() == 3 else x.permute(0, 3, 1, 2)
    found = F.conv2d(channels, filters.contiguous(), random.filter_bias).relu()
    torch.testing.assert_close(random(x), F.adaptive_avg_pool2d(found, 4).flatten(1))
    assert random.width == 6 * 16


def test_filters_have_mean_zero_and_length_one() -> None:
    """A constant image shows nothing but the biases, which are not above 0."""
    random = RandomFeatures((9, 9), 32, 0, seed=0)
    torch.testing.assert_close(random.filters.norm(dim=1), torch.ones(32))
    torch.testing.assert_close(random.filters.mean(1), torch.zeros(32), rtol=0, atol=1e-6)
    assert not random(torch.full((1, 9, 9), 3.0)).gt(1e-5).any()
    assert random.filter_bias.max() <= 0


def test_dense_features_are_their_formula() -> None:
    """ReLU(W·x + b) of the flattened input, W of variance 1/n and b of variance 1/4."""
    random = RandomFeatures((50,), 4, 2_000, seed=0)
    x = inputs(5, 50)
    torch.testing.assert_close(random(x), (x @ random.weight.T + random.bias).relu())
    assert random.weight.std().item() == pytest.approx(1 / math.sqrt(50), rel=0.02)
    assert random.bias.std().item() == pytest.approx(0.5, rel=0.05)


def test_the_seed_alone_gives_the_features() -> None:
    """Torch's generator is neither read nor moved; another seed gives others; nothing of it is state."""
    before = torch.random.get_rng_state()
    one, same, other = (RandomFeatures((8, 8), 4, 5, seed) for seed in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    x = inputs(2, 8, 8)
    assert torch.equal(one(x), same(x))
    assert not torch.equal(one(x), other(x))
    assert not one.state_dict()


def test_the_numbers_of_a_seed_stay_for_ever() -> None:
    """Published ensembles keep the seed alone: its features must be those of the day that they were published."""
    random = RandomFeatures((8, 8), 1, 1, seed=0)
    torch.testing.assert_close(random.filters[0, :2], torch.tensor([0.2406, -0.0140]), rtol=0, atol=1e-4)
    torch.testing.assert_close(random.bias, torch.tensor([0.3021]), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("shape", "width"), [((8, 8), 35), ((28, 28, 3), 35), ((7, 30), 3), ((64,), 3)])
def test_images_have_filters(shape: tuple[int, ...], width: int) -> None:
    """Two filters over a 4×4 grid beside three dense features; what is no image has the dense ones alone."""
    assert RandomFeatures(shape, 2, 3, 0).width == width


def test_large_images_are_averaged_down() -> None:
    """Of an image of 64×64 the features are those of its means over 2×2, so their cost is bounded."""
    random = RandomFeatures((64, 64), 3, 7, seed=0)
    x = inputs(2, 64, 64)
    small = F.avg_pool2d(x.unsqueeze(1), 2).squeeze(1)
    torch.testing.assert_close(random(x), RandomFeatures((32, 32), 3, 7, seed=0)(small))


def test_long_inputs_are_folded_and_keep_their_angles(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is folded has the inner products of the inputs, up to chance; the weights stay small."""
    monkeypatch.setattr(random_features, "READS", 2_000)
    random = RandomFeatures((20_000,), 0, 10, seed=0)
    assert random.weight.shape == (10, 2_000)
    x = inputs(4, 20_000)
    x[1] = x[0] + 0.5 * x[1]
    folded = random._folded(x)
    torch.testing.assert_close(folded @ folded.T / 20_000, x @ x.T / 20_000, rtol=0, atol=0.12)


def test_rows_are_mapped_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch gives what its rows give, however many are looked at together."""
    random = RandomFeatures((9, 9), 3, 4, seed=0)
    x = inputs(11, 9, 9)
    whole = random(x)
    monkeypatch.setattr(random_features, "ROWS", 2)
    torch.testing.assert_close(random(x), whole)
    torch.testing.assert_close(torch.cat([random(row[None]) for row in x]), whole)
