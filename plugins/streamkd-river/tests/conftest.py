"""Streams of a table, and teachers of them."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from streamkd_river.teacher import RiverOptions, RiverTeacher
from torch import Tensor

from streamkd.hookspecs import Kind
from streamkd.records import InputColumn, RecordSchema
from streamkd.students import networks
from streamkd.teachers.teacher import TeacherContext

torch.set_num_threads(1)


@pytest.fixture
def schema() -> RecordSchema:
    """Records of five columns."""
    return RecordSchema(inputs=tuple(InputColumn(name=f"c{number}", dtype="float32") for number in range(5)))


@pytest.fixture
def teacher(schema: RecordSchema) -> Callable[..., RiverTeacher]:
    """A teacher of two or more classes, of records of five columns."""

    def of(model: str, classes: int = 2, schema: RecordSchema = schema, **options: Any) -> RiverTeacher:
        kind = Kind("mlp", networks.Mlp, networks.MlpOptions)
        student = networks.build(kind, networks.MlpOptions(hidden=(4,)), schema, classes, 3)
        context = TeacherContext("trees", student, schema, list(range(classes)), torch.device("cpu"))
        return RiverTeacher(RiverOptions(model=model, **options), context)

    return of


@pytest.fixture
def stream() -> Callable[..., Iterator[tuple[Tensor, Tensor, Tensor]]]:
    """Batches of a table whose rule turns round half-way: rows, columns of labels, what is to be learned."""

    def of(count: int, batch: int = 50, seed: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        for number in range(count):
            x = torch.rand(batch, 5, generator=generator)
            y = ((x[:, 0] + x[:, 1] > 1) ^ (number >= count // 2)).long()
            yield x, y, torch.rand(batch, generator=generator) < 0.9

    return of
