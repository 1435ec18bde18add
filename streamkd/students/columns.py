"""Whose eyes see what: the part of a record that some of its input columns take up.

    x [batch, *shape], all input columns laid flat one after another ─► Columns ─► those that the reader names

A student reads the columns of ``stream.records.student``, a teacher its own ``columns``; each sees them as if the
stream had no others: one column in its own shape, several as one flat vector in the order of the names. Mixed types
travel as float32, which holds whole numbers up to 2²⁴ exactly.

Not every element is an amount: categories and indicators are 0 or 1, parts of a time lie on a circle, and stay what
they are. An amount that was missing is 0, and its indicator 1 (``Amounts``).
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from streamkd.records import InputColumn, RecordSchema


class Columns:
    """Takes named columns out of records of a schema; ``schema`` is how the reader sees a record.

    Raises:
        ValueError: a name that is no input column of the schema; the known ones are said.
    """

    def __init__(self, schema: RecordSchema, names: Sequence[str] = ()) -> None:
        self.schema = schema.only(names) if names else schema
        starts, at = {}, 0
        for column in schema.inputs:
            starts[column.name], at = at, at + column.width
        parts = [(starts[column.name], starts[column.name] + column.width) for column in self.schema.inputs]
        self._parts = _joined(parts)
        self.all = self._parts == [(0, at)] and len(self.schema.inputs) == len(schema.inputs)

    def __call__(self, x: Tensor) -> Tensor:
        """[batch, *shape] of the stream to [batch, *shape] of the reader, in the same element type."""
        if self.all:
            return x
        parts = [x[:, start:end] for start, end in self._parts]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).reshape(len(x), *self.schema.shape)


class Amounts:
    """Which elements of a record of these columns are amounts, and which element tells that one is missing.

    ``all`` bool [elements]; ``missing`` and ``told_by`` [amounts that may be missing] are places of elements.
    """

    def __init__(self, columns: Sequence[InputColumn]) -> None:
        chosen, missing, told_by, at = [], list[int](), list[int](), 0
        for column in columns:
            amounts = list(_amounts(column))
            chosen.append(
                torch.zeros(column.width, dtype=torch.bool).index_fill_(0, torch.tensor(amounts).long(), True)
            )
            if column.indicators:
                last = len(column.indicators) - 1
                missing += [at + place for place in amounts]
                told_by += [at + column.indicators[min(place, last)] for place in amounts]
            at += column.width
        self.all = torch.cat(chosen)
        self.missing, self.told_by = torch.tensor(missing).long(), torch.tensor(told_by).long()


def with_gaps(rows: Tensor, missing: Tensor, told_by: Tensor) -> Tensor:
    """Flat rows [batch, elements] with NaN for the amounts that are missing, by ``Amounts``.

    Between a record and one with a gap the amount is the first's, or it is a gap, whatever is nearer.
    """
    if not len(missing):
        return rows
    gone, rows = rows[:, told_by], rows.clone()
    rows[:, missing] = torch.where(gone < 0.5, rows[:, missing] / (1 - gone), torch.nan)
    return rows


def _amounts(column: InputColumn) -> Iterable[int]:
    if column.kind == "category" or column.raw:
        return ()
    if column.kind == "time":
        return (2 * column.parts.index("age"),) if "age" in column.parts else ()
    return range(column.size)


def _joined(parts: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Neighbours as one stretch, so that columns in the stream's order are a view and not a copy."""
    joined: list[tuple[int, int]] = []
    for start, end in parts:
        if joined and joined[-1][1] == start:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((start, end))
    return joined
