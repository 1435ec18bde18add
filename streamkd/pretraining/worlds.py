"""Worlds of the family of streams: what records of a class look like, and how that changes from domain to domain.

    pictures   some classes of a named data set; a domain is turned, inverted, or has its pixels in another order
    texts      words of topics and common ones, as counts of few; in another domain half of the words are others
    clusters   a table of which each class is some clusters, and some columns nothing; in another domain they have moved
    rules      a table of which a random tree of thresholds says the class; in another domain it is another tree

A world is a pure function of its kind and a generator: ``records(labels, domain, draw)`` gives inputs [n, *shape].
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from streamkd.errors import SourceError
from streamkd.records import InputColumn, RecordSchema
from streamkd.streams.replay import datasets

Draw = np.random.Generator
Kind = Literal["pictures", "texts", "clusters", "rules"]
KINDS: tuple[Kind, ...] = ("pictures", "texts", "clusters", "rules")
PICTURES = "fashion-mnist"  # where it is not here, the digits of scikit-learn
WORDS, COMMON = 300, 0.7  # in a vocabulary; part of a text that tells nothing of its topic
FITTED = 300  # records that the mean and deviation of a table's columns are taken from
DEPTH = 4  # of a tree of thresholds
TRIES = 400  # records for each that is wanted of a class, before its tree is drawn anew


@runtime_checkable
class World(Protocol):
    """Classes that can be drawn from, under several domains."""

    classes: int
    column: InputColumn

    def records(self, labels: np.ndarray, domain: int, draw: Draw) -> np.ndarray:
        """Inputs [n, *shape] of records of these labels [n] in a domain."""
        ...


def world(kind: Kind, classes: int, domains: int, draw: Draw) -> World:
    """A world of a kind; of pictures it has as many classes as there are, at most."""
    kinds: dict[Kind, Callable[[int, int, Draw], World]]
    kinds = {"pictures": Pictures, "texts": Texts, "clusters": Clusters, "rules": Rules}
    return kinds[kind](classes, domains, draw)


def schema_of(one: World, *, tasks: bool) -> RecordSchema:
    """Of its records, the task beside them where it is told."""
    return RecordSchema(inputs=(one.column,), task="task" if tasks else None)


@lru_cache(maxsize=1)
def pictures_of() -> str:
    """The data set that pictures are taken from here."""
    try:
        return datasets.load(PICTURES).name
    except SourceError:
        return "digits"


@lru_cache(maxsize=1)
def _pictures() -> tuple[np.ndarray, np.ndarray, InputColumn]:
    """Training pictures [n, side, side] uint8, their labels, and the column."""
    found = datasets.load(pictures_of())
    [column] = found.schema.inputs
    flat = found.train["image"].combine_chunks().flatten().to_numpy()
    return flat.reshape(-1, *column.shape), found.train["label"].to_numpy(), column


class Pictures:
    """Some classes of a data set. The first domain is as it lies."""

    def __init__(self, classes: int, domains: int, draw: Draw) -> None:
        self._images, labels, self.column = _pictures()
        found = np.unique(labels)
        chosen = draw.permutation(found)[: min(classes, len(found))]
        self.classes = len(chosen)
        self._rows = [draw.permutation(np.flatnonzero(labels == label)) for label in chosen]
        self._orders = [draw.permutation(self._images[0].size) for _ in range(domains)]
        self._how = draw.integers(0, 3, domains)

    def records(self, labels: np.ndarray, domain: int, draw: Draw) -> np.ndarray:
        rows = np.array([draw.choice(self._rows[label]) for label in labels])
        images = self._images[rows]
        if not domain:
            return images
        if self._how[domain] == 0:
            return images.reshape(len(images), -1)[:, self._orders[domain]].reshape(images.shape)
        turned = np.rot90(images, domain % 4 or 1, axes=(1, 2))
        return np.ascontiguousarray(turned if self._how[domain] == 1 else images.max() - turned)


class Texts:
    """Counts of words, few of which tell the topic; each text is brought to length 1."""

    def __init__(self, classes: int, domains: int, draw: Draw) -> None:
        self.classes = classes
        topics, common = draw.dirichlet(np.full(WORDS, 0.05), classes), draw.dirichlet(np.full(WORDS, 0.3))
        self._words = (1 - COMMON) * topics + COMMON * common
        self._orders = [np.arange(WORDS)] + [_half_moved(WORDS, draw) for _ in range(domains - 1)]
        self.column = InputColumn(name="words", shape=(WORDS,))

    def records(self, labels: np.ndarray, domain: int, draw: Draw) -> np.ndarray:
        counts = draw.multinomial(draw.integers(10, 50, len(labels)), self._words[labels]).astype(np.float32)
        counts = counts[:, self._orders[domain]]
        return counts * np.float32(WORDS**0.5) / np.linalg.norm(counts, axis=1, keepdims=True)


def _half_moved(size: int, draw: Draw) -> np.ndarray:
    order, some = np.arange(size), draw.permutation(size)[: size // 2]
    order[some] = draw.permutation(some)
    return order


class Clusters:
    """Each class is one to three clusters of unequal widths; some columns are noise, and columns have scales."""

    def __init__(self, classes: int, domains: int, draw: Draw) -> None:
        self.classes, width = classes, int(draw.integers(5, 20))
        self._of = np.repeat(np.arange(classes), draw.integers(1, 4, classes))
        clusters = len(self._of)
        apart = draw.uniform(0.6, 1.5)
        self._centres = [apart * draw.normal(size=(clusters, width))]
        for _ in range(domains - 1):
            way = 1.2 * apart * draw.normal(size=(clusters, width))
            self._centres.append(0.6 * self._centres[-1] + way * (draw.uniform(size=(clusters, 1)) < 0.5))
        self._widths = draw.uniform(0.5, 1.5, clusters)
        self._told = draw.uniform(size=width) < 0.7
        self._scales = np.exp(2 * draw.normal(size=width))
        self.column = InputColumn(name="columns", shape=(width,), fit=FITTED)

    def records(self, labels: np.ndarray, domain: int, draw: Draw) -> np.ndarray:
        clusters = np.array([draw.choice(np.flatnonzero(self._of == label)) for label in labels])
        noise = draw.normal(size=(len(labels), len(self._told)))
        x = self._centres[domain][clusters] * self._told + noise * self._widths[clusters][:, None]
        return (x * self._scales).astype(np.float32)


class Rules:
    """Columns in [0, 1), of which a tree of thresholds says the class; a tree knows every class."""

    def __init__(self, classes: int, domains: int, draw: Draw) -> None:
        self.classes, self._width = min(classes, 4), int(draw.integers(4, 12))
        self._trees = [self._tree(draw) for _ in range(domains)]
        self.column = InputColumn(name="columns", shape=(self._width,), fit=FITTED)

    def _tree(self, draw: Draw) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Column and threshold of each inner node, class of each leaf."""
        inner, leaves = 2**DEPTH - 1, 2**DEPTH
        classes = draw.permutation(np.arange(leaves) % self.classes)
        return draw.integers(0, self._width, inner), draw.uniform(0.25, 0.75, inner), classes

    def _said(self, x: np.ndarray, domain: int) -> np.ndarray:
        columns, thresholds, leaves = self._trees[domain]
        node = np.zeros(len(x), dtype=np.int64)
        for _ in range(DEPTH):
            node = 2 * node + 1 + (x[np.arange(len(x)), columns[node]] > thresholds[node])
        return leaves[node - len(thresholds)]

    def records(self, labels: np.ndarray, domain: int, draw: Draw) -> np.ndarray:
        found = np.empty((len(labels), self._width), dtype=np.float32)
        pool = draw.uniform(size=(TRIES * self.classes, self._width)).astype(np.float32)
        said = self._said(pool, domain)
        for label in np.unique(labels):
            rows, known = np.flatnonzero(labels == label), np.flatnonzero(said == label)
            # a class that this tree leaves no room for looks like anything
            found[rows] = pool[draw.choice(known if len(known) else len(pool), len(rows))]
        return found + draw.uniform(-0.05, 0.05, found.shape).astype(np.float32)


def table(one: World, labels: np.ndarray, inputs: np.ndarray, tasks: Sequence[str] | None) -> pa.RecordBatch:
    """Records as a source hands them on."""
    flat = np.ascontiguousarray(inputs.reshape(len(inputs), -1))
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
    columns = {one.column.name: column, "label": pa.array(labels.astype(np.int64))}
    return pa.RecordBatch.from_pydict(columns | ({"task": pa.array(tasks)} if tasks is not None else {}))
