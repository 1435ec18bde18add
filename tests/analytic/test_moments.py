"""Moments: the sums of all rows at once however they come, and their covariance, raised."""

import pytest
import torch
from gaussians import learned, rows, scatter_of
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import Tensor

from streamkd.analytic import moments
from streamkd.analytic.moments import Moments


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


def test_the_shrinkage_is_ledoit_and_wolfs() -> None:
    """ρ/(1-ρ) with scikit-learn's ρ, of rows whose class means are taken away."""
    h, y = rows(200, width=12)
    found = learned(h, y, [])
    away = torch.stack([row - found.means[c] for row, c in zip(h, y, strict=True)])
    rho = ledoit_wolf_shrinkage(away.double().numpy(), assume_centered=True)
    assert found.shrinkage() == pytest.approx(rho / (1 - rho), rel=1e-3)


def test_room_for_a_class_may_be_made_when_it_comes() -> None:
    """Growing between two blocks changes no sum."""
    h, y = rows(90)
    order = torch.argsort(y, stable=True)
    first = int((y == 0).sum())
    late = Moments(6, 1)
    late.learn(h[order][:first], y[order][:first])
    late.grow(3)
    late.learn(h[order][first:], y[order][first:])
    wanted = learned(h[order], y[order], [first])
    assert torch.equal(late.means, wanted.means)
    assert torch.equal(late.factor(0.1), wanted.factor(0.1))


@pytest.mark.parametrize("band", [2, 4, 512])
def test_the_factor_is_that_of_the_raised_covariance(band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLᵀ is the scatter over the records, its diagonal raised by ridge and shrinkage, in bands of any width."""
    monkeypatch.setattr(moments, "BAND", band)
    h, y = rows(400)
    found = learned(h, y, [150, 151, 300])
    factor = found.factor(0.01).double()
    covariance = torch.from_numpy(scatter_of(h, y)) / 400
    raised = 0.01 + (6 / 400) ** 2 * found.shrinkage()
    wanted = covariance + raised * covariance.diagonal().mean() * torch.eye(6)
    torch.testing.assert_close(factor @ factor.T, wanted, rtol=1e-4, atol=1e-4)


def test_a_state_comes_back_bit_for_bit() -> None:
    """What is learned after a state was carried over is what would have been."""
    h, y = rows(200, width=40)
    one = learned(h[:120], y[:120], [50])
    other = Moments(40)
    other.load_state_dict({k: v.clone() if isinstance(v, Tensor) else v for k, v in one.state_dict().items()})
    for each in (one, other):
        each.learn(h[120:], y[120:])
    assert torch.equal(one.factor(1e-3), other.factor(1e-3))
    assert torch.equal(one.means, other.means)
    assert torch.equal(one.counts, other.counts)
