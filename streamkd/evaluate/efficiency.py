"""What a student costs: parameters, bytes, floating point operations, and time per prediction.

``measure`` gives the report's ``efficiency``. FLOPs count 2 per multiply-add of matrix products,
convolutions and attention, for one record; elementwise operations are not counted.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from streamkd.students.networks import at_rest
from streamkd.teachers.teacher import module_bytes

BATCHES = (1, 32)


def measure(student: nn.Module, inputs: Tensor, *, seconds: float = 0.5) -> dict[str, Any]:
    """All figures of one student in the form that is trained (``eager``).

    Args:
        inputs: some records [records, *shape] in the type that the student takes.
        seconds: how long each batch size is timed.
    """
    with at_rest(student), torch.inference_mode():
        timed = [latency(student, _rows(inputs, batch), seconds=seconds) for batch in BATCHES]
        cost = flops(student, inputs[:1])
    return {
        "parameters": parameters(student),
        "bytes": module_bytes(student),
        "flops": cost,
        "latency_seconds": [
            {"form": "eager", "batch": batch, "p50": p50, "p95": p95}
            for batch, (p50, p95) in zip(BATCHES, timed, strict=True)
        ],
    }


def parameters(module: nn.Module) -> int:
    """Numbers that are learned; one that is used in two places counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def flops(module: Callable[[Tensor], Any], inputs: Tensor) -> int:
    """Operations of one forward pass over ``inputs``, 2 per multiply-add."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        module(inputs)
    return int(counter.get_total_flops())


def latency(
    predict: Callable[[Tensor], Any], inputs: Tensor, *, seconds: float = 0.5, least: int = 20
) -> tuple[float, float]:
    """Median and 95th percentile of the seconds that one call takes, after three calls that do not count."""
    for _ in range(3):
        predict(inputs)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < least or time.perf_counter() < end:
        begun = time.perf_counter()
        predict(inputs)
        if inputs.is_cuda:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begun)
    return percentiles(taken)


def percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """p50 and p95 of timings."""
    p50, p95 = np.percentile(np.asarray(seconds, np.float64), [50, 95])
    return float(p50), float(p95)


def _rows(inputs: Tensor, batch: int) -> Tensor:
    """A batch of that many rows, the given ones repeated where they are fewer."""
    return inputs[torch.arange(batch) % len(inputs)].contiguous()
