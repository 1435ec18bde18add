"""An experience: one training batch as tensors, made once from encoded records."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from streamkd.records import Records
from streamkd.tasks.labels import LabelSpace


@dataclass(frozen=True, slots=True)
class TensorBatch:
    """x [batch, *shape] in the stream's element type, y [batch] int64 columns, and the index of the current task.

    y is -1 where a record came without label.
    """

    x: Tensor
    y: Tensor
    task: int


def tensors(records: Records, labels: LabelSpace, task: int, device: torch.device) -> TensorBatch:
    """Move a batch of known labels to the device; the element type stays as it is on the wire."""
    x = torch.from_numpy(records.inputs.copy())  # Arrow's memory is read-only
    y = torch.from_numpy(np.array(labels.indices(records.labels), np.int64))
    if device.type != "cpu":
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
    return TensorBatch(x, y, task)
