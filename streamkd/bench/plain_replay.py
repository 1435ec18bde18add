"""Replay methods as plain loops over tensors, for prices that are theirs and no framework's.

    replay        cross-entropy of fresh and replayed rows together (experience replay, Chaudhry et al. 2019)
    er-ace        fresh rows compete among the classes of their batch alone (Caccia et al. 2022, section 4)
    der-balanced  DER++: replayed rows keep their logits, others of them their labels (Buzzega et al. 2020, equation 6)

One batch, one step, one pass. The memory is balanced by class: a row of the class that has most makes room.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAMES = ("replay", "er-ace", "der-balanced")
ALPHA = BETA = 0.5  # of DER++: its logits and its labels


@dataclass(frozen=True)
class Spent:
    """What a run cost: processor seconds, and bytes of everything that it keeps."""

    seconds: float
    bytes: int


class ClassBuffer:
    """At most ``capacity`` rows x in the stream's own type, y, and the logits that the network gave."""

    def __init__(self, capacity: int, x: Tensor, classes: int, seed: int) -> None:
        self.x = torch.zeros((capacity, *x.shape[1:]), dtype=x.dtype)
        self.y, self.logits = torch.zeros(capacity, dtype=torch.int64), torch.zeros(capacity, classes)
        self.filled, self._draw = 0, np.random.default_rng(seed)
        self._places: dict[int, list[int]] = {}
        self._came: dict[int, int] = {}

    def sample(self, rows: int) -> Tensor:
        """Places of so many different rows, or of all."""
        return torch.from_numpy(self._draw.permutation(self.filled)[:rows])

    def offer(self, x: Tensor, y: Tensor, logits: Tensor) -> None:
        """Rows, one after the other; within a class that has its share it is a reservoir."""
        for row, label in enumerate(y.tolist()):
            place = self._place(label)
            if place is not None:
                self.x[place], self.y[place], self.logits[place] = x[row], label, logits[row]

    def _place(self, label: int) -> int | None:
        self._came[label] = self._came.get(label, 0) + 1
        mine = self._places.setdefault(label, [])
        if self.filled < len(self.y):
            mine.append(self.filled)
            self.filled += 1
            return mine[-1]
        largest = max(self._places.values(), key=len)
        if len(mine) >= len(largest):
            drawn = int(self._draw.integers(self._came[label]))
            return mine[drawn] if drawn < len(mine) else None
        mine.append(largest.pop(int(self._draw.integers(len(largest)))))
        return mine[-1]

    def size_bytes(self, with_logits: bool) -> int:
        """Of the rows."""
        kept = (self.x, self.y, *((self.logits,) if with_logits else ()))
        return sum(t.numel() * t.element_size() for t in kept)


def train(
    name: str,
    x: Tensor,
    y: Tensor,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    batch: int,
    replay: int,
    memory: int,
    seed: int,
) -> Spent:
    """One pass over x [n, *shape] and y [n] in their order; the network, wide enough from the start, is trained."""
    buffer = ClassBuffer(memory, x, network(x[:1]).shape[1], seed)
    loss_of = LOSSES[name]
    begun = time.process_time()
    for fresh, labels in zip(x.split(batch), y.split(batch), strict=True):
        loss, logits = loss_of(network, fresh, labels, buffer, replay)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        buffer.offer(fresh, labels, logits.detach())
    seconds = time.process_time() - begun
    return Spent(seconds, buffer.size_bytes(name == "der-balanced") + _bytes(network, optimizer))


Loss = Callable[[nn.Module, Tensor, Tensor, ClassBuffer, int], tuple[Tensor, Tensor]]
"""Network, fresh rows, their labels, memory and how many are replayed, to the loss and the fresh rows' logits."""


def _er(network: nn.Module, x: Tensor, y: Tensor, buffer: ClassBuffer, replay: int) -> tuple[Tensor, Tensor]:
    places = buffer.sample(replay)
    logits = network(torch.cat([x, buffer.x[places]]))
    return F.cross_entropy(logits, torch.cat([y, buffer.y[places]])), logits[: len(x)]


def _er_ace(network: nn.Module, x: Tensor, y: Tensor, buffer: ClassBuffer, replay: int) -> tuple[Tensor, Tensor]:
    places = buffer.sample(replay)
    logits = network(torch.cat([x, buffer.x[places]]))
    fresh, replayed = logits[: len(x)], logits[len(x) :]
    others = torch.ones(logits.shape[1], dtype=torch.bool).index_fill_(0, y, False)
    loss = F.cross_entropy(fresh.masked_fill(others, -1e9), y)
    return loss + (F.cross_entropy(replayed, buffer.y[places]) if len(places) else 0.0), fresh


def _der(network: nn.Module, x: Tensor, y: Tensor, buffer: ClassBuffer, replay: int) -> tuple[Tensor, Tensor]:
    soft, hard = buffer.sample(replay), buffer.sample(replay)
    logits = network(torch.cat([x, buffer.x[soft], buffer.x[hard]]))
    fresh, kept, told = logits.split([len(x), len(soft), len(hard)])
    loss = F.cross_entropy(fresh, y)
    if len(soft):
        loss = loss + ALPHA * F.mse_loss(kept, buffer.logits[soft]) + BETA * F.cross_entropy(told, buffer.y[hard])
    return loss, fresh


LOSSES: dict[str, Loss] = dict(zip(NAMES, (_er, _er_ace, _der), strict=True))


def _bytes(network: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    moments = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    kept = [*network.parameters(), *network.buffers(), *moments]
    return sum(tensor.numel() * tensor.element_size() for tensor in kept)
