"""Images as records hold them: what is one, moved, turned."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamkd.students.images import is_image, shifted, turned


@pytest.mark.parametrize(
    ("shape", "wanted"), [((8, 8), True), ((28, 28, 3), True), ((7, 30), False), ((64,), False), ((8, 8, 2, 2), False)]
)
def test_what_an_image_is(shape: tuple[int, ...], wanted: bool) -> None:
    """Two or three axes, sides of 8 and more."""
    assert is_image(shape) is wanted


@given(st.integers(0, 1000), st.integers(0, 3), st.sampled_from([(8, 8), (9, 11), (8, 10, 3)]))
def test_each_image_moves_by_its_own_offset(seed: int, shift: int, shape: tuple[int, ...]) -> None:
    """Each is the padded original seen through a window that is off by up to ``shift``; the type stays."""
    x = torch.randint(256, (5, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    moved = shifted(x, shift, torch.Generator().manual_seed(seed))
    assert moved.dtype == torch.uint8
    rows, columns = torch.arange(-shift, shape[0] + shift), torch.arange(-shift, shape[1] + shift)
    padded = x[:, rows.clamp(0, shape[0] - 1)][:, :, columns.clamp(0, shape[1] - 1)]
    offsets = [(down, across) for down in range(2 * shift + 1) for across in range(2 * shift + 1)]
    for wide, got in zip(padded, moved, strict=True):
        windows = (wide[down : down + shape[0], across : across + shape[1]] for down, across in offsets)
        assert any(torch.equal(window, got) for window in windows)


@pytest.mark.parametrize("shape", [(8, 8), (9, 9, 3)])
def test_turned_as_rot90_turns(shape: tuple[int, ...]) -> None:
    """Each image by its own number of quarter-turns; the input stays as it was."""
    x = torch.rand(6, *shape)
    before, quarters = x.clone(), torch.tensor([0, 1, 2, 3, 4, -1])
    for image, quarter, got in zip(x, quarters.tolist(), turned(x, quarters), strict=True):
        assert torch.equal(got, torch.rot90(image, quarter))
    assert torch.equal(x, before)


def test_an_image_that_is_not_square_keeps_its_shape() -> None:
    """Odd quarter-turns are half-turns there."""
    x = torch.rand(4, 8, 10)
    got = turned(x, torch.arange(4))
    assert torch.equal(got[0], x[0])
    assert torch.equal(got[1], torch.rot90(x[1], 2))
    assert torch.equal(got[2], torch.rot90(x[2], 2))
    assert torch.equal(got[3], x[3])
