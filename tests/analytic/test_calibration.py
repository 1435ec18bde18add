"""The trial: temperature and prior of the best likelihood, and when rows go worse than usual."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from streamkd.analytic.calibration import TEMPERATURES, Calibration


def rows(count: int, sure: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Labels drawn from what the logits over ``sure`` say, so that ``sure`` is how much too sure they are."""
    g = torch.Generator().manual_seed(seed)
    modest = 2 * torch.randn(count, 4, generator=g)
    return sure * modest, torch.multinomial(modest.softmax(1), 1, generator=g).squeeze(1)


ALL = torch.ones(4, dtype=torch.bool)
EVEN = torch.full((4,), 0.25).log()


def test_the_temperature_is_the_one_of_the_best_likelihood() -> None:
    """Logits sixteen times too sure are divided by sixteen; the likelihood by another temperature is less."""
    trial = Calibration()
    assert trial.best is None
    logits, y = rows(4_000, 16.0)
    trial.test(logits, y, ALL, EVEN)
    assert trial.best == (16.0, 0.0)
    assert min(TEMPERATURES, key=lambda t: float(F.cross_entropy(logits / t, y))) == 16.0


@pytest.mark.parametrize("rare", [0.25, 0.02])
def test_the_prior_counts_where_it_makes_labels_likelier(rare: float) -> None:
    """Rows of which one class is rare, by logits that know nothing of it; of equal classes it makes no difference."""
    logits, y = rows(8_000, 4.0)
    often = torch.tensor([rare, *[(1 - rare) / 3] * 3])
    kept = torch.rand(len(y), generator=torch.Generator().manual_seed(1)) < (often / often.max())[y]
    trial = Calibration()
    trial.test(logits[kept], y[kept], ALL, often.log())
    assert trial.best == (4.0, 1.0 if rare < 0.25 else 0.0)


def test_what_was_long_ago_counts_less() -> None:
    """After thousands of surer rows the temperature is theirs."""
    trial = Calibration()
    trial.test(*rows(4_000, 16.0), ALL, EVEN)
    trial.test(*rows(8_000, 64.0, seed=1), ALL, EVEN)
    assert trial.best == (64.0, 0.0)


def test_rows_that_go_clearly_worse_are_noticed() -> None:
    """As many right as usual is nothing to speak of, a tenth fewer is; without rows there is no test."""
    trial, (logits, y) = Calibration(), rows(2_000, 8.0)
    assert not trial.test(logits, y, ALL, EVEN)
    assert not trial.test(logits, y, ALL, EVEN)
    assert trial.test(logits[:100].flip(1), y[:100], ALL, EVEN)
    assert not trial.test(logits[:0], y[:0], ALL, EVEN)


def test_a_class_that_is_unknown_is_no_answer() -> None:
    """However high its logit is, it takes no row away."""
    known = torch.tensor([True, True, True, False])
    logits, y = rows(500, 1.0)
    logits, y = logits[y < 3], y[y < 3]
    logits[:, 3] = 100.0
    ours, theirs = Calibration(), Calibration()
    ours.test(logits, y, known, EVEN)
    theirs.test(logits[:, :3], y, known[:3], EVEN[:3])
    # sums over four columns, one of them nothing, and over three: rounded as each width is
    torch.testing.assert_close(ours.state_dict()["surprise"], theirs.state_dict()["surprise"])
    assert ours.state_dict()["right"] == theirs.state_dict()["right"]


def test_a_state_goes_on_bit_for_bit() -> None:
    """Carried over between two tests it gives the state of one that was not."""
    one, other = Calibration(), Calibration()
    one.test(*rows(300, 4.0), ALL, EVEN)
    other.load_state_dict(one.state_dict())
    for each in (one, other):
        each.test(*rows(300, 4.0, seed=1), ALL, EVEN)
    assert torch.equal(one.state_dict()["surprise"], other.state_dict()["surprise"])
    assert one.state_dict()["right"] == other.state_dict()["right"]


def test_a_state_from_before_the_prior_goes_on() -> None:
    """What temperatures were worth to equally likely classes is taken for either."""
    one, other = Calibration(), Calibration()
    one.test(*rows(4_000, 16.0), ALL, EVEN)
    state = one.state_dict()
    other.load_state_dict({**state, "surprise": state["surprise"][0].clone()})
    assert other.best == (16.0, 0.0)
