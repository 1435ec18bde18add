"""Ridge regression that forgets: its moments against their definition, and a world that turns."""

import numpy as np
import torch
import toys

from streamkd.analytic import forgetting
from streamkd.analytic.forgetting import ForgettingOptions, ForgettingTeacher, Head


def teacher(*half_lives: int) -> ForgettingTeacher:
    options = ForgettingOptions(half_lives=half_lives or (40, 1_000), width=16)
    return ForgettingTeacher(options, toys.context_of("forgetting", toys.mlp()))


def stream(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and labels, one after the other."""
    drawn = toys.batches(count, seed=seed)
    return torch.cat([x for x, _ in drawn]), torch.cat([y for _, y in drawn])


def every(y: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(y, dtype=torch.bool)


def test_a_solution_is_that_of_weighted_least_squares() -> None:
    """Each record weighs half as much after a half-life; ridge and normal equations in one go."""
    draw = np.random.default_rng(0)
    h, y = draw.normal(size=(60, 5)), draw.integers(0, 3, 60)
    head = Head(20, 5, 3)
    for row, label in zip(h, y, strict=True):
        head.learn(row, int(label))
    weigh = 0.5 ** (np.arange(59, -1, -1) / 20)
    square = (h * weigh[:, None]).T @ h
    ridge = forgetting.RIDGE * square.diagonal().mean() * (1 + 5 / weigh.sum()) + 1e-9
    wanted = np.linalg.solve(square + ridge * np.eye(5), (h * weigh[:, None]).T @ np.eye(3)[y])
    np.testing.assert_allclose(head.weight.numpy(), wanted, rtol=1e-7, atol=1e-9)


def test_however_the_stream_is_cut_it_learns_the_same() -> None:
    """Batches of any size give the bits of one long batch, those that are held out among them."""
    x, y = stream(12)
    learn = torch.arange(len(y)) % 4 > 0
    whole, cut = teacher(), teacher()
    said = whole.test_then_train(x, y, learn)
    parts = [cut.test_then_train(*part) for part in zip(x.split(7), y.split(7), learn.split(7), strict=True)]
    assert torch.equal(torch.cat(parts), said)
    assert torch.equal(cut.logits(x), whole.logits(x))


def test_the_half_life_that_fits_the_world_is_heard() -> None:
    """Where every label changes its meaning the short one has the answer soon; before, the long one had it."""
    x, y = stream(60)
    one = teacher(40, 2_000)
    one.test_then_train(x, y, every(y))
    before = one.share.weights["40"]
    again, turned = stream(30, seed=1)
    said = one.test_then_train(again, (turned + 1) % 3, every(turned))
    right = (said.argmax(1) == (turned + 1) % 3).float()
    assert one.share.weights["40"] > max(before, 0.5)
    assert right[-100:].mean() > 0.9


def test_what_is_served_answers_as_the_teacher_does() -> None:
    """The random features follow from their seed."""
    x, y = stream(20)
    one = teacher()
    assert one.part() is None
    one.test_then_train(x, y, every(y))
    torch.testing.assert_close(one.part()(x).softmax(1), one.logits(x).softmax(1), rtol=1e-3, atol=1e-4)
