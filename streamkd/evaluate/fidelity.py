"""How closely the student follows a teacher, on records that neither was trained on.

Pure functions of probabilities [records, classes]; a teacher that knows fewer classes is compared on those,
with both rows renormalised. Called by ``streamkd.evaluate.report`` (Stanton et al. 2021 on why accuracy
does not say this).
"""

import numpy as np

SMALLEST = 1e-12


def agreement(student: np.ndarray, teacher: np.ndarray, known: np.ndarray | None = None) -> float:
    """Share of records on which both put the same class first (top-1 agreement), 0 to 1.

    Args:
        known: mask [classes] of the classes that the teacher knows; all where it is ``None``.
    """
    ours, theirs = _restricted(student, teacher, known)
    return float(np.mean(ours.argmax(axis=1) == theirs.argmax(axis=1)))


def kl(student: np.ndarray, teacher: np.ndarray, known: np.ndarray | None = None) -> float:
    """Mean ``KL(teacher ‖ student) = Σ_c t_c (log t_c - log s_c)`` in nats; 0 where they are equal, never negative."""
    ours, theirs = _restricted(student, teacher, known)
    logs = np.log(np.maximum(theirs, SMALLEST)) - np.log(np.maximum(ours, SMALLEST))
    return max(0.0, float(np.mean((theirs * logs).sum(axis=1))))


def _restricted(student: np.ndarray, teacher: np.ndarray, known: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    ours, theirs = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    if ours.shape != theirs.shape or ours.ndim != 2 or not ours.size:
        raise ValueError(f"needed two of [records, classes], got {ours.shape} and {theirs.shape}")
    if known is None:
        return ours, theirs
    if np.shape(known) != (ours.shape[1],) or not np.any(known):
        raise ValueError(f"needed a mask of {ours.shape[1]} classes with one at least, got {np.asarray(known)}")
    return _renormalised(ours[:, known]), _renormalised(theirs[:, known])


def _renormalised(rows: np.ndarray) -> np.ndarray:
    """Rows that sum to 1; one without any mass becomes uniform."""
    total = rows.sum(axis=1, keepdims=True)
    return np.where(total > 0, rows / np.maximum(total, SMALLEST**2), 1.0 / rows.shape[1])
