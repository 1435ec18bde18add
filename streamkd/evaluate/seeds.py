"""Figures of several seeds as one: means under the same keys, standard deviations beside them (``..._std``).

Entries of lists are matched by what names them (a teacher, a record, a batch size), never by their place.
Called by ``streamkd.evaluate.report``.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

NAMING = ("seed", "teacher", "name", "form", "batch", "record", "task", "detector", "low", "high", "label")
MAPS = ("weights", "answered")  # their keys are names of teachers or labels, so deviations go into a map beside


def plain(value: Any) -> Any:
    """JSON values only: arrays become lists, numbers that are not finite ``None``."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def merge(values: Sequence[Any]) -> Any:
    """One value from the plain values of each seed; ``None`` where they cannot be one.

    A number that one seed lacks has no mean: that of the others would be taken for the mean of all.
    """
    present = [value for value in values if value is not None]
    if not present:
        return None
    if all(_is_number(value) for value in present):
        return _mean(present) if len(present) == len(values) else None
    if all(isinstance(value, dict) for value in present):
        return _merge_dicts(present)
    if all(isinstance(value, list) for value in present):
        return _merge_lists(present)
    return present[0] if all(value == present[0] for value in present) else None


def spread(values: Sequence[Any]) -> Any:
    """Sample standard deviation of numbers, or of the numbers of equally long lists; 0 for one seed.

    ``None`` where there is nothing to measure.
    """
    present = [value for value in values if value is not None]
    if present and all(_is_number(value) for value in present):
        if len(present) < len(values):
            return None
        return float(np.std(present, ddof=1)) if len(present) > 1 else 0.0
    if present and all(isinstance(value, list) and len(value) == len(present[0]) for value in present):
        below = [spread(items) for items in zip(*present, strict=True)]
        return below if any(item is not None for item in below) else None
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _mean(numbers: Sequence[float]) -> float:
    """An integer stays one where all seeds have the same."""
    return numbers[0] if all(number == numbers[0] for number in numbers) else float(np.mean(numbers))


def _merge_dicts(seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for seed in seeds for key in seed):
        values = [seed[key] for seed in seeds if key in seed]
        if key in MAPS and all(isinstance(value, dict) for value in values):
            names = dict.fromkeys(name for value in values for name in value)
            by_name = {name: [value[name] for value in values if name in value] for name in names}
            merged[key] = {name: merge(numbers) for name, numbers in by_name.items()}
            merged[f"{key}_std"] = {name: spread(numbers) for name, numbers in by_name.items()}
            continue
        merged[key] = merge(values)
        deviation = None if key in NAMING else spread(values)
        if deviation is not None:
            merged[f"{key}_std"] = deviation
    return merged


def _merge_lists(seeds: Sequence[list[Any]]) -> list[Any] | None:
    if all(isinstance(item, dict) for seed in seeds for item in seed):
        return _merge_entries(seeds)
    if any(len(seed) != len(seeds[0]) for seed in seeds):
        return None
    return [merge(items) for items in zip(*seeds, strict=True)]


def _merge_entries(seeds: Sequence[list[dict[str, Any]]]) -> list[Any]:
    """Entries by name; points in time only where every seed has them, so that a line is of all seeds throughout."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for seed in seeds:
        for item in seed:
            found.setdefault(tuple(item.get(key) for key in NAMING), []).append(item)
    return [merge(items) for items in found.values() if "record" not in items[0] or len(items) >= len(seeds)]
