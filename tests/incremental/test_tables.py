"""Teachers that learn record by record over columns of a table: gaps, categories and times."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
import toys

from streamkd.incremental.crossed import BINS, Cells, CrossedOptions, CrossedTeacher, crossables
from streamkd.incremental.forgetting import ForgettingOptions, ForgettingTeacher
from streamkd.incremental.linear import LinearOptions, LinearTeacher
from streamkd.incremental.side_by_side import SideBySide
from streamkd.incremental.standard import Standard
from streamkd.records import InputColumn, RecordSchema
from streamkd.streams.encoding import codec
from streamkd.teachers.teacher import TeacherContext

SCHEMA = RecordSchema(
    inputs=(
        InputColumn(name="a", missing="fill"),
        InputColumn(name="b", shape=(2,), missing="fill"),
        InputColumn(name="colour", kind="category", shape=(6,), values=("red", "green", "blue"), missing="fill"),
        InputColumn(name="at", kind="time", parts=("weekday", "age"), missing="fill"),
        InputColumn(name="note", kind="text", shape=(8,)),
    )
)
Made = Callable[[], SideBySide]


def context(key: str) -> TeacherContext:
    return replace(toys.context_of(key, toys.mlp(schema=SCHEMA)), schema=SCHEMA)


MADE: dict[str, Made] = {
    "linear": lambda: LinearTeacher(LinearOptions(), context("linear")),
    "forgetting": lambda: ForgettingTeacher(ForgettingOptions(half_lives=(50, 900), width=16), context("forgetting")),
    "crossed": lambda: CrossedTeacher(CrossedOptions(sets=20), context("crossed")),
}
EVERY = pytest.mark.parametrize("made", MADE.values(), ids=MADE)


def table(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Records whose label is told by a number that is missing, or else by a colour and another number together."""
    r = np.random.default_rng(seed)
    gone = r.random((count, 4)) < 0.2
    a, b = 50 + 10 * r.normal(size=count), r.normal(size=(count, 2))
    colour = r.choice(["red", "green", "blue", "grey"], count)
    label = np.where(gone[:, 0], 2, (colour == "red") ^ (b[:, 1] > 0)).astype(int)
    moments = (r.integers(0, 10**9, count) * 1_000_000).astype("datetime64[us]")
    rows = {
        "a": pa.array(a, mask=gone[:, 0]),
        "b": pa.array([[None if g else v[0], v[1]] for g, v in zip(gone[:, 1], b.tolist(), strict=True)]),
        "colour": pa.array(colour, mask=gone[:, 2] & (colour != "red")),
        "at": pa.array(moments, mask=gone[:, 3]),
        "note": pa.array(["a note"] * count),
        "label": pa.array(label),
    }
    records, rejects = codec.encode(pa.record_batch(rows), SCHEMA, 0)
    assert not rejects
    return torch.tensor(records.inputs), torch.tensor(records.labels)


def every(y: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(y, dtype=torch.bool)


@EVERY
def test_what_is_served_answers_as_the_teacher_does(made: Made) -> None:
    """Records with gaps too."""
    x, y = table(800)
    one = made()
    one.test_then_train(x, y, every(y))
    torch.testing.assert_close(one.part()(x).softmax(1), one.logits(x).softmax(1), rtol=1e-3, atol=1e-4)


@EVERY
def test_it_goes_on_from_its_state(made: Made) -> None:
    """To the same bits, wherever it was stopped."""
    x, y = table(800)
    for cut in (33, 650):
        whole, other = made(), made()
        whole.test_then_train(x[:cut], y[:cut], every(y[:cut]))
        other.load_state_dict(whole.state_dict())
        said = [one.test_then_train(x[cut:], y[cut:], every(y[cut:])) for one in (whole, other)]
        assert torch.equal(*said)


@EVERY
def test_a_gap_is_learned_from(made: Made) -> None:
    """That a number is missing is what tells the third class."""
    x, y = table(2_000)
    said = made().test_then_train(x, y, every(y)).argmax(1)
    assert float(((said == 2) == (y == 2))[1_000:].float().mean()) > 0.95


def test_categories_are_crossed_with_numbers() -> None:
    """A colour whose meaning turns with the sign of a number: cells of both tell it, a line does not."""
    x, y = table(3_000)
    right = {
        name: float((MADE[name]().test_then_train(x, y, every(y)).argmax(1) == y)[2_000:].float().mean())
        for name in ("crossed", "linear")
    }
    assert right["crossed"] > 0.9
    assert right["linear"] < 0.8


@pytest.mark.parametrize("block", [1, 7])
def test_moments_are_those_of_what_was_there(block: int) -> None:
    """Against numpy's of the values without NaN, at every prefix that is taken."""
    r = np.random.default_rng(0)
    rows = r.normal(3, 2, (40, 4))
    rows[r.random(rows.shape) < 0.3] = np.nan
    standard = Standard(np.ones(4, bool))
    for count in range(block, len(rows) + 1, block):
        standard.learn(rows[count - block : count])
        known = np.isfinite(rows[:count]).sum(0) > 1
        np.testing.assert_allclose(standard.mean[known], np.nanmean(rows[:count, known], 0))
        np.testing.assert_allclose(1 / standard.gain[known], np.nanstd(rows[:count, known], 0), rtol=1e-6)
    assert not standard(rows)[np.isnan(rows)].any()


def test_a_rare_category_is_not_blown_up() -> None:
    """One in ten thousand would be a hundred standard deviations: of what is no amount 0.1 is the least."""
    standard = Standard(np.array([False]))
    for row in np.eye(1, 10_000).T:
        standard.learn(row[None])
    np.testing.assert_allclose(standard(np.array([1.0])), [9.999], rtol=1e-3)


def test_gaps_and_categories_have_cells_of_their_own() -> None:
    """Two records share the first cells, of each column alone, if and only if they share bin, place or gap."""
    cells = Cells(crossables(SCHEMA.inputs), 20, 0)
    x, _ = table(900)
    one = CrossedTeacher(CrossedOptions(), context("crossed"))
    rows = one._rows(one._flat(x))
    cells.fit(rows)
    alone = cells(rows)[:, : cells._crossed]
    assert cells._crossed == 3 + 1 + 3  # numbers, the colour, sine and cosine and age; no text
    for number in range(3):
        gaps = np.isnan(rows[:, (0, 2, 3)[number]])
        assert not set(alone[gaps, number]) & set(alone[~gaps, number])
        assert len(set(alone[~gaps, number])) == BINS[0]
    hot = rows[:, 6:12].argmax(1)
    assert len(set(zip(alone[:, 3], hot, strict=True))) == len(set(hot)) == len(set(alone[:, 3]))
