"""Streams whose world changes at known records: inputs, labels and concepts, drawn from a seed.

``agrawal``            loan applicants, five of the ten functions of Agrawal et al. (1993), one after another
``agrawal-recurring``  three of them, and the same three again
``hyperplane``         a plane that turns a little with every record (Hulten, Spencer and Domingos 2001)
``moving-clusters``    fifty clusters of five classes that move (Bifet et al. 2009, RandomRBFGeneratorDrift of MOA)
``interchanging-clusters``  fifteen clusters, a class each, of which more and more swap places (Losing et al. 2016)

A stream is a pure function of its name and seed. Concepts that only ever move are one concept.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Draw = np.random.Generator
Function = Callable[[np.ndarray], np.ndarray]

COLUMNS = ("salary", "commission", "age", "elevel", "car", "zipcode", "hvalue", "hyears", "loan")
SALARY, COMMISSION, AGE, ELEVEL, CAR, ZIPCODE, HVALUE, HYEARS, LOAN = range(len(COLUMNS))
RANGES = {SALARY: (20_000, 150_000), AGE: (20, 80), HYEARS: (1, 30), LOAN: (0, 500_000)}
PERTURBED = 0.05  # of an attribute's range, after the label is told
CONCEPT_RECORDS = 10_000  # of a function
PLANE_RECORDS, PLANE_INPUTS = 50_000, 10
PLANE_CHANGE, PLANE_TURN, PLANE_NOISE = 0.001, 0.1, 0.05
CLUSTER_RECORDS, CLUSTERS, CLUSTER_INPUTS, CLUSTER_CLASSES = 50_000, 50, 10, 5
CLUSTER_SPEED = 1e-4  # a record
SWAP_RECORDS, SWAP_CLUSTERS = 3_000, 15


@dataclass(frozen=True)
class Generated:
    """x [n, inputs] float32, y [n] int64, concept [n] int64."""

    x: np.ndarray
    y: np.ndarray
    concept: np.ndarray


def generate(name: str, seed: int) -> Generated:
    """The stream of that name (one of ``NAMES``) under a seed."""
    return GENERATORS[name](np.random.default_rng([seed, NAMES.index(name)]))


def applicants(draw: Draw, count: int) -> np.ndarray:
    """``count`` loan applicants [count, 9], their columns as in ``COLUMNS``."""
    x = np.empty((count, len(COLUMNS)))
    x[:, SALARY] = draw.uniform(*RANGES[SALARY], count)
    x[:, COMMISSION] = np.where(x[:, SALARY] >= 75_000, 0.0, draw.uniform(10_000, 75_000, count))
    x[:, AGE] = draw.integers(20, 81, count)
    x[:, ELEVEL] = draw.integers(0, 5, count)
    x[:, CAR] = draw.integers(1, 21, count)
    x[:, ZIPCODE] = draw.integers(0, 9, count)
    x[:, HVALUE] = (9 - x[:, ZIPCODE]) * 100_000 * draw.uniform(0.5, 1.5, count)
    x[:, HYEARS] = draw.integers(1, 31, count)
    x[:, LOAN] = draw.uniform(*RANGES[LOAN], count)
    return x


def _between(value: np.ndarray, low: float, high: float) -> np.ndarray:
    return (value >= low) & (value <= high)


def _by_age(x: np.ndarray, young: np.ndarray, middle: np.ndarray, old: np.ndarray) -> np.ndarray:
    """Which rule holds below 40, below 60, and from 60 on."""
    return np.where(x[:, AGE] < 40, young, np.where(x[:, AGE] < 60, middle, old))


def _by_education(x: np.ndarray) -> np.ndarray:
    level, salary = x[:, ELEVEL], x[:, SALARY]
    return _by_age(
        x,
        np.where(level <= 1, _between(salary, 25_000, 75_000), _between(salary, 50_000, 100_000)),
        np.where(_between(level, 1, 3), _between(salary, 50_000, 100_000), _between(salary, 75_000, 125_000)),
        np.where(_between(level, 2, 4), _between(salary, 50_000, 100_000), _between(salary, 25_000, 75_000)),
    )


def _by_loan(x: np.ndarray) -> np.ndarray:
    salary, loan = x[:, SALARY], x[:, LOAN]
    return _by_age(
        x,
        np.where(_between(salary, 50_000, 100_000), _between(loan, 100_000, 300_000), _between(loan, 200_000, 400_000)),
        np.where(_between(salary, 75_000, 125_000), _between(loan, 200_000, 400_000), _between(loan, 300_000, 500_000)),
        np.where(_between(salary, 25_000, 75_000), _between(loan, 300_000, 500_000), _between(loan, 100_000, 300_000)),
    )


FUNCTIONS: dict[int, Function] = {
    1: lambda x: (x[:, AGE] < 40) | (x[:, AGE] >= 60),
    3: lambda x: _by_age(x, x[:, ELEVEL] <= 1, _between(x[:, ELEVEL], 1, 3), _between(x[:, ELEVEL], 2, 4)),
    4: _by_education,
    5: _by_loan,
    7: lambda x: 0.67 * (x[:, SALARY] + x[:, COMMISSION]) - 0.2 * x[:, LOAN] - 20_000 > 0,
}
"""Those that are drawn, by the paper's number: whether an applicant is of group A. The fifth of MOA and of River tests
the salary where the paper has the loan; this is the paper's."""


