"""Ridge regression: that of scikit-learn where classes are equal, fair where they are not, exact without a row."""

import numpy as np
import pytest
import torch
from gaussians import learned, rows, scatter_of
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import linear_model
from torch import Tensor

from streamkd.analytic.moments import Moments
from streamkd.analytic.ridge import ALONE, SCALE, Ridge


def penalty_of(solution: Ridge, h: Tensor, y: Tensor, among: int | None = None) -> float:
    """λ, by which the covariance of the rows was raised."""
    factor = solution.factor.double()
    return float((factor @ factor.T - torch.from_numpy(scatter_of(h, y)) / (among or len(y))).diagonal().mean())


def regressed(h: Tensor, y: Tensor, penalty: float, x: Tensor, among: int | None = None) -> Tensor:
    """Scores of x by least squares in float64 over the rows that the docstring names, one by one.

    Each class's mean with every row's deviation; the squares count 1/C · 1/``among``, and a row's weight that is
    missing from ``among`` is that of rows without deviation.
    """
    data, classes, among = h.double(), y.unique().tolist(), among or len(y)
    means = {c: data[y == c].mean(0) for c in classes}
    away = torch.stack([row - means[int(label)] for row, label in zip(data, y, strict=True)])
    away = torch.cat([away, torch.zeros(among - len(y), h.shape[1])])
    whole = torch.cat([means[c] + away for c in classes])
    wanted = torch.eye(len(classes), dtype=torch.float64).repeat_interleave(among, 0)
    design = torch.cat([whole, torch.ones(len(whole), 1)], 1) / (len(classes) * among) ** 0.5
    squares = design.T @ design + torch.diag(torch.tensor([penalty] * h.shape[1] + [0.0]))
    found = torch.linalg.solve(squares, design.T @ wanted / (len(classes) * among) ** 0.5)
    return torch.cat([x.double(), torch.ones(len(x), 1)], 1) @ found


def scores(solution: Ridge, x: Tensor) -> Tensor:
    return (x @ solution.weight.T + solution.bias).double() / SCALE


