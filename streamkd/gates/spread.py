"""Probabilities that nothing can contradict for ever."""

import numpy as np

LEAST = 1e-3  # of each source's probability is spread evenly: one sure mistake must not end it


def spread(said: np.ndarray) -> np.ndarray:
    """Probabilities [..., classes] with a least part for every class; what is not finite is no answer, and even."""
    classes = said.shape[-1]
    fine = np.isfinite(said).all(-1, keepdims=True)
    return (1 - LEAST) * np.where(fine, said, 1 / classes) + LEAST / classes
