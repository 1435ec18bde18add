"""Which trial is taken, and the configuration that it stands for.

    finished trials ─► the highest ─► beats trial 0 by more than chance? ─► it, else trial 0 ─► best.yaml

Trial 0 is the configuration as it stands. The best of many trials looks better than it is, so it is taken only
where its mean lead over trial 0, seed by seed, exceeds the standard error of that lead:

    d_s = objective of the trial − objective of trial 0 on seed s      taken if mean(d) > std(d) / √seeds

Fewer than ``FEWEST`` seeds have no standard error to speak of: there the trial has to lead on every seed, which of two
equal trials one does in one of four cases, and whoever is told of it is told so. Both are compared where both were last
read: trial 0 may have been pruned. Called by ``streamkd.search.results``.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from streamkd import config as configuration
from streamkd.config import Config
from streamkd.plugins import Registry
from streamkd.search.ledger import TrialRecord

FEWEST = 3
"""Seeds whose standard error is told and decided by: of two it is half of their difference, which says nothing."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is taken, and why: the highest trial, and its lead over trial 0 (``None``: they could not be compared).

    Leads are positive where the trial is better, whatever the direction; ``leads`` are those of each seed, ``lead``
    their mean, ``error`` its standard error where there are seeds enough; ``records`` is where both were read.
    """

    taken: TrialRecord
    highest: TrialRecord
    default: TrialRecord | None
    lead: float | None = None
    error: float | None = None
    records: int | None = None
    leads: tuple[float, ...] = ()

    @property
    def kept(self) -> bool:
        """Whether the configuration stays as it stands although another trial was higher."""
        return self.taken is not self.highest


def choose(trials: Sequence[TrialRecord], objective: str, direction: str = "max") -> Verdict | None:
    """The verdict over all trials of a search; ``None`` where none finished with a figure."""
    sign = 1.0 if direction == "max" else -1.0
    finished = [(one, sign * value) for one in trials if (value := final(one, objective)) is not None]
    if not finished:
        return None
    highest = max(finished, key=lambda pair: (pair[1], -pair[0].number))[0]
    default = next((one for one in trials if one.number == 0), None)
    if default is None or highest is default:
        return Verdict(highest, highest, default)
    records, leads = _leads(highest, default, objective, sign)
    if not leads:
        return Verdict(highest, highest, default)
    lead, error = float(np.mean(leads)), standard_error(leads)
    stays = default.state != "failed" and (min(leads) <= 0 if error is None else lead <= error)
    return Verdict(default if stays else highest, highest, default, lead, error, records, tuple(leads))


def final(trial: TrialRecord, objective: str) -> float | None:
    """The objective of a trial that finished; ``None`` for all others."""
    return trial.objective(objective) if trial.state == "finished" else None


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean; ``None`` of fewer than ``FEWEST`` values."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) >= FEWEST else None


def front(trials: Sequence[TrialRecord], objectives: Mapping[str, str]) -> tuple[TrialRecord, ...]:
    """The finished trials that no other one beats in one objective without losing in another; the first one sorts."""
    signs = [1.0 if direction == "max" else -1.0 for direction in objectives.values()]
    points: dict[int, tuple[TrialRecord, list[float]]] = {}
    for one in trials:
        values = [final(one, name) for name in objectives]
        if None not in values:
            points[one.number] = one, [sign * (value or 0.0) for sign, value in zip(signs, values, strict=True)]
    best = [(one, p) for one, p in points.values() if not any(_dominates(other, p) for _, other in points.values())]
    return tuple(one for one, _ in sorted(best, key=lambda pair: pair[1], reverse=True))


def written(config: Config, comments: Sequence[str]) -> str:
    """A configuration as a YAML file with lines on top; ``config.load`` gives it back."""
    import yaml

    clean = ("".join(sign if sign.isprintable() else " " for sign in line) for line in comments)
    head = "".join(f"# {line}\n" for line in clean)
    return head + yaml.safe_dump(configuration.dump(config), sort_keys=False, allow_unicode=True, width=120)


def rooted(config: Config, registry: Registry, directory: Path) -> Config:
    """The configuration with every relative path, also of plugins, seen from ``directory``: it can be moved."""
    tree = configuration.dump(config)
    for keys, path in _paths(config):
        _put(tree, keys, str(directory / path))
    for at, group, choice in config.choices():
        for keys, path in _paths(configuration.options(registry, at, group, choice)):
            _put(tree, [*at.split("."), *keys], str(directory / path))
    share = config.share
    if share is not None and share.teacher not in {teacher.key for teacher in config.teachers}:
        tree["share"]["teacher"] = str(directory / share.teacher)
    return configuration.from_tree(tree, registry)


def _leads(trial: TrialRecord, default: TrialRecord, objective: str, sign: float) -> tuple[int | None, list[float]]:
    """Seed by seed, at the last records at which both were read."""
    theirs = {reading["records"]: reading for reading in default.readings}
    for ours in reversed(trial.readings):
        other = theirs.get(ours["records"])
        pairs = zip(*(_per_seed(one, objective) for one in (ours, other)), strict=False) if other else ()
        leads = [sign * (a - b) for a, b in pairs if a is not None and b is not None]
        if leads:
            return int(ours["records"]), leads
    return None, []


def _per_seed(reading: Mapping[str, Any], objective: str) -> Sequence[float | None]:
    values: Sequence[float | None] = (reading.get("per_seed") or {}).get(objective) or []
    return values or [reading["objectives"].get(objective)]


def _dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(x >= y for x, y in zip(a, b, strict=True)) and any(x > y for x, y in zip(a, b, strict=True))


def _paths(node: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Path]]:
    """Every path below a checked model; what only looks like one is left alone."""
    if isinstance(node, Path):
        yield keys, node
    elif isinstance(node, BaseModel):
        for name in type(node).model_fields:
            yield from _paths(getattr(node, name), (*keys, name))
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _paths(value, (*keys, key))
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _paths(value, (*keys, index))


def _put(tree: Any, keys: Sequence[Any], value: str) -> None:
    """The value at a place of the tree, where the tree has that place."""
    *parents, last = [int(key) if str(key).isdigit() else key for key in keys]
    for key in parents:
        tree = tree[key] if isinstance(tree, list) else tree.get(key, {})
    tree[last] = value
