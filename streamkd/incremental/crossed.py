"""The teacher ``crossed``: logistic regression on cells of one to four columns together, at several rates side by side.

    record ─► numbers in bins, categories as they are ─► a cell for each chosen set of them ─► z = Σ_sets W[set, cell]
    W[set, cell] ← W[set, cell] - η (softmax(z) - e_y) / sets      one step a record, for each rate η
    answers ─► fixed share over the rates (``streamkd.gates.fixed_share``)

Crossed features, the wide part of Cheng et al. 2016 (section 3.1). A threshold in one column, and a rule over a few of
them as a tree has it, is one weight here; a record reads and writes as many weights as there are sets, however many
cells there are. Where the world changes, the cells that records now fall into change with it, and no others.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field, PositiveFloat, PositiveInt, field_validator
from torch import Tensor

from streamkd.hookspecs import Options, TeacherKind, hookimpl
from streamkd.incremental.heads import Heads, read
from streamkd.incremental.side_by_side import SideBySide, distinct, stacked, unstacked
from streamkd.plugins import Registry
from streamkd.records import InputColumn, Label, RecordSchema
from streamkd.students.columns import Columns
from streamkd.teachers.teacher import TeacherContext

BINS = (16, 8, 4, 3)  # of a number alone, in twos, in threes, in fours; decision 33
PLACES = (None, 16, 6, 4)  # of a category likewise: all, or so many, of which the last is for the others
FIRST = 500  # records that the bins are fitted to
BEYOND = float(np.finfo(np.float32).max)  # finite: a version with numbers that are not is never published
MOST = 32  # numbers and categories: more, and records are no table


class CrossedOptions(Options):
    """Logistic regression on crossed columns, a step a record."""

    rates: tuple[PositiveFloat, ...] = Field(default=(0.5, 2, 8), min_length=1, description="learning rates")
    sets: PositiveInt = Field(
        default=50, le=1_000, description="of two, three and four columns each, drawn by the seed"
    )

    @field_validator("rates")
    @classmethod
    def _differ(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        return distinct(rates)


@dataclass(frozen=True)
class Crossable:
    """What is crossed: a number at a place of a record, or a category with ``places`` from there on."""

    at: int
    places: int = 0
    gaps: bool = False

    def cells(self, order: int) -> int:
        """How many bins it has in sets of so many; a gap of a number is one more, of a category a place of its own."""
        if self.places:
            return min(self.places, PLACES[order - 1] or self.places)
        return BINS[order - 1] + self.gaps


def crossables(columns: Sequence[InputColumn]) -> list[Crossable]:
    """What is crossed of records of these columns: no texts, no images, no long lists, and none at all of too many."""
    found, at = list[Crossable](), 0
    for column in columns:
        if column.kind == "category":
            found.append(Crossable(at, column.width))
        elif column.kind == "time" or (column.kind == "tensor" and column.size <= MOST):
            filled = column.missing == "fill" and column.kind == "tensor"
            found += [Crossable(at + place, gaps=filled) for place in range(column.width - len(column.indicators))]
        at += column.width
    return found if len(found) <= MOST else []


class Cells:
    """Where in the table of weights rows [n, features] lie: a number for each set of what is crossed.

    ``edges`` [numbers, orders, bins - 1] are inner edges of the bins, ``BEYOND`` all numbers where one has fewer.
    """

    def __init__(self, crossed: Sequence[Crossable], sets: int, seed: int) -> None:
        draw = np.random.RandomState(seed % 2**32)
        self._categories = [(place, each) for place, each in enumerate(crossed) if each.places]
        self._numbers = np.array([place for place, each in enumerate(crossed) if not each.places], int)
        self._at = np.array([crossed[place].at for place in self._numbers], int)
        self._gaps = np.array([crossed[place].gaps for place in self._numbers], bool)
        self._last = np.array([[each.cells(order + 1) - 1 for order in range(len(BINS))] for each in crossed])
        self.edges = np.full((len(self._numbers), len(BINS), max(BINS) - 1), BEYOND)
        self._parts: list[
            tuple[int, np.ndarray, np.ndarray, np.ndarray]
        ] = []  # order, members, their cells, first cells
        self.size, self._crossed = 0, len(crossed)
        for order in range(1, min(len(BINS), len(crossed)) + 1):
            chosen = _sets(len(crossed), order, sets if order > 1 else len(crossed), draw)
            cells = np.array([each.cells(order) for each in crossed])[chosen]
            ends = self.size + cells.prod(1).cumsum()
            self._parts.append((order, chosen.T.copy(), cells.T.copy(), ends - cells.prod(1)))
            self.size = int(ends[-1])
        self.count = sum(len(first) for *_, first in self._parts)

    def fit(self, rows: np.ndarray) -> None:
        """The bins have as many of these rows each, as far as numbers differ so often."""
        for number, at in enumerate(self._at):
            values = rows[:, at]
            for place, bins in enumerate(BINS):
                edges = _edges(values[np.isfinite(values)], bins)
                self.edges[number, place, : len(edges)] = edges

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """[n, count] numbers below ``size``; what is not a number lies in the first bin, where it is no gap."""
        bins = self._bins(rows)
        found = []
        for order, members, cells, first in self._parts:
            mine = bins[:, :, order - 1]
            cell = mine[:, members[0]]
            for member, many in zip(members[1:], cells[1:], strict=True):
                cell = cell * many + mine[:, member]
            found.append(first + cell)
        return np.concatenate(found, 1)

    def written_out(self, rows: Tensor) -> Int[Tensor, "batch count"]:
        """The same of float64 rows [n, features] in operations of torch alone, of which a graph can be made."""
        values, gaps = rows[:, torch.from_numpy(self._at)], torch.from_numpy(self._gaps)
        found = (values[:, :, None, None] >= torch.from_numpy(self.edges)).sum(3)
        bins = [torch.where((values.isnan() & gaps).unsqueeze(2), torch.tensor(BINS), found)]
        for place, each in self._categories:
            hot = rows[:, each.at : each.at + each.places].argmax(1, keepdim=True)
            bins.append(torch.minimum(hot, torch.from_numpy(self._last[place])).unsqueeze(1))
        order_of = np.argsort([*self._numbers, *(place for place, _ in self._categories)])
        bins_of = torch.cat(bins, 1)[:, torch.from_numpy(order_of)]
        cells = []
        for order, members, many, first in self._parts:
            strides = np.concatenate([many[1:][::-1].cumprod(0)[::-1], np.ones_like(many[:1])])
            mine = bins_of[:, torch.from_numpy(members), order - 1]
            cells.append(torch.from_numpy(first) + (mine * torch.from_numpy(strides)).sum(1))
        return torch.cat(cells, 1)

    def _bins(self, rows: np.ndarray) -> np.ndarray:
        """[n, crossed, orders]"""
        bins = np.zeros((len(rows), self._crossed, len(BINS)), int)
        values = rows[:, self._at]
        found = np.count_nonzero(values[:, :, None, None] >= self.edges, axis=3)
        bins[:, self._numbers] = np.where((np.isnan(values) & self._gaps)[:, :, None], BINS, found)
        for place, each in self._categories:
            hot = rows[:, each.at : each.at + each.places].argmax(1)
            bins[:, place] = np.minimum(hot[:, None], self._last[place])
        return bins


def _sets(columns: int, order: int, most: int, draw: np.random.RandomState) -> np.ndarray:
    """[sets, order] different sets."""
    every = np.array([*itertools.combinations(range(columns), order)])
    return every if len(every) <= most else every[np.sort(draw.permutation(len(every))[:most])]


def _edges(values: np.ndarray, bins: int) -> np.ndarray:
    """Inner edges: between the values where they are few, else by quantiles."""
    different = np.unique(values)
    if not len(values):
        return different
    if len(different) <= bins:
        return (different[1:] + different[:-1]) / 2
    return np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]))


class CrossedHeads(Heads):
    """What is served of the teacher: ``table`` [cells, heads, classes]."""

    table: Tensor

    def __init__(self, numbers: dict[str, Tensor], columns: Columns, cells: Cells, about: Mapping[str, int]) -> None:
        super().__init__("crossed", numbers, columns)
        self._cells, self._about = cells, about

    def logits(self, rows: Tensor) -> Float[Tensor, "heads batch classes"]:
        if torch.compiler.is_exporting():
            return self.table[self._cells.written_out(rows.double())].sum(1).transpose(0, 1)
        cells = torch.from_numpy(self._cells(rows.double().cpu().numpy())).to(self.table.device)
        found = F.embedding_bag(cells, self.table.flatten(1), mode="sum")
        return found.view(len(rows), *self.table.shape[1:]).transpose(0, 1)

    def write(self, directory: Path) -> dict[str, Any]:
        """Put its numbers into a version's directory."""
        return {**super().write(directory), **self._about}


