"""Whose eyes see what: the part of a record that some of its input columns take up.

    x [batch, *shape], all input columns laid flat one after another ─► Columns ─► those that the reader names

A student reads the columns of ``stream.records.student``, a teacher its own ``columns``; each sees them as if the
stream had no others: one column in its own shape, several as one flat vector in the order of the names. Mixed types
travel as float32, which holds whole numbers up to 2²⁴ exactly.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from streamkd.records import RecordSchema


class Columns:
    """Takes named columns out of records of a schema; ``schema`` is how the reader sees a record.

    Raises:
        ValueError: a name that is no input column of the schema; the known ones are said.
    """

    def __init__(self, schema: RecordSchema, names: Sequence[str] = ()) -> None:
        self.schema = schema.only(names) if names else schema
        starts, at = {}, 0
        for column in schema.inputs:
            starts[column.name], at = at, at + column.size
        parts = [(starts[column.name], starts[column.name] + column.size) for column in self.schema.inputs]
        self._parts = _joined(parts)
        self.all = self._parts == [(0, at)] and len(self.schema.inputs) == len(schema.inputs)

    def __call__(self, x: Tensor) -> Tensor:
        """[batch, *shape] of the stream to [batch, *shape] of the reader, in the same element type."""
        if self.all:
            return x
        parts = [x[:, start:end] for start, end in self._parts]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).reshape(len(x), *self.schema.shape)


def _joined(parts: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Neighbours as one stretch, so that columns in the stream's order are a view and not a copy."""
    joined: list[tuple[int, int]] = []
    for start, end in parts:
        if joined and joined[-1][1] == start:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((start, end))
    return joined
