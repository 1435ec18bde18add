"""What newer records contradict makes room, where the world has changed, and nothing does where it has not."""

import numpy as np
import pytest
import torch

from streamkd.replay.contradiction import Contradicted
from streamkd.replay.memory import Ring
from streamkd.replay.policy import ClassBalanced, Policy


def filled(policy: Policy, x: torch.Tensor, y: torch.Tensor, capacity: int = 100) -> Ring:
    """A ring that was offered rows in batches of ten, with draws from a seed."""
    ring = Ring(capacity, policy, 1)
    offer(ring, x, y)
    return ring


def offer(ring: Ring, x: torch.Tensor, y: torch.Tensor, seed: int = 0) -> None:
    draws = np.random.default_rng(seed).random((len(y), 2)).tolist()
    for at in range(0, len(y), 10):
        part = slice(at, at + 10)
        chosen = ring.offer(x[part], y[part].tolist(), [tuple(pair) for pair in draws[part]])
        if chosen:
            rows = torch.tensor([at + row for row in chosen.values()])
            ring.take(torch.tensor([*chosen]), x[rows], y[rows], 0, torch.zeros(len(rows), 4))


def world(count: int, seed: int, overlap: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes on either side of a line, some of them on the wrong one."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(count, 3)).astype(np.float32)
    y = (x[:, 0] > 0) ^ (draw.random(count) < overlap)
    return torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))


def wrong(ring: Ring, turned: bool) -> float:
    """The share of what is remembered that the world as it is now calls otherwise."""
    n = ring.filled
    return float((((ring.x[:n, 0] > 0) ^ turned) != (ring.y[:n] == 1)).float().mean())


def test_a_world_that_turns_round_is_remembered_as_it_is_now() -> None:
    """Labels are exchanged after 1,000 records: 1,000 later what is left of the old world is little."""
    ring, plain = (filled(policy, *world(1_000, 0, 0.0)) for policy in (Contradicted(), ClassBalanced()))
    x, y = world(1_000, 1, 0.0)
    for one in (ring, plain):
        offer(one, x, 1 - y, seed=1)
    assert wrong(plain, turned=True) > 0.4
    assert wrong(ring, turned=True) < 0.1


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.4])
def test_where_nothing_changes_it_keeps_what_class_balanced_keeps(overlap: float) -> None:
    """However much the classes overlap: at most one record in twenty differs, by chance."""
    rows = world(3_000, 2, overlap)
    ring, plain = (filled(policy, *rows) for policy in (Contradicted(), ClassBalanced()))
    same = (ring.x[:100].unsqueeze(1) == plain.x[:100].unsqueeze(0)).all(2).any(1)
    assert float((~same).float().mean()) <= 0.05


def test_classes_that_do_not_come_are_not_contradicted() -> None:
    """New classes in the very places of old ones: the old keep their records."""
    x, y = world(1_000, 3, 0.0)
    ring = filled(Contradicted(), x, y)
    again, others = world(1_000, 4, 0.0)
    offer(ring, again, others + 2, seed=1)
    counts = torch.bincount(ring.y[: ring.filled], minlength=4)
    assert counts.min() >= 20


def test_it_goes_on_from_its_state() -> None:
    """To the same places, and from a state of the policy that was there before it."""
    x, y = world(600, 5)
    x2, y2 = world(300, 6)
    whole = filled(Contradicted(), x, y)
    other = Ring(100, Contradicted(), 1)
    other.load_state_dict(whole.state_dict(), torch.device("cpu"))
    for ring in (whole, other):
        offer(ring, x2, 1 - y2, seed=1)
    assert torch.equal(whole.x, other.x)
    plain = ClassBalanced()
    before = filled(plain, x, y).state_dict()
    Ring(100, Contradicted(), 1).load_state_dict(before, torch.device("cpu"))
