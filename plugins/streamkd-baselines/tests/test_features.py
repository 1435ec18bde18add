"""feature and attention: the named layers of student and teachers, adapters, absent teachers, remembered rows."""

from typing import Any

import oracles
import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st
from streamkd_baselines.features import (
    Attention,
    AttentionOptions,
    Feature,
    FeatureOptions,
    attention_distance,
    attention_map,
    feature_distance,
)
from torch import Tensor

from streamkd.errors import PluginError
from streamkd.losses.match_gate import LossInputs

seeds = st.integers(0, 10_000)
NAMED: dict[str, Any] = {"student": "s", "teacher": {"t0": "a", "t2": "b"}}


def feature(ours: tuple[int, ...] = (6,), theirs: tuple[int, ...] = (6,)) -> Feature:
    loss = Feature(FeatureOptions(**NAMED))
    loss.prepare({"s": ours}, {"t0": {"a": theirs}, "t2": {"b": theirs}})
    for parameter in loss.parameters():
        parameter.data = parameter.data.double()
    return loss


def attention(power: float = 2.0) -> Attention:
    return Attention(AttentionOptions(**NAMED, power=power))


def shown(seed: int, ours: tuple[int, ...] = (6,), theirs: tuple[int, ...] = (6,), fresh: int = 3) -> LossInputs:
    """Three teachers, of which two show a layer on the fresh rows; those rows are answered by all."""
    parts = toys.lesson(seed)
    parts["known"][:fresh, :, 0] = True
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    layers = {"t0": {"a": normal(fresh, *theirs)}, "t2": {"b": normal(fresh, *theirs)}}
    return toys.lesson_of(parts, fresh=fresh, features={"s": normal(5, *ours)}, teacher_features=layers)


@given(seeds)
def test_feature_is_half_the_mean_square(seed: int) -> None:
    """Σ_k w_k·½·mean (h - h_k)² in fresh rows of the named teachers, 0 in remembered rows."""
    lesson, loss = shown(seed), feature()
    h, w = lesson.features["s"], lesson.weights
    for row in range(5):
        pairs = [(1, "t0", "a"), (3, "t2", "b")] if row < 3 else []
        theirs = [(float(w[row, column]), lesson.teacher_features[key][name][row]) for column, key, name in pairs]
        wanted = sum(weight * float(((h[row] - other) ** 2).sum()) / 12 for weight, other in theirs)
        assert float(loss(lesson)[row]) == pytest.approx(wanted, rel=1e-10)


