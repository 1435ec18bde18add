"""Producers: how far the labels of each are wrong, by what everybody else says of his records before they are learned.

    e_j = Σ 1[answer ≠ label] - (1 - p(answer)),  n_j = Σ p(answer)        over the records of producer j; they fade
    x_j = e_j / (n_j + PSEUDO)                                            what is contradicted more than was to be
    noise_j = x_j - median(x) where that is beyond two standard errors    expected, beside the other producers

Who answers knows how sure he is, so that hard records of an honest producer cost him nothing; and a world that changes,
which contradicts everybody's answers, contradicts all producers alike. Of a producer's labels as many are withheld as
they are doubted (``streamkd.gates.label_noise.doubt``): the record stays, as one without label, and teaches, remembers
and measures nothing by it. One label in ten is always heard. Whoever alone brings what nobody knew is contradicted
until it has been learned from him, and then no more; a liar is contradicted for ever.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from streamkd.gates.label_noise import doubt

MOST = 32  # producers that are told apart; those that come later are one
OTHERS = ""
HALF_LIFE = 1_000  # records of a producer after which one counts half
PSEUDO = 10.0  # sure answers' worth of nothing found that each begins with: he is drawn to the others
ERRORS = 2.0  # standard errors that are an honest producer's by chance
HEARD = 0.1  # of a producer's labels, however wrong they are

Names = Sequence[str | None]


class Producers:
    """What is known of each, by name; a record that names nobody is nobody's."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._counts: dict[str, np.ndarray] = {}  # n, e, the variance of e, records

    @property
    def noise(self) -> dict[str, float]:
        """The part of each producer's labels that is wrong beyond what is wrong of all."""
        if not self._counts:
            return {}
        sure, excess, variance, _ = np.stack(list(self._counts.values())).T
        found, error = excess / (sure + PSEUDO), np.sqrt(variance + 1) / (sure + PSEUDO)
        usual = np.sort(found)[(len(found) - 1) // 2]
        beyond = np.where(found - usual > ERRORS * error, np.minimum(found - usual, 1.0), 0.0)
        return dict(zip(self._counts, beyond.tolist(), strict=True))

    @property
    def records(self) -> dict[str, int]:
        """How many labels of each were compared with answers."""
        return {name: int(counts[3]) for name, counts in self._counts.items()}

    def heard(self, names: Names, labels: np.ndarray, step: int) -> np.ndarray:
        """Labels [n] with those of doubted producers withheld (-1), as many as they are doubted; by seed and step."""
        noise = self.noise
        least = [1 - min(doubt(noise.get(self._name(name), 0.0)), 1 - HEARD) for name in names]
        drawn = np.random.default_rng([self._seed, step]).random(len(labels))
        return np.where(drawn < least, labels, -1)

    def learn(self, names: Names, labels: np.ndarray, said: np.ndarray) -> None:
        """By the answers [n, classes] to records of these labels [n] before they were learned; -1 is no label."""
        for name, label, answer in zip(names, labels.tolist(), said, strict=True):
            if label < 0 or name is None or not np.isfinite(answer).all():
                continue
            sure, given = float(answer.max()), int(answer.argmax())
            counts = self._counts.setdefault(self._name(name), np.zeros(4))
            counts[:3] *= 0.5 ** (1 / HALF_LIFE)
            counts += (sure, (given != label) - (1 - sure), sure * (1 - sure), 1)

    def _name(self, name: str | None) -> str:
        known = name in self._counts or len(self._counts) < MOST
        return name if known and name is not None else OTHERS

    def state_dict(self) -> dict[str, Any]:
        """The counts by name."""
        return {name: torch.from_numpy(counts.copy()) for name, counts in self._counts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._counts = {name: counts.numpy().copy() for name, counts in state.items()}
