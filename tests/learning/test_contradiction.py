"""What newer records contradict: found where the world has changed, and nowhere else."""

import numpy as np
import pytest
import torch
import toys

from streamkd.incremental.forgetting import ForgettingOptions, ForgettingTeacher
from streamkd.learning import contradiction
from streamkd.learning.step import Step
from streamkd.replay.ring import Ring
from streamkd.teachers.teacher import EmaOptions, EmaTeacher


def made(classes: int = 3) -> Step:
    student = toys.mlp(classes)
    options = ForgettingOptions(half_lives=(60, 600), width=32)
    teachers = [
        EmaTeacher(EmaOptions(), toys.context_of("ema", student)),
        ForgettingTeacher(options, toys.context_of("forgetting", student)),
    ]
    return toys.make_step(student=student, teachers=teachers, size=100)


def train(step: Step, count: int, seed: int, turn: int = 0, shift: float = 0.0, noise: float = 0.0) -> None:
    """Separable records; labels are ``turn`` further on, or by chance where there is noise."""
    draw = torch.Generator().manual_seed(seed)
    for x, y in toys.batches(count, seed=seed, shift=shift):
        labels = torch.where(torch.rand(len(y), generator=draw) < noise, torch.randint(3, y.shape, generator=draw), y)
        toys.train(step, x, (labels + turn) % 3)


def kept(ring: Ring, seed_batches: int, turn: int) -> float:
    """The share of remembered records with a label of before a turn, by the nearest centre."""
    centres = 2 * torch.randn(3, toys.FEATURES, generator=torch.Generator().manual_seed(99))
    true = torch.cdist(ring.x[: ring.filled], centres).argmin(1)
    return float((ring.y[: ring.filled] != (true + turn) % 3).float().mean())


def test_a_world_that_turns_round_is_remembered_as_it_is_now() -> None:
    """Every label changes its meaning: 800 records later a tenth of the memory is of before, at most."""
    step = made()
    train(step, 100, 0)
    assert kept(step.memory.replayed, 100, 0) < 0.1
    train(step, 100, 1, turn=1)
    assert kept(step.memory.replayed, 100, 1) < 0.1
    assert kept(step.memory.holdout, 100, 1) < 0.3


def test_what_is_contradicted_is_not_replayed() -> None:
    """Nor is it among the held-out records by which teachers are judged."""
    step = made()
    train(step, 20, 0)
    ring = step.memory.replayed
    ring.contradicted[: ring.filled] = True
    ring.contradicted[2] = False
    assert step.memory.sample(50).slots.tolist() == [2]
    ring.contradicted[2] = True
    assert step.memory.sample(50) is None


@pytest.mark.parametrize(
    ("noise", "looks"), [(0.0, 40), *(pytest.param(noise, 100, marks=pytest.mark.soak) for noise in (0.0, 0.3))]
)
def test_where_nothing_changes_nothing_is_contradicted(noise: float, looks: int) -> None:
    """However many labels are wrong: at none of so many looks."""
    step = made()
    for part in range(looks):
        train(step, 10, part, noise=noise)
        assert not step.contradiction.changed
        assert not step.memory.replayed.contradicted.any()


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("rows", [(100, 100), (500, 100), (20, 100)])
def test_chance_alone_is_hardly_ever_more(share: float, rows: tuple[int, int]) -> None:
    """Of ten thousand looks at equally frequent mistakes ten at most; where they are twice as many, it is seen."""
    dice = np.random.default_rng(0)
    known, new = (dice.random((10_000, count)) < share for count in rows)
    assert sum(map(contradiction.is_more, known, new)) <= 10
    known, new = dice.random(500) < 0.8, dice.random(100) < 0.4
    assert contradiction.is_more(known, new)


def test_another_domain_contradicts_nothing() -> None:
    """The same classes elsewhere, under other labels: what is unlike anything that comes stays as it is."""
    step = made()
    train(step, 60, 0)
    train(step, 60, 1, turn=1, shift=30.0)
    old = step.memory.replayed.x[: step.memory.replayed.filled].mean(1) < 15
    assert not step.memory.replayed.contradicted[: len(old)][old].any()
    assert int(old.sum()) > 20


@pytest.mark.parametrize("shift", [3.0, 5.0])
def test_a_domain_beside_the_old_one_is_no_changed_world(shift: float) -> None:
    """The same classes under other labels nearby: only old records that are like new ones tell, and they are few."""
    step, looks = made(), []
    train(step, 60, 0)
    for part in range(1, 15):
        train(step, 10, part, turn=1, shift=shift)
        looks.append(step.contradiction.changed)
    assert not any(looks)


def test_it_goes_on_from_its_state() -> None:
    """Look, flag and what has been gathered for the next one."""
    step, other = made(), made()
    train(step, 53, 0)
    other.contradiction.load_state_dict(step.contradiction.state_dict())
    assert other.contradiction.age == step.contradiction.age == 3
    assert torch.equal(other.contradiction.state_dict()["wrong"], step.contradiction.state_dict()["wrong"])
