"""Asynchronous successive halving (Li et al., 2020, arXiv:1810.05934): whether a trial that was read goes on.

    at a rung: goes on if its objective is not below the (1 − 1/reduction) percentile of those that were there before

The rule, its rungs and its percentile are those of Ray's ``ASHAScheduler``, so both engines end the same trials. Trial
0, the configuration as it stands, is never ended: all others are compared with it. Called by ``search.driver``.
"""

from collections.abc import Sequence

import numpy as np


class Halving:
    """The figures of the trials that came to each rung; ``rungs`` are records per seed, rising."""

    def __init__(self, rungs: Sequence[int], reduction: int, direction: str = "max") -> None:
        self._sign = 1.0 if direction == "max" else -1.0
        self._percentile = 100 * (1 - 1 / reduction)
        self._rungs: list[tuple[int, dict[int, float]]] = [(records, {}) for records in sorted(rungs, reverse=True)]

    def goes_on(self, number: int, records: int, value: float | None) -> bool:
        """Note a reading of a trial, and say whether the trial goes on; one without a figure does not."""
        for rung, figures in self._rungs:
            if records >= rung and number not in figures:
                return self._passes(number, figures, value) or number == 0
        return True

    def _passes(self, number: int, figures: dict[int, float], value: float | None) -> bool:
        if value is None:
            return False
        before, mine = list(figures.values()), self._sign * value
        figures[number] = mine
        return not before or mine >= float(np.percentile(before, self._percentile))