@given(seeds, st.sampled_from([1.0, 2.0, 4.0]))
def test_attention_is_the_slow_formula(seed: int, power: float) -> None:
    """Half the distance of the normalised maps, sample by sample, in float64."""
    lesson = shown(seed, (2, 3, 4), (5, 3, 4))
    ours = lesson.features["s"][:3]
    wanted = torch.zeros(5, dtype=torch.float64)
    for column, key, name in [(1, "t0", "a"), (3, "t2", "b")]:
        apart = oracles.attention(ours, lesson.teacher_features[key][name], power)
        wanted[:3] += lesson.weights[:3, column] * torch.tensor(apart, dtype=torch.float64)
    torch.testing.assert_close(attention(power)(lesson), wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [((6,), (6,)), ((6,), (4,)), ((3, 4, 4), (5, 7, 6)), ((3, 4), (3, 7)), ((3, 4), (5,))],
    ids=["equal", "flat", "maps", "sequences", "mixed"],
)
def test_feature_joins_layers_of_any_shapes(ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    """Its gradient is its derivative, in the student's layer and in the adapter; equal shapes need none."""
    loss, lesson = feature(ours, theirs), shown(2, ours, theirs)
    own = list(loss.parameters())
    assert len(own) == (0 if ours == theirs else 4)
    toys.check_per_source(loss, lesson)
    h = lesson.features["s"].requires_grad_()
    assert torch.autograd.gradcheck(lambda h, *own: loss(toys.replace(lesson, features={"s": h})), (h, *own))


@pytest.mark.parametrize(("ours", "theirs"), [((2, 4, 4), (3, 4, 4)), ((2, 4, 4), (3, 7, 5)), ((4, 3), (6, 2))])
def test_attention_joins_maps_and_sequences_of_any_size(ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    """Its gradient is its derivative, the teacher's map resized where it has to be."""
    loss, lesson = attention(), shown(2, ours, theirs)
    toys.check_per_source(loss, lesson)
    h = lesson.features["s"].requires_grad_()
    assert torch.autograd.gradcheck(lambda h: loss(toys.replace(lesson, features={"s": h})), h)


def test_attention_needs_places() -> None:
    """A flat layer has no place where it could look."""
    with pytest.raises(PluginError, match="channels, height, width"):
        attention()(shown(0))


@given(seeds)
def test_scale_does_not_matter_to_attention(seed: int) -> None:
    """Brighter outputs look at the same places; the distance lies between 0 and √½."""
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 3, 2, 4, 4, generator=g, dtype=torch.float64)
    maps = [attention_map(h) for h in (a, 10 * a, b)]
    torch.testing.assert_close(attention_distance(maps[0], maps[1]), torch.zeros(3, dtype=torch.float64))
    apart = attention_distance(maps[0], maps[2])
    torch.testing.assert_close(apart, attention_distance(maps[1], maps[2]))
    assert ((apart >= 0) & (apart <= 0.5**0.5 + 1e-12)).all()


@pytest.mark.parametrize("kind", ["feature", "attention"])
def test_a_teacher_that_fails_hurts_nobody(kind: str) -> None:
    """Rows that it does not answer, or whose outputs are not finite, have no value and no gradient through it."""
    loss = feature((2, 3, 3), (4, 3, 3)) if kind == "feature" else attention()
    lesson = shown(1, (2, 3, 3), (4, 3, 3))
    lesson.known[0, 0] = False
    lesson.teacher_features["t0"]["a"][1] = torch.nan
    h = lesson.features["s"].requires_grad_()
    table = loss.per_source(lesson)
    assert (table[:2, 1] == 0).all()
    assert (table[:, [0, 2]] == 0).all()
    assert float(table[2, 1].detach()) > 0
    loss(lesson).sum().backward()
    assert h.grad.isfinite().all()
    assert (h.grad[3:] == 0).all()


@pytest.mark.parametrize("value", [0.0, 1e-20, 1e4])
@pytest.mark.parametrize("kind", ["feature", "attention"])
def test_dead_and_blinding_layers_have_finite_gradients(kind: str, value: float) -> None:
    """Outputs that are 0 everywhere, or nearly, or huge."""
    loss: Any = feature((2, 3, 3), (2, 3, 3)) if kind == "feature" else attention()
    lesson = shown(1, (2, 3, 3), (2, 3, 3))
    h = torch.full((5, 2, 3, 3), value, requires_grad=True)
    loss(toys.replace(lesson, features={"s": h})).sum().backward()
    assert h.grad.isfinite().all()
    assert h.grad.abs().max() <= max(1.0, value)


def test_equal_outputs_have_nothing_to_learn() -> None:
    """The distance of equals is 0, and so is its gradient."""
    h = torch.randn(3, 2, 4, 4, requires_grad=True)
    total = feature_distance(h, h.detach()) + attention_distance(attention_map(h), attention_map(h.detach()))
    total.sum().backward()
    assert float(total.detach().abs().max()) < 1e-6
    assert float(h.grad.abs().max()) < 1e-6


def test_adapters_depend_on_shapes_alone() -> None:
    """Two that are made for the same layers begin alike, and no generator is drawn from."""
    before = torch.get_rng_state()
    one, other = (list(feature((3, 4, 4), (5, 4, 4)).parameters()) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_layer_that_changes_its_size_is_refused() -> None:
    """A head grows as labels come; no adapter was made for that."""
    with pytest.raises(PluginError, match="whose size does not change"):
        feature((6,), (6,))(shown(0, (6,), (7,)))
