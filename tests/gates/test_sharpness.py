"""How sharply a source is heard: the gradient against autograd, and a source that is calibrated afterwards."""

import numpy as np
import torch

from streamkd.gates.sharpness import RATE, Sharpness
from streamkd.gates.spread import spread

NAMES = ("a", "b")


def test_a_step_goes_by_the_gradient_of_the_likelihood() -> None:
    """By autograd in float64: each source for itself, each record as much as it counts."""
    draw = np.random.default_rng(0)
    said, labels, counts = draw.dirichlet(np.ones(4), (9, 2)), draw.integers(0, 4, 9), draw.random(9)
    one = Sharpness()
    one.learn(NAMES, said, labels, counts)
    exponents = torch.ones(2, dtype=torch.float64, requires_grad=True)
    logs = torch.from_numpy(np.log(spread(said))) * exponents[:, None]
    lost = -torch.log_softmax(logs, 2)[torch.arange(9), :, torch.from_numpy(labels)]
    (torch.from_numpy(counts) @ lost).sum().backward()
    np.testing.assert_allclose(one.of(NAMES), (1 - RATE * exponents.grad).numpy())


def test_it_finds_the_temperature() -> None:
    """Of a source that is twice as sure as it may be, and of one that is right."""
    draw = np.random.default_rng(1)
    true = draw.dirichlet(4 * np.ones(3), 4_000)
    labels = np.array([draw.choice(3, p=p) for p in true])
    sure = true**2 / (true**2).sum(1, keepdims=True)
    said = np.stack([sure, true], 1)
    one = Sharpness()
    for start in range(0, 4_000, 10):
        part = slice(start, start + 10)
        one.learn(NAMES, said[part], labels[part], np.ones(10))
    np.testing.assert_allclose(one.of(NAMES), [0.5, 1.0], rtol=0.2)


def test_who_is_new_is_heard_as_he_is() -> None:
    """And so is whoever comes back after he was away."""
    one = Sharpness()
    one.learn(NAMES, np.full((5, 2, 2), [0.9, 0.1]), np.ones(5, dtype=np.int64), np.ones(5))
    assert (one.of(NAMES) < 1).all()
    assert one.of(("c",)) == [1.0]


def test_what_is_not_finite_tells_nothing() -> None:
    """NaN from a source leaves every exponent finite, its own as it was."""
    said = np.full((4, 2, 2), 0.5)
    said[:, 0] = np.nan
    one = Sharpness()
    one.learn(NAMES, said, np.zeros(4, dtype=np.int64), np.ones(4))
    np.testing.assert_array_equal(one.of(NAMES), [1.0, 1.0])
