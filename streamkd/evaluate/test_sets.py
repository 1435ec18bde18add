"""Test records of each task, and what a model says of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from streamkd.errors import SourceError
from streamkd.logs import some
from streamkd.records import RecordSchema
from streamkd.streams.encoding import codec
from streamkd.students.networks import at_rest
from streamkd.tasks import boundary
from streamkd.teachers.served import Model

BATCH = 512  # test records per forward pass


@dataclass(frozen=True)
class TestSet:
    """A task's test records: x [n, *shape] on the run's device, and their labels; ``given``: how many the source gave.

    Those without a label, and damaged ones, cannot be tested on.
    """

    task: str
    x: Tensor
    labels: Sequence[Any]
    given: int


def sets_of(given: Mapping[str, pa.Table], schema: RecordSchema, device: torch.device) -> list[TestSet]:
    """One of each task that has rows; none where there are no test records.

    Raises:
        SourceError: of one no record can be used, and no figure would have it.
    """
    tests = [_test_set(task, rows, schema, device) for task, rows in given.items() if rows.num_rows]
    if empty := [test.task for test in tests if not len(test.x)]:
        raise SourceError(
            f"no test record of {listed(empty)} can be used: they have no label, or are damaged",
            where="stream.source",
            fix="label them, or leave these tasks out of the test records",
        )
    return tests


def _test_set(task: str, rows: pa.Table, schema: RecordSchema, device: torch.device) -> TestSet:
    records = codec.encode(rows, schema, 0)[0].labelled()
    return TestSet(boundary.given(task), torch.tensor(records.inputs, device=device), records.labels, rows.num_rows)


def listed(names: Sequence[str]) -> str:
    """Tasks for a message, the first few of many."""
    return f"task{'s' * (len(names) > 1)} {some([*map(repr, names)], 5)}"


def probabilities(model: Model, x: Tensor) -> np.ndarray:
    """[n, classes] of a model that is asked, not trained."""
    with at_rest(model):
        return probabilities_over(model, torch.ones(model.classes, dtype=torch.bool), x)


@torch.no_grad()
def probabilities_over(logits: Callable[[Tensor], Tensor], known: Tensor, x: Tensor) -> np.ndarray:
    """[n, classes] over the known classes, in batches."""
    unknown = ~known.to(x.device)
    parts = [torch.softmax(logits(part).masked_fill(unknown, -torch.inf), 1) for part in x.split(BATCH)]
    return torch.cat(parts).cpu().numpy()
