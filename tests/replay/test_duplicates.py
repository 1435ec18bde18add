"""Duplicates: the same bytes are known again, chance is told from repetition, and the table stays what it was."""

import numpy as np
import torch
import toys

from streamkd.learning.step import Step
from streamkd.replay import duplicates
from streamkd.replay.duplicates import Duplicates, marks


def distinct(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 1 << 62, count, np.int64)


def arriving(known: Duplicates, stream: np.ndarray, batch: int = 10) -> np.ndarray:
    """Which rows of a stream, in batches, had come before."""
    parts = [known.arrive(stream[start : start + batch]) for start in range(0, len(stream), batch)]
    return np.concatenate(parts)


def test_a_mark_is_of_a_rows_bytes() -> None:
    """Equal rows have equal marks wherever they stand, rows that differ in a bit have others, of every element type."""
    x = torch.arange(12, dtype=torch.float32).view(3, 2, 2)
    twice = marks(torch.cat([x, x.flip(0)]))
    assert len(set(twice.tolist())) == 3
    assert twice[:3].tolist() == twice[3:].tolist()[::-1]
    for dtype in (torch.uint8, torch.int64, torch.float16):
        assert len(set(marks(x.to(dtype)).tolist())) == 3


def test_what_came_before_is_known() -> None:
    """A second pass is known whole, in another order and in other batches; a third stream is new."""
    known, stream = Duplicates(100), distinct(2_000)
    assert not arriving(known, stream).any()
    assert arriving(known, np.random.default_rng(1).permutation(stream), batch=33).all()
    assert not arriving(known, distinct(500, seed=2)).any()
    assert (known.records, known.repeats) == (4_500, 2_000)
    assert known.tells_apart


def test_a_row_knows_its_twin_in_the_same_batch() -> None:
    """The first of two is new, the second is not."""
    assert Duplicates(100).arrive(np.array([5, 6, 5, 5])).tolist() == [False, False, True, True]


def test_few_values_tell_no_records_apart() -> None:
    """Of inputs that come again by chance nothing is concluded; a source that begins anew is told from it."""
    rng, few, anew = np.random.default_rng(0), Duplicates(100), Duplicates(100)
    arriving(few, rng.integers(1, 61, 2_000))
    arriving(anew, np.tile(distinct(150), 20))
    assert not few.tells_apart
    assert anew.tells_apart


def test_the_share_follows_the_stream() -> None:
    """All of the newest records came before in a second pass, none after that many new ones."""
    known, stream = Duplicates(100), distinct(1_000)
    arriving(known, np.tile(stream, 2))
    assert known.share > 0.99
    arriving(known, distinct(1_000, seed=1))
    assert known.share < 0.01


def test_the_table_forgets_and_does_not_grow() -> None:
    """Three times as many records as it has places: the newest tenth of them is known, what it holds is bounded."""
    known, stream = Duplicates(100), distinct(3 * duplicates.PLACES)
    arriving(known, stream, batch=4_096)
    assert len(known.state_dict()["marks"]) <= duplicates.PLACES
    assert arriving(known, stream[-duplicates.PLACES // 10 :]).mean() > 0.9


def test_restored_it_knows_the_same() -> None:
    """Its state in another one answers and counts alike, whatever that one knew."""
    one, other = Duplicates(100), Duplicates(100)
    arriving(one, distinct(3_000))
    arriving(other, distinct(300, seed=1))
    other.load_state_dict(one.state_dict())
    more = np.concatenate([distinct(100), distinct(100, seed=5)])
    assert arriving(one, more).tolist() == arriving(other, more).tolist()
    assert str(one.state_dict()) == str(other.state_dict())


def learned(batches: int = 20) -> Step:
    """A step that has taken some batches; what it held out is in its memory."""
    step = toys.make_step()
    for x, y in toys.batches(batches):
        toys.train(step, x, y)
    return step


def test_a_twin_of_what_is_held_out_moves_no_weight() -> None:
    """Held-out records that come again have no gradient, and no memory takes them; replayed rows have one."""
    step = learned()
    held = step.memory.holdout
    assert held.x is not None
    x, y = held.x[:4].clone(), held.y[:4].clone()
    plan = step.begin(x, y, 0)
    logits = step.forward(plan)
    logits.retain_grad()
    step.loss(step.weigh(plan, logits)).backward()  # type: ignore[no-untyped-call]
    assert plan.offer.untaught == [0, 1, 2, 3]
    assert plan.offer.rows == []
    assert logits.grad is not None
    assert not logits.grad[:4].any()
    assert logits.grad[4:].any()


def test_nothing_is_drawn_near_a_twin() -> None:
    """A record far from all others is held out and comes again: no row from the vicinity is made of it."""
    step = learned()
    held = step.memory.holdout
    assert held.x is not None
    held.x[0] = 1e6
    held.mark[0] = int(marks(held.x[:1])[0])
    step.memory.duplicates.arrive(marks(held.x[:1]))
    toys.vicinal(step, 200)
    toys.spare(step, 1.0)
    plan = step.begin(held.x[:1].clone(), held.y[:1].clone(), 0)
    assert plan.offer.untaught == [0]
    assert plan.origins.get("vicinal", 0) == 200
    assert plan.x[-200:].max() < 100
