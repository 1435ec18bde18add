"""The relational loss: its oracle, what it does not see, and batches without relations."""

import oracles
import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st
from streamkd_baselines.relational import Relational, RelationalOptions, relations_apart
from torch import Tensor

from streamkd.losses.match_gate import LossInputs

seeds = st.integers(0, 10_000)


def relational(distance: float = 1.0, angle: float = 2.0) -> Relational:
    named = {"t0": "a", "t1": "a"}
    return Relational(RelationalOptions(student="s", teacher=named, distance=distance, angle=angle))


def spaces(seed: int, rows: int = 5, features: int = 3, others: int = 4) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, n, generator=g, dtype=torch.float64) for n in (features, others))  # type: ignore[return-value]


def shown(seed: int, fresh: int = 4) -> LossInputs:
    """Two teachers that show a layer on the fresh rows, and answer all of these."""
    parts = toys.lesson(seed, teachers=2)
    parts["known"][:fresh, :, 0] = True
    (ours, theirs), (_, second) = spaces(seed), spaces(seed + 1)
    layers = {"t0": {"a": theirs[:fresh]}, "t1": {"a": second[:fresh]}}
    return toys.lesson_of(parts, fresh=fresh, features={"s": ours}, teacher_features=layers)


@given(seeds, st.integers(2, 6), st.integers(0, 63))
def test_relations_are_the_slow_formulas(seed: int, rows: int, mask: int) -> None:
    """Distances and angles, over the rows that count, in float64."""
    ours, theirs = spaces(seed, rows)
    among = [bool(mask >> row & 1) for row in range(rows)]
    got = relations_apart(ours, theirs, torch.tensor(among))
    for values, wanted in zip(got, oracles.relations(ours, theirs, among), strict=True):
        torch.testing.assert_close(values, torch.tensor(wanted, dtype=torch.float64), rtol=1e-8, atol=1e-10)


@given(seeds)
def test_the_loss_weighs_both_and_each_teacher(seed: int) -> None:
    """Σ_k w_ik·(λ_D·distances + λ_A·angles) on fresh rows, 0 on remembered ones."""
    lesson = shown(seed)
    wanted = torch.zeros(5, dtype=torch.float64)
    for column, key in [(1, "t0"), (2, "t1")]:
        theirs = lesson.teacher_features[key]["a"]
        near, ways = relations_apart(lesson.features["s"][:4], theirs, torch.ones(4, dtype=torch.bool))
        wanted[:4] += lesson.weights[:4, column] * (0.5 * near + 3 * ways)
    torch.testing.assert_close(relational(0.5, 3.0)(lesson), wanted)


@given(seeds)
def test_shift_rotation_and_scale_do_not_matter(seed: int) -> None:
    """A teacher that sees the student's picture turned, moved and larger has nothing to teach."""
    ours, _ = spaces(seed)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]
    near, ways = relations_apart(ours, 7 * ours @ turn + 3, torch.ones(5, dtype=torch.bool))
    assert float(near.max()) < 1e-20
    assert float(ways.max()) < 1e-20


def test_the_gradient_is_the_derivative() -> None:
    """gradcheck in the student's layer, through all relations of the batch; the table is the slope in the weights."""
    lesson, loss = shown(3), relational()
    toys.check_per_source(loss, lesson)
    h = lesson.features["s"].requires_grad_()
    assert torch.autograd.gradcheck(lambda h: loss(toys.replace(lesson, features={"s": h})), h)


def test_the_order_of_the_rows_does_not_matter() -> None:
    """A sample's mean over the others follows it to another place."""
    ours, theirs = spaces(5)
    order = torch.tensor([3, 0, 4, 1, 2])
    whole = torch.ones(5, dtype=torch.bool)
    for turned, straight in zip(
        relations_apart(ours[order], theirs[order], whole), relations_apart(ours, theirs, whole), strict=True
    ):
        torch.testing.assert_close(turned, straight[order])


@pytest.mark.parametrize("rows", [1, 2])
def test_few_rows_have_few_relations(rows: int) -> None:
    """One sample has none; two have a distance, which scaling makes 1 for everybody, and no angle."""
    ours, theirs = spaces(1, rows)
    near, ways = relations_apart(ours, theirs, torch.ones(rows, dtype=torch.bool))
    torch.testing.assert_close(near + ways, torch.zeros(rows, dtype=torch.float64), rtol=0, atol=1e-20)


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e4])
def test_records_that_coincide_have_finite_gradients(scale: float) -> None:
    """The same record twice, a layer that is dead, one that is huge."""
    ours, theirs = (h.float() for h in spaces(2))
    ours[1] = ours[0]
    h = (scale * ours).requires_grad_()
    near, ways = relations_apart(h, theirs, torch.ones(5, dtype=torch.bool))
    (near + ways).sum().backward()
    assert near.isfinite().all()
    assert ways.isfinite().all()
    assert h.grad.isfinite().all()


def test_a_row_that_a_teacher_does_not_answer_is_left_out_of_its_relations() -> None:
    """NaN in one row of a teacher is as good as that row gone."""
    lesson, loss = shown(4), relational()
    lesson.teacher_features["t0"]["a"][3] = torch.nan
    fewer = toys.replace(lesson, teacher_features={"t0": {"a": lesson.teacher_features["t0"]["a"][:3]}})
    fewer = toys.replace(fewer, fresh=3, teachers=("t0", "else"))
    table = loss.per_source(lesson)
    torch.testing.assert_close(table[:3, 1], loss.per_source(fewer)[:3, 1])
    assert float(table[3, 1]) == 0
