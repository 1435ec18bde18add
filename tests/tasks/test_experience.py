"""Experiences: tensors of the stream's element type, labels by column."""

import numpy as np
import pytest
import torch

from streamkd.records import Records
from streamkd.tasks.experience import tensors
from streamkd.tasks.labels import LabelSpace


@pytest.mark.parametrize("element", ["uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"])
def test_the_element_type_stays(element: str) -> None:
    """What is uint8 on the wire is uint8 in the tensor, and labels are the columns of their labels."""
    inputs = np.arange(6).reshape(3, 2).astype(element)
    batch = tensors(
        Records(inputs, ["b", "a", "b"], None, np.arange(3)), LabelSpace(["a", "b"]), 4, torch.device("cpu")
    )
    assert batch.x.dtype == getattr(torch, element)
    assert batch.x.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert batch.y.dtype == torch.int64
    assert batch.y.tolist() == [1, 0, 1]
    assert batch.task == 4


def test_inputs_that_may_not_be_written_are_taken_without_a_warning() -> None:
    """Arrow's arrays are read-only; a batch over one is copied rather than aliased."""
    inputs = np.zeros((2, 2), np.float32)
    inputs.setflags(write=False)
    batch = tensors(Records(inputs, [0, 0], None, np.arange(2)), LabelSpace([0]), 0, torch.device("cpu"))
    batch.x.add_(1)
    assert inputs.sum() == 0
