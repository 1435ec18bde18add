"""The discriminant: its solution is Gaussian Bayes, and says what it would be without a row."""

import numpy as np
import pytest
import torch
from gaussians import learned, rows, scatter_of
from sklearn.datasets import load_digits
from torch import Tensor

from streamkd.analytic.discriminant import Discriminant
from streamkd.analytic.random_features import RandomFeatures


def bayes(h: Tensor, y: Tensor, raised: float, x: Tensor, classes: int) -> np.ndarray:
    """log p(c | x), up to what the classes share, of Gaussians with one covariance, in float64."""
    covariance = scatter_of(h, y) / len(y)
    covariance += raised * np.diag(covariance).mean() * np.eye(len(covariance))
    inverse = np.linalg.inv(covariance)
    data, labels = h.double().numpy(), y.numpy()
    away = [x.double().numpy() - data[labels == c].mean(0) for c in range(classes)]
    return np.stack([-0.5 * np.einsum("nd,de,ne->n", a, inverse, a) for a in away], 1)


def test_the_solution_is_gaussian_bayes() -> None:
    """Differences of logits are those of log-posteriors of Gaussians with one covariance."""
    h, y = rows(400)
    found = learned(h, y, [150, 151, 300])
    x, _ = rows(50, seed=1)
    solution = Discriminant.of(found, 0.01)
    got = (x @ solution.weight.T + solution.bias).double().numpy()
    raised = 0.01 + (6 / 400) ** 2 * found.shrinkage()
    wanted = bayes(h, y, raised, x, 3)
    np.testing.assert_allclose(got - got[:, :1], wanted - wanted[:, :1], rtol=1e-3, atol=1e-3)


def test_with_few_rows_the_shrinkage_makes_a_better_solution() -> None:
    """Where rows are about as many as features, the solution without it is worse on digits that were not learned."""
    digits = load_digits()
    x, y = torch.from_numpy(digits.images).float() / 16, torch.from_numpy(digits.target)
    h = RandomFeatures((8, 8), 16, 0, seed=0)(x)
    found = learned(h[:260], y[:260], [], classes=10)
    right = []
    for shrinkage in (found.shrinkage(), 0.0):
        found.shrinkage = lambda value=shrinkage: value  # type: ignore[method-assign]
        solution = Discriminant.of(found, 1e-3)
        right.append(float(((h[260:] @ solution.weight.T + solution.bias).argmax(1) == y[260:]).float().mean()))
    assert right[0] > right[1] + 0.05


def test_a_class_never_seen_has_no_weight() -> None:
    """Its row and bias are zeros, and the others' do not feel it."""
    h, y = rows(100)
    found, wider = learned(h, y, []), learned(h, y, [], classes=5)
    narrow, wide = Discriminant.of(found, 0.1), Discriminant.of(wider, 0.1)
    assert not wide.weight[3:].any()
    assert not wide.bias[3:].any()
    torch.testing.assert_close(wide.weight[:3], narrow.weight)
    torch.testing.assert_close(wide.bias[:3], narrow.bias)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e6])
def test_degenerate_features_give_finite_solutions(scale: float) -> None:
    """Constant, tiny and huge features, and a single row, are no trouble."""
    h, y = rows(20)
    for part, labels in ((h, y), (h[:1], y[:1])):
        found = learned(part * scale, labels, [])
        solution = Discriminant.of(found, 1e-3)
        for finite in (solution.weight, solution.bias, solution.left_out(part * scale, labels)):
            assert torch.isfinite(finite).all()


@pytest.mark.parametrize("count", [40, 150, 600])
def test_leaving_a_row_out_is_learning_all_the_others(count: int) -> None:
    """The closed form gives the logits of a solution from all rows but the one, row by row, in float64."""
    width = 50
    h, y = rows(count, width)
    solution = Discriminant.of(learned(h, y, [count // 3]), 0.05)
    got = solution.left_out(h[:12], y[:12]).double()
    factor = solution.factor.double()
    raised = factor @ factor.T - torch.from_numpy(scatter_of(h, y)) / count
    for row in range(12):
        kept = torch.arange(count) != row
        others, labels = h[kept].double(), y[kept]
        means = torch.stack([others[labels == c].mean(0) for c in range(3)])
        covariance = torch.from_numpy(scatter_of(h[kept], labels)) / count + raised
        away = h[row].double() - means
        wanted = -0.5 * (away * torch.linalg.solve(covariance, away.T).T).sum(1)
        torch.testing.assert_close(got[row], wanted - wanted.max(), rtol=2e-3, atol=2e-3)


def test_a_row_alone_in_its_class_leaves_nothing_of_it() -> None:
    """Left out, its class would be unknown: another is answered, far before it."""
    h, y = rows(60)
    y = y.clamp(max=1)
    found = learned(torch.cat([h, h[:1] + 3]), torch.cat([y, torch.tensor([2])]), [])
    solution = Discriminant.of(found, 0.1)
    alone = torch.tensor([2])
    assert solution.left_out(h[:1] + 3, alone).argmax() != 2
    assert solution.left_out(h[:1] + 3, alone)[0, 2] < -100


def test_a_row_of_a_class_never_seen_is_answered_as_it_is() -> None:
    """What was not learned cannot be left out: the logits are the solution's, up to what its classes share."""
    h, y = rows(90)
    solution = Discriminant.of(learned(h, y, []), 0.1).grown(5)
    x, _ = rows(7, seed=5)
    got = solution.left_out(x, torch.full((7,), 4))
    wanted = x @ solution.weight.T + solution.bias
    torch.testing.assert_close(
        got[:, :3], (wanted - wanted[:, :3].max(1, keepdim=True).values)[:, :3], rtol=1e-3, atol=1e-3
    )
    assert not got[:, 3:].any()


def test_left_out_rows_are_right_as_often_as_new_ones() -> None:
    """What a solution says of learned digits with each left out tells how it does on new ones; in itself it is sure."""
    digits = load_digits()
    mixed = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    x, y = torch.from_numpy(digits.images).float()[mixed] / 16, torch.from_numpy(digits.target)[mixed]
    h = RandomFeatures((8, 8), 8, 64, seed=0)(x)
    solution = Discriminant.of(learned(h[:500], y[:500], [], classes=10), 1e-3)
    said = h @ solution.weight.T + solution.bias
    known, left, new = (
        float((logits.argmax(1) == labels).float().mean())
        for logits, labels in (
            (said[:500], y[:500]),
            (solution.left_out(h[:500], y[:500]), y[:500]),
            (said[500:], y[500:]),
        )
    )
    assert known > 0.99
    assert abs(left - new) < (known - new) / 2