def load(directory: Path, about: Mapping[str, Any], schema: RecordSchema, _classes: int, _all: Registry) -> Heads:
    """The part that wrote itself there; the sets follow from their seed."""
    numbers, columns = read(directory), Columns(schema, schema.student)
    cells = Cells(crossables(columns.schema.inputs), about["sets"], about["seed"])
    cells.edges = numbers["edges"].double().numpy()
    return CrossedHeads(numbers, columns, cells, about)


class CrossedTeacher(SideBySide):
    """Weights [cells, rates, classes]; it knows nothing until bins are fitted, and nothing of what is no table."""

    def __init__(self, options: CrossedOptions, context: TeacherContext) -> None:
        self._about = {"seed": context.student.seed, "sets": options.sets}
        identity = {name: str(number) for name, number in self._about.items()}
        super().__init__(context, [*map(str, options.rates)], identity)
        crossed = crossables(self._columns.schema.inputs)
        self._table = bool(crossed)
        self.cells = Cells(crossed or [Crossable(0)], options.sets, context.student.seed)
        self.fitted = False
        self._rates = np.array(options.rates)[:, None] / self.cells.count
        self._weights = np.zeros((self.cells.size, len(options.rates), len(context.labels)), np.float32)
        self._first: list[tuple[np.ndarray, int]] = []

    def grow(self, labels: Sequence[Label]) -> None:
        more = len(labels) - len(self.learned)
        super().grow(labels)
        self._weights = np.pad(self._weights, ((0, 0), (0, 0), (0, more)))

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Their cells [n, sets], once there are bins."""
        return self.cells(rows) if self.fitted else rows

    def answers(self, rows: np.ndarray) -> np.ndarray:
        """[n, rates, classes] logits; zeros before the bins are fitted."""
        if not self.fitted:
            return np.zeros((len(rows), *self._weights.shape[1:]))
        return self._weights[rows].sum(1, dtype=np.float64)

    def known(self) -> Bool[Tensor, "classes"]:
        return super().known() & self.fitted

    def unchanged(self) -> int:
        """Until the bins are fitted nothing changes."""
        return 1 if self.fitted else FIRST - len(self._first)

    def test_then_train(
        self, x: Tensor, y: Int[Tensor, "batch"], learn: Bool[Tensor, "batch"], then: np.ndarray | None = None
    ) -> Float[Tensor, "batch classes"]:
        if not self._table:
            return self.logits(x)
        return super().test_then_train(x, y, learn, then)

    def learn(self, rows: np.ndarray, labels: np.ndarray) -> None:
        """A step of gradient descent at each rate; of the first records when there are enough to fit the bins to."""
        if self.fitted:
            self._step(rows, labels)
        else:
            self._first += zip(rows, labels.tolist(), strict=True)
            if len(self._first) >= FIRST:
                self._begin()

    def _begin(self) -> None:
        """Bins, and a step for each of the first records."""
        rows, labels = (np.stack(column) for column in zip(*self._first, strict=True))
        self.cells.fit(rows)
        self.fitted, self.reading, self._first = True, self.reading + 1, []
        for cells, label in zip(self.cells(rows), labels, strict=True):
            self._step(cells[None], label[None])

    def _step(self, cells: np.ndarray, labels: np.ndarray) -> None:
        """By the cells [n, sets] of records of these labels [n]."""
        z = self._weights[cells].sum(1, dtype=np.float64)
        slopes = np.exp(z - z.max(2, keepdims=True))
        slopes /= slopes.sum(2, keepdims=True)
        slopes[np.arange(len(labels)), :, labels] -= 1.0
        for mine, step in zip(cells, (self._rates * slopes).astype(np.float32), strict=True):
            self._weights[mine] -= step

    def part(self) -> CrossedHeads | None:
        """A copy as it is now; nothing before the bins are fitted."""
        if not self.fitted:
            return None
        numbers = {"table": torch.from_numpy(self._weights.copy()), "edges": torch.from_numpy(self.cells.edges.copy())}
        return CrossedHeads({**numbers, **self.numbers()}, self._columns, self.cells, self._about)

    def size_bytes(self) -> int:
        return self._weights.nbytes

    def state_dict(self) -> dict[str, Any]:
        first = {"rows": stacked([row for row, _ in self._first]), "labels": [label for _, label in self._first]}
        numbers = {"weights": self._weights.copy(), "edges": self.cells.edges.copy()}
        held = {name: torch.from_numpy(array) for name, array in numbers.items()}
        return {**super().state_dict(), **held, "fitted": self.fitted, "first": first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._weights, edges = (state[name].numpy().copy() for name in ("weights", "edges"))
        self.cells.edges = np.minimum(edges, BEYOND)
        self.fitted, first = state["fitted"], state["first"]
        self._first = [*zip(unstacked(first["rows"]), first["labels"], strict=True)]


@hookimpl
def streamkd_teachers() -> Iterable[TeacherKind]:
    """Logistic regression on crossed columns."""
    summary = "logistic regression on cells of several columns together, learned record by record"
    yield TeacherKind("crossed", CrossedTeacher, CrossedOptions, summary, load=load)
