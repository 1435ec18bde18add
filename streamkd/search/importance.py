"""How much each parameter decides how far a trial gets.

    trials ─► their order (farther first, then the higher objective) ─► y in 0..1
    many:  random forest on all parameters: its R² on trials that it has not seen, parted among them by how much of it
           is lost where one is shuffled
    few:   each parameter alone: its share of the variance of y (Spearman's ρ², or η² of a choice), less what chance
           would explain

Pruned trials count, by their place in the order: the scheduler compared them with the others where it ended them.
Importance is of the values that were tried, around those that were tried most. Called by ``streamkd.search.page``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamkd.search.ledger import TrialRecord

FEW = 30  # trials below which a forest learns mostly its own noise
LEAST = 5  # trials below which nothing is said
_FOLDS, _REPEATS, _TREES = 3, 5, 100


@dataclass(frozen=True, slots=True)
class Importance:
    """Shares of the variance of the order by path, highest first; ``None`` where a parameter hardly varied.

    ``explained``: what the forest knows of trials that it has not seen (0: nothing); ``None`` where it was not asked.
    ``chance``: the share that one in twenty parameters reaches that decide nothing, where each is measured alone.
    """

    shares: dict[str, float | None]
    method: str
    trials: int
    explained: float | None = None
    chance: float | None = None


def importance(trials: Sequence[TrialRecord], objective: str, direction: str = "max") -> Importance:
    """The importance of every parameter that any trial was given; the same trials give the same numbers."""
    judged = [one for one in trials if one.state in ("finished", "pruned") and one.objective(objective) is not None]
    paths = list(dict.fromkeys(path for one in judged for path in one.latest))
    if len(judged) < LEAST:
        return Importance(dict.fromkeys(paths), "too few trials", len(judged))
    y = order(judged, objective, direction)
    columns = {path: _column([one.latest.get(path) for one in judged]) for path in paths}
    if len(judged) < FEW or not paths:
        shares = {path: _alone(column, y) for path, column in columns.items()}
        return Importance(_sorted(shares), "rank correlation", len(judged), chance=_chance(len(judged)))
    shares, explained = _forest(columns, y)
    return Importance(_sorted(shares), "permutation importance", len(judged), explained)


def _chance(count: int) -> float:
    """Of ρ², less what chance explains on average, where ρ is 1.96 / √(n − 1), its 5 % bound without any relation."""
    return min(1.0, (1.96**2 - 1) / (count - 2))


def order(trials: Sequence[TrialRecord], objective: str, direction: str = "max") -> np.ndarray:
    """The place of each trial among all, 1 the best and 0 the last; equal ones share the mean of their places."""
    sign = 1.0 if direction == "max" else -1.0
    keys = [(one.records, sign * (one.objective(objective) or 0.0)) for one in trials]
    places = {key: place for place, key in enumerate(sorted(set(keys)))}
    return _ranks(np.array([places[key] for key in keys])) / max(len(keys) - 1, 1)


def _ranks(values: np.ndarray) -> np.ndarray:
    """From 0; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((counts.cumsum() - (counts + 1) / 2)[inverse])


@dataclass(frozen=True, slots=True)
class _Column:
    """A parameter's values as numbers, NaN where a trial has none; a choice's are codes without order."""

    values: np.ndarray
    choice: bool

    @property
    def varies(self) -> bool:
        known = self.values[~np.isnan(self.values)]
        return len(np.unique(known)) > 1 or (len(known) > 0 and len(known) < len(self.values))


def _column(values: Sequence[Any]) -> _Column:
    known = [value for value in values if value is not None]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return _Column(np.array([np.nan if value is None else float(value) for value in values]), False)
    codes = {text: float(code) for code, text in enumerate(dict.fromkeys(map(repr, known)))}
    return _Column(np.array([np.nan if value is None else codes[repr(value)] for value in values]), True)


def _alone(column: _Column, y: np.ndarray) -> float | None:
    """What the parameter alone explains of the order, among the trials that have it."""
    known = ~np.isnan(column.values)
    x, y = column.values[known], _ranks(y[known])
    groups = len(np.unique(x)) if column.choice else 2
    if len(x) < LEAST or len(np.unique(x)) < 2 or len(np.unique(y)) < 2 or len(x) <= groups:
        return None
    if column.choice:
        between = sum((x == code).sum() * (y[x == code].mean() - y.mean()) ** 2 for code in np.unique(x))
        share = between / ((y - y.mean()) ** 2).sum()
    else:
        share = np.corrcoef(_ranks(x), y)[0, 1] ** 2
    return float(max(0.0, 1 - (1 - share) * (len(x) - 1) / (len(x) - groups)))


def _forest(columns: dict[str, _Column], y: np.ndarray) -> tuple[dict[str, float | None], float]:
    """Shares that sum to what the forest explains, over held-out folds; and that."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import KFold

    x = np.stack([column.values for column in columns.values()], 1)
    lost, scores = [], []
    for train, test in KFold(_FOLDS, shuffle=True, random_state=0).split(x):
        forest = RandomForestRegressor(_TREES, min_samples_leaf=2, random_state=0).fit(x[train], y[train])
        shuffled = _shuffled(x[test])  # [parameters, repeats, tests, parameters]
        found = forest.predict(shuffled.reshape(-1, x.shape[1])).reshape(shuffled.shape[:-1])
        scores.append(float(_explained(y[test], forest.predict(x[test]))))
        lost.append(scores[-1] - _explained(y[test], found).mean(1))
    means, explained = np.maximum(np.mean(lost, axis=0), 0.0), max(0.0, float(np.mean(scores)))
    parts = explained * means / (means.sum() or 1.0)
    return {
        path: float(part) if column.varies else None
        for (path, column), part in zip(columns.items(), parts, strict=True)
    }, explained


def _shuffled(x: np.ndarray) -> np.ndarray:
    """The rows, with each parameter in turn shuffled among them, so many times."""
    dice = np.random.default_rng(0)
    copies = np.tile(x, (x.shape[1], _REPEATS, 1, 1))
    for parameter in range(x.shape[1]):
        for repeat in range(_REPEATS):
            copies[parameter, repeat, :, parameter] = dice.permutation(x[:, parameter])
    return copies


def _explained(y: np.ndarray, found: np.ndarray) -> np.ndarray:
    """R² along the last axis; where y does not vary, what is missed."""
    return np.asarray(1 - ((y - found) ** 2).sum(-1) / (((y - y.mean()) ** 2).sum() or 1.0))


def _sorted(shares: dict[str, float | None]) -> dict[str, float | None]:
    return dict(sorted(shares.items(), key=lambda pair: (pair[1] is None, -(pair[1] or 0.0))))
