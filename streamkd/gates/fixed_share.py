"""Fixed share: how much of an answer each source has, by what it said of records before they were learned.

    m = Σ_k w_k p_k(y)                          the mixture, tested by each record
    w_k ∝ w_k · exp(η · (p_k(y) / m - 1))       exponentiated gradient of log m (Helmbold et al. 1998, equation 5)
    w_k ← (1 - α) · w_k + α / K                 fixed share (Herbster and Warmuth 1998, section 5)

Exponentiated gradient comes near the best mixture, where Bayes' rule would come near the best single source; the share
keeps everybody ready for a world that changes (mirror descent and fixed share are one: Cesa-Bianchi et al. 2012). How
fast to learn and how often the best one changes nobody knows: all of ``RATES`` x ``SHARES`` run side by side and are
themselves mixed by Bayes' rule, so that neither is set.

What does not come now, a class or a domain, is not contradicted, and may be asked for. So beside each record that comes
the held-out records that are unlike it are tested too, together as much as they are more than those that are like it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from streamkd.gates.presence import Presence, of_labels
from streamkd.gates.spread import LEAST, spread

RATES, SHARES = (0.02, 0.1, 0.5), (1e-4, 1e-3, 1e-2)  # decision 31
PAIRS = [(rate, share) for rate in RATES for share in SHARES]
SWITCH = 1e-3  # share of the pairs of rate and share among each other
MOST = 10  # times as much as a record that comes count the held-out ones, at most
NOBODY = np.zeros((0, 0)), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool)
"""No held-out records."""
NOTHING = np.zeros(0)
LESSONS = 40  # in which a batch is learned record by record, at most; decision 41


def at_once(records: int) -> int:
    """How many records of a batch tell their lesson together: one, and of larger batches a fortieth."""
    return max(1, -(-records // LESSONS))


class FixedShare:
    """Weights over named sources; they come and go, and whoever is new begins with an even share."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self._rates, self._shares = (np.array(column)[:, None] for column in zip(*PAIRS, strict=True))
        self._kept = 1 - self._shares
        self._table = np.zeros((len(PAIRS), 0))
        self._trust = np.full(len(PAIRS), 1 / len(PAIRS))
        self.presence = Presence()

    @property
    def weights(self) -> dict[str, float]:
        """Of each source; they sum to 1."""
        return dict(zip(self.names, (self._trust @ self._table).tolist(), strict=True))

    def mixed(self, names: Sequence[str], said: np.ndarray) -> np.ndarray:
        """The mixture of these sources' probabilities [n, sources, classes] as it is now; even shares at first."""
        known = self.weights or dict.fromkeys(names, 1.0)
        weights = np.array([known[name] for name in names])
        return np.tensordot(weights / weights.sum(), spread(said), (0, 1))

    def each(self, names: Sequence[str], said: np.ndarray) -> np.ndarray:
        """The same of each pair of rate and share [n, pairs, classes]; even shares at first."""
        places = [self.names.index(name) for name in names if self.names]
        table = self._table[:, places] if places else np.ones((len(PAIRS), len(names)))
        return np.einsum("ps,nsc->npc", table / table.sum(1, keepdims=True), spread(said))

    def test(
        self,
        names: Sequence[str],
        said: np.ndarray,
        labels: np.ndarray,
        held: np.ndarray,
        held_labels: np.ndarray,
        away: np.ndarray,
        then: np.ndarray | None = None,
    ) -> np.ndarray:
        """The mixture's answers to records as they come, each by what those before it have told: [n, classes].

        ``said`` [n, sources, classes] are the sources' probabilities, ``labels`` [n] what was true (-1: not known, and
        nothing told). ``held`` [m, sources] is the probability of the true label on held-out records, ``away`` [m]
        which of them are unlike what comes now. ``then`` [n, pairs, classes] is what ``each`` gave when the records
        came, where that was earlier than now: a rate is worth what it had answered by then.
        """
        self._meet(tuple(names))
        said = spread(said)
        held = (1 - LEAST) * np.nan_to_num(held) + LEAST / said.shape[2]
        weights, beside, known = np.empty(said.shape[:2]), (held[:0], NOTHING), b""
        columns, every = labels.tolist(), np.arange(len(labels))
        true, gave = said[every, :, labels], None if then is None else then[every, :, labels]
        block = at_once(len(labels))
        for begin in range(0, len(labels), block):
            rows = slice(begin, begin + block)
            weights[rows] = self._trust @ self._table
            told = [place for place, label in enumerate(columns[rows], begin) if label >= 0]
            for place in told:
                self.presence.see(columns[place])
            if not told:
                continue
            if len(held) and (now := self.presence.told()) != known:
                known, beside = now, self._beside(held, held_labels, away)
            self._learn(true[told], None if gave is None else gave[told], *beside)
        return np.einsum("nk,nkc->nc", weights, said)

    def _meet(self, names: tuple[str, ...]) -> None:
        """The sources as they are now."""
        if names == self.names:
            return
        even = np.full((len(self._table), 1), 1 / len(names))
        columns = [self._table[:, [self.names.index(n)]] if n in self.names else even for n in names]
        self._table = np.hstack(columns)
        self._table /= self._table.sum(1, keepdims=True)
        self.names = names

    def still_true(self, labels: np.ndarray, away: np.ndarray) -> tuple[np.ndarray, float]:
        """Which of the held-out records of these labels do not come now [m], and what each counts beside one that does.

        Together as much as they are more than the others. Records of a rare class that comes as it ever did are unlike
        the recent ones because hardly any of these are of it: what comes tests them.
        """
        absent, rare = (of_labels(which, labels) for which in (self.presence.absent(), self.presence.rare()))
        away = (away & ~rare) | absent
        return away, 1 / max(len(labels) - int(away.sum()), len(labels) / MOST, 1)

    def _beside(self, held: np.ndarray, labels: np.ndarray, away: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities [m, sources] of the held-out records that do not come now, and what each counts."""
        away, each = self.still_true(labels, away)
        return held[away], np.full(int(away.sum()), each)

    def _learn(self, told: np.ndarray, gave: np.ndarray | None, held: np.ndarray, counts: np.ndarray) -> None:
        """One step by the probabilities [n, sources] of records' labels, and those of the held-out ones beside each.

        ``gave`` [n, pairs] is what the pairs gave the labels, ``None``: as they would now.
        """
        table, n = self._table, len(told)
        m = told @ table.T
        slope, log = (1 / m).T @ told, np.log(m if gave is None else gave).sum(0)
        if len(held):
            whole = 1 + counts.sum()  # one step a record: what stands beside it is the same each time
            each = table @ held.T
            slope = (slope + n * ((counts / each) @ held)) / whole
            log = (log + n * (np.log(each) @ counts)) / whole
        table *= np.exp(np.minimum(self._rates * slope, 20.0))
        table /= np.add.reduce(table, 1, keepdims=True)
        kept = self._kept**n
        table *= kept
        table += (1 - kept) / len(self.names)
        trust, switched = self._trust * np.exp(log - log.max()), 1 - (1 - SWITCH) ** n
        self._trust = trust * ((1 - switched) / np.add.reduce(trust)) + switched / len(trust)

    def state_dict(self) -> dict[str, Any]:
        """What the next weights follow from."""
        arrays = {"table": torch.from_numpy(self._table.copy()), "trust": torch.from_numpy(self._trust.copy())}
        return {"names": list(self.names), "presence": self.presence.state_dict(), **arrays}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.names = tuple(state["names"])
        self._table, self._trust = (state[name].numpy().copy() for name in ("table", "trust"))
        self.presence.load_state_dict(state["presence"])