def test_with_equal_counts_it_is_plain_ridge_regression() -> None:
    """Coefficients and intercepts are scikit-learn's on one-hot labels, with the penalty times the records."""
    h, _ = rows(120, width=9, offset=5.0)
    y = torch.arange(120) % 3
    solution = Ridge.of(learned(h, y, [50, 51]), 0.05)
    model = linear_model.Ridge(alpha=penalty_of(solution, h, y) * 120).fit(h.double().numpy(), np.eye(3)[y.numpy()])
    np.testing.assert_allclose(solution.weight / SCALE, model.coef_, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(solution.bias / SCALE, model.intercept_, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("prefix", [30, 31, 64, 100, 200])
def test_at_every_prefix_it_is_the_least_squares_of_all_rows_so_far(prefix: int) -> None:
    """Learned in blocks, with any counts of the classes, its scores are those of the batch oracle."""
    h, y = rows(200, width=9)
    y = torch.where(torch.arange(200) % 4 > 0, 0, y)  # most are of class 0
    parts = Moments(9, 3)
    for part, labels in zip(h[:prefix].split(13), y[:prefix].split(13), strict=True):
        parts.learn(part, labels)
    solution, (x, _) = Ridge.of(parts, 0.02), rows(40, width=9, seed=1)
    wanted = regressed(h[:prefix], y[:prefix], penalty_of(solution, h[:prefix], y[:prefix]), x)
    torch.testing.assert_close(scores(solution, x), wanted, rtol=1e-3, atol=1e-4)


@settings(max_examples=20)
@given(st.permutations(range(60)), st.lists(st.integers(0, 60), max_size=5))
def test_the_order_of_records_changes_nothing(order: list[int], cuts: list[int]) -> None:
    """Permuted and cut anew, the same rows give the same solution, up to rounding.

    Only the shrinkage, while records are few, is estimated from deviations as they were when a block came.
    """
    h, y = rows(60)
    one, other = learned(h, y, []), learned(h[order], y[order], sorted(cuts))
    assert other.shrinkage() == pytest.approx(one.shrinkage(), rel=0.7)
    other.fourth = one.fourth
    x, _ = rows(20, seed=1)
    torch.testing.assert_close(scores(Ridge.of(other, 0.1), x), scores(Ridge.of(one, 0.1), x), rtol=1e-3, atol=1e-4)


def test_a_class_of_many_records_does_not_push_a_small_one_aside() -> None:
    """Of a class with a fiftieth of the records as many are found as of the other; by plain ridge regression not."""
    g = torch.Generator().manual_seed(0)
    y = (torch.arange(1020) >= 1000).long()
    h = 1.5 * y.unsqueeze(1) + torch.randn(1020, 4, generator=g)
    solution = Ridge.of(learned(h, y, [], classes=2), 1e-3)
    new = torch.cat([torch.randn(500, 4, generator=g), 1.5 + torch.randn(500, 4, generator=g)])
    plain = linear_model.Ridge(alpha=1.0).fit(h.numpy(), np.eye(2)[y.numpy()])
    ours = scores(solution, new).argmax(1).view(2, 500).float().mean(1)
    theirs = torch.from_numpy(plain.predict(new.numpy())).argmax(1).view(2, 500).float().mean(1)
    assert theirs[1] < 0.2
    assert ours[1] > 0.85
    assert ours[0] < 0.15


def test_a_class_never_seen_has_no_weight() -> None:
    """Its row and bias are zeros, and the others' do not feel it, nor room that is made later."""
    h, y = rows(100)
    narrow, wide = Ridge.of(learned(h, y, []), 0.1), Ridge.of(learned(h, y, [], classes=5), 0.1)
    for solution in (wide, narrow.grown(5)):
        assert not solution.weight[3:].any()
        assert not solution.bias[3:].any()
        torch.testing.assert_close(solution.weight[:3], narrow.weight)
        torch.testing.assert_close(solution.bias[:3], narrow.bias)
    left = narrow.grown(5).left_out(h[:9], y[:9])
    torch.testing.assert_close(left[:, :3], narrow.left_out(h[:9], y[:9]))
    assert not left[:, 3:].any()


@pytest.mark.parametrize("count", [40, 150, 600])
def test_leaving_a_row_out_is_learning_all_the_others(count: int) -> None:
    """The closed form gives the logits of least squares over all rows but the one, row by row, in float64."""
    h, y = rows(count, 50)
    solution = Ridge.of(learned(h, y, [count // 3]), 0.05)
    got = solution.left_out(h[:12], y[:12]).double()
    penalty = penalty_of(solution, h, y)
    for row in range(12):
        kept = torch.arange(count) != row
        wanted = SCALE * regressed(h[kept], y[kept], penalty, h[row : row + 1], among=count)[0]
        torch.testing.assert_close(got[row], wanted - wanted.max(), rtol=2e-3, atol=2e-2)


def test_without_its_only_row_a_class_is_gone() -> None:
    """The others answer as if it had never come, its logit is far below theirs."""
    h, y = rows(60)
    y = y.clamp(max=1)
    lone, column = h[:1] + 3, torch.tensor([2])
    solution = Ridge.of(learned(torch.cat([h, lone]), torch.cat([y, column]), []), 0.1)
    got = solution.left_out(lone, column).double()
    penalty = penalty_of(solution, h, y, among=61)
    wanted = SCALE * regressed(h, y, penalty, lone, among=61)[0]
    torch.testing.assert_close(got[0, :2], wanted - wanted.max(), rtol=1e-3, atol=1e-2)
    assert got[0, 2] < ALONE / 2


def test_a_row_of_a_class_never_seen_is_answered_as_it_is() -> None:
    """What was not learned cannot be left out: the logits are the solution's, up to what its classes share."""
    h, y = rows(90)
    solution, (x, _) = Ridge.of(learned(h, y, []), 0.1).grown(5), rows(7, seed=5)
    got = solution.left_out(x, torch.full((7,), 4))
    wanted = SCALE * scores(solution, x)[:, :3]
    torch.testing.assert_close(got[:, :3].double(), wanted - wanted.amax(1, keepdim=True), rtol=1e-3, atol=1e-2)
    assert not got[:, 3:].any()


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e6])
def test_degenerate_features_give_finite_solutions(scale: float) -> None:
    """Constant, tiny and huge features, a single row, and none at all are no trouble."""
    h, y = rows(20)
    for count in (20, 1, 0):
        part, labels = scale * h[:count], y[:count]
        solution = Ridge.of(learned(part, labels, []), 1e-3)
        for finite in (solution.weight, solution.bias, solution.left_out(part, labels)):
            assert torch.isfinite(finite).all()
