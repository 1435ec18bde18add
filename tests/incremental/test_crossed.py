"""Logistic regression on crossed columns: the formula, rules over several columns, and records that are no table."""

from dataclasses import replace

import numpy as np
import torch
import toys

from streamkd.gates.spread import LEAST
from streamkd.incremental import crossed
from streamkd.incremental.crossed import Cells, Crossable, CrossedOptions, CrossedTeacher
from streamkd.incremental.linear import LinearOptions, LinearTeacher


def teacher(*rates: float, sets: int = 50) -> CrossedTeacher:
    options = CrossedOptions(rates=rates or (0.5, 2), sets=sets)
    return CrossedTeacher(options, toys.context_of("crossed", toys.mlp()))


def every(y: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(y, dtype=torch.bool)


def rows(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, toys.FEATURES, generator=torch.Generator().manual_seed(seed))


def test_a_cell_is_that_of_its_columns_bins() -> None:
    """Two rows share a set's cell if and only if they share the bins of all its columns; cells of sets do not mix."""
    x = rows(400, 0).double().numpy()
    cells = Cells([Crossable(place) for place in range(toys.FEATURES)], 50, 0)
    cells.fit(x)
    found = cells(x)
    assert found.min() >= 0
    assert found.max() < cells.size
    place = 0
    for order, columns, _cells, _first in cells._parts:
        for chosen in columns.T:
            edges = [np.quantile(x[:, c], np.linspace(0, 1, crossed.BINS[order - 1] + 1)[1:-1]) for c in chosen]
            bins = [tuple(e.searchsorted(row[c], "right") for c, e in zip(chosen, edges, strict=True)) for row in x]
            same = {}
            for mine, cell in zip(bins, found[:, place].tolist(), strict=True):
                assert same.setdefault(mine, cell) == cell
            assert len(set(same.values())) == len(same)
            place += 1
    assert len({tuple(set(column)) for column in found.T}) == place == cells.count


def test_each_record_is_one_step_of_gradient_descent() -> None:
    """In float64: the gradient of the cross-entropy by the cells, over their number, by autograd."""
    x, y = rows(540, 1), torch.randint(0, 3, (540,), generator=torch.Generator().manual_seed(1))
    one = teacher(1.5)
    said = [one.test_then_train(a, b, every(b)) for a, b in zip(x.split(10), y.split(10), strict=True)]
    got = torch.cat(said)[500:].softmax(1)
    cells = one.cells(x.double().numpy())
    hot = torch.zeros(len(x), one.cells.size, dtype=torch.float64)
    hot.scatter_(1, torch.from_numpy(cells), 1.0)
    weights = torch.zeros(one.cells.size, 3, dtype=torch.float64, requires_grad=True)
    wanted = []
    for row, label in zip(hot, y, strict=True):
        z = row @ weights
        wanted.append(torch.softmax(z.detach(), 0))
        (slope,) = torch.autograd.grad(torch.nn.functional.cross_entropy(z, label), weights)
        weights = (weights - 1.5 / one.cells.count * slope).detach().requires_grad_()
    expected = (1 - LEAST) * torch.stack(wanted[500:]) + LEAST / 3
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


def test_it_tells_a_rule_over_three_columns() -> None:
    """As a tree has it; after 2,000 records nine of ten are right, which a line does not reach."""
    x = rows(3_000, 2)
    y = torch.where(
        x[:, 0] > 0, x[:, 1] > 0.3, x[:, 2] < -0.2
    ).long()  # depends on the third only where the first is low
    line = LinearTeacher(LinearOptions(), toys.context_of("linear", toys.mlp()))
    right = [
        float((who.test_then_train(x, y, every(y)).argmax(1) == y)[2_000:].float().mean()) for who in (teacher(), line)
    ]
    assert right[0] > 0.9
    assert right[1] < 0.85


def test_columns_of_few_values_have_a_bin_for_each() -> None:
    """A column of three values that decides alone is learned wholly, whatever their distances."""
    x = rows(1_500, 3)
    kind = torch.randint(0, 3, (1_500,), generator=torch.Generator().manual_seed(3))
    x[:, 0] = torch.tensor([0.0, 1.0, 1_000.0])[kind]
    said = teacher(2).test_then_train(x, kind, every(kind))
    assert float((said.argmax(1) == kind)[800:].float().mean()) > 0.99


def test_records_that_are_no_table_are_left_alone() -> None:
    """Of more columns than a table has it knows nothing, is no source of a mixture, and nothing of it is served."""
    wide = toys.schema_of(40)
    context = replace(toys.context_of("crossed", toys.mlp(schema=wide)), schema=wide)
    one = CrossedTeacher(CrossedOptions(), context)
    x, y = torch.randn(700, 40), torch.randint(0, 3, (700,))
    one.test_then_train(x, y, every(y))
    assert not one.known().any()
    assert one.part() is None
    step = toys.make_step(teachers=[one])
    step.pool.observe(x[:, : toys.FEATURES], y, every(y))
    assert step.pool.prequential == {}
