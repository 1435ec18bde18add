"""The loss ``attention-transfer``: equation 2 of Zagoruyko & Komodakis 2017, and its limits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from streamkd_vision.transfer import AttentionTransfer, AttentionTransferOptions, attention_distance, attention_map
from torch import Tensor

from streamkd.errors import PluginError
from streamkd.losses.match_gate import LossInputs

PAIRS = (("body.a", "x"), ("body.b", "y"))


def oracle(student: Tensor, teacher: Tensor, power: float) -> float:
    """One sample, one pair, by loops in float64."""
    maps = []
    for activations in (student, teacher):
        channels, height, width = activations.shape
        flat = [
            sum(abs(float(activations[c, i, j])) ** power for c in range(channels))
            for i in range(height)
            for j in range(width)
        ]
        length = math.sqrt(sum(value**2 for value in flat))
        maps.append([value / length for value in flat])
    return 0.5 * math.sqrt(sum((s - t) ** 2 for s, t in zip(*maps, strict=True)))


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def lesson(features: dict[str, Tensor], theirs: dict[str, Tensor], fresh: int, key: str = "torchvision") -> LossInputs:
    rows = len(next(iter(features.values())))
    return LossInputs(
        logits=torch.zeros(rows, 2, dtype=torch.float64),
        labels=torch.zeros(rows, dtype=torch.int64),
        answers=torch.zeros(rows, 1, 2),
        known=torch.ones(rows, 1, 2, dtype=torch.bool),
        weights=torch.full((rows, 2), 0.5),
        fresh=fresh,
        teachers=(key,),
        features=features,
        teacher_features={key: theirs},
    )


def loss(power: float = 2.0) -> AttentionTransfer:
    return AttentionTransfer(AttentionTransferOptions(pairs=PAIRS, power=power))


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
def test_it_is_equation_2(power: float) -> None:
    """The loss of each fresh sample is half the sum over pairs of the distance of the normalised maps."""
    ours = {"body.a": normal(3, 4, 5, 5, seed=0), "body.b": normal(3, 2, 3, 4, seed=1)}
    theirs = {"x": normal(3, 6, 5, 5, seed=2), "y": normal(3, 1, 3, 4, seed=3)}
    expected = [
        oracle(ours["body.a"][i], theirs["x"][i], power) + oracle(ours["body.b"][i], theirs["y"][i], power)
        for i in range(3)
    ]
    got = loss(power)(lesson(ours, theirs, 3))
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_its_gradient_is_its_derivative() -> None:
    """gradcheck in float64, also through maps of different size."""

    def total(a: Tensor, b: Tensor) -> Tensor:
        theirs = {"x": normal(2, 3, 7, 6, seed=2), "y": normal(2, 3, 2, 2, seed=3)}
        return loss()(lesson({"body.a": a, "body.b": b}, theirs, 2))

    inputs = (normal(2, 2, 3, 3, seed=0).requires_grad_(), normal(2, 2, 4, 4, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(total, inputs)


def test_remembered_rows_have_no_loss_and_no_gradient() -> None:
    """Only fresh rows are compared: the others are 0 and move nothing."""
    ours = {"body.a": normal(4, 2, 3, 3, seed=0).requires_grad_(), "body.b": normal(4, 2, 3, 3, seed=1)}
    theirs = {"x": normal(1, 2, 3, 3, seed=2), "y": normal(1, 2, 3, 3, seed=3)}
    values = loss()(lesson(ours, theirs, 1))
    assert values.shape == (4,)
    assert values[0] > 0
    assert values[1:].tolist() == [0, 0, 0]
    values.sum().backward()
    gradient = ours["body.a"].grad
    assert gradient is not None
    assert gradient[0].abs().sum() > 0
    assert gradient[1:].abs().sum() == 0


def test_without_fresh_rows_it_is_zero() -> None:
    """A step of remembered rows alone has a loss of zeros, one per row."""
    ours = {"body.a": normal(2, 2, 3, 3, seed=0), "body.b": normal(2, 2, 3, 3, seed=1)}
    theirs = {"x": normal(0, 2, 3, 3, seed=2), "y": normal(0, 2, 3, 3, seed=3)}
    assert loss()(lesson(ours, theirs, 0)).tolist() == [0, 0]


@given(seed=st.integers(0, 10_000), gain=st.floats(0.01, 100))
def test_it_compares_places_not_strengths(seed: int, gain: float) -> None:
    """A map and a stronger copy of it agree; the order of the channels does not matter; all lies in 0..√2."""
    ours, theirs = normal(2, 3, 4, 4, seed=seed), normal(2, 5, 4, 4, seed=seed + 1)
    distance = attention_distance(attention_map(ours), attention_map(theirs))
    assert ((distance >= 0) & (distance <= math.sqrt(2))).all()
    torch.testing.assert_close(
        attention_distance(attention_map(gain * ours[:, [2, 0, 1]]), attention_map(theirs)), distance
    )
    assert attention_distance(attention_map(ours), attention_map(gain * ours)).abs().max() < 1e-7


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-4, 1e4])
def test_extreme_maps_stay_finite(scale: float) -> None:
    """A dead layer, tiny and huge activations give finite values and gradients in float32."""
    ours = (scale * normal(2, 2, 3, 3, seed=0)).float().requires_grad_()
    values = attention_distance(attention_map(ours), attention_map(normal(2, 2, 3, 3, seed=1).float()))
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert ours.grad is not None
    assert torch.isfinite(ours.grad).all()


def test_where_both_agree_the_gradient_is_zero() -> None:
    """At the root's corner, where both maps are the same, the gradient is 0 and not NaN."""
    ours = normal(2, 2, 3, 3, seed=0).requires_grad_()
    attention_distance(attention_map(ours), attention_map(ours.detach())).sum().backward()
    assert ours.grad is not None
    assert torch.isfinite(ours.grad).all()
    assert ours.grad.abs().max() < 1e-6


def test_it_says_which_layers_it_wants() -> None:
    """The step is told each layer once, by student and by teacher."""
    term = AttentionTransfer(AttentionTransferOptions(teacher="eye", pairs=(("body.a", "x"), ("body.a", "y"))))
    assert term.layers == ("body.a",)
    assert term.teacher_layers == {"eye": ("x", "y")}


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        (
            {"body.a": (2, 2, 3, 3)},
            {"x": (2, 2, 3, 3), "y": (2, 2, 3, 3)},
            "needed the student layer 'body.b', got body.a",
        ),
        (
            {"body.a": (2, 2, 3, 3), "body.b": (2, 2, 3, 3)},
            {"x": (2, 2, 3, 3)},
            "needed the layer of teacher torchvision 'y', got x",
        ),
        ({"body.a": (2, 8)}, {"x": (2, 2, 3, 3)}, "layer body.a: needed an output of [batch, channels, height, width]"),
    ],
)
def test_what_is_not_there_or_no_image_is_named(
    ours: dict[str, tuple[int, ...]], theirs: dict[str, tuple[int, ...]], said: str
) -> None:
    """A missing layer and a layer without places are errors that name the layer and what there is."""
    with pytest.raises(PluginError) as caught:
        loss()(
            lesson(
                {name: torch.ones(shape) for name, shape in ours.items()},
                {name: torch.ones(shape) for name, shape in theirs.items()},
                2,
            )
        )
    assert said in str(caught.value)


def test_another_teachers_layers_are_named() -> None:
    """A teacher that shows nothing is an error that names those that do."""
    with pytest.raises(PluginError, match="needed the teacher 'torchvision', got eye"):
        loss()(lesson({"body.a": torch.ones(1, 1, 2, 2)}, {}, 1, key="eye"))
