"""Logistic regression by records: the formula, what it cannot use, thresholds in bins, and going on from a state."""

from pathlib import Path

import numpy as np
import torch
import toys

from streamkd.gates.spread import LEAST
from streamkd.incremental import linear
from streamkd.incremental.linear import LinearOptions, LinearTeacher
from streamkd.plugins import Registry


def teacher(*rates: float, bins: int = 0) -> LinearTeacher:
    return LinearTeacher(LinearOptions(rates=rates or (0.1, 0.01), bins=bins), toys.context_of("linear", toys.mlp()))


def stream(count: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and labels, one after the other."""
    drawn = toys.batches(count)
    return torch.cat([x for x, _ in drawn]), torch.cat([y for _, y in drawn])


def test_each_record_is_one_step_of_adagrad() -> None:
    """In float64: moments of all records so far by their definition, the gradient by autograd, its squares summed."""
    x, y = stream()
    rows = x.double()
    weights = torch.zeros(3, toys.FEATURES + 1, dtype=torch.float64, requires_grad=True)
    squares = torch.ones_like(weights)
    expected = []
    for row in range(len(y)):
        h = _standard(rows[row], rows[:row])
        known = torch.tensor([not row or label in y[:row] for label in range(3)])  # nothing at first: zeros
        expected.append(
            torch.softmax((weights @ h).detach(), 0) * known / (torch.softmax(weights @ h, 0) * known).sum().detach()
        )
        loss = torch.nn.functional.cross_entropy(weights @ _standard(rows[row], rows[: row + 1]), y[row])
        (slope,) = torch.autograd.grad(loss, weights)
        squares = squares + slope**2
        weights = (weights - 0.1 * slope / squares.sqrt()).detach().requires_grad_()
    one = teacher(0.1)
    got = torch.cat([one.test_then_train(a, b, b >= 0) for a, b in zip(x.split(10), y.split(10), strict=True)])
    wanted = (1 - LEAST) * torch.stack(expected) + LEAST / 3
    torch.testing.assert_close(got.softmax(1), wanted.float(), rtol=1e-5, atol=1e-5)


def _standard(row: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """(x - mean) / std and a one; zeros while nothing has varied."""
    if len(seen) < 2:
        return torch.cat([torch.zeros_like(row), row.new_ones(1)])
    return torch.cat([(row - seen.mean(0)) / seen.std(0, correction=0), row.new_ones(1)])


def test_what_is_not_finite_is_answered_and_not_learned() -> None:
    """A missing value counts as the mean; the record leaves no trace."""
    x, y = stream()
    learned, other = teacher(), teacher()
    learned.test_then_train(x, y, torch.ones_like(y, dtype=torch.bool))
    other.test_then_train(x, y, torch.ones_like(y, dtype=torch.bool))
    holes = x[:2].clone()
    holes[0, 1], holes[1, 2] = torch.nan, torch.inf
    assert learned.test_then_train(holes, y[:2], torch.ones(2, dtype=torch.bool)).isfinite().all()
    assert torch.equal(learned.logits(x), other.logits(x))


def test_a_feature_that_never_varies_says_nothing() -> None:
    """However large it is: its weights stay 0, and answers finite."""
    x, y = stream()
    x[:, 2] = 1e7
    one = teacher()
    assert one.test_then_train(x, y, torch.ones_like(y, dtype=torch.bool)).isfinite().all()
    assert not np.any(one.state_dict()["weights"][:, :, 2].numpy())


def test_it_learns_a_table() -> None:
    """On separable records nine of ten are told in time."""
    x, y = stream(40)
    said = teacher().test_then_train(x, y, torch.ones_like(y, dtype=torch.bool))
    assert float((said.argmax(1) == y)[100:].float().mean()) > 0.9


def test_of_several_rates_the_one_that_follows_the_world_is_heard() -> None:
    """Where labels turn round every 40 records a high rate has the most of the answer, where they stay a low one."""
    x, y = stream(80)
    turning = torch.where(torch.arange(len(y)) // 40 % 2 > 0, (y + 1) % 3, y)
    noisy = torch.where(torch.arange(len(y)) % 5 > 0, y, (y + 1) % 3)
    shares = []
    for labels in (turning, noisy):
        one = teacher(0.1, 3.0)
        for a, b in zip(x.split(10), labels.split(10), strict=True):
            one.test_then_train(a, b, b >= 0)
        shares.append(one.share.weights["3.0"])
    assert shares[0] > 0.5 > shares[1]


def thresholds(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether the first column lies within a band: nothing that a line tells."""
    x = 3 * torch.randn(count, toys.FEATURES, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0].abs() < 2).long()


def test_bins_tell_what_lines_do_not() -> None:
    """Nine of ten are right after 2,000 records, and without bins hardly more than the commoner label."""
    x, y = thresholds(2_500)
    right = []
    for bins in (0, 8):
        said = teacher(bins=bins).test_then_train(x, y, torch.ones_like(y, dtype=torch.bool))
        right.append(float((said.argmax(1) == y)[2_000:].float().mean()))
    assert right[1] > 0.9 > 0.6 > right[0]


def test_heads_read_the_inputs_or_the_bins() -> None:
    """The weights of a rate alone are those that it has without bins; those in bins have none of the inputs."""
    x, y = thresholds(700)
    every = torch.ones_like(y, dtype=torch.bool)
    plain, binned = teacher(0.1, bins=0), teacher(0.1, bins=4)
    for one in (plain, binned):
        one.test_then_train(x, y, every)
    alone, both = plain.state_dict()["weights"], binned.state_dict()["weights"]
    inputs = [*range(toys.FEATURES), -1]
    torch.testing.assert_close(both[0][:, inputs], alone[0])
    assert not both[0][:, toys.FEATURES : -1].any()
    assert not both[1][:, : toys.FEATURES].any()
    assert both[1][:, toys.FEATURES : -1].any()


def test_it_goes_on_from_its_state_before_and_after_the_bins_are_fitted(tmp_path: Path) -> None:
    """To the same bits; what is served of it answers as it does, and as it was written into a version."""
    x, y = thresholds(700)
    every = torch.ones_like(y, dtype=torch.bool)
    for cut in (300, 600):
        whole, other = teacher(bins=4), teacher(bins=4)
        whole.test_then_train(x[:cut], y[:cut], every[:cut])
        other.load_state_dict(whole.state_dict())
        assert torch.equal(*(one.test_then_train(x[cut:], y[cut:], every[cut:]) for one in (whole, other)))
        part = other.part()
        assert part is not None
        torch.testing.assert_close(part(x).softmax(1), other.logits(x).softmax(1), rtol=1e-3, atol=1e-4)
        schema = toys.context_of("linear", toys.mlp()).schema
        assert torch.equal(linear.load(tmp_path, part.write(tmp_path), schema, 3, Registry())(x), part(x))


def test_it_goes_on_from_a_state_in_float64() -> None:
    """As states were written before: rounded once, and from there on as ever."""
    x, y = stream()
    every = torch.ones_like(y, dtype=torch.bool)
    whole, other = teacher(), teacher()
    whole.test_then_train(x, y, every)
    state = whole.state_dict()
    other.load_state_dict(state | {name: state[name].double() for name in ("weights", "squares")})
    assert torch.equal(*(one.test_then_train(x, y, every) for one in (whole, other)))
    assert {other.state_dict()[name].dtype for name in ("weights", "squares")} == {torch.float32}
