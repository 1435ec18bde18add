"""Changed forms of images: against scipy's rotation and by their own laws."""

import numpy as np
import pytest
from scipy import ndimage

from streamkd.errors import SourceError
from streamkd.records import InputColumn
from streamkd.streams.replay.variations import DRAWS, Jitter, form

COLUMN = InputColumn(name="image", shape=(9, 9), dtype="float32")
IMAGES = np.random.default_rng(0).random((5, 81)).astype(np.float32)


@pytest.mark.parametrize("degrees", [10, 37.5, 91, 200])
def test_rotation_is_scipys_bilinear_rotation(degrees: float) -> None:
    """A turned image equals scipy's rotation with order 1 and zeros outside, the border pixels apart."""
    turn = form(f"rotate-{degrees}", COLUMN, 0)
    assert turn is not None
    oracle = [
        ndimage.rotate(image, degrees, reshape=False, order=1, mode="grid-constant")
        for image in IMAGES.reshape(-1, 9, 9)
    ]
    assert np.allclose(turn(IMAGES).reshape(-1, 9, 9), oracle, atol=1e-5)


def test_right_angles_are_exact_and_four_of_them_are_none() -> None:
    """Turning by 90 degrees moves pixels without changing them, and four turns give the image back."""
    turn = form("rotate-90", COLUMN, 0)
    assert turn is not None
    assert np.array_equal(turn(IMAGES).reshape(-1, 9, 9), np.rot90(IMAGES.reshape(-1, 9, 9), axes=(1, 2)))
    assert np.array_equal(turn(turn(turn(turn(IMAGES)))), IMAGES)


def test_channels_turn_together() -> None:
    """Each channel of a colour image is turned like a grey one."""
    colour = InputColumn(name="image", shape=(9, 9, 3), dtype="float32")
    grey, whole = form("rotate-30", COLUMN, 0), form("rotate-30", colour, 0)
    assert grey is not None
    assert whole is not None
    stacked = np.repeat(IMAGES[:, :, None], 3, axis=2).reshape(5, -1)
    assert np.array_equal(whole(stacked).reshape(5, 81, 3)[:, :, 1], grey(IMAGES))


@pytest.mark.parametrize("name", ["invert", "rotate-90", "rotate-33", "permute-2"])
def test_the_form_of_a_record_does_not_depend_on_its_neighbours(name: str) -> None:
    """Changing a batch equals changing its records one by one, bit for bit."""
    change = form(name, COLUMN, 0)
    assert change is not None
    assert np.array_equal(change(IMAGES), np.concatenate([change(IMAGES[row : row + 1]) for row in range(5)]))


@pytest.mark.parametrize(
    ("dtype", "scale", "value", "expected"),
    [("uint8", 1 / 255, 5, 250), ("uint8", 1 / 16, 5, 11), ("uint8", 1 / 16, 20, 0), ("uint8", 1.0, 5, 250)],
)
def test_invert_subtracts_from_the_largest_value(dtype: str, scale: float, value: int, expected: int) -> None:
    """The largest value is 1 / scale, or the type's own; results stay within the type."""
    column = InputColumn(name="x", shape=(1,), dtype="uint8", scale=scale)
    change = form("invert", column, 0)
    assert change is not None
    result = change(np.array([[value]], dtype))
    assert result.dtype == dtype
    assert result.item() == expected


def test_permutations_differ_by_number_and_seed() -> None:
    """A permutation is fixed by (seed, number) and keeps the values."""
    orders = [form(name, COLUMN, seed) for name, seed in (("permute-1", 0), ("permute-2", 0), ("permute-1", 1))]
    changed = [order(IMAGES) for order in orders if order is not None]
    again = form("permute-1", COLUMN, 0)
    assert again is not None
    assert np.array_equal(changed[0], again(IMAGES))
    assert not np.array_equal(changed[0], changed[1])
    assert not np.array_equal(changed[0], changed[2])
    assert np.array_equal(np.sort(changed[0]), np.sort(IMAGES))


def test_forms_that_a_column_cannot_take_are_refused() -> None:
    """Text cannot be inverted, a vector cannot be turned."""
    with pytest.raises(SourceError, match="needs a tensor, got text"):
        form("invert", InputColumn(name="words", kind="text", shape=(64,)), 0)
    with pytest.raises(SourceError, match=r"needs a shape \(height, width\)"):
        form("rotate-90", InputColumn(name="x", shape=(9,)), 0)


def test_slightly_changed_rows_do_not_depend_on_their_neighbours() -> None:
    """A batch changes as its records do one by one, bit for bit; without draws nothing does."""
    change, draws = Jitter(COLUMN), np.random.default_rng(1).uniform(-1, 1, (5, DRAWS))
    one_by_one = [change(IMAGES[row : row + 1], draws[row : row + 1]) for row in range(5)]
    assert np.array_equal(change(IMAGES, draws), np.concatenate(one_by_one))
    assert np.array_equal(change(IMAGES, np.zeros((5, DRAWS))), IMAGES)


def test_slightly_changed_is_turned_moved_and_inked() -> None:
    """Each draw alone is what it says: scipy's rotation and shift, and strokes that grow within the range of values."""
    change, none = Jitter(COLUMN), np.zeros((5, 3))
    image = IMAGES.reshape(-1, 9, 9)
    turned = change(IMAGES, np.insert(none, 0, 1.0, axis=1)).reshape(-1, 9, 9)
    wanted = [ndimage.rotate(i, 12, reshape=False, order=1, mode="grid-constant") for i in image]
    assert np.allclose(turned, wanted, atol=1e-5)
    moved = change(IMAGES, np.insert(none, 1, 1.0, axis=1)).reshape(-1, 9, 9)
    assert np.allclose(moved, [ndimage.shift(i, (9 / 16, 0), order=1, mode="grid-constant") for i in image], atol=1e-5)
    inked = change(IMAGES, np.insert(none, 3, 1.0, axis=1))
    assert (inked >= IMAGES).all()
    assert inked.max() <= 1


def test_only_images_change_slightly() -> None:
    """A column that is a list of numbers has nothing to turn."""
    with pytest.raises(SourceError, match="needed images"):
        Jitter(InputColumn(name="x", shape=(5,)))
