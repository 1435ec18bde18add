"""Fidelity: agreement and divergence against torch, their limits, and teachers that know fewer classes."""

import numpy as np
import pytest
import torch

from streamkd.evaluate.fidelity import agreement, kl


def _rows(seed: int, records: int = 200, classes: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(classes), records)


def test_kl_is_torchs_with_the_teacher_as_target() -> None:
    """KL(teacher ‖ student), batch mean, in float64; not the other way round."""
    student, teacher = _rows(1), _rows(2)
    expected = torch.nn.functional.kl_div(
        torch.from_numpy(student).log(), torch.from_numpy(teacher), reduction="batchmean"
    )
    assert kl(student, teacher) == pytest.approx(float(expected), rel=1e-9)
    assert kl(student, teacher) != pytest.approx(kl(teacher, student), rel=1e-3)


def test_a_student_that_is_its_teacher_agrees_fully() -> None:
    """Agreement 1 and divergence 0 for equal rows."""
    assert agreement(_rows(1), _rows(1)) == 1.0
    assert kl(_rows(1), _rows(1)) == pytest.approx(0.0, abs=1e-12)


def test_divergence_is_finite_where_the_student_is_certain_and_wrong() -> None:
    """A zero in the student's row does not make the figure infinite; one in the teacher's adds nothing."""
    assert 20 < kl(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])) < 30
    assert kl(np.array([[0.5, 0.5]]), np.array([[1.0, 0.0]])) == pytest.approx(np.log(2))


def test_unknown_classes_are_left_out() -> None:
    """A mask of known classes is the same as dropping the columns and renormalising."""
    student, teacher = _rows(3), _rows(4)
    known = np.array([True, False, True, True, False, True])
    teacher = teacher * known / (teacher * known).sum(1, keepdims=True)
    dropped = student[:, known] / student[:, known].sum(1, keepdims=True)
    assert kl(student, teacher, known) == pytest.approx(kl(dropped, teacher[:, known]), rel=1e-12)
    assert agreement(student, teacher, known) == agreement(dropped, teacher[:, known])


def test_a_student_without_mass_on_the_known_classes_is_uniform_there() -> None:
    """No division by zero."""
    student, teacher = np.array([[0.0, 0.0, 1.0]]), np.array([[1.0, 0.0, 0.0]])
    assert kl(student, teacher, np.array([True, True, False])) == pytest.approx(np.log(2))


def test_permuting_the_classes_of_both_changes_nothing() -> None:
    """Neither figure depends on the order of the classes."""
    order = np.random.default_rng(5).permutation(6)
    student, teacher = _rows(6), _rows(7)
    assert kl(student[:, order], teacher[:, order]) == pytest.approx(kl(student, teacher))
    assert agreement(student[:, order], teacher[:, order]) == agreement(student, teacher)


def test_rows_of_other_shape_are_refused() -> None:
    """Both shapes are named."""
    with pytest.raises(ValueError, match=r"\(200, 6\) and \(200, 5\)"):
        kl(_rows(1), _rows(1, classes=5))
    with pytest.raises(ValueError, match="mask of 6 classes"):
        agreement(_rows(1), _rows(2), np.zeros(6, bool))
