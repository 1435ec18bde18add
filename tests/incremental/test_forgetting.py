"""Ridge regression that forgets: its moments against their definition, and a world that turns."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import toys

from streamkd.incremental import forgetting
from streamkd.incremental.forgetting import ForgettingOptions, ForgettingTeacher, Head
from streamkd.plugins import Registry
from streamkd.records import InputColumn, RecordSchema


def teacher(*half_lives: int, bins: int = 0) -> ForgettingTeacher:
    options = ForgettingOptions(half_lives=half_lives or (40, 1_000), width=16, bins=bins)
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
    head = Head(20, range(5), 3)
    for rows, labels in zip(torch.from_numpy(h).split(6), torch.from_numpy(y).split(6), strict=True):
        head.learn(rows, labels)
    weigh = 0.5 ** (np.arange(59, -1, -1) / 20)
    square = (h * weigh[:, None]).T @ h
    ridge = forgetting.RIDGE * square.diagonal().mean() * (1 + 5 / weigh.sum()) + 1e-9
    wanted = np.linalg.solve(square + ridge * np.eye(5), (h * weigh[:, None]).T @ np.eye(3)[y])
    np.testing.assert_allclose(head.weight.numpy(), wanted, rtol=1e-7, atol=1e-9)


def test_the_half_life_that_fits_the_world_is_heard() -> None:
    """Where every label changes its meaning the short one has the answer soon; before, the long one had it."""
    x, y = stream(60)
    one = teacher(40, 2_000)
    one.test_then_train(x, y, every(y))
    before = sum(w for name, w in one.share.weights.items() if name.endswith(", 40"))
    again, turned = stream(30, seed=1)
    said = one.test_then_train(again, (turned + 1) % 3, every(turned))
    right = (said.argmax(1) == (turned + 1) % 3).float()
    assert sum(w for name, w in one.share.weights.items() if name.endswith(", 40")) > max(before, 0.5)
    assert right[-100:].mean() > 0.9


def thresholds(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether the first column lies within one of two bands: nothing that a line tells."""
    x = 3 * torch.randn(count, toys.FEATURES, generator=torch.Generator().manual_seed(seed))
    return x, ((x[:, 0] + 2).abs() < 1).long() | ((x[:, 0] - 2).abs() < 1).long()


def test_bins_tell_what_lines_do_not() -> None:
    """After 2,000 records nine of ten are right, and clearly more than without bins."""
    x, y = thresholds(2_500, 0)
    right = []
    for bins in (0, 8):
        said = teacher(1_000, bins=bins).test_then_train(x, y, every(y))
        right.append(float((said.argmax(1) == y)[2_000:].float().mean()))
    assert right[1] > 0.9 > right[0] + 0.03


def test_it_goes_on_from_its_state_before_and_after_the_bins_are_fitted() -> None:
    """To the same bits, and what is served of it answers as it does."""
    x, y = thresholds(700, 1)
    for cut in (300, 600):
        whole, other = teacher(bins=4), teacher(bins=4)
        said = whole.test_then_train(x[:cut], y[:cut], every(y[:cut]))
        other.load_state_dict(whole.state_dict())
        parts = [one.test_then_train(x[cut:], y[cut:], every(y[cut:])) for one in (whole, other)]
        assert torch.equal(*parts)
        assert said.isfinite().all()
        torch.testing.assert_close(other.part()(x).softmax(1), other.logits(x).softmax(1), rtol=1e-3, atol=1e-4)


def test_what_is_served_is_read_as_it_was_written(tmp_path: Path) -> None:
    """From a version's directory, before and after the bins are fitted: the same answers."""
    x, y = thresholds(700, 1)
    for cut in (300, 600):
        one = teacher(bins=4)
        one.test_then_train(x[:cut], y[:cut], every(y[:cut]))
        part = one.part()
        again = forgetting.load(tmp_path, part.write(tmp_path), toys.context_of("x", toys.mlp()).schema, 2, Registry())
        assert torch.equal(again(x), part(x))


def test_as_many_features_in_bins_as_without_are_told_apart() -> None:
    """One amount in eight bins beside seven places of a category: as many features of either kind."""
    columns = InputColumn(name="x"), InputColumn(name="kind", kind="category", shape=(7,))
    context = replace(toys.context_of("forgetting", toys.mlp()), schema=RecordSchema(inputs=columns))
    teacher = ForgettingTeacher(ForgettingOptions(width=8, bins=8), context)
    assert len(set(teacher.names)) == len(teacher.heads) == 6
    x = torch.cat([torch.randn(600, 1), torch.eye(7)[torch.arange(600) % 7]], 1)
    y = (torch.arange(600) % 7 > 3).long()
    teacher.test_then_train(x, y, torch.ones(600, dtype=torch.bool))
    part = teacher.part()
    assert part is not None
    torch.testing.assert_close(part(x[:20]), teacher.logits(x[:20]), rtol=1e-4, atol=1e-4)
