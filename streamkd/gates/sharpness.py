"""How sharply each source is heard: an exponent for each, which follows what comes true.

    p_k ← p_k^{a_k} / Σ p_k^{a_k}                      1 / a_k is a temperature (Guo et al. 2017, section 4.2)
    a_k ← a_k - η · (Σ_c p_k(c) log p_k(c) - log p_k(y))   gradient of -log p_k(y), record by record

Who is surer than he is right would outvote who is right and modest: a likelihood weighs both, a sum of probabilities
goes by the first. With exponents of their own all are as sure as they may be.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streamkd.gates.spread import spread

RATE = 0.02  # η; decision 31
LEAST, MOST = 0.05, 20.0  # whoever is wrong for long is not turned round


class Sharpness:
    """Exponents over named sources; who is new begins as he is."""

    def __init__(self) -> None:
        self._exponents: dict[str, float] = {}

    def of(self, names: Sequence[str]) -> np.ndarray:
        """The exponents [sources]."""
        return np.array([self._exponents.get(name, 1.0) for name in names])

    def heard(self, names: Sequence[str], said: np.ndarray) -> np.ndarray:
        """These sources' probabilities [..., sources, classes] as sharply as each may be heard."""
        return _softmax(self.of(names)[:, None] * np.log(spread(said)))

    def learn(self, names: Sequence[str], said: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> None:
        """One step by probabilities [n, sources, classes] of records of these labels [n], each counting so much [n]."""
        logs, exponents = np.log(spread(said)), self.of(names)
        heard = _softmax(exponents[:, None] * logs)
        slope = (heard * logs).sum(2) - logs[np.arange(len(labels)), :, labels]
        exponents = np.clip(exponents - RATE * (counts @ slope), LEAST, MOST)
        self._exponents = dict(zip(names, exponents.tolist(), strict=True))

    def state_dict(self) -> dict[str, float]:
        """By source."""
        return dict(self._exponents)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._exponents = dict(state)


def _softmax(z: np.ndarray) -> np.ndarray:
    raised = np.exp(z - z.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)
