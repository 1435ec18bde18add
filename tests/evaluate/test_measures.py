"""Measures: each equals scikit-learn's on the same predictions, over the window and over all, however they come."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from streamkd.evaluate import calibration
from streamkd.evaluate.measures import Measures, of_tests
from streamkd.state.tree import pack, unpack

WINDOW = 300


def stream(classes: int, records: int, seed: int = 0, rare: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities that know something of them; ``rare``: the share of class 1 of two."""
    dice = np.random.default_rng(seed)
    shares = [1 - rare, rare] if rare is not None else dice.dirichlet(np.full(classes, 3))
    labels = dice.choice(classes, records, p=shares)
    logits = dice.normal(0, 1.5, (records, classes)) + 2 * np.eye(classes)[labels] + np.log(shares)
    rows = np.exp(logits)
    return labels, rows / rows.sum(1, keepdims=True)


def fed(labels: np.ndarray, rows: np.ndarray, *, batch: int = 10, whole: Measures | None = None) -> Measures:
    """Measures that were told so many records at once."""
    found = whole or Measures(WINDOW)
    for at in range(0, len(labels), batch):
        part = slice(at, at + batch)
        found.add(labels[part], rows[part].argmax(1), rows[part])
    return found


def theirs(labels: np.ndarray, rows: np.ndarray) -> dict[str, float | None]:
    """scikit-learn's, and the papers' formulas where it has none."""
    said = rows.argmax(1)
    right = float((said == labels).mean())
    share = float(np.bincount(labels).max() / len(labels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "accuracy": metrics.accuracy_score(labels, said),
            "balanced_accuracy": metrics.balanced_accuracy_score(labels, said),
            "macro_f1": metrics.f1_score(labels, said, average="macro"),
            "kappa": metrics.cohen_kappa_score(labels, said),
            "kappa_m": (right - share) / (1 - share) if share < 1 else None,
            "log_loss": metrics.log_loss(labels, rows, labels=range(rows.shape[1])),
            "calibration_error": calibration.ece(rows, labels),
        }


@pytest.mark.parametrize(("classes", "rare"), [(2, 0.01), (2, None), (7, None), (80, None)])
def test_every_measure_is_scikit_learns(classes: int, rare: float | None) -> None:
    """Over the newest records and over all, to rounding."""
    labels, rows = stream(classes, 2_000, rare=rare)
    found = fed(labels, rows).figures(range(classes))
    for which, part in (("newest", slice(-WINDOW, None)), ("all", slice(None))):
        for name, expected in theirs(labels[part], rows[part]).items():
            assert found[which][name] == pytest.approx(expected, abs=1e-12), (which, name)


@pytest.mark.parametrize(("classes", "rare"), [(2, 0.05), (7, None)])
def test_recall_precision_and_f1_of_each_class_are_scikit_learns(classes: int, rare: float | None) -> None:
    """And so is the confusion matrix, row by row."""
    labels, rows = stream(classes, 2_000, rare=rare)
    said = rows.argmax(1)
    recall, precision = (
        score(labels, said, average=None, zero_division=0) for score in (metrics.recall_score, metrics.precision_score)
    )
    f1 = metrics.f1_score(labels, said, average=None, zero_division=0)
    confusion = metrics.confusion_matrix(labels, said)
    found = fed(labels, rows).figures(range(classes))["all"]["classes"]
    assert [one["records"] for one in found] == sorted(np.bincount(labels), reverse=True)
    for one in found:
        c = int(one["label"])
        assert (one["recall"], one["precision"] or 0.0) == pytest.approx((recall[c], precision[c]), abs=1e-12)
        assert one["f1"] == pytest.approx(f1[c], abs=1e-12)
        assert [one["answered"][str(other)] for other in range(classes)] == confusion[c].tolist()
        assert one["answered_others"] == 0


@pytest.mark.parametrize(("classes", "rare"), [(2, 0.02), (7, None)])
def test_the_area_is_exact_over_the_window_and_within_its_bound_over_all(classes: int, rare: float | None) -> None:
    """One class against the rest, ties (probabilities of three digits) counted half, as scikit-learn does."""
    labels, rows = stream(classes, 3_000, rare=rare)
    rows = np.round(rows, 3)
    found = fed(labels, rows).figures(range(classes))
    for which, part in (("newest", slice(-WINDOW, None)), ("all", slice(None))):
        each = {
            str(c): metrics.roc_auc_score(labels[part] == c, rows[part, c])
            for c in range(classes)
            if 0 < (labels[part] == c).sum() < len(labels[part])
        }
        bound = found[which]["auc_error"]
        assert bound == 0.0 if which == "newest" else 0.0 < bound < 0.03
        assert found[which]["auc"] == pytest.approx(np.mean([*each.values()]), abs=bound + 1e-12)
        if which == "newest":
            told = {one["label"]: one["auc"] for one in found[which]["classes"] if one["auc"] is not None}
            assert told == pytest.approx(each, abs=1e-12)


def test_kappa_against_no_change_takes_the_label_before() -> None:
    """(p - q) / (1 - q), q the part of the labels that are those before them; the first has none before it."""
    labels = np.array([0, 0, 0, 1, 1, 0, 0, 0])
    said = np.array([0, 0, 0, 0, 1, 0, 0, 1])
    found = Measures(4)
    found.add(labels, said)
    whole, newest = (found.figures("ab")[which] for which in ("all", "newest"))
    assert whole["kappa_temporal"] == pytest.approx((6 / 8 - 5 / 8) / (1 - 5 / 8))
    assert newest["kappa_temporal"] == pytest.approx((3 / 4 - 3 / 4 + 0.0) / (1 - 3 / 4)) == 0.0


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(0, 40))
def test_records_are_counted_alike_however_they_come(sizes: list[int], stop: int) -> None:
    """In any batches, asked in between, stopped at any batch and resumed through a checkpoint: the same bits."""
    labels, rows = stream(3, sum(sizes))
    found, at = Measures(WINDOW), 0
    for number, size in enumerate(sizes):
        fed(labels[at : at + size], rows[at : at + size], batch=size, whole=found)
        at += size
        if number == stop:
            resumed = Measures(WINDOW)
            resumed.load_state_dict(unpack(pack(found.state_dict())))
            found = resumed
    assert bits(found) == bits(fed(labels, rows, batch=len(labels)))