def _agrawal(functions: tuple[int, ...]) -> Callable[[Draw], Generated]:
    """``CONCEPT_RECORDS`` applicants of each function; label 1: of group A. Told first, then perturbed."""

    def made(draw: Draw) -> Generated:
        x = applicants(draw, CONCEPT_RECORDS * len(functions))
        concept = np.repeat(functions, CONCEPT_RECORDS)
        y = np.choose(np.repeat(np.arange(len(functions)), CONCEPT_RECORDS), [FUNCTIONS[n](x) for n in functions])
        return Generated(_perturbed(draw, x).astype(np.float32), y.astype(np.int64), concept)

    return made


def _perturbed(draw: Draw, x: np.ndarray) -> np.ndarray:
    """Applicants [n, 9] whose amounts and years are off by up to ``PERTURBED`` of the attribute's range."""
    ranges = {**RANGES, COMMISSION: (10_000, 75_000)}
    found = x.copy()
    for column, (low, high) in ranges.items():
        moved = x[:, column] + PERTURBED * (high - low) * draw.uniform(-1, 1, len(x))
        found[:, column] = np.clip(moved, low, high)
    found[:, COMMISSION] = np.where(x[:, COMMISSION] > 0, found[:, COMMISSION], 0.0)
    for column in (AGE, HYEARS):
        found[:, column] = np.round(found[:, column])
    return found


def _hyperplane(draw: Draw) -> Generated:
    """Ten inputs in [0, 1), label 1 above the plane; each weight moves by ``PLANE_CHANGE`` a record, and now and then
    turns round. A twentieth of the labels is wrong.
    """
    n, inputs = PLANE_RECORDS, PLANE_INPUTS
    x = draw.uniform(size=(n, inputs))
    turns = np.where(draw.uniform(size=(n, inputs)) < PLANE_TURN, -1, 1).cumprod(0)
    weights = draw.uniform(size=inputs) + PLANE_CHANGE * np.concatenate([np.zeros((1, inputs)), turns[:-1].cumsum(0)])
    y = ((x * weights).sum(1) >= weights.sum(1) / 2) ^ (draw.uniform(size=n) < PLANE_NOISE)
    return Generated(x.astype(np.float32), y.astype(np.int64), np.zeros(n, np.int64))


def _moving_clusters(draw: Draw) -> Generated:
    """Clusters of unequal weight and width in the unit cube, each on a straight way that the walls turn back."""
    centres, ways = draw.uniform(size=(CLUSTERS, CLUSTER_INPUTS)), draw.uniform(-1, 1, (CLUSTERS, CLUSTER_INPUTS))
    ways *= CLUSTER_SPEED / np.linalg.norm(ways, axis=1, keepdims=True)
    classes, widths = draw.integers(0, CLUSTER_CLASSES, CLUSTERS), draw.uniform(size=CLUSTERS)
    weights = draw.uniform(size=CLUSTERS)
    of = draw.choice(CLUSTERS, CLUSTER_RECORDS, p=weights / weights.sum())
    way = centres[of] + ways[of] * np.arange(CLUSTER_RECORDS)[:, None]
    away = draw.uniform(-1, 1, (CLUSTER_RECORDS, CLUSTER_INPUTS))
    away *= (draw.normal(size=CLUSTER_RECORDS) * widths[of] / np.linalg.norm(away, axis=1))[:, None]
    x = 1 - np.abs(way % 2 - 1) + away  # the way, folded into the cube
    return Generated(x.astype(np.float32), classes[of], np.zeros(CLUSTER_RECORDS, np.int64))


def _interchanging_clusters(draw: Draw) -> Generated:
    """Fifteen clusters in the plane. Every ``SWAP_RECORDS`` two of them swap places, then three, at last all."""
    places = draw.uniform(size=(SWAP_CLUSTERS, 2))
    shapes = draw.normal(scale=0.05, size=(SWAP_CLUSTERS, 2, 2))
    of_place = [np.arange(SWAP_CLUSTERS)]
    for count in range(2, SWAP_CLUSTERS + 1):
        chosen, moved = draw.permutation(SWAP_CLUSTERS)[:count], of_place[-1].copy()
        moved[chosen] = moved[np.roll(chosen, 1)]
        of_place.append(moved)
    concept = np.repeat(np.arange(len(of_place)), SWAP_RECORDS)
    y = draw.integers(0, SWAP_CLUSTERS, len(concept))
    away = np.einsum("nij,nj->ni", shapes[y], draw.normal(size=(len(y), 2)))
    x = places[np.stack(of_place)[concept, y]] + away
    return Generated(x.astype(np.float32), y, concept)


def _numbered(inputs: int) -> tuple[str, ...]:
    return tuple(f"x{number}" for number in range(inputs))


GENERATORS: dict[str, Callable[[Draw], Generated]] = {
    "agrawal": _agrawal((1, 3, 4, 7, 5)),
    "agrawal-recurring": _agrawal((1, 4, 7, 1, 4, 7)),
    "hyperplane": _hyperplane,
    "moving-clusters": _moving_clusters,
    "interchanging-clusters": _interchanging_clusters,
}
NAMES = tuple(GENERATORS)


def columns(name: str) -> tuple[str, ...]:
    """The names of a stream's inputs, without drawing it."""
    return COLUMNS if name.startswith("agrawal") else _numbered(2 if name == "interchanging-clusters" else 10)
