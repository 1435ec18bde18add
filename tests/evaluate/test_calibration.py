"""Calibration: the paper's sums as loops, the limits, and inputs that are no probabilities."""

import math

import numpy as np
import pytest
import torch

from streamkd.evaluate.calibration import ece, nll, reliability


def _sample(seed: int, records: int = 500, classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    dice = np.random.default_rng(seed)
    return dice.dirichlet(np.full(classes, 0.3), records), dice.integers(0, classes, records)


def _loop_ece(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> float:
    """Guo et al. 2017, equation 3, with B_m the records whose confidence lies in ((m-1)/M, m/M]."""
    total = 0.0
    for m in range(1, bins + 1):
        members = [i for i, row in enumerate(probabilities) if (m - 1) / bins < max(row) <= m / bins]
        if members:
            accuracy = sum(int(np.argmax(probabilities[i])) == labels[i] for i in members) / len(members)
            confidence = sum(max(probabilities[i]) for i in members) / len(members)
            total += len(members) / len(labels) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("bins", [1, 5, 15])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ece_is_the_papers_sum(seed: int, bins: int) -> None:
    """Vectorised and looped agree in float64."""
    probabilities, labels = _sample(seed)
    assert ece(probabilities, labels, bins) == pytest.approx(_loop_ece(probabilities, labels, bins), abs=1e-12)


def test_ece_of_a_calibrated_model_is_zero() -> None:
    """Confidence 0.75 and three of four right: no error."""
    probabilities = np.tile([0.75, 0.25], (4, 1))
    assert ece(probabilities, np.array([0, 0, 0, 1])) == pytest.approx(0.0, abs=1e-12)


def test_ece_of_certain_mistakes_is_one() -> None:
    """Always certain and always wrong is the largest error."""
    assert ece(np.tile([1.0, 0.0], (5, 1)), np.ones(5, int)) == 1.0


def test_ece_does_not_depend_on_the_order() -> None:
    """Permuting the records changes nothing."""
    probabilities, labels = _sample(4)
    order = np.random.default_rng(0).permutation(len(labels))
    assert ece(probabilities[order], labels[order]) == pytest.approx(ece(probabilities, labels), abs=1e-12)


def test_the_diagram_holds_every_record_once() -> None:
    """Bins do not overlap, and confidence 1 is in the last one."""
    probabilities, labels = _sample(5)
    probabilities[0] = np.eye(7)[0]
    bins = reliability(probabilities, labels, 10)
    assert sum(one.records for one in bins) == len(labels)
    assert all(one.low < one.confidence <= one.high + 1e-12 for one in bins)
    assert bins[-1].high == 1.0


def test_nll_is_torchs_cross_entropy() -> None:
    """Against torch on the logarithms, in float64."""
    probabilities, labels = _sample(6)
    expected = torch.nn.functional.nll_loss(torch.from_numpy(probabilities).log(), torch.from_numpy(labels))
    assert nll(probabilities, labels) == pytest.approx(float(expected), rel=1e-9)


def test_nll_of_uniform_guessing_is_the_logarithm_of_the_classes() -> None:
    """The limit of a model that knows nothing."""
    assert nll(np.full((9, 5), 0.2), np.arange(9) % 5) == pytest.approx(math.log(5))


def test_a_label_that_the_model_does_not_know_counts_as_wrong_and_stays_finite() -> None:
    """Position -1 has probability 0: the largest loss, and accuracy 0 in the diagram."""
    certain = np.array([[1.0, 0.0]])
    assert nll(certain, np.array([-1])) == pytest.approx(-math.log(1e-12))
    assert ece(certain, np.array([-1])) == 1.0


@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [
        (np.ones((2, 2)), np.zeros(2, int)),
        (np.full((2, 2), np.nan), np.zeros(2, int)),
        (np.full((2, 2), 0.5), np.array([0, 2])),
        (np.full((2, 2), 0.5), np.zeros(3, int)),
        (np.zeros((0, 2)), np.zeros(0, int)),
    ],
)
def test_what_are_no_probabilities_is_refused(probabilities: np.ndarray, labels: np.ndarray) -> None:
    """Logits, NaN, positions past the classes, other lengths and nothing at all are errors, not figures."""
    with pytest.raises(ValueError, match="needed"):
        nll(probabilities, labels)