def bits(found: Measures) -> dict[str, Any]:
    """All of a state as bytes."""
    state = found.state_dict()
    return {f"{part}.{name}": t.numpy().tobytes() for part in state for name, t in state[part].items()}


def test_a_class_that_comes_later_had_no_probability_before() -> None:
    """Batches of two classes, then of three: as if the third had had the probability 0 from the start."""
    labels, rows = stream(3, 1_000)
    early = labels[:400] % 2
    first = rows[:400, :2] / rows[:400, :2].sum(1, keepdims=True)
    found = fed(early, first)
    fed(labels[400:], rows[400:], whole=found)
    whole = fed(np.concatenate([early, labels[400:]]), np.concatenate([np.pad(first, ((0, 0), (0, 1))), rows[400:]]))
    assert found.figures("abc") == whole.figures("abc")


def test_without_probabilities_what_needs_them_is_not_told() -> None:
    """Answers that were given earlier, some with probabilities: areas and log-loss are of those alone."""
    labels, rows = stream(2, 100, rare=0.3)
    found = Measures(WINDOW)
    found.add(labels[:60], rows[:60].argmax(1))
    assert found.figures("ab")["all"]["auc"] is found.figures("ab")["all"]["log_loss"] is None
    found.add(labels[60:], rows[60:].argmax(1), rows[60:])
    told = found.figures("ab")["all"]
    assert told["records"] == 100
    assert told["accuracy"] == pytest.approx((rows.argmax(1) == labels).mean())
    assert told["auc"] == pytest.approx(metrics.roc_auc_score(labels[60:], rows[60:, 1]))
    assert told["log_loss"] == pytest.approx(metrics.log_loss(labels[60:], rows[60:]))


def test_of_nothing_nothing_is_told() -> None:
    """No record, or none with a label: no accuracy, and no figure beside the count."""
    found = Measures(WINDOW)
    found.add(np.array([-1, -1]), np.array([0, 1]), np.full((2, 2), 0.5))
    assert (found.accuracy, found.overall, found.records) == (None, None, 0)
    assert found.figures([]) == {"newest": {"records": 0}, "all": {"records": 0}}


def test_one_class_has_no_kappa_and_no_area() -> None:
    """What is always right, and what has nobody to compare with, is no number."""
    found = Measures(WINDOW)
    found.add(np.zeros(5, np.int64), np.zeros(5, np.int64), np.ones((5, 1)))
    told = found.figures("a")["all"]
    assert (told["kappa_m"], told["auc"], told["kappa"]) == (None, None, None)
    assert (told["accuracy"], told["log_loss"]) == (1.0, 0.0)


def test_a_thousand_classes_take_bounded_room() -> None:
    """After ten thousand records the state is as large as after five thousand, under a megabyte and a half."""
    labels, rows = stream(1_000, 10_000)
    labels[:1_000] = np.arange(1_000)
    found = fed(labels[:5_000], rows[:5_000], batch=500)
    half = room(found)
    assert room(fed(labels[5_000:], rows[5_000:], batch=500, whole=found)) == half < 1.5e6
    assert len(found.figures(range(1_000))["all"]["classes"]) == 20


def room(found: Measures) -> int:
    """Bytes of its state."""
    return sum(tensor.nbytes for part in found.state_dict().values() for tensor in part.values())


def test_test_records_have_the_same_measures_without_an_order() -> None:
    """A label that the model does not know is wrong in each of them, and the area is exact."""
    labels, rows = stream(3, 2_000)
    labels = np.where(np.arange(2_000) % 50 == 0, 3, labels)
    found = of_tests("abcd", labels, rows)
    padded = np.pad(rows, ((0, 0), (0, 1)))
    assert "kappa_temporal" not in found
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(labels, rows.argmax(1)))
    areas = [metrics.roc_auc_score(labels == c, padded[:, c]) for c in range(4)]
    assert found["auc"] == pytest.approx(np.mean(areas), abs=1e-12)
    assert math.isclose(found["log_loss"], calibration.nll(rows, np.where(labels == 3, -1, labels)))
    assert torch.is_tensor(Measures(1).state_dict()["ever"]["surprise"])
