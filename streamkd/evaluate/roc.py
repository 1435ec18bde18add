"""Area under the ROC curve of a class against the rest: how often one of it has a higher score than one that is not.

    scores ─► counts at each distinct score, or in each bin of log odds ─► area, and by how much it may be off

The area is P(s+ > s-) + P(s+ = s-) / 2 over all pairs (Mann and Whitney 1947). A histogram takes pairs within a bin
for equal, so it is off by at most half of their share: 0 where each distinct score has a bin of its own. Pure
functions; called by ``streamkd.evaluate.measures``.
"""

import numpy as np

BINS = 512
REACH = 16.0  # log odds of the outermost bins, 1.1e-7 from certain; a bin is 1/16 wide


def bins_of(probabilities: np.ndarray) -> np.ndarray:
    """The bin of each probability, 0 to ``BINS`` - 1 by its log odds; any shape."""
    clipped = np.clip(probabilities, 1e-15, 1 - 1e-15)
    odds = np.log(clipped) - np.log1p(-clipped)
    return np.clip((odds + REACH) * (BINS / (2 * REACH)), 0, BINS - 1).astype(np.int64)


def of_counts(positives: np.ndarray, negatives: np.ndarray) -> tuple[float, float] | None:
    """Area and the most that it may be off, of counts [bins] by rising score; ``None`` where a side has no record."""
    pairs = float(positives.sum()) * float(negatives.sum())
    if not pairs:
        return None
    up, below = positives.astype(np.float64), negatives.astype(np.float64)
    equal = (up * below).sum() / 2
    return float(((up * (below.cumsum() - below)).sum() + equal) / pairs), float(equal / pairs)


def exact(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float] | None:
    """The same of scores [records] and which of them are positive [records]: nothing is off."""
    distinct, place = np.unique(scores, return_inverse=True)
    counts = np.bincount(2 * place + positive, minlength=2 * len(distinct)).reshape(-1, 2)
    area = of_counts(counts[:, 1], counts[:, 0])
    return area and (area[0], 0.0)
