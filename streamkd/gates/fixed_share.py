"""Fixed share: how much of an answer each source has, by what it said of records before they were learned.

    m = Σ_k w_k p_k(y)                          the mixture, tested by each record
    w_k ∝ w_k · exp(η · (p_k(y) / m - 1))       exponentiated gradient of log m (Helmbold et al. 1998, equation 5)
    w_k ← (1 - α) · w_k + α / K                 fixed share (Herbster and Warmuth 1998, section 5)

Exponentiated gradient comes near the best mixture, where Bayes' rule would come near the best single source; the share
keeps everybody ready for a world that changes (mirror descent and fixed share are one: Cesa-Bianchi et al. 2012). How
fast to learn and how often the best one changes nobody knows: all of ``RATES`` x ``SHARES`` run side by side and are
themselves mixed by Bayes' rule, so that neither is set.

A class that does not come now is not contradicted, and may be asked for. So beside each record that comes the held-out
records of such classes are tested too, each class counting as much as one of those that come.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

RATES, SHARES = (0.02, 0.1, 0.5), (1e-4, 1e-3, 1e-2)  # decision 31
SWITCH = 1e-3  # share of the pairs of rate and share among each other
LEAST = 1e-3  # of each source's probability is spread evenly: one sure mistake must not end it
RECENT = 30  # records a class by which it is told whether a class comes now, if all came alike
FEW = 0.2  # of the records that a class would have then: below that it does not come now

NOBODY = np.zeros((0, 0)), np.zeros(0, dtype=np.int64)
"""No held-out records."""


class FixedShare:
    """Weights over named sources; they come and go, and whoever is new begins with an even share."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        pairs = [(rate, share) for rate in RATES for share in SHARES]
        self._rates, self._shares = (np.array(column)[:, None] for column in zip(*pairs, strict=True))
        self._table = np.zeros((len(pairs), 0))
        self._trust = np.full(len(pairs), 1 / len(pairs))
        self._recent = np.zeros(0)

    @property
    def weights(self) -> dict[str, float]:
        """Of each source; they sum to 1."""
        return dict(zip(self.names, (self._trust @ self._table).tolist(), strict=True))

    def mixed(self, names: Sequence[str], said: np.ndarray) -> np.ndarray:
        """The mixture of these sources' probabilities [n, sources, classes] as it is now; even shares at first."""
        known = self.weights or dict.fromkeys(names, 1 / len(names))
        return np.tensordot(np.array([known[name] for name in names]), said, (0, 1))

    def absent(self) -> np.ndarray:
        """[classes] which of the classes that have come do not come now."""
        seen = self._recent > 0
        return seen & (self._recent < FEW * self._recent.sum() / max(int(seen.sum()), 1))

    def test(
        self, names: Sequence[str], said: np.ndarray, labels: np.ndarray, held: np.ndarray, held_labels: np.ndarray
    ) -> np.ndarray:
        """The mixture's answers to records as they come, each by what those before it have told: [n, classes].

        ``said`` [n, sources, classes] are the sources' probabilities, ``labels`` [n] what was true (-1: not known, and
        nothing told). ``held`` [m, sources] is the probability of the true label on held-out records.
        """
        self._meet(tuple(names), said.shape[2])
        said = (1 - LEAST) * said + LEAST / said.shape[2]
        mixed = np.empty((len(said), said.shape[2]))
        for row, label in enumerate(labels.tolist()):
            mixed[row] = self._trust @ self._table @ said[row]
            if label >= 0:
                self._count(label)
                self._learn(said[row, :, label], *self._still_true(held, held_labels))
        return mixed

    def _meet(self, names: tuple[str, ...], classes: int) -> None:
        """Sources and classes as they are now."""
        self._recent = np.pad(self._recent, (0, max(0, classes - len(self._recent))))
        if names == self.names:
            return
        even = np.full((len(self._table), 1), 1 / len(names))
        columns = [self._table[:, [self.names.index(n)]] if n in self.names else even for n in names]
        self._table = np.hstack(columns)
        self._table /= self._table.sum(1, keepdims=True)
        self.names = names

    def _count(self, label: int) -> None:
        seen = int((self._recent > 0).sum())
        self._recent *= 1 - 1 / (RECENT * max(seen, 1))
        self._recent[label] += 1

    def _still_true(self, held: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities [m, sources] of the held-out records of absent classes, and what each counts beside one that
        comes: as many classes, as many times one of those that come.
        """
        absent = self.absent()
        away = absent[labels] if len(labels) else np.zeros(0, dtype=bool)
        rows, mine = held[away], labels[away]
        if not len(rows):
            return rows, np.zeros(0)
        present = int((self._recent > 0).sum()) - int(absent.sum())
        counts = np.bincount(mine, minlength=len(absent))
        return (1 - LEAST) * rows + LEAST / len(absent), 1 / (counts[mine] * max(present, 1))

    def _learn(self, told: np.ndarray, held: np.ndarray, counts: np.ndarray) -> None:
        """One step by the probabilities [sources] of a record's label, and those of the held-out ones beside it."""
        whole = 1 + counts.sum()
        m = self._table @ told
        slope, log = told / m[:, None], np.log(m)
        if len(held):
            each = self._table @ held.T
            slope, log = slope + (counts / each) @ held, log + np.log(each) @ counts
        self._table = self._table * np.exp(np.minimum(self._rates * (slope / whole - 1), 20.0))
        self._table /= self._table.sum(1, keepdims=True)
        self._table += self._shares * (1 / len(self.names) - self._table)
        trust = self._trust * np.exp((log - log.max()) / whole)
        self._trust = trust / trust.sum()
        self._trust += SWITCH * (1 / len(trust) - self._trust)

    def state_dict(self) -> dict[str, Any]:
        """What the next weights follow from."""
        arrays = {"table": self._table, "trust": self._trust, "recent": self._recent}
        return {"names": list(self.names), **{name: torch.from_numpy(array.copy()) for name, array in arrays.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.names = tuple(state["names"])
        self._table, self._trust, self._recent = (state[name].numpy().copy() for name in ("table", "trust", "recent"))
