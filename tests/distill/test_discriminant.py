"""The discriminant: its sums are those of all rows at once however they come, its solution is Gaussian Bayes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.datasets import load_digits
from torch import Tensor

from streamkd.distill import discriminant
from streamkd.distill.discriminant import Discriminant
from streamkd.distill.randomfeatures import RandomFeatures


def rows(count: int, width: int = 6, classes: int = 3, seed: int = 0, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """Gaussian classes of one covariance; ``offset`` moves everything far from 0."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=torch.Generator().manual_seed(7))
    centres = 2 * torch.randn(classes, width, generator=torch.Generator().manual_seed(8))
    y = torch.randint(classes, (count,), generator=g)
    return centres[y] + torch.randn(count, width, generator=g) @ mix + offset, y


def learned(h: Tensor, y: Tensor, cuts: list[int], classes: int = 3) -> Discriminant:
    found = Discriminant(h.shape[1], classes)
    for part, labels in zip(h.tensor_split(cuts), y.tensor_split(cuts), strict=True):
        if len(labels):
            found.learn(part, labels)
    return found


def scatter_of(h: Tensor, y: Tensor) -> np.ndarray:
    """Σ_i (h_i - μ_yi)(h_i - μ_yi)ᵀ in float64, one row at a time."""
    data, labels = h.double().numpy(), y.numpy()
    total = np.zeros((h.shape[1],) * 2)
    for row, label in zip(data, labels, strict=True):
        away = row - data[labels == label].mean(0)
        total += np.outer(away, away)
    return total


def bayes(h: Tensor, y: Tensor, raised: float, x: Tensor, classes: int) -> np.ndarray:
    """log p(c | x), up to what the classes share, of Gaussians with one covariance, in float64."""
    covariance = scatter_of(h, y) / len(y)
    covariance += raised * np.diag(covariance).mean() * np.eye(len(covariance))
    inverse = np.linalg.inv(covariance)
    data, labels = h.double().numpy(), y.numpy()
    away = [x.double().numpy() - data[labels == c].mean(0) for c in range(classes)]
    return np.stack([-0.5 * np.einsum("nd,de,ne->n", a, inverse, a) for a in away], 1)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 60), max_size=6), st.floats(-20, 20))
def test_any_cut_into_blocks_gives_the_sums_of_all_rows(cuts: list[int], offset: float) -> None:
    """Counts, means and scatter of blocks are those of the whole, far from 0 too."""
    h, y = rows(60, offset=offset)
    found = learned(h, y, sorted(cuts))
    assert found.counts.tolist() == y.bincount(minlength=3).tolist()
    for c in range(3):
        torch.testing.assert_close(found.means[c], h[y == c].mean(0), rtol=1e-4, atol=1e-4)
    wanted = torch.from_numpy(scatter_of(h, y)).float()
    torch.testing.assert_close(found.scatter.tril(), wanted.tril(), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("band", [2, 4, 512])
def test_the_solution_is_gaussian_bayes(band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Differences of logits are those of log-posteriors of Gaussians with one covariance, in bands of any width."""
    monkeypatch.setattr(discriminant, "BAND", band)
    h, y = rows(400)
    found = learned(h, y, [150, 151, 300])
    x, _ = rows(50, seed=1)
    weight, bias = found.solve(0.01)
    got = (x @ weight.T + bias).double().numpy()
    raised = 0.01 + (6 / 400) ** 2 * found.shrinkage()
    wanted = bayes(h, y, raised, x, 3)
    np.testing.assert_allclose(got - got[:, :1], wanted - wanted[:, :1], rtol=1e-3, atol=1e-3)


def test_the_shrinkage_is_ledoit_and_wolfs() -> None:
    """ρ/(1-ρ) with scikit-learn's ρ, of rows whose class means are taken away."""
    h, y = rows(200, width=12)
    found = learned(h, y, [])
    away = torch.stack([row - found.means[c] for row, c in zip(h, y, strict=True)])
    rho = ledoit_wolf_shrinkage(away.double().numpy(), assume_centered=True)
    assert found.shrinkage() == pytest.approx(rho / (1 - rho), rel=1e-3)


def test_with_few_rows_the_shrinkage_makes_a_better_solution() -> None:
    """Where rows are about as many as features, the solution without it is worse on digits that were not learned."""
    digits = load_digits()
    x, y = torch.from_numpy(digits.images).float() / 16, torch.from_numpy(digits.target)
    h = RandomFeatures((8, 8), 16, 0, seed=0)(x)
    found = learned(h[:260], y[:260], [], classes=10)
    right = []
    for shrinkage in (found.shrinkage(), 0.0):
        found.shrinkage = lambda value=shrinkage: value  # type: ignore[method-assign]
        weight, bias = found.solve(1e-3)
        right.append(float(((h[260:] @ weight.T + bias).argmax(1) == y[260:]).float().mean()))
    assert right[0] > right[1] + 0.05


def test_a_class_never_seen_has_no_weight() -> None:
    """Its row and bias are zeros, and the others' do not feel it."""
    h, y = rows(100)
    found, wider = learned(h, y, []), learned(h, y, [], classes=5)
    (weight, bias), (more, offsets) = found.solve(0.1), wider.solve(0.1)
    assert not more[3:].any()
    assert not offsets[3:].any()
    torch.testing.assert_close(more[:3], weight)
    torch.testing.assert_close(offsets[:3], bias)


def test_room_for_a_class_may_be_made_when_it_comes() -> None:
    """Growing between two blocks changes no sum."""
    h, y = rows(90)
    order = torch.argsort(y, stable=True)
    first = int((y == 0).sum())
    late = Discriminant(6, 1)
    late.learn(h[order][:first], y[order][:first])
    late.grow(3)
    late.learn(h[order][first:], y[order][first:])
    wanted = learned(h[order], y[order], [first])
    for one, other in zip(late.solve(0.1), wanted.solve(0.1), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e6])
def test_degenerate_features_give_finite_solutions(scale: float) -> None:
    """Constant, tiny and huge features, and a single row, are no trouble."""
    h, y = rows(20)
    for part, labels in ((h, y), (h[:1], y[:1])):
        found = learned(part * scale, labels, [])
        weight, bias = found.solve(1e-3)
        assert torch.isfinite(weight).all()
        assert torch.isfinite(bias).all()


def test_a_state_comes_back_bit_for_bit() -> None:
    """What is learned after a state was carried over is what would have been."""
    h, y = rows(200, width=40)
    one = learned(h[:120], y[:120], [50])
    other = Discriminant(40)
    other.load_state_dict({k: v.clone() if isinstance(v, Tensor) else v for k, v in one.state_dict().items()})
    for each in (one, other):
        each.learn(h[120:], y[120:])
    for first, second in zip(one.solve(1e-3), other.solve(1e-3), strict=True):
        assert torch.equal(first, second)
