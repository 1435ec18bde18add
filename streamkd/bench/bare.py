"""The bare loop: what our step computes with a fixed gate and one moving average, written out in plain torch.

The yardstick of ``streamkd bench speed``. Same arithmetic, no strategy, no hooks, no states, no records: a fresh
batch and replayed rows from a tensor reservoir, the average's answers, the gated loss, SGD, the average's update.
"""

import copy
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """What both sides of the comparison share."""

    batch: int
    replay: int
    memory: int
    classes: int
    learning_rate: float
    decay: float
    hard: float
    temperature: float
    gain: float
    bias: float


def samples_per_second(x: Tensor, y: Tensor, network: nn.Module, shape: Shape, seed: int) -> float:
    """Train once over x [n, features] float32-able, y [n]; returns records per second."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(network.parameters(), lr=shape.learning_rate)
    average = copy.deepcopy(network).requires_grad_(False)
    ours: list[Tensor] = list(average.parameters())
    theirs: list[Tensor] = list(network.parameters())
    kept_x = torch.zeros((shape.memory, *x.shape[1:]), dtype=x.dtype)
    kept_y = torch.zeros(shape.memory, dtype=torch.int64)
    gain, bias = torch.tensor(shape.gain), torch.tensor(shape.bias)
    filled = seen = 0
    begun = time.perf_counter()
    for start in range(0, len(y), shape.batch):
        fresh_x, fresh_y = x[start : start + shape.batch], y[start : start + shape.batch]
        batch_x, batch_y = fresh_x, fresh_y
        if filled:
            slots = torch.randperm(filled, generator=generator)[: shape.replay]
            batch_x, batch_y = torch.cat([fresh_x, kept_x[slots]]), torch.cat([fresh_y, kept_y[slots]])
        inputs = (batch_x.float() * gain).add_(bias)
        with torch.no_grad():
            target = torch.softmax(average(inputs) / shape.temperature, 1)
        logits = network(inputs)
        student = F.log_softmax(logits / shape.temperature, 1)
        soft = (torch.xlogy(target, target) - target * student).sum(1)
        hard = F.cross_entropy(logits, batch_y, reduction="none")
        loss = (shape.hard * hard + (1 - shape.hard) * shape.temperature**2 * soft).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch._foreach_lerp_(ours, theirs, 1 - shape.decay)
        places, rows, seen, filled = _reservoir(len(fresh_y), seen, filled, shape.memory, generator)
        if rows:
            kept_x[places], kept_y[places] = fresh_x[rows], fresh_y[rows]
    return len(y) / (time.perf_counter() - begun)


def _reservoir(
    rows: int, seen: int, filled: int, size: int, generator: torch.Generator
) -> tuple[list[int], list[int], int, int]:
    """Vitter's algorithm R for a batch: which rows go to which places."""
    chosen: dict[int, int] = {}
    for row, draw in enumerate(torch.rand(rows, generator=generator).tolist()):
        seen += 1
        place = filled if filled < size else int(draw * seen)
        filled = min(filled + 1, size) if filled < size else filled
        if place < size:
            chosen[place] = row
    return list(chosen), list(chosen.values()), seen, filled
